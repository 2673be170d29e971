"""Ensembles: weights fitted on out-of-fold predictions only, scores on held-out subjects that nothing else has seen."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from raypipe import verdict
from raypipe.errors import UserError, nearest
from raypipe.files import read_json, write_json
from raypipe.folds import HELD_OUT, Index, LeakError, audit
from raypipe.members import build_module, read_members
from raypipe.metrics import constant_prediction
from raypipe.models.ensemble import EnsembleModule
from raypipe.store import OutOfFold, RunStore, versions
from raypipe.verdict import BEST, ENSEMBLE, EQUAL, Side
from raypipe.weighting import METHODS, Floats, equal
from raypipe.windows import WindowStore

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "raypipe-ensemble/1"
RECORD, ARRAYS, LOOKS = "ensemble/ensemble.json", "ensemble/held_out.npz", "ensemble/looks.json"
BATCH = 256

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class HeldOut:
    """Predictions for the windows of the held-out subjects."""

    windows: Index
    """(N,) window numbers in the store."""
    subjects: NDArray[np.str_]
    """(N,)."""
    targets: NDArray[Any]
    """(N,) values, or class numbers."""
    predictions: NDArray[np.float32]
    """(N, outputs) of the ensemble: the value in target units, or class probabilities."""
    trials: NDArray[np.float32]
    """(T, N, outputs): each trial's mean over its fold models."""
    constant: NDArray[np.float64]
    """(outputs,): the training mean or class frequencies, the answer without EEG."""

    @property
    def side(self) -> Side:
        """Targets and subjects, as scores take them."""
        return Side(self.targets, self.subjects, np.full(len(self.targets), HELD_OUT))


