"""Curves of trials logged to experiment trackers: TensorBoard, MLflow and Weights & Biases.

Trackers receive what the run's store has recorded, and nothing is read back from them. A tracker that fails is dropped,
and the sweep continues.
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

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.core.hidden_module import hidden_module
from raypipe.core.parameters import flatten
from raypipe.core.shipped import install_command
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback

log = logging.getLogger(__name__)

NO_TRACKER = "none"
CLOSE_SECONDS = 30.0
"""Seconds in which a driver that ends may still log what is queued."""


class Tracker(Protocol):
    """Log the trials of one run."""

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Log an epoch of a trial."""

    def end(self, result: TrialResult) -> None:
        """Log how a trial ended."""

    def close(self) -> None:
        """End this driver's logging; another driver may continue it."""


class TensorBoard:
    """Event files in ``tensorboard/`` of a run on a local disk: ``tensorboard --logdir RUN/tensorboard``."""

    def __init__(self, run: RunStore) -> None:
        self._run = run
        self._writers: dict[int, Any] = {}

    def _writer(self, number: int, epoch: int) -> Any:
        with hidden_module("torch"):  # imported for types that are not logged here, in a second and 0.1 GB
            from tensorboardX import SummaryWriter

        assert self._run.local is not None
        if number not in self._writers:
            folder = self._run.local / "tensorboard" / f"trial-{number:04d}"
            # `purge_step` hides what a killed driver logged of this epoch and later ones. The suffix is needed because
            # the default names of two files of the same second are equal.
            suffix = f".{time.time_ns()}"
            self._writers[number] = SummaryWriter(str(folder), purge_step=epoch, filename_suffix=suffix)
        return self._writers[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Log the score over all folds, the mean training loss and each fold's score."""
        writer = self._writer(number, epoch.epoch)
        for name, value in scalars(epoch).items():
            writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    def end(self, result: TrialResult) -> None:
        """Log the configuration and the best score (TensorBoard's HParams)."""
        writer = self._writer(result.number, result.epochs + 1)
        if result.score is not None:
            given = {
                name: value for name, value in flatten(self._run.config(result.number)).items() if value is not None
            }
            plain = {n: v if isinstance(v, int | float | str) else str(v) for n, v in given.items()}
            writer.add_hparams(plain, {"best_score": result.score}, name="hparams")
        writer.close()
        del self._writers[result.number]

    def close(self) -> None:
        """Close the event files of running trials."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """An MLflow run for each trial, in an experiment named like the run, on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, run: RunStore) -> None:
        from mlflow.tracking import MlflowClient

        self._run, self._client = run, MlflowClient()
        name = label(run)
        existing = self._client.get_experiment_by_name(name)
        self._experiment = existing.experiment_id if existing else self._client.create_experiment(name)
        self._ids: dict[int, tuple[str, int]] = {}

    def _mlflow_run(self, number: int) -> tuple[str, int]:
        """Return the id of the trial's MLflow run and the last epoch that an earlier driver logged."""
        if number not in self._ids:
            tag = f"{self._run.info.created}-{number}"
            found = self._client.search_runs([self._experiment], f"tags.`raypipe.trial` = '{tag}'", max_results=1)
            if found:
                run_id = found[0].info.run_id
                logged = max((metric.step for metric in self._client.get_metric_history(run_id, "loss")), default=0)
                self._ids[number] = run_id, logged
            else:
                self._ids[number] = self._create(number, tag), 0
        return self._ids[number]

    def _create(self, number: int, tag: str) -> str:
        from mlflow.entities import Param

        tags = {"raypipe.trial": tag, "raypipe.run": without_settings(self._run.where)}
        run_id = str(self._client.create_run(self._experiment, run_name=f"trial {number}", tags=tags).info.run_id)
        config = flatten(self._run.config(number))
        self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in config.items()])
        return run_id

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Log the score over all folds, the mean training loss and each fold's score."""
        from mlflow.entities import Metric

        run_id, logged = self._mlflow_run(number)
        if epoch.epoch > logged:
            now = int(1000 * time.time())
            values = {name.replace("/", "."): value for name, value in scalars(epoch).items()}
            metrics = [Metric(name, value, now, epoch.epoch) for name, value in values.items()]
            self._client.log_batch(run_id, metrics=metrics)

    def end(self, result: TrialResult) -> None:
        """Log the best score and how the trial ended."""
        run_id, _ = self._mlflow_run(result.number)
        if result.score is not None:
            self._client.log_metric(run_id, "best_score", result.score)
        self._client.set_tag(run_id, "raypipe.reason", result.reason)
        states = {"failed": "FAILED", "pruned": "KILLED", "stopped": "KILLED"}
        self._client.set_terminated(run_id, states.get(result.state, "FINISHED"))

    def close(self) -> None:
        """Do nothing: the MLflow runs of running trials stay open for the next driver."""


