"""Curves of trials for tools that people already have open: TensorBoard, MLflow, Weights & Biases.

They are told what the run's store has recorded, and nothing is read back from them: a tracker that fails is left alone,
and the sweep goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raypipe.config import flat
from raypipe.errors import UserError, first_line, nearest
from raypipe.remote import shown
from raypipe.store import Epoch, RunStore, TrialResult

log = logging.getLogger(__name__)

Watch = Callable[[str, dict[str, Any]], None]


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
        self._ids: dict[int, str] = {}

    def _id(self, number: int) -> str:
        if number not in self._ids:
            tag = f"{self._run.info.created}-{number}"
            found = self._client.search_runs([self._experiment], f"tags.`raypipe.trial` = '{tag}'", max_results=1)
            if found:
                self._ids[number] = found[0].info.run_id
            else:
                tags = {"raypipe.trial": tag, "raypipe.run": shown(self._run.where)}
                made = self._client.create_run(self._experiment, run_name=f"trial {number}", tags=tags)
                self._ids[number] = made.info.run_id
                for name, value in flat(self._run.config(number)).items():
                    self._client.log_param(self._ids[number], name, value)
        return self._ids[number]

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Score over all folds, mean training loss, and each fold's score."""
        for name, value in scalars(epoch).items():
            self._client.log_metric(self._id(number), name.replace("/", "."), value, step=epoch.epoch)

    def end(self, result: TrialResult) -> None:
        """The best score, and how the trial ended."""
        identity = self._id(result.number)
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
        self._of(number).log(scalars(epoch), step=epoch.epoch)

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
    return shown(run.where).rstrip("/").rpartition("/")[2] or "raypipe"


def require(names: Sequence[str]) -> None:
    """Refuse trackers that there are not, or whose package is missing.

    Raises
    ------
    UserError
        Says which, and what to install.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track {name}: there is no such tracker; {nearest(name, [*TRACKERS, 'none'])}")
        if importlib.util.find_spec(TRACKERS[name][1]) is None:
            raise UserError(f"--track {name}: not installed here; pip install 'raypipe[{name}]'")


class Tracked:
    """Tells trackers of a run's events, and then whoever watches it."""

    def __init__(self, run: RunStore, names: Sequence[str], watch: Watch) -> None:
        self._run, self._watch = run, watch
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            if name == "tensorboard" and run.local is None:
                continue  # its event files are appended to, which storage behind a URI does not know
            self._try(name, partial(self._begin, name))

    def __call__(self, kind: str, news: dict[str, Any]) -> None:
        """An event of the driver's."""
        for name, tracker in list(self._trackers.items()):
            if kind == "epoch":
                epoch = self._run.history(news["number"])[news["epoch"] - 1]
                self._try(name, partial(tracker.epoch, news["number"], epoch))
            elif kind == "end":
                self._try(name, partial(tracker.end, news["result"]))
        self._watch(kind, news)

    def close(self) -> None:
        """This driver tells no more."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _begin(self, name: str) -> None:
        self._trackers[name] = TRACKERS[name][0](self._run)

    def _try(self, name: str, tell: Callable[[], object]) -> None:
        try:
            tell()
        except Exception as error:  # whatever a service, or the network to it, does
            self._trackers.pop(name, None)
            log.warning("%s is told no more: %s: %s", name, type(error).__name__, first_line(error))
