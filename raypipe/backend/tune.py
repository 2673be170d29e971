"""Ray Tune's side of a sweep: OptunaSearch and a scheduler that leave every decision to the run's ledger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raypipe.core.errors import DiskFullError, LostSweepError, StorageError, UserError
from raypipe.storage.journal import STUDY_NAME
from raypipe.storage.records import State, TrialResult
from raypipe.storage.remote import shell_quoted
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback
from raypipe.trial.failures import DrawError

SAME_FAILURES = 3
MAX_ACTOR_DEATHS = 3
"""Slots that a trial may outlive, each with the lives that Tune gives it, before it fails."""
DEATH_WAIT_SECONDS = 1.0
ADVICE = {
    "bad-configuration": "correct the search space and name a new run folder",
    "non-finite": "try lower values of optim/lr, or look for values in the windows that are not finite",
    "out-of-memory": "let the search space draw a smaller batch_size or model, or run fewer trials at a time",
    "lost-worker": "see whether the machines stay up and have the memory",
    "error": "no configuration may be at fault",
}
"""What to do when every trial fails, by kind of failure."""
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


class TrialQueue(Protocol):
    """What a sweep asks of the trials of a run; `raypipe.search.study` keeps them in an Optuna study."""

    run: RunStore
    parallel: int
    """Trials that run at a time."""

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been handed out."""

    def next(self) -> int | None:
        """Hand out a trial by number; None when there is none left."""

    def put_back(self, number: int) -> None:
        """Have a trial that has not ended handed out again before any other."""

    def observe(self, number: int) -> bool:
        """Take note of a trial's history; whether the trial may go on."""

    def close(self, number: int, state: State, reason: str, failure: str | None = None, trace: str = "") -> TrialResult:
        """Record a trial's end."""


