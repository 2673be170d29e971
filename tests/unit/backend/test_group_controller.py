"""What a group's controller leaves on its node, and when it starts no more workers. Ray is imported, not started."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import AsyncioActorExit

from raypipe.backend import group_controller
from raypipe.backend.broker import Broker
from raypipe.backend.group_controller import GroupController
from raypipe.backend.messages import GroupStart


@pytest.fixture
def group(monkeypatch):
    """Make a group as a controller of a start does; the broker has begun two."""
    broker = Broker()
    asyncio.run(broker.open_group("group-0"))
    for _ in range(2):
        asyncio.run(broker.begin_start("group-0"))
    handle = SimpleNamespace(is_current=SimpleNamespace(remote=broker.is_current))

    def leave():
        raise AsyncioActorExit

    monkeypatch.setattr(ray, "get", asyncio.run)
    monkeypatch.setattr(ray.actor, "exit_actor", leave)

    def make(number):
        made = GroupController.worker_group_cls.__new__(GroupController.worker_group_cls)
        start = GroupStart(SimpleNamespace(broker=handle), "group-0", number, "head", "raypipe-1f-group-0-")
        made._train_run_context = SimpleNamespace(train_loop_config={"start": start})
        return made

    return make


def test_placement_groups_are_found_by_their_names(group, monkeypatch):
    """Ray keeps one whose controller has died until the driver ends, and resources with it."""
    made = []
    monkeypatch.setattr(group_controller, "placement_group", lambda *given, **named: made.append((given, named)))
    context = SimpleNamespace(resources_per_worker={"CPU": 2.0}, num_workers=3, placement_strategy="PACK")
    for _ in range(2):
        group(1)._create_placement_group(None, context)
    assert [given for given, _ in made] == [([{"CPU": 2.0}] * 3,)] * 2
    names = [named.pop("name") for _, named in made]
    assert all(name.startswith("raypipe-1f-group-0-") for name in names)
    assert len(set(names)) == 2, "Ray refuses a name that another has"
    assert [named for _, named in made] == [{"strategy": "PACK"}] * 2


def test_a_controller_that_was_replaced_ends_before_it_takes_resources(group, monkeypatch):
    monkeypatch.setattr(group_controller, "placement_group", lambda *_, **__: pytest.fail("took resources"))
    with pytest.raises(AsyncioActorExit):
        group(0)._create_placement_group(None, None)


def test_the_folder_that_ray_train_makes_is_in_the_folder_of_rays_session_on_the_controllers_node(monkeypatch):
    """The driver's scratch folder is on another machine."""
    made = {}
    monkeypatch.setattr(group_controller, "_get_ray_train_session_dir", lambda: "/ray/session/artifacts")
    monkeypatch.setattr(group_controller, "without_synchronization", lambda: None)
    monkeypatch.setattr(group_controller.TrainController, "__init__", lambda self, **given: made.update(given))
    context = SimpleNamespace(run_config=SimpleNamespace(storage_path="/home/me/rp-1/tune-2"))
    GroupController(train_run_context=context, callbacks=[])
    assert made["train_run_context"].run_config.storage_path == "/ray/session/artifacts"


def test_the_actor_that_passes_on_requests_for_machines_is_on_the_drivers_node(monkeypatch):
    """It is the same for all controllers, and would be lost with the node of the first."""
    found = {}

    class Actor:
        def options(self, **options):
            found.update(options)
            return SimpleNamespace(remote=lambda: "the actor")

    coordinator = group_controller.coordinator
    monkeypatch.setattr(coordinator, "NodeAffinitySchedulingStrategy", coordinator.NodeAffinitySchedulingStrategy)
    monkeypatch.setattr(ray, "remote", lambda **options: lambda actor: Actor())
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "b" * 56))
    group_controller.with_coordinator_on("a" * 56)
    assert coordinator.get_or_create_autoscaling_coordinator() == "the actor"
    assert found["scheduling_strategy"].node_id == "a" * 56
