"""Adapters to Ray Tune: a searcher, a scheduler and a stopper that leave every decision to the run's queue."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raypipe.backend.trial_queue import DriverLease, TrialQueue
from raypipe.core.errors import DiskFullError, LostSweepError, StorageError, UserError
from raypipe.core.stop import StopRequest
from raypipe.storage.journal import STUDY_NAME
from raypipe.storage.records import State, TrialResult
from raypipe.storage.remote import shell_quoted
from raypipe.trial.callback import SweepCallback
from raypipe.trial.failures import UNUSABLE_WORKERS, DrawError
from raypipe.trial.requests import STOPPED, RequestDesk

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

MAX_SAME_FAILURES = 3
"""The sweep stops when its first trials fail the same way this often."""
MAX_ACTOR_DEATHS = 3
"""A trial fails when this many actors have died with it; Tune restarts each several times."""
DEATH_WAIT_SECONDS = 1.0
"""Seconds that the driver waits to see whether the broker has died too when an actor has."""
ADVICE = {
    "bad-configuration": "correct the search space and name a new run folder",
    "non-finite": "try lower values of optim/lr, or check the windows for values that are not finite",
    "out-of-memory": "reduce batch_size or the model in the search space, or run fewer trials at a time",
    "lost-worker": "check whether machines and GPUs stay up and have enough memory; raypipe logs says how workers died",
    "error": "check the traceback: the configurations may not be the cause",
}
"""What to do when every trial fails, by kind of failure."""
_SWEEP_ERRORS: dict[str, Callable[[str], Exception]] = {
    "disk-full": DiskFullError,
    "storage": StorageError,
    "no-workers": lambda reason: UserError(f"{reason}; the same command continues from here"),
    UNUSABLE_WORKERS: UserError,
}
"""Failures that end the sweep and leave the trial open."""
_KINDS_WITHOUT_REASON = ("non-finite", "out-of-memory", "lost-worker")
"""Failures of these kinds are the same whatever their reasons say."""
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


class RunSearch(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that takes trials from a queue, and updates the run and the study at every event.

    Ray's own class reports trials that a scheduler stopped as COMPLETE, leaves those with a NaN score RUNNING,
    repeats its first draws when it is seeded again, and keeps its state in snapshots, which are not used here.

    Parameters
    ----------
    queue
        Trials of the run.
    storage
        Optuna's storage of the study.
    callback
        Called at the events of trials.
    stop
        Asks the sweep to stop: no trial is started, and each running trial stops after its epoch and stays open.
    lease
        Lease of the run; the sweep stops when it is lost.
    check_budget
        Returns which budget is used up, or an empty string.
    broker_died
        Returns whether the broker dies within some seconds.
    actor_not_replaced
        Returns whether an actor that died was not replaced (`Watchdog.check`).
    desk
        Acts on requests from outside; None for a sweep that takes none.

    Attributes
    ----------
    fatal
        Why the sweep cannot continue.
    progress
        Whether an epoch was finished.
    budget_used
        Which budget is used up, or an empty string.
    """

    def __init__(
        self,
        queue: TrialQueue,
        storage: BaseStorage,
        *,
        callback: SweepCallback,
        stop: StopRequest | None = None,
        lease: DriverLease | None = None,
        check_budget: Callable[[], str] = lambda: "",
        broker_died: Callable[[float], bool] = lambda seconds: False,
        actor_not_replaced: Callable[[], bool] = lambda: False,
        desk: RequestDesk | None = None,
    ) -> None:
        mode = "min" if queue.run.info.direction == "minimize" else "max"
        super().__init__(queue.run.space, metric="score", mode=mode, storage=storage, study_name=STUDY_NAME)
        self.queue, self.callback, self.stop = queue, callback, stop or StopRequest()
        self._lease, self._check_budget = lease, check_budget
        self._broker_died, self._actor_not_replaced, self._desk = broker_died, actor_not_replaced, desk
        self.fatal: BaseException | None = None
        self.progress = False
        self.budget_used = ""
        self._numbers: dict[str, int] = {}
        self._running: set[int] = set()
        self._stop_reasons: dict[str, tuple[State, str]] = {}
        self._failures: Counter[tuple[str, str]] = Counter()
        self._deaths: Counter[int] = Counter()
        self._none_left = False
        self._abandoned = False
        self._any_success = any(result.state != "failed" for result in queue.run.results())
        self._draining_reported = False

    # Tune asks for trials

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial for Tune; None while only running trials are left."""
        self._end_if_abandoned()
        with self._sweep_ends_on_error():
            self._act_on_requests()
        while not (self.fatal or self.stop.is_set() or self._over_budget()):
            if self._none_left and self._running:
                return None  # Tune asks again: a running trial may be put back
            try:
                number = self.queue.next()
            except DrawError as error:
                with self._sweep_ends_on_error():
                    self._end(error.result)
                continue
            except Exception as error:
                self.fatal = error
                break
            if number is None:
                self._none_left = True
                return None if self._running else Searcher.FINISHED
            self._numbers[trial_id] = number
            self._running.add(number)
            with self._sweep_ends_on_error():
                self.callback.on_trial_start(number, self.queue.run.config(number))
            return {"number": number, "restores": self.queue.awaited_end(number) is not None}
        return Searcher.FINISHED

    def _act_on_requests(self) -> None:
        if self._desk is not None:
            self._desk.act(len(self._running))

    def _over_budget(self) -> bool:
        self.budget_used = self.budget_used or self._check_budget()
        return bool(self.budget_used)

    # Tune reports

    def record_epoch(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record an epoch that a trial has reported; return whether the trial continues."""
        self._end_if_abandoned()
        number = self._numbers[trial_id]
        self.progress = True
        with self._sweep_ends_on_error():
            self.callback.on_epoch(number, result["epoch"], result["score"], result["folds"])
            if not self.queue.observe(number):
                self._stop_reasons[trial_id] = self.queue.early_end(number)
        if self._desk is not None and self._desk.stops(number):
            self._stop_reasons.setdefault(trial_id, ("stopped", STOPPED))
        if self._over_budget():
            self._stop_reasons.setdefault(trial_id, ("stopped", self.budget_used))
        return not (self.fatal or self.stop.is_set() or trial_id in self._stop_reasons)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the scheduler has called `record_epoch`."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial ended. A trial that was interrupted stays open for the next driver."""
        self._end_if_abandoned()
        with self._sweep_ends_on_error():
            self._complete(trial_id, result or {}, error)

    @contextlib.contextmanager
    def _sweep_ends_on_error(self) -> Iterator[None]:
        """Make an exception `fatal`: Tune would blame it on the trial, and train that again."""
        try:
            yield
        except Exception as error:
            self.fatal = self.fatal or error

    def _complete(self, trial_id: str, result: dict[str, Any], error: bool) -> None:
        number, failure = self._numbers[trial_id], result.get("failure")
        if failure in _SWEEP_ERRORS:
            self.fatal = _SWEEP_ERRORS[failure](str(result["reason"]))
        elif failure:
            reason, trace = str(result["reason"]), str(result.get("trace", ""))
            self._close(number, "failed", reason, str(failure), trace)
        elif error:
            # A broker that has died, or the end of the sweep, explains the death of the actor.
            if not self.broker_is_lost(DEATH_WAIT_SECONDS) and self.fatal is None:
                self._retry(number)
        elif trial_id in self._stop_reasons:
            state, reason = self._stop_reasons.pop(trial_id)
            self._close(number, state, reason)
        elif result.get("over"):
            self.progress = True  # Tune does not call the scheduler for a trial's last epoch
            self.queue.observe(number)
            self._close(number, *(self.queue.awaited_end(number) or ("complete", "trained to the end")))

    def _retry(self, number: int) -> None:
        """Hand out a trial again whose actor has died. Tune itself gives up when one dies between two trials."""
        self._deaths[number] += 1
        if self._deaths[number] < MAX_ACTOR_DEATHS:
            self._running.discard(number)
            self.queue.put_back(number)
            self._none_left = False
        else:
            self._close(number, "failed", f"its actor died {MAX_ACTOR_DEATHS} times", "lost-worker")

    def _close(self, number: int, state: State, reason: str, failure: str | None = None, trace: str = "") -> None:
        """Record how a trial ended, or have it handed out again if it has lost checkpoints."""
        ended = self.queue.close(number, state, reason, failure, trace)
        if ended is not None:
            self._end(ended)
        else:
            self._running.discard(number)
            self._none_left = False

    def _end(self, ended: TrialResult) -> None:
        self._running.discard(ended.number)
        self.callback.on_trial_end(ended)
        if self._desk is not None:
            self._desk.settle(ended)
        if ended.state == "failed":
            self._count_failure(ended)
        else:
            self._any_success = True

    def _count_failure(self, ended: TrialResult) -> None:
        """Stop the sweep when its first trials fail the same way."""
        kind = ended.failure or "error"
        # Reasons of one failure differ by numbers: bytes, epochs, drawn values.
        same = kind, "" if kind in _KINDS_WITHOUT_REASON else _NUMBER.sub("#", ended.reason)
        self._failures[same] += 1
        if not self._any_success and self._failures[same] >= MAX_SAME_FAILURES:
            where = shell_quoted(self.queue.run.where)
            self.fatal = UserError(
                f"the first {MAX_SAME_FAILURES} trials failed the same way ({kind}): {ended.reason}; "
                f"{ADVICE.get(kind, ADVICE['error'])}; more in: raypipe logs {where} {ended.number}"
            )

    # Tune's loop asks whether to end

    def check(self) -> bool:
        """Return whether the sweep must end; record why."""
        self._end_if_abandoned()
        with self._sweep_ends_on_error():
            self._act_on_requests()
            if self.stop.is_set() and not self._draining_reported:
                self._draining_reported = True  # reported here: a signal handler may have set the request
                self.callback.on_draining(len(self._running))
            if self._lease is not None and self._lease.lost is not None:
                raise self._lease.lost
            if self._actor_not_replaced():
                raise LostSweepError("no actor replaced one that died", self.progress)
        return self.broker_is_lost() or self.fatal is not None

    def abandon(self, reason: BaseException) -> None:
        """Make Tune's thread end at its next call here, and record nothing that it still reports.

        Unlike an end by `fatal`, that waits for no actor. Ray ends a process that leaves it while a thread waits so.
        """
        self._abandoned = True
        self.fatal = self.fatal or reason

    def _end_if_abandoned(self) -> None:
        if self._abandoned:
            raise SystemExit  # Tune catches any `Exception`, and waits for its actors

    def broker_is_lost(self, seconds: float = 0.0) -> bool:
        """Return whether the broker has died or dies within some seconds; the sweep then restarts."""
        if self.fatal is None and self._broker_died(seconds):
            self.fatal = LostSweepError("the sweep's broker has died", self.progress)
        return isinstance(self.fatal, LostSweepError)

    @property
    def interrupted(self) -> bool:
        """Return whether Tune ended before the trials did."""
        return bool(self._running) or not (self.queue.exhausted or self.budget_used)

    # Tune's snapshots are not used

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("the search is made again from the run's store",)  # Tune pickles it for `Tuner.restore`

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run's store and the study hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the run's store and the study hold the state."""


class RunScheduler(FIFOScheduler):  # type: ignore[misc]
    """Scheduler that stops the trials that `RunSearch.record_epoch` does not continue."""

    def __init__(self, search: RunSearch) -> None:
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial or let it continue."""
        continues = self._search.record_epoch(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)


class RunStopper(tune.Stopper):  # type: ignore[misc]
    """Stopper that ends Tune when the sweep cannot continue."""

    def __init__(self, search: RunSearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Return whether the sweep ends; Tune calls this in every iteration of its loop."""
        return self._search.check()
