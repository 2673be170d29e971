"""Private API of Ray that raypipe uses is there, with the signatures that it expects."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from raypipe.backend.join_compat import JOB_VARIABLE, node_that_answers
from raypipe.backend.ray_compat import (
    SETTINGS,
    SHUTDOWN_MODULES,
    few_processes,
    job_config,
    keys_not_forwarded,
    no_automatic_start,
    process_output_to,
    working_folder_not_copied,
)
from raypipe.core.worker_imports import package_folders
from tests.support.keys import KEYS

PARAMETERS = {
    "ray._private.state.available_resources_per_node": [],
    "ray._private.node.Node.kill_all_processes": ["self", "check_alive", "allow_graceful"],
    "ray._private.node.Node.start_api_server": ["self", "include_dashboard", "raise_on_failure"],
    "ray._private.node.Node.start_monitor": ["self"],
    "ray._private.services.canonicalize_bootstrap_address": ["addr"],
    "ray._private.services.get_node_to_connect_for_driver": [
        "gcs_client",
        "node_ip_address",
        "node_name",
        "temp_dir",
        "timeout_seconds",
    ],
    "ray._private.worker.print_to_stdstream": ["data", "ignore_prefix"],
    "ray.experimental.internal_kv._internal_kv_del": ["key"],
    "ray.experimental.internal_kv._internal_kv_get": ["key"],
    "ray.experimental.internal_kv._internal_kv_put": ["key", "value"],
    "ray._private.utils.get_dashboard_dependency_error": [],
    "ray.train.v2._internal.exceptions.UserExceptionWithTraceback": ["exc", "traceback_str"],
    "ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError": ["message", "failure"],
    "ray.train.v2._internal.execution.failure_handling.DefaultFailurePolicy.make_decision": [
        "self",
        "training_failed_error",
    ],
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy": ["scaling_config"],
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy._maybe_send_resource_request": ["self"],
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.after_controller_start": [
        "self",
        "train_run_context",
    ],
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.make_decision_for_non_running_worker_group": [
        "self"
    ],
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.make_decision_for_running_worker_group": [
        "self",
        "worker_group_state",
        "worker_group_status",
    ],
    "ray.train.v2._internal.execution.scaling_policy.NoopDecision": [],
    "ray.train.v2._internal.execution.scaling_policy.ResizeDecision": ["num_workers", "resources_per_worker"],
    "ray.train.v2._internal.execution.worker_group.state._shutdown_sync_actor": ["sync_actor"],
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._create_placement_group": [
        "self",
        "scaling_config",
        "worker_group_context",
    ],
    "ray.train.v2._internal.execution.worker_group.placement_group_handle.DefaultPlacementGroupHandle": ["pg"],
    "ray.train.constants._get_ray_train_session_dir": [],
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup.set_required_barrier_ranks": [
        "self",
        "ranks",
    ],
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks": ["self"],
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._initialize_and_run_controller": [
        "self",
        "controller_init_kwargs",
    ],
    "ray.util.placement_group.PlacementGroup": ["id"],
    "ray.util.placement_group.placement_group_table": ["placement_group"],
    "ray.util.placement_group.remove_placement_group": ["placement_group"],
}
"""Parameters of each function or class; of more optional ones, the first."""


def find(dotted: str) -> object:
    """Return what stands at a dotted name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(dotted)


@pytest.mark.parametrize("dotted", sorted(PARAMETERS))
def test_it_is_there_with_the_parameters_that_are_passed(dotted):
    parameters = list(inspect.signature(find(dotted)).parameters.values())
    wanted = PARAMETERS[dotted]
    assert [parameter.name for parameter in parameters[: len(wanted)]] == wanted
    assert all(
        p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters[len(wanted) :]
    )


def test_only_the_folder_of_raypipe_is_put_on_the_path_of_workers():
    from ray.core.generated.common_pb2 import JobConfig

    config = job_config()
    config._py_driver_sys_path.extend(["/home/me/script", "/home/me"])  # as ray.init does before it serializes
    serialized = JobConfig()
    serialized.ParseFromString(config._serialize())
    assert list(serialized.py_driver_sys_path) == package_folders() and "/home/me" not in serialized.py_driver_sys_path
    source = inspect.getsource(find("ray._private.worker.connect"))
    assert "_py_driver_sys_path.extend(code_paths)" in source and "job_config._serialize()" in source


def test_names_of_the_callbacks_that_are_left_out_are_those_of_ray():
    from raypipe.backend.train_compat import WorkerGroupTrainer

    source = inspect.getsource(find("ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"))
    assert all(f"{name}(" in source for name in WorkerGroupTrainer._LEFT_OUT)


def test_the_arguments_of_the_controller_that_are_replaced_are_those_of_ray():
    parameters = inspect.signature(
        find("ray.train.v2._internal.execution.controller.TrainController.__init__")
    ).parameters
    assert {"scaling_policy", "failure_policy"} <= parameters.keys()