class RunSearch(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch whose trials are the ledger's.

    Ray's own tells trials that a scheduler stopped COMPLETE, leaves those with a NaN score RUNNING for ever, repeats
    its first draws when it is seeded again, and keeps what it knows in snapshots; here the run's store and the study
    are brought up to date at every event, and snapshots are left out.
    """

    def __init__(
        self,
        ledger: TrialQueue,
        storage: Any,
        *,
        over: Callable[[], str],
        callback: SweepCallback,
        lost: Callable[[float], bool] = lambda seconds: False,
        look: Callable[[], bool] = lambda: False,
    ) -> None:
        mode = "min" if ledger.run.info.direction == "minimize" else "max"
        super().__init__(ledger.run.space, metric="score", mode=mode, storage=storage, study_name=STUDY_NAME)
        self.ledger = ledger
        self._over = over
        self.callback = callback
        self._lost, self.look = lost, look
        self.progress = False
        self.fatal: BaseException | None = None
        self.used_up = ""
        self._numbers: dict[str, int] = {}
        self._open: set[int] = set()
        self._stopping: dict[str, tuple[Any, str]] = {}
        self._failures: Counter[tuple[str, str]] = Counter()
        self._deaths: Counter[int] = Counter()
        self._all_out = False
        self._fine = any(result.state != "failed" for result in ledger.run.results())
        self.draining = False
        self._announced = False

    def suggest(self, trial_id: str) -> Any:
        """Hand Tune the ledger's next trial; None while there is no other than those that run."""
        while not (self.fatal or self.draining or self._late()):
            if self._all_out and self._open:
                return None  # Tune asks again: one of them may be put back
            try:
                number = self.ledger.next()
            except DrawError as error:
                self._end(error.result)
                continue
            except Exception as error:
                self.fatal = error
                break
            if number is None:
                self._all_out = True
                return None if self._open else Searcher.FINISHED
            self._numbers[trial_id] = number
            self._open.add(number)
            self.callback.on_trial_start(number, self.ledger.run.config(number))
            return {"number": number}
        return Searcher.FINISHED

    def _late(self) -> bool:
        self.used_up = self.used_up or self._over()
        return bool(self.used_up)

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial that has reported an epoch trains on."""
        number = self._numbers[trial_id]
        self.progress = True
        self.callback.on_epoch(number, result["epoch"], result["score"], result["folds"])
        try:
            if not self.ledger.observe(number):
                self._stopping[trial_id] = ("pruned", "stopped by successive halving")
        except Exception as error:
            self.fatal = error
        if self._late():
            self._stopping.setdefault(trial_id, ("stopped", self.used_up))
        return not (self.fatal or self.draining or trial_id in self._stopping)

    def drain(self) -> None:
        """Start no trial any more, and leave those that run after the epoch under way, for another driver."""
        self.draining = True

    def announce(self) -> None:
        """Say so, once, from where it may be said: `drain` may have been called from a signal handler."""
        if self.draining and not self._announced:
            self._announced = True
            self.callback.on_draining(len(self._open))

    def desk_is_lost(self, seconds: float = 0.0) -> bool:
        """Whether the desk has died, or is seen to have within so many seconds; the sweep is then begun again."""
        if self.fatal is None and self._lost(seconds):
            self.fatal = LostSweepError("the sweep's desk has died", self.progress)
        return isinstance(self.fatal, LostSweepError)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler has asked `goes_on` already."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a trial's end. One that was only interrupted stays open and is resumed by the next driver."""
        number = self._numbers[trial_id]
        result = result or {}
        try:
            if result.get("failure") == "disk-full":
                self.fatal = DiskFullError(str(result["reason"]))
            elif result.get("failure") == "storage":
                self.fatal = StorageError(str(result["reason"]))
            elif result.get("failure") == "no-workers":
                self.fatal = UserError(f"{result['reason']}; the same command goes on from here")
            elif result.get("failure"):
                given = str(result["reason"]), str(result["failure"]), str(result.get("trace", ""))
                self._end(self.ledger.close(number, "failed", *given))
            elif error and self.desk_is_lost(DEATH_WAIT_SECONDS):
                return  # it is why the slot died, again and again
            elif error:
                self._again(number)
            elif trial_id in self._stopping:
                state, reason = self._stopping.pop(trial_id)
                self._end(self.ledger.close(number, state, reason))
            elif result.get("over"):
                self.ledger.observe(number)
                self._end(self.ledger.close(number, "complete", "trained to the end"))
        except Exception as problem:
            self.fatal = self.fatal or problem

    def _again(self, number: int) -> None:
        """Hand a trial out again whose slot has died; Tune gives up at once where one dies between two trials."""
        self._deaths[number] += 1
        if self._deaths[number] < MAX_ACTOR_DEATHS:
            self._open.discard(number)
            self.ledger.put_back(number)
            self._all_out = False
        else:
            self._end(self.ledger.close(number, "failed", "its slot died again and again", "lost-worker"))

    @property
    def interrupted(self) -> bool:
        """Whether Tune came to its end before the trials did."""
        return bool(self._open) or not (self.ledger.exhausted or self.used_up)

    def _end(self, ended: TrialResult) -> None:
        self._open.discard(ended.number)
        self.callback.on_trial_end(ended)
        if ended.state == "failed":
            self._count_failure(ended)
        else:
            self._fine = True

    def _count_failure(self, ended: TrialResult) -> None:
        kind = ended.failure or "error"
        # Reasons of one kind of failure differ by numbers that mean nothing here: bytes, epochs, drawn values.
        way = kind, "" if kind in ("non-finite", "out-of-memory", "lost-worker") else _NUMBER.sub("#", ended.reason)
        self._failures[way] += 1
        if not self._fine and self._failures[way] >= SAME_FAILURES:
            where = shell_quoted(self.ledger.run.where)
            self.fatal = UserError(
                f"the first {SAME_FAILURES} trials failed the same way ({kind}): {ended.reason}; "
                f"{ADVICE.get(kind, ADVICE['error'])}; more in: raypipe logs {where} {ended.number}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("the search is made anew from the run's store",)  # Tune pickles it for a restore we never ask for

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the run's store and the study hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the run's store and the study hold everything."""


class RunScheduler(FIFOScheduler):  # type: ignore[misc]
    """Passes on what the ledger (successive halving) and the budget say of each epoch."""

    def __init__(self, search: RunSearch) -> None:
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial or let it go on."""
        goes_on = self._search.goes_on(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class RunStopper(tune.Stopper):  # type: ignore[misc]
    """Ends Tune when the sweep cannot go on."""

    def __init__(self, search: RunSearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether something fatal has happened; Tune asks all the time."""
        self._search.announce()
        if self._search.look() and self._search.fatal is None:
            self._search.fatal = LostSweepError("nothing followed a slot that died", self._search.progress)
        return self._search.desk_is_lost() or self._search.fatal is not None
