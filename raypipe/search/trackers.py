"""Curves of trials for tools that people already have open: TensorBoard, MLflow, Weights & Biases.

They are told what the run's store has recorded, and nothing is read back from them: a tracker that fails is left alone,
and the sweep goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raypipe.core.config import flat
from raypipe.core.errors import UserError, first_line, missing_package, nearest
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback

log = logging.getLogger(__name__)

NONE = "none"
PATIENCE = 30.0
"""Seconds that a driver which ends waits for what is still to be told."""


class Tracker(Protocol):
    """What is told of a run's trials."""

    def epoch(self, number: int, epoch: Epoch) -> None:
        """A trial has been scored after an epoch."""

    def end(self, result: TrialResult) -> None:
        """A trial has ended."""

    def close(self) -> None:
        """This driver tells no more."""


class TensorBoard:
    """Event files under ``tensorboard/`` of a run on this machine's disks: ``tensorboard --logdir RUN/tensorboard``."""

    def __init__(self, run: RunStore) -> None:
        self._run = run
        self._writers: dict[int, Any] = {}

    def _writer(self, number: int, epoch: int) -> Any:
        from tensorboardX import SummaryWriter

        assert self._run.local is not None
        if number not in self._writers:
            folder = self._run.local / "tensorboard" / f"trial-{number:04d}"
            # What a killed driver may have told of this epoch and later ones is told again.
            own = f".{time.time_ns()}"  # its own names are the same for all files of a second
            self._writers[number] = SummaryWriter(str(folder), purge_step=epoch, filename_suffix=own)
        return self._writers[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Score over all folds, mean training loss, and each fold's score."""
        writer = self._writer(number, epoch.epoch)
        for name, value in scalars(epoch).items():
            writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    def end(self, result: TrialResult) -> None:
        """The configuration beside the best score (TensorBoard's HParams)."""
        writer = self._writer(result.number, result.epochs + 1)
        if result.score is not None:
            given = {name: value for name, value in flat(self._run.config(result.number)).items() if value is not None}
            plain = {n: v if isinstance(v, int | float | str) else str(v) for n, v in given.items()}
            writer.add_hparams(plain, {"best_score": result.score}, name="hparams")
        writer.close()
        del self._writers[result.number]

    def close(self) -> None:
        """End the event files of trials that another driver will go on with."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """A run for each trial, in the experiment named like the run; where, says MLFLOW_TRACKING_URI."""

    def __init__(self, run: RunStore) -> None:
        from mlflow.tracking import MlflowClient

        self._run, self._client = run, MlflowClient()
        name = label(run)
        there = self._client.get_experiment_by_name(name)
        self._experiment = there.experiment_id if there else self._client.create_experiment(name)
        self._ids: dict[int, tuple[str, int]] = {}

    def _of(self, number: int) -> tuple[str, int]:
        """The trial's run, and the last epoch that it was told of before this driver."""
        if number not in self._ids:
            from mlflow.entities import Param

            tag = f"{self._run.info.created}-{number}"
            found = self._client.search_runs([self._experiment], f"tags.`raypipe.trial` = '{tag}'", max_results=1)
            if found:
                identity = found[0].info.run_id
                told = max((metric.step for metric in self._client.get_metric_history(identity, "score")), default=0)
            else:
                tags = {"raypipe.trial": tag, "raypipe.run": without_settings(self._run.where)}
                made = self._client.create_run(self._experiment, run_name=f"trial {number}", tags=tags)
                identity, told = made.info.run_id, 0
                config = flat(self._run.config(number))
                self._client.log_batch(identity, params=[Param(name, str(value)) for name, value in config.items()])
            self._ids[number] = identity, told
        return self._ids[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Score over all folds, mean training loss, and each fold's score."""
        from mlflow.entities import Metric

        identity, told = self._of(number)
        if epoch.epoch > told:
            now = int(1000 * time.time())
            values = {name.replace("/", "."): value for name, value in scalars(epoch).items()}
            metrics = [Metric(name, value, now, epoch.epoch) for name, value in values.items()]
            self._client.log_batch(identity, metrics=metrics)

    def end(self, result: TrialResult) -> None:
        """The best score, and how the trial ended."""
        identity, _ = self._of(result.number)
        if result.score is not None:
            self._client.log_metric(identity, "best_score", result.score)
        self._client.set_tag(identity, "raypipe.reason", result.reason)
        states = {"failed": "FAILED", "pruned": "KILLED", "stopped": "KILLED"}
        self._client.set_terminated(identity, states.get(result.state, "FINISHED"))

    def close(self) -> None:
        """Trials under way stay open: another driver goes on with them."""


class WandB:
    """A run for each trial, grouped by the run; project and account as wandb's own environment variables say."""

    def __init__(self, run: RunStore) -> None:
        self._run = run
        self._runs: dict[int, Any] = {}

    def _of(self, number: int) -> Any:
        import wandb

        if number not in self._runs:
            self._runs[number] = wandb.init(
                group=label(self._run),
                name=f"trial {number}",
                id=f"{round(self._run.info.created * 1000):x}-{number}",
                resume="allow",
                reinit="create_new",
                config=flat(self._run.config(number)),
                settings=wandb.Settings(silent=True, console="off"),
            )
        return self._runs[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Score over all folds, mean training loss, and each fold's score."""
        told = self._of(number)
        if epoch.epoch >= told.step:  # of a run that is gone on with: the step after its last
            told.log(scalars(epoch), step=epoch.epoch)

    def end(self, result: TrialResult) -> None:
        """The best score, and how the trial ended."""
        told = self._of(result.number)
        told.summary.update({"best score": result.score, "state": result.state, "reason": result.reason})
        told.finish(exit_code=1 if result.state == "failed" else 0)
        del self._runs[result.number]

    def close(self) -> None:
        """End what was told; another driver goes on under the same names."""
        for told in self._runs.values():
            told.finish()


TRACKERS: dict[str, tuple[Callable[[RunStore], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WandB, "wandb"),
}
"""By name: what tells it, and the package that it needs."""


def scalars(epoch: Epoch) -> dict[str, float]:
    """An epoch's numbers by name."""
    folds = {f"fold/{k}": s for k, s in enumerate(epoch.fold_scores) if s is not None}
    return {"score": epoch.score, "loss": sum(epoch.losses) / len(epoch.losses), **folds}


def label(run: RunStore) -> str:
    """A run's name: its folder's."""
    return without_settings(run.where).rstrip("/").rpartition("/")[2] or "raypipe"


def require(names: Sequence[str]) -> None:
    """Refuse trackers that there are not, or whose package is missing.

    Raises
    ------
    UserError
        Says which, and what to install.
    """
    for name in names:
        if name not in (*TRACKERS, NONE):
            raise UserError(f"--track {name}: there is no such tracker; {nearest(name, [*TRACKERS, NONE])}")
        if name != NONE and not installed(name):
            raise UserError(f"--track {name}: not installed here; {missing_package(name)}")


def installed(name: str) -> bool:
    """Whether a tracker's package is there; a folder of that name, such as wandb's own for its files, is none."""
    found = importlib.util.find_spec(TRACKERS[name][1])
    return found is not None and found.origin is not None


class TrackingCallback(SweepCallback):
    """Tells trackers of a run's events, from a thread of its own: the sweep waits for no service.

    At the first event of a trial, all its epochs are told, so that what an earlier driver had no time for is there too.

    Parameters
    ----------
    run
        The run.
    names
        Of `TRACKERS`; those whose package is missing are left out with a warning.
    """

    def __init__(self, run: RunStore, names: Sequence[str]) -> None:
        self._run = run
        self._trackers: dict[str, Tracker] = {}
        self._told: dict[int, int] = {}
        self._events: queue.SimpleQueue[int | TrialResult | None] = queue.SimpleQueue()
        # What tensorboard writes is appended to, which storage behind a URI does not know.
        wanted = [name for name in names if name != NONE and (name != "tensorboard" or run.local is not None)]
        for name in wanted:
            if not installed(name):
                log.warning("%s is not told: it is not installed here", name)
        self._names = [name for name in wanted if installed(name)]
        self._thread = threading.Thread(target=self._keep, name="raypipe-trackers", daemon=True)
        self._thread.start()

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self._put(number)

    def on_trial_end(self, result: TrialResult) -> None:
        self._put(result)

    def on_trial_settled(self, result: TrialResult) -> None:
        self._put(result)

    def _put(self, event: int | TrialResult) -> None:
        if self._names:
            self._events.put(event)

    def close(self) -> None:
        """This driver tells no more; what is still to be told has half a minute."""
        self._events.put(None)
        self._thread.join(PATIENCE)

    def _keep(self) -> None:
        for name in list(self._names):
            self._try(name, partial(self._begin, name))
        while (event := self._events.get()) is not None:
            number = event if isinstance(event, int) else event.number
            try:
                # One that drew an invalid configuration was never recorded.
                history = self._run.history(number) if self._run.has_trial(number) else None
            except Exception as error:  # a storage that fails is the sweep's to deal with
                log.warning("trial %d: an epoch is told later: %s", number, first_line(error))
                continue
            if history is not None:
                self._tell(number, history, None if isinstance(event, int) else event)
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _tell(self, number: int, history: Sequence[Epoch], result: TrialResult | None) -> None:
        fresh = history[self._told.get(number, 0) :]
        self._told[number] = len(history)
        for name, tracker in list(self._trackers.items()):
            for epoch in fresh:
                self._try(name, partial(tracker.epoch, number, epoch))
            if result is not None:
                self._try(name, partial(tracker.end, result))

    def _begin(self, name: str) -> None:
        self._trackers[name] = TRACKERS[name][0](self._run)

    def _try(self, name: str, tell: Callable[[], object]) -> None:
        if name not in self._names:
            return
        try:
            tell()
        except Exception as error:  # whatever a service, or the network to it, does
            self._names.remove(name)
            self._trackers.pop(name, None)
            log.warning("%s is told no more: %s: %s", name, type(error).__name__, first_line(error))