def test_a_group_is_started_without_the_actor_that_synchronises_reports(monkeypatch):
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.worker_group import state, worker_group

    from raypipe.backend.group_controller import GroupController, NoSynchronization, without_synchronization

    assert issubclass(GroupController.worker_group_cls, TrainController.worker_group_cls)
    assert "pg_handle = self._create_placement_group(" in inspect.getsource(worker_group)
    assert "current_actor_is_asyncio" in inspect.getsource(ray.actor.exit_actor)
    assert "except AsyncioActorExit:\n            raise" in inspect.getsource(TrainController)
    assert "self.worker_group_cls.create(" in inspect.getsource(TrainController)
    assert "sync_actor = SynchronizationActor.options(" in inspect.getsource(worker_group)
    assert inspect.getsource(state).count("_shutdown_sync_actor(self.sync_actor)") == 2
    monkeypatch.setattr(worker_group, "SynchronizationActor", worker_group.SynchronizationActor)  # restores it
    monkeypatch.setattr(state, "_shutdown_sync_actor", state._shutdown_sync_actor)
    without_synchronization()
    actor = worker_group.SynchronizationActor.options(label_selector={"node": "1"}).remote(timeout_s=1)
    assert isinstance(actor, NoSynchronization)
    state._shutdown_sync_actor(actor)  # Ray's would kill it, and raise


def test_a_ray_of_our_own_starts_neither_monitor_nor_dashboard():
    from ray._private import services, utils
    from ray._private.node import Node

    before = Node.start_monitor, Node.start_api_server, utils.get_dashboard_dependency_error
    node = SimpleNamespace(_webui_url="http://dashboard")
    with few_processes():
        Node.start_monitor(node)
        Node.start_api_server(node, include_dashboard=False, raise_on_failure=False)
        assert utils.get_dashboard_dependency_error() is not None
    assert node._webui_url is None
    assert (Node.start_monitor, Node.start_api_server, utils.get_dashboard_dependency_error) == before
    assert "utils.get_dashboard_dependency_error() is not None" in inspect.getsource(services.start_raylet)
    assert "self._webui_url, process_info =" in inspect.getsource(Node.start_api_server)


def test_attributes_of_instances_are_there():
    from ray.train import ScalingConfig
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2._internal.execution.worker_group import WorkerGroupState

    cause = ValueError("cause")
    assert UserExceptionWithTraceback(cause, "trace")._base_exc is cause
    assert WorkerHealthCheckFailedError("message", cause).health_check_failure is cause
    assert ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2})._resources_per_worker_not_none == {"CPU": 2}
    assert "placement_group_handle" in inspect.signature(WorkerGroupState).parameters
    assert "num_workers" in dir(WorkerGroupState)
    raylet = importlib.import_module("ray._raylet")
    assert callable(raylet.Config.initialize) and callable(raylet.AuthenticationTokenLoader.instance().reset_cache)
    constants = importlib.import_module("ray._private.ray_constants")
    assert isinstance(constants.ENABLE_RAY_CLUSTERS_ENV_VAR, str)
    assert isinstance(constants.ENABLE_RAY_CLUSTER, bool)
    assert 'kwargs.pop("_temp_dir"' in inspect.getsource(ray.init)
    services = importlib.import_module("ray._private.services")
    assert issubclass(services.ConsolePopen, subprocess.Popen)
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)


RAYLET = f"""#!{sys.executable}
import subprocess, sys
code = "from raypipe.backend.join_compat import address_of_job; print(address_of_job())"
subprocess.run(["sh", "-c", f"{{sys.executable}} -c '{{code}}'; true"], check=True)
"""


