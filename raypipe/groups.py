"""Groups of Ray Train workers that live on from trial to trial, kept by the driver.

Tune's usual pattern, a trainer inside each trial, starts a controller and a worker group for every trial (about 16 s).
Here a sweep starts each of its groups once, beside Tune's slots and not after them: a group's workers serve whatever
trial the slot that has taken the group hands to them, by the sweep's `Desk`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

import ray
from ray import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raypipe.messages import Crew
from raypipe.worker import serve

log = logging.getLogger(__name__)

# Times a group is started again after its controller has failed; of its workers, Ray Train takes care.
STARTS = 4
# Seconds that groups are given to end in good order.
FAREWELL = 10.0


class _Still(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as asked for, of a machine that does not grow.

    Ray's own first waits for an actor of Ray Data that passes requests on to an autoscaler: 2 to 3 s of a start.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing: nobody is asked for more machines."""

    def _maybe_send_resource_request(self) -> None: ...


class Workers(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's group of workers, without two of its helpers.

    One is the detached actor that polls for a dead controller: it asks Ray's state API, which needs a dashboard, and
    the driver does its work (`release`). The other is the manager of Ray Data's sets, an actor that imports Ray Data
    for seconds and has nothing to manage here.
    """

    grows = True
    """Whether the cluster may get more machines when they are asked for."""
    _NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._NOT_NEEDED]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self.grows:
            parts["scaling_policy"] = _Still(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class Groups:
    """A sweep's worker groups, each with a Ray Train run in a thread of the driver.

    Parameters
    ----------
    crew
        What every worker is given.
    count
        How many groups.
    """

    def __init__(self, crew: Crew, count: int) -> None:
        self.crew = crew
        self.names = [f"group-{number}" for number in range(count)]
        self._closing = False
        for name in self.names:
            ray.get(crew.desk.open.remote(name))
        self._threads = [threading.Thread(target=self._keep, args=(name,), daemon=True) for name in self.names]
        for thread in self._threads:
            thread.start()

    def _keep(self, name: str) -> None:
        reason = ""
        for start in range(STARTS):
            try:
                self._trainer(f"{name}-{start}").fit()
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self._closing:
                return
            log.warning("%s ended (%s)", name, reason)
            with contextlib.suppress(Exception):
                release(ray.get(self.crew.desk.placement.remote(name)))
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.crew.desk.broken.remote(name, f"its workers could not be kept running: {reason}"))

    def _trainer(self, name: str) -> Workers:
        crew = self.crew
        trainer = Workers(
            serve,
            train_loop_config={"crew": crew, "group": name.rsplit("-", 1)[0]},
            scaling_config=ScalingConfig(
                num_workers=crew.workers,
                use_gpu=crew.gpus > 0,
                resources_per_worker={"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})},
            ),
            run_config=RunConfig(name=name, storage_path=crew.scratch, failure_config=FailureConfig(max_failures=-1)),
        )
        trainer.grows = crew.grows
        return trainer

    def close(self) -> None:
        """Send the workers home."""
        self._closing = True
        with contextlib.suppress(ray.exceptions.RayError):
            placements = [ray.get(self.crew.desk.close.remote(name)) for name in self.names]
            deadline = time.monotonic() + FAREWELL
            for thread, placement in zip(self._threads, placements, strict=True):
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    release(placement)


def release(group: str | None) -> None:
    """Give back the resources of a worker group whose controller is gone."""
    if not group:
        return
    found = placement_group_table().get(group)
    if found and found["state"] != "REMOVED":
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
