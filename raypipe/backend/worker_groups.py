"""Groups of Ray Train workers that live on from trial to trial, kept by the driver.

Tune's usual pattern, a trainer inside each trial, starts a controller and a worker group for every trial (about 16 s).
Here a sweep starts each of its groups once, beside Tune's slots and not after them: a group's workers serve whatever
trial the slot that has taken the group hands to them, by the sweep's `Broker`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raypipe.backend.messages import SweepContext
from raypipe.backend.worker import serve
from raypipe.core.errors import first_line, out_of_memory
from raypipe.storage.files import open_folder
from raypipe.storage.trial_log import TrialLog
from raypipe.trial.failures import OUT_OF_MEMORY, Failure

log = logging.getLogger(__name__)

# Times a group is started again after its controller has failed; of its workers, Ray Train takes care.
STARTS = 4
# Seconds that groups are given to end in good order.
FAREWELL = 10.0
# Seconds that a thread is given to see that its group is gone; mostly it needs none.
LAST = 60.0
# Seconds that a group waits for room for all its workers before it goes on with fewer.
ABSENCE = 30.0
# Seconds between two looks of a group with fewer workers for room for all.
LOOK = 30.0


class ElasticPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as asked for; fewer where a lost machine does not come back, and all once there is room again.

    Ray's own policy for this resizes whenever another group takes or gives back resources, and asks Ray Data's
    autoscaler first: 2 to 3 s of a start, on a machine that cannot grow.

    Parameters
    ----------
    scaling_config
        The workers asked for.
    grows
        Whether the cluster may grow when it is asked to.
    """

    def __init__(self, scaling_config: ScalingConfig, *, grows: bool) -> None:
        super().__init__(scaling_config)
        self._grows, self._begun = grows, False
        self._held: str | None = None  # placement group of the latest workers
        self._short = self._looked = math.inf  # since when there is too little room; last look for more

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for machines."""
        if self._grows:
            super().after_controller_start(train_run_context)

    def _maybe_send_resource_request(self) -> None:
        if self._grows:
            super()._maybe_send_resource_request()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """All workers, at first and where they fit; what fits, where they have not for `ABSENCE`."""
        self._maybe_send_resource_request()
        wanted = int(self.scaling_config.num_workers)
        fits = groups_that_fit(self._each, self._held) if self._begun else wanted
        self._begun = True
        self._looked = now = time.monotonic()
        if fits >= wanted:
            self._short = math.inf
        else:
            self._short = min(self._short, now)
            if not fits or now - self._short < ABSENCE:
                return NoopDecision()
        return ResizeDecision(min(fits, wanted), self._each)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """All workers again, once there is room for those that are missing."""
        self._maybe_send_resource_request()
        self._held = worker_group_state.placement_group_handle.placement_group.id.hex()
        missing = int(self.scaling_config.num_workers) - worker_group_state.num_workers
        now = time.monotonic()
        if missing <= 0 or now - self._looked < LOOK:
            return NoopDecision()
        self._looked = now
        if groups_that_fit(self._each) < missing:
            return NoopDecision()
        return ResizeDecision(int(self.scaling_config.num_workers), self._each)

    @property
    def _each(self) -> dict[str, float]:
        return dict(self.scaling_config._resources_per_worker_not_none)


class _Announced(ElasticPolicy):
    """Of a group that a sweep's desk knows."""

    def __init__(self, scaling_config: ScalingConfig, crew: SweepContext, group: str) -> None:
        super().__init__(scaling_config, grows=crew.grows)
        self._crew, self._group = crew, group

    def after_controller_start(self, train_run_context: Any) -> None:
        """Tell the desk who controls the group, and ask for machines."""
        me = ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)
        if not ray.get(self._crew.desk.control.remote(self._group, me)):
            raise RuntimeError(f"{self._group} was closed before it began")
        super().after_controller_start(train_run_context)


