"""Permutation test of an ensemble on held-out subjects.

Its p counts the observed order too (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

Held-out targets are shuffled, and the predictions are kept. Trials, epochs, members and weights were chosen without
these people, so no network is trained again. The test is exact for the whole search where, if EEG says nothing about
the target, every order that is tried is equally likely:

- Where each person has one target, people are exchanged. Where people share groups (families), their targets are not
  independent: whole groups of the same size are exchanged, and people within each (Winkler et al. 2015,
  doi:10.1016/j.neuroimage.2015.05.092).
- Windows of one recording, or of one block, share more than their target. Where targets come in runs, as of rest and
  arithmetic in a recording each, a run is one mean prediction, and runs are exchanged within a person.
- Trials are exchanged within a recording, as if they were independent of each other, and whole recordings with equally
  many trials within a person.

An outer cross-validation has no such test. Its parts were trained on one another's people: such a test finds something
in up to 9 % where 5 % are meant (benchmarks/chance.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.levels import Level, ScoredRows, rows_at_level, within_folds
from raypipe.core.metrics import get_metric
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.exchangeable import between_people, within_people
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.storage.run_store import RunStore

MIN_ORDERS = 20
"""Fewer orders of the targets cannot give a p of 0.05."""


@dataclass(frozen=True)
class ChanceTest:
    """Result of a permutation test."""

    metric: str
    level: Level
    """``person``: targets are exchanged between people; ``window``: between the windows, or runs, of each person."""
    people: int
    groups: int
    """Groups of these people; as many as people where they share none."""
    score: float
    null: NDArray[np.float64]
    """(permutations,) scores under shuffled targets."""
    recordings: int
    """Recordings of these people."""
    runs: int | None = None
    """Runs of windows with equal targets that are exchanged whole; None where people or windows are exchanged."""
    held_out_evaluations: int = 1
    """Scorings of the person who was scored most often, by all runs on the store."""

    @property
    def p(self) -> float:
        """Share of the orders with a score at least as good, or with none, the observed one included."""
        sign = get_metric(self.metric).sign
        as_good = ~np.isfinite(self.null) | (sign * self.null <= sign * self.score + 1e-12)
        return float((1 + as_good.sum()) / (1 + len(self.null)))

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `p`."""
        return math.sqrt(self.p * (1.0 - self.p) / len(self.null))

    def render(self) -> str:
        """Return the result in two sentences, and a third where these people have been scored before."""
        what, shuffled, condition = self._words()
        low, high = np.quantile(self.null, [0.025, 0.975])
        again = (
            f" They have been scored up to {self.held_out_evaluations} times: if this ensemble was chosen by its "
            "held-out score, p is too small."
        )
        return (
            f"{metric_label(self.metric)} {self.score:z.3f} {what}{self.people} held-out people; with targets shuffled "
            f"{shuffled} it is {low:z.3f} to {high:z.3f} (95 % of {len(self.null)} permutations): p = {self.p:.4g} "
            f"(Monte-Carlo error {self.error:.2g}). The test is exact for the whole search, which has not seen these "
            f"people{condition}.{again if self.held_out_evaluations > 1 else ''}"
        )

    def _words(self) -> tuple[str, str, str]:
        """Return what is scored, what is exchanged, and the condition under which that is exact."""
        if self.runs is not None:
            name = "recordings" if self.runs == self.recordings else "runs"
            of_what = name if name == "recordings" else "runs of windows with the same target"
            what = f"of one mean prediction for each of {self.runs} {of_what} of "
            return what, f"between the {name} of each person", f", if a person's {name} could have had any order"
        if self.level == "window":
            within = "person" if self.recordings == self.people else "recording"
            return "on ", f"within each {within}", ", if a person's trials are independent of each other"
        if self.groups == self.people:
            return "on ", "between the people", ""
        shuffled = f"between those of their {self.groups} groups that have equally many people, and within each group,"
        return "on ", shuffled, ""