@pytest.mark.parametrize("is_job", [True, False])
def test_a_job_joins_the_cluster_that_runs_it(is_job, tmp_path):
    """Ray gives it the address of any Ray that it finds on the head."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    raylet = tmp_path / "raylet"
    raylet.write_text(RAYLET)
    raylet.chmod(0o700)
    env = os.environ | ({JOB_VARIABLE: "{}"} if is_job else {})
    command = [raylet, "--raylet_socket_name=/tmp/s", "--gcs-address=192.0.2.1:6379", "--session-name=s"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == ("192.0.2.1:6379" if is_job else "None")


def test_sockets_of_ray_have_the_names_by_which_the_length_of_its_folder_is_limited():
    source = inspect.getsource(find("ray._private.node.Node"))
    for part in ('"%Y-%m-%d_%H-%M-%S_%f"', 'f"session_{date_str}_{os.getpid()}"', '"plasma_store"', '"sockets"'):
        assert part in source, part


def test_ray_reads_every_environment_variable_that_is_set():
    package = Path(ray.__file__).parent
    found: set[str] = set()
    for folder in ("_common", "_private", "air", "train", "tune"):
        for path in (package / folder).rglob("*.py"):
            found |= set(re.findall(r"\b(?:RAY|TUNE)_[A-Z_]+\b", path.read_text(errors="ignore")))
    assert SETTINGS.keys() <= found


def test_the_modules_that_a_shutdown_imports_are_those_of_ray():
    source = inspect.getsource(importlib.import_module("ray._private.worker").shutdown)
    assert set(re.findall(r"^ +from (\S+) import", source, re.MULTILINE)) == set(SHUTDOWN_MODULES)
    assert all(importlib.util.find_spec(module) for module in SHUTDOWN_MODULES)


def test_functions_of_ray_start_none_while_a_sweep_leaves_it(monkeypatch):
    hook = importlib.import_module("ray._private.auto_init_hook")
    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda: started.append(1))
    with no_automatic_start():
        hook.auto_init_ray()
    assert not started
    hook.auto_init_ray()
    assert started == [1]


def test_tune_does_not_wait_for_a_control_store_in_its_loop(monkeypatch):
    """It would ask for the cluster's resources every ten seconds, and wait for the answer."""
    updater = importlib.import_module("ray.tune.utils.resource_updater")
    monkeypatch.setattr(updater, "TUNE_STATE_REFRESH_PERIOD", 0.0)  # as if the time had passed
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    asked = []
    monkeypatch.setattr(ray, "cluster_resources", lambda: asked.append(1) or {"CPU": 1.0})
    monkeypatch.setenv("TUNE_STATE_REFRESH_PERIOD", SETTINGS["TUNE_STATE_REFRESH_PERIOD"])
    loop = updater._ResourceUpdater()
    for _ in range(3):
        loop.update_avail_resources()
    assert len(asked) == 1, "when it starts"
    source = inspect.getsource(find("ray.tune.execution.tune_controller.TuneController.on_step_begin"))
    assert source.count("self.") == 1 and "self._resource_updater.update_avail_resources()" in source


def test_tune_forwards_settings_of_ray_and_no_keys(monkeypatch):
    """It forwards AWS keys as the runtime environment of its actors, which Ray writes to a log that all can read."""
    cache = importlib.import_module("ray.tune.execution.class_cache")
    monkeypatch.setattr(cache, "ENV_VARS_TO_PROPAGATE", cache.ENV_VARS_TO_PROPAGATE | set(KEYS))
    before = cache.ENV_VARS_TO_PROPAGATE
    for name in (*KEYS, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"):
        monkeypatch.setenv(name, "canary")
    given = []
    monkeypatch.setattr(ray, "remote", lambda runtime_env: given.append(runtime_env["env_vars"]) or (lambda cls: cls))
    with keys_not_forwarded():
        cache._ActorClassCache().get(object)
    assert [name for name, value in given[0].items() if value == "canary"] == ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]
    assert cache.ENV_VARS_TO_PROPAGATE is before


def test_the_working_folder_is_not_copied_under_uv_run(monkeypatch):
    """Ray would copy it for its workers, with an ``.env`` file in it."""
    worker = importlib.import_module("ray._private.worker")
    hook = importlib.import_module("ray._private.runtime_env.uv_runtime_env_hook")
    monkeypatch.setattr(hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "raypipe"])
    monkeypatch.setattr(hook, "hook", lambda given: {"working_dir": "."})
    assert worker._maybe_modify_runtime_env(None, False) == {"working_dir": "."}
    with working_folder_not_copied():
        assert worker._maybe_modify_runtime_env(None, False) is None
    assert worker._maybe_modify_runtime_env(None, False) == {"working_dir": "."}


def test_output_of_processes_goes_where_ray_would_print_it():
    worker = importlib.import_module("ray._private.worker")
    printed, received = worker.print_to_stdstream, []
    with process_output_to(received.append):
        worker.print_to_stdstream({"lines": ["one"]}, ignore_prefix=False)
    assert received == [{"lines": ["one"]}]
    assert worker.print_to_stdstream is printed
    assert "print_to_stdstream" in inspect.getsource(worker.connect), "connect() registers it"


@pytest.fixture
def nodes(monkeypatch):
    """Nodes that Ray chooses for a driver, one after another."""
    from ray._private import services

    found = [SimpleNamespace(node_manager_address="here", node_manager_port=port) for port in (1, 1, 2)]
    monkeypatch.setattr(services, "get_node_to_connect_for_driver", lambda client, **names: found.pop(0))
    return found


def test_a_driver_waits_for_a_node_that_answers(nodes):
    from ray._private import services

    choose, asked = services.get_node_to_connect_for_driver, []

    def answers(address):
        asked.append(address)
        return address == "here:2"

    with node_that_answers(answers, 60.0, 0.0):
        assert services.get_node_to_connect_for_driver("client", node_name=None).node_manager_port == 2
    assert asked == ["here:1", "here:1", "here:2"] and services.get_node_to_connect_for_driver is choose


def test_a_node_that_never_answers_is_named(nodes):
    from ray._private import services

    line = r"^the raylet at here:1 does not answer within 0 s$"
    with node_that_answers(lambda address: False, 0.0, 0.0), pytest.raises(RuntimeError, match=line):
        services.get_node_to_connect_for_driver("client")