def groups_that_fit(each: dict[str, float], held: str | None = None) -> int:
    """How many workers of so many resources each the cluster's machines have room for now.

    Parameters
    ----------
    each
        What a worker needs, by resource.
    held
        A placement group of such workers that will be given back: what it holds of machines that live counts too.
    """
    free = ray._private.state.available_resources_per_node()
    needs = [(name, amount) for name, amount in each.items() if amount > 0]
    fits = sum(int(min(node.get(name, 0.0) // amount for name, amount in needs)) for node in free.values())
    group = placement_group_table().get(held) if held else None
    if group and group["state"] != "REMOVED":
        fits += sum(node in free for node in group["bundles_to_node_id"].values())
    return fits


class WorkerGroupTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's group of workers, without two of its helpers.

    One is the detached actor that polls for a dead controller: it asks Ray's state API, which needs a dashboard, and
    the driver does its work (`release`). The other is the manager of Ray Data's sets, an actor that imports Ray Data
    for seconds and has nothing to manage here.
    """

    policies: Mapping[str, Any]
    """Of Ray Train's controller, by the name it gives them: ``scaling_policy`` and others; set before `fit`."""
    _NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._NOT_NEEDED]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**{**parts, **self.policies})


class DeathCallback(UserCallback):  # type: ignore[misc]
    """Sees a group's workers die, in its controller: writes it into the trial's log, and tells the desk why.

    A trial is to blame for one that Ray has killed to save the machine's memory; else the machine is.
    """

    def __init__(self, crew: SweepContext, group: str) -> None:
        self.crew, self.group = crew, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Take note. Whatever goes wrong here must not end the controller."""
        with contextlib.suppress(Exception):
            self._note(worker_exceptions)

    def _note(self, worker_exceptions: dict[int, Exception]) -> None:
        # Ray Train wraps what its polling met.
        causes = {rank: getattr(e, "health_check_failure", e) for rank, e in worker_exceptions.items()}
        starved = next((cause for cause in causes.values() if out_of_memory(cause)), None)
        failure = Failure(OUT_OF_MEMORY, f"killed by Ray: {first_line(starved)}") if starved else None
        number = ray.get(self.crew.desk.lost.remote(self.group, failure))
        if number is not None:
            log = TrialLog(open_folder(self.crew.run), number, self.group)
            for rank, cause in causes.items():
                log.write(f"worker {rank} died ({first_line(cause)}); the group starts again")


class WorkerGroups:
    """A sweep's worker groups, each with a Ray Train run in a thread of the driver.

    Parameters
    ----------
    crew
        What every worker is given.
    count
        How many groups.

    Attributes
    ----------
    FOOTPRINT
        Bytes that a group may hold on the driver's machine: Ray Train keeps its controller and its synchronisation
        there, and Ray may put its slot there.
    """

    FOOTPRINT = 350 * 10**6

    def __init__(self, crew: SweepContext, count: int) -> None:
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
                reason = first_line(error)
            if self._closing:
                return
            log.warning("%s ended (%s)", name, reason)
            try:
                free_placement_group(ray.get(self.crew.desk.placement.remote(name)))
            except ray.exceptions.ActorDiedError:
                return  # the desk is gone: the sweep begins again, with other groups
            except Exception as error:
                log.warning("%s: its placement group is not given back (%s)", name, first_line(error))
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.crew.desk.broken.remote(name, f"its workers could not be kept running: {reason}"))

    def _trainer(self, name: str) -> WorkerGroupTrainer:
        crew, group = self.crew, name.rsplit("-", 1)[0]
        trainer = WorkerGroupTrainer(
            serve,
            train_loop_config={"crew": crew, "group": group},
            scaling_config=ScalingConfig(
                num_workers=crew.workers,
                use_gpu=crew.gpus > 0,
                resources_per_worker={"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=crew.scratch,
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[DeathCallback(crew, group)],
            ),
        )
        trainer.policies = {"scaling_policy": _Announced(trainer.scaling_config, crew, group)}
        return trainer

    def close(self, *, now: bool = False) -> None:
        """Send the workers home; `now`, without waiting for them.

        No thread may still wait for its group when Ray is left: Ray would end the process.
        """
        self._closing = True
        left = [self._closed(name) for name in self.names]
        deadline = time.monotonic() + (0.0 if now else FAREWELL)
        for thread, (placement, controller) in zip(self._threads, left, strict=True):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                with contextlib.suppress(ray.exceptions.RayError):
                    if controller:
                        ray.kill(ray.cloudpickle.loads(controller))
                    free_placement_group(placement)
        for thread in self._threads:
            thread.join(timeout=LAST)

    def _closed(self, name: str) -> tuple[str | None, bytes | None]:
        """Have the desk close a group; its placement group and controller, if they are known and there is a desk."""
        try:
            return ray.get(self.crew.desk.close.remote(name))  # type: ignore[no-any-return]
        except ray.exceptions.RayError:
            return None, None


def free_placement_group(group: str | None) -> None:
    """Give back the resources of a worker group whose controller is gone."""
    if not group:
        return
    found = placement_group_table().get(group)
    if found and found["state"] != "REMOVED":
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
