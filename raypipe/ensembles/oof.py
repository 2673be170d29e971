"""The one input of every ensemble method: members' out-of-fold predictions, side by side. Read without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import Index, LeakError
from raypipe.core.metrics import Kind, score
from raypipe.models.combine import Rule, combine
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Members:
    """Answers to the same windows, out of fold: each window answered by networks that never saw its subject."""

    names: list[str]
    """(M,) names of the members, best out-of-fold score first."""
    answers: Floats
    """(M, N, outputs): values in target units, or class probabilities."""
    targets: NDArray[Any]
    """(N,) values, or class numbers."""
    subjects: NDArray[Any]
    """(N,)."""
    folds: Index
    """(N,)."""
    windows: Index
    """(N,) window numbers in the store."""
    metric: str
    kind: Kind
    variances: Floats | None = None
    """(M, N) variances in squared target units, where any member tells them; zeros of one that does not."""
    trials: list[int] | None = None
    """(M,) numbers of the members' trials; snapshots share theirs."""

    def rows(self, inside: NDArray[Any]) -> Members:
        """Some of the windows, by mask or index."""
        return replace(
            self,
            answers=self.answers[:, inside],
            targets=self.targets[inside],
            subjects=self.subjects[inside],
            folds=self.folds[inside],
            windows=self.windows[inside],
            variances=None if self.variances is None else self.variances[:, inside],
        )

    def only(self, places: Sequence[int]) -> Members:
        """Some of the members, by their places."""
        some = list(places)
        variances = None if self.variances is None or not self.variances[some].any() else self.variances[some]
        return replace(
            self,
            names=[self.names[place] for place in some],
            answers=self.answers[some],
            variances=variances,
            trials=None if self.trials is None else [self.trials[place] for place in some],
        )

    @property
    def goals(self) -> Floats:
        """What a perfect member answers, (N, outputs): the target, or 1 for its class."""
        if self.kind == "regression":
            return np.asarray(self.targets, dtype=np.float64)[:, None]
        return np.asarray(np.eye(self.answers.shape[2])[self.targets.astype(np.int64)])

    @property
    def errors(self) -> Floats:
        """(M,) mean squared errors; classes: Brier scores (Brier 1950: summed over classes)."""
        return np.asarray(((self.answers - self.goals) ** 2).sum(2).mean(1))

    def scores(self) -> Floats:
        """(M,) the task's metric of each member."""
        return np.array([score(self.metric, self.targets, answers_NO) for answers_NO in self.answers])

    def combined(self, rule: Rule) -> Floats:
        """What a rule makes of the members, (N, outputs)."""
        variances = None if self.variances is None else torch.from_numpy(self.variances)
        with torch.no_grad():
            return np.asarray(combine(rule, torch.from_numpy(self.answers), variances).numpy())

    def table(self) -> pd.DataFrame:
        """One row a window and member: `window`, `subject`, `fold`, `member`, then the prediction (or a column a class)
        and, where it is told, `variance`."""
        outputs = self.answers.shape[2]
        columns = ["prediction"] if outputs == 1 else [f"probability_{k}" for k in range(outputs)]
        parts = []
        for place, name in enumerate(self.names):
            part = pd.DataFrame(self.answers[place], columns=pd.Index(columns))
            part.insert(0, "member", name)
            part.insert(0, "fold", self.folds)
            part.insert(0, "subject", self.subjects)
            part.insert(0, "window", self.windows)
            if self.variances is not None:
                part["variance"] = self.variances[place]
            parts.append(part)
        return pd.concat(parts, ignore_index=True)


def read_members_oof(
    run: RunStore, members: Sequence[Member], subjects: NDArray[Any], targets: NDArray[Any]
) -> Members:
    """Read members' out-of-fold predictions, each checked against the run's fold map.

    Parameters
    ----------
    run
        The run.
    members
        Trials that have left predictions, and snapshots of them.
    subjects, targets
        Of all windows of the store.

    Raises
    ------
    LeakError
        A window was predicted by a network of another fold than the map says, or is a held-out subject's.
    UserError
        A member's predictions are missing, damaged or not finite.
    """
    index = run.folds.search_index(subjects)
    folds_N = run.folds.folds(subjects)[index]
    left = [run.oof(*member) for member in members]
    answers = [audited(oof, member, index, folds_N) for oof, member in zip(left, members, strict=True)]
    none = np.zeros(len(index))
    told = [none if oof.variances is None else oof.variances.astype(np.float64) for oof in left]
    return Members(
        names=[str(member) for member in members],
        answers=np.stack(answers).astype(np.float64),
        targets=targets[index],
        subjects=np.array([str(subject) for subject in subjects[index]]),
        folds=folds_N,
        windows=index,
        metric=run.info.metric,
        kind=run.info.kind,
        variances=np.stack(told) if any(oof.variances is not None for oof in left) else None,
        trials=[member.trial for member in members],
    )


def audited(oof: OutOfFold, member: Member, index: Index, folds_N: Index) -> NDArray[np.float32]:
    """Check that a member's predictions are those of the run's fold map: each window by the fold that left it out."""
    if not np.array_equal(oof.windows, index):
        raise LeakError(
            f"{member}: its {len(oof.windows)} out-of-fold windows are not the {len(index)} windows of the "
            "run's search subjects"
        )
    if not np.array_equal(oof.folds, folds_N):
        wrong = int(np.sum(oof.folds != folds_N))
        raise LeakError(f"{member}: {wrong} out-of-fold predictions come from another fold than the map says")
    if not np.isfinite(oof.predictions).all() or (oof.variances is not None and not np.isfinite(oof.variances).all()):
        raise UserError(f"{member}: its out-of-fold predictions are not all finite")
    return oof.predictions