def chance_test(
    run: RunStore, *, permutations: int = 1000, seed: int = 0, windows: WindowStore | None = None
) -> ChanceTest:
    """Test whether the ensemble of a run predicts better than chance on the held-out subjects.

    Parameters
    ----------
    run
        A run with an ensemble.
    permutations
        Number of orders of the targets.
    seed
        Seed of the orders.
    windows
        Windows that the run was made from, whose recordings are read unless each person has one target; None opens
        them.

    Raises
    ------
    UserError
        There is no ensemble, the score is undefined, the seed is negative, the targets have too few different orders,
        or the windows cannot be opened.
    """
    if permutations < 1:
        raise UserError(f"--permutations {permutations}: at least 1 is needed; 1000 are usual")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    ensemble, level = Ensemble.load(run), run.info.level
    held = ensemble.held_out
    parts_N = np.zeros(len(held.targets), dtype=np.int64)
    rows = rows_at_level(level, held.targets, held.subjects, parts_N, held.predictions)
    recordings = None
    if level == "window":
        table = windows_of_run(run, windows).table.iloc[held.windows]
        order_N = np.argsort(table["onset"].to_numpy(dtype=float), kind="stable")
        rows = ScoredRows(*(each[order_N] for each in rows))
        recordings = table["recording"].to_numpy(dtype=str)[order_N]
    found = permute(
        run.info.metric,
        level,
        rows,
        permutations,
        seed,
        dict(zip(held.subjects.tolist(), held.groups.tolist(), strict=True)),
        recordings=recordings,
        decision_weights=ensemble.decision_weights,
    )
    return replace(found, held_out_evaluations=ensemble.held_out_evaluations)


def permute(
    metric: str,
    level: Level,
    rows: ScoredRows,
    permutations: int,
    seed: int,
    group_of: Mapping[Any, Any] | None = None,
    *,
    recordings: NDArray[Any] | None = None,
    decision_weights: Sequence[float] | None = None,
) -> ChanceTest:
    """Score predictions under shuffled targets.

    Parameters
    ----------
    metric
        Name in `metrics.METRICS`.
    level
        See `ChanceTest.level`.
    rows
        Predictions at this level, in order of time. Targets of people are exchanged within the folds of `rows` only.
    permutations, seed
        See `chance_test`.
    group_of
        Group of each person; None where each is alone.
    recordings
        (N,) recording of each row, of which no two people share one; None for one of each person.
    decision_weights
        Weight of each class (`raypipe.ensembles.decisions`); None where `rows` are decided, or of a regression.

    Raises
    ------
    UserError
        The score is undefined, or the targets have fewer than `MIN_ORDERS` different orders.
    """
    people, single = np.unique(rows.subjects).tolist(), len(np.unique(rows.subjects)) == len(rows.subjects)
    found = between_people(rows, group_of) if single else within_people(rows, recordings)
    of_people = f"of these {len(people)} people"
    if found.log_orders < math.log(MIN_ORDERS):
        whose = of_people if found.runs is None else f"of the {found.runs} runs of windows {of_people}"
        raise UserError(
            f"the targets {whose} have {round(math.exp(found.log_orders))} different orders, and a test of chance "
            f"needs {MIN_ORDERS}; hold out more people"
        )
    rows = found.rows
    if decision_weights is not None and get_metric(metric).reads == "classes":
        rows = rows._replace(predictions=decide(rows.predictions, np.array(decision_weights)))
    score, null = _scores(metric, rows, found.blocks, permutations, seed)
    return ChanceTest(
        metric=metric,
        level="person" if single else level,
        people=len(people),
        groups=len({str(person if group_of is None else group_of[person]) for person in people}),
        score=score,
        null=null,
        recordings=len(people if recordings is None else np.unique(recordings)),
        runs=found.runs,
    )


def _scores(
    metric: str, rows: ScoredRows, blocks: list[NDArray[np.int64]], permutations: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the score, and those under shuffled targets; raises UserError where the score is undefined."""
    found, rng = within_folds(metric, rows.folds), np.random.default_rng(seed)
    observed = found.value(rows.targets, rows.predictions)
    if not math.isfinite(observed):
        raise UserError(
            f"the {metric_label(metric)} of these {len(np.unique(rows.subjects))} people is undefined: a class is "
            "missing among them, or a value is the same for all; hold out more people"
        )
    null, source_N = np.empty(permutations), np.arange(len(rows.targets))
    for number in range(permutations):
        for block_GS in blocks:
            source_N[block_GS] = rng.permuted(rng.permutation(block_GS), axis=1)
        null[number] = found.value(rows.targets[source_N], rows.predictions)
    return observed, null