@dataclass(frozen=True)
class Ensemble:
    """A weighted mean of trials, each the mean of its fold models."""

    run: RunStore
    method: str
    trials: list[int]
    """Trial numbers, best out-of-fold score first."""
    weights: Floats
    """(T,) none negative, sum one."""
    table: pd.DataFrame
    """Scores; see `verdict.score_table`."""
    verdict: str
    """What the held-out scores show, in words."""
    held_out: HeldOut
    looks: int
    """How often this run has been scored on its held-out subjects, this time included."""

    def save(self) -> None:
        """Write the ensemble to its run: ``ensemble/held_out.npz``, then ``ensemble/ensemble.json``."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self.held_out))
        self.run.folder.write(ARRAYS, buffer.getvalue())
        write_json(self.run.folder, RECORD, self.record())

    def record(self) -> dict[str, Any]:
        """What `save` writes as JSON."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "format": FORMAT,
            "created": time.time(),
            "method": self.method,
            "trials": self.trials,
            "weights": self.weights.tolist(),
            "table": {str(name): row for name, row in table.to_dict("index").items()},
            "verdict": self.verdict,
            "looks": self.looks,
            "data_hash": self.run.info.data_hash,
            "versions": versions(),
        }

    @staticmethod
    def exists(run: RunStore) -> bool:
        """Whether the run has a saved ensemble."""
        return run.folder.exists(RECORD)

    @classmethod
    def load(cls, run: RunStore) -> Ensemble:
        """Read the ensemble that `save` wrote.

        Raises
        ------
        UserError
            The run has none, or it is damaged.
        """
        if not cls.exists(run):
            raise UserError(f"{run.where}: no ensemble yet; fit one with: raypipe ensemble RUN")
        record = read_json(run.folder, RECORD)
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}")
            with np.load(io.BytesIO(run.folder.read(ARRAYS)), allow_pickle=False) as arrays:
                held_out = HeldOut(**{name: arrays[name] for name in HeldOut.__annotations__})
            table = pd.DataFrame.from_dict(record["table"], orient="index").astype(float).rename_axis("predictor")
            table = table.astype({"subjects": int, "windows": int})
            weights = np.array(record["weights"], dtype=np.float64)
            trials = [int(number) for number in record["trials"]]
            return cls(run, record["method"], trials, weights, table, record["verdict"], held_out, record["looks"])
        except (KeyError, ValueError, TypeError, OSError, BadZipFile) as error:
            raise UserError(
                f"{run.where}/{RECORD}: damaged ({error}); fit the ensemble again with: raypipe ensemble RUN"
            ) from None

    def render(self) -> Table:
        """The scores that count, as a table for a terminal of 80 columns: per subject where targets belong to them."""
        from rich.table import Table

        level = "subject_" if "subject_held_out" in self.table else ""
        metric = verdict.spoken(self.run.info.metric)
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        for name in ("", "out of fold", f"held-out {metric}, 95 %", "difference to no EEG"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for predictor, row in self.table.iterrows():
            value, low, high = (row[level + name] for name in ("held_out", "low", "high"))
            apart, least, most = (row[level + "difference" + end] for end in ("", "_low", "_high"))
            table.add_row(
                str(predictor),
                f"{row[level + 'oof']:.3f}",
                f"{value:.3f} ({low:.3f} to {high:.3f})",
                "" if predictor == self.table.index[-1] else f"{apart:+.3f} ({least:+.3f} to {most:+.3f})",
            )
        return table


def fit_ensemble(
    run: RunStore,
    *,
    top: int = 5,
    method: str = "confidence",
    windows: WindowStore | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Weigh the best trials by their out-of-fold predictions, then score once on the held-out subjects.

    Parameters
    ----------
    run
        A run with trials that are complete or were stopped by the time budget.
    top
        How many of the best trials at most.
    method
        Name in `weighting.METHODS`.
    windows
        The run's windows; None opens the store it was made from.
    progress
        Called with windows done, windows in all, and a text.

    Returns
    -------
    Ensemble
        Not saved yet; but that the held-out subjects were looked at is written down (``ensemble/looks.json``).

    Raises
    ------
    UserError
        No trial can be used, one of the best is damaged, the method is unknown, or the windows are not the run's.
    LeakError
        Out-of-fold predictions do not follow the run's fold map.
    """
    if method not in METHODS:
        raise UserError(f"--method {method}: there is no such method; {nearest(method, METHODS)}")
    if top < 1:
        raise UserError(f"--top {top}: an ensemble needs at least one trial")
    trials = [result.number for result in run.ranked()[:top]]
    if not trials:
        raise UserError(_nothing(run))
    windows = WindowStore(run.info.data) if windows is None else windows
    if windows.data_hash != run.info.data_hash:
        raise UserError(
            f"{windows.path}: not the windows that {run.where} was made from (hash {windows.data_hash[:12]}, the run "
            f"has {run.info.data_hash[:12]})"
        )
    run.require_whole(trials)
    index, out = run.folds.search_index(windows.subjects), run.folds.held_out_index(windows.subjects)
    audit(windows.subjects, {"search": index, "held-out": out})
    folds = run.folds.folds(windows.subjects)
    oof = [_audited(run.oof(number), number, index, folds[index]) for number in trials]
    search = Side(windows.targets[index], windows.subjects[index], folds[index])
    weights = METHODS[method](oof, search.targets, run.info.kind)
    if np.any(weights < 0) or not np.isclose(weights.sum(), 1.0):
        raise RuntimeError(f"method '{method}' gave weights {weights} that are no shares of one")

    spec, state = read_members(run, windows, trials, weights.tolist())
    answers_TNO = _answers(build_module(spec, state), windows, out, len(trials), progress)
    looks = _count_look(run, trials, method)
    side = Side(windows.targets[out], windows.subjects[out], folds[out])
    rows = {
        ENSEMBLE: (mix(oof, weights), mix(answers_TNO, weights)),
        EQUAL: (mix(oof, equal(oof, search.targets, run.info.kind)), answers_TNO.mean(axis=0)),
        BEST: (oof[0].astype(np.float64), answers_TNO[0]),
    }
    table = verdict.score_table(run.info.metric, run.info.kind, len(windows.classes), rows, search, side)
    against = None
    if len(trials) > 1 and weights[0] < 1.0:
        own = "subject_held_out" in table
        level, both = (side.per_subject() if own else side), (rows[ENSEMBLE][1], rows[BEST][1])
        pair = tuple(side.mean(each) if own else each for each in both)
        against = verdict.difference(run.info.metric, level, *pair)
    words = verdict.write_verdict(table, run.info.metric, run.info.task, against)
    if len(looks) > 1:
        words += (
            f" The held-out subjects have now been looked at {len(looks)} times in this run: choosing the best of "
            "several looks would make the score optimistic."
        )
    held_out = HeldOut(
        windows=out,
        subjects=np.array([str(subject) for subject in side.subjects]),
        targets=side.targets,
        predictions=rows[ENSEMBLE][1].astype(np.float32),
        trials=answers_TNO.astype(np.float32),
        constant=constant_prediction(run.info.kind, search.targets, 1, len(windows.classes))[0],
    )
    return Ensemble(run, method, trials, weights, table, words, held_out, len(looks))


def mix(predictions_TNO: Sequence[NDArray[Any]] | NDArray[Any], weights: Floats) -> Floats:
    """Weighted mean of trials' predictions, (T, N, outputs) -> (N, outputs)."""
    stacked_TNO = np.asarray(predictions_TNO, dtype=np.float64)
    return np.asarray(np.einsum("t,tno->no", weights, stacked_TNO))


def _audited(oof: OutOfFold, number: int, index: Index, folds_N: Index) -> NDArray[np.float32]:
    """Check that a trial's predictions are those of the run's fold map: each window by the fold that left it out."""
    if not np.array_equal(oof.windows, index):
        raise LeakError(
            f"trial {number}: its {len(oof.windows)} out-of-fold windows are not the {len(index)} windows of the "
            "run's search subjects"
        )
    if not np.array_equal(oof.folds, folds_N):
        wrong = int(np.sum(oof.folds != folds_N))
        raise LeakError(f"trial {number}: {wrong} out-of-fold predictions come from another fold than the map says")
    if not np.isfinite(oof.predictions).all():
        raise UserError(f"trial {number}: its out-of-fold predictions are not all finite")
    return oof.predictions


@torch.no_grad()
def _answers(
    module: EnsembleModule, windows: WindowStore, index: Index, n_trials: int, progress: Progress | None
) -> Floats:
    """Each trial's mean over its fold models, (T, N, outputs)."""
    parts = []
    for start in range(0, len(index), BATCH):
        some = index[start : start + BATCH]
        answers_MBO = module.answers(torch.from_numpy(windows.gather(some))).double().numpy()
        parts.append(answers_MBO.reshape(n_trials, -1, *answers_MBO.shape[1:]).mean(axis=1))
        if progress:
            progress(min(start + BATCH, len(index)), len(index), "held-out windows")
    return np.concatenate(parts, axis=1)


def _count_look(run: RunStore, trials: list[int], method: str) -> list[dict[str, Any]]:
    """Write down that the held-out subjects were scored, before anyone sees how well: a look cannot be taken back."""
    looks = list(read_json(run.folder, LOOKS)) if run.folder.exists(LOOKS) else []
    looks.append({"time": time.time(), "trials": trials, "method": method})
    write_json(run.folder, LOOKS, looks)
    return looks


def _nothing(run: RunStore) -> str:
    states = [result.state for result in run.results()]
    asked = len(run.numbers())
    counts = f"{asked} started, {states.count('failed')} failed, {states.count('pruned')} were pruned"
    if states.count("failed"):
        hint = f"see why with: raypipe status {Path(run.where).name}"
    else:
        hint = "let the run go on with: raypipe resume RUN"
    return f"{run.where}: no trial is complete, so there is nothing to combine ({counts}); {hint}"