class WandB:
    """A W&B run for each trial, grouped by the run; wandb's own environment variables choose project and account."""

    def __init__(self, run: RunStore) -> None:
        self._run = run
        self._runs: dict[int, Any] = {}

    def _wandb_run(self, number: int) -> Any:
        import wandb

        if number not in self._runs:
            self._runs[number] = wandb.init(
                group=label(self._run),
                name=f"trial {number}",
                id=f"{round(self._run.info.created * 1000):x}-{number}",
                resume="allow",
                reinit="create_new",
                config=flatten(self._run.config(number)),
                settings=wandb.Settings(silent=True, console="off"),
            )
        return self._runs[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Log the score over all folds, the mean training loss and each fold's score."""
        run = self._wandb_run(number)
        if epoch.epoch >= run.step:  # a resumed run begins at the step after its last one
            run.log(scalars(epoch), step=epoch.epoch)

    def end(self, result: TrialResult) -> None:
        """Log the best score and how the trial ended."""
        run = self._wandb_run(result.number)
        run.summary.update({"best score": result.score, "state": result.state, "reason": result.reason})
        run.finish(exit_code=1 if result.state == "failed" else 0)
        del self._runs[result.number]

    def close(self) -> None:
        """Finish the W&B runs of running trials; another driver resumes them by their ids."""
        for run in self._runs.values():
            run.finish()


TRACKERS: dict[str, tuple[Callable[[RunStore], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WandB, "wandb"),
}
"""Class of each tracker, and the package that it needs."""


def scalars(epoch: Epoch) -> dict[str, float]:
    """Return an epoch's numbers by name, without scores that are undefined."""
    folds = {f"fold/{k}": s for k, s in enumerate(epoch.fold_scores) if s is not None}
    score = {} if epoch.score is None else {"score": epoch.score}
    return {**score, "loss": sum(epoch.losses) / len(epoch.losses), **folds}


def label(run: RunStore) -> str:
    """Return the name of a run's folder."""
    return without_settings(run.where).rstrip("/").rpartition("/")[2] or "raypipe"


def check_trackers(names: Sequence[str]) -> None:
    """Check that all trackers are known and installed.

    Raises
    ------
    UserError
        A tracker is unknown or not installed; the message names it, and the package to install.
    """
    for name in names:
        if name not in (*TRACKERS, NO_TRACKER):
            raise UserError(f"--track {name}: there is no such tracker; {nearest(name, [*TRACKERS, NO_TRACKER])}")
        if name != NO_TRACKER and not installed(name):
            raise UserError(f"--track {name}: not installed here; {install_command(name)}")


def installed(name: str) -> bool:
    """Return whether a tracker's package is installed. A folder of that name, such as wandb's for its files, is not."""
    found = importlib.util.find_spec(TRACKERS[name][1])
    return found is not None and found.origin is not None


class TrackingCallback(SweepCallback):
    """Log epochs and ends of trials to trackers, in a thread of its own, so that the sweep waits for no service.

    At the first event of a trial all its epochs are logged, because an earlier driver may not have logged them.

    Parameters
    ----------
    run
        The run.
    names
        Names of `TRACKERS`; those whose package is missing are left out with a warning.
    """

    def __init__(self, run: RunStore, names: Sequence[str]) -> None:
        self._run = run
        self._trackers: dict[str, Tracker] = {}
        self._logged: dict[int, int] = {}
        self._events: queue.SimpleQueue[int | TrialResult | None] = queue.SimpleQueue()
        # TensorBoard's files are appended to, which storage behind a URI cannot do.
        wanted = [name for name in names if name != NO_TRACKER and (name != "tensorboard" or run.local is not None)]
        for name in wanted:
            if not installed(name):
                log.warning("nothing is logged to %s: it is not installed here", name)
        self._names = [name for name in wanted if installed(name)]
        self._thread = threading.Thread(target=self._process, name="raypipe-trackers", daemon=True)
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
        """Log what is queued, within `CLOSE_SECONDS`, and end."""
        self._events.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _process(self) -> None:
        for name in list(self._names):
            self._try(name, partial(self._create, name))
        while (event := self._events.get()) is not None:
            number = event if isinstance(event, int) else event.number
            try:
                # A trial that drew an invalid configuration was not recorded.
                history = self._run.history(number) if self._run.has_trial(number) else None
            except Exception as error:  # the sweep itself handles a storage that fails
                log.warning("trial %d: an epoch is logged later: %s", number, first_line(error))
                continue
            if history is not None:
                self._log(number, history, None if isinstance(event, int) else event)
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _log(self, number: int, history: Sequence[Epoch], result: TrialResult | None) -> None:
        new = history[self._logged.get(number, 0) :]
        self._logged[number] = len(history)
        for name, tracker in list(self._trackers.items()):
            for epoch in new:
                self._try(name, partial(tracker.epoch, number, epoch))
            if result is not None:
                self._try(name, partial(tracker.end, result))

    def _create(self, name: str) -> None:
        self._trackers[name] = TRACKERS[name][0](self._run)

    def _try(self, name: str, call: Callable[[], object]) -> None:
        """Call a tracker; drop it if that fails, whether by the service or by the network."""
        if name not in self._names:
            return
        try:
            call()
        except Exception as error:
            self._names.remove(name)
            self._trackers.pop(name, None)
            log.warning("nothing more is logged to %s: %s: %s", name, type(error).__name__, first_line(error))
