"""Ensembles: weights fitted on out-of-fold predictions only, scores on held-out subjects that nothing else has seen."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe import verdict
from raypipe.cache import open_windows
from raypipe.errors import UserError, nearest
from raypipe.files import read_json, write_json
from raypipe.folds import HELD_OUT, Index
from raypipe.leaks import audit_store
from raypipe.members import Soup, build_module, listed, most_members, read_members, unlisted
from raypipe.methods import METHODS, ranking
from raypipe.metrics import constant_prediction
from raypipe.mixing import Progress, by_fold, member_answers, shipped
from raypipe.models.combine import Rule
from raypipe.nested import AUTO, applied, correlations, curve, judge, limited
from raypipe.oof import Floats, Members, read_members_oof
from raypipe.soup import SOUPS, Made, Pot, kin, make, soup_words
from raypipe.standing import nested_columns, nested_words
from raypipe.store import Member, RunStore, versions
from raypipe.verdict import BEST, ENSEMBLE, EQUAL, Side
from raypipe.windows import WindowStore

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "raypipe-ensemble/1"
RECORD, ARRAYS, LOOKS = "ensemble/ensemble.json", "ensemble/held_out.npz", "ensemble/looks.json"
TABLE = "ensemble/table.csv"
ALL = "all"
ROWS = {"best": BEST, "equal": EQUAL}
"""Methods whose rows in the table have names of their own."""


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
    """(M, N, outputs): each member's mean over its fold models."""
    constant: NDArray[np.float64]
    """(outputs,): the training mean or class frequencies, the answer without EEG."""

    @property
    def side(self) -> Side:
        """Targets and subjects, as scores take them."""
        return Side(self.targets, self.subjects, np.full(len(self.targets), HELD_OUT))


@dataclass(frozen=True)
class Ensemble:
    """Members and how they are combined: a weighted mean, or a rule (`raypipe.models.combine`) fold by fold."""

    run: RunStore
    method: str
    members: list[Member]
    """Trials, and snapshots of them, best out-of-fold score first."""
    weights: Floats
    """(M,) none negative, sum one; of a rule whose weights are of another kind, what is nearest to that."""
    table: pd.DataFrame
    """Scores; see `verdict.score_table` and `standing.nested_columns`."""
    verdict: str
    """What the held-out scores show, in words."""
    held_out: HeldOut
    looks: int
    """How often this run has been scored on its held-out subjects, this time included."""
    rule: Rule | None = None
    """How the members are combined, where `weights` do not say it all."""
    diversity: dict[str, Any] | None = None
    """`members` (names), `correlations` of their errors, and `curve`: nested score against the number of members."""
    left_out: dict[str, str] | None = None
    """Methods that could not be used, and why."""
    soup: Soup | None = None
    """Networks that stand for those of the trials, where their weights were averaged (`raypipe.soup`)."""

    @property
    def trials(self) -> list[int]:
        """Numbers of the members' trials, each once."""
        return list(dict.fromkeys(member.trial for member in self.members))

    def save(self) -> None:
        """Write the ensemble to its run: arrays (``ensemble/``), ``ensemble/table.csv``, then its record."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self.held_out))
        self.run.folder.write(ARRAYS, buffer.getvalue())
        self.run.folder.write(TABLE, self.table.to_csv().encode())
        soup = self.soup.save(self.run) if self.soup else None
        write_json(self.run.folder, RECORD, self.record() | ({"soup": soup} if soup else {}))

    def record(self) -> dict[str, Any]:
        """What `save` writes as JSON."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "format": FORMAT,
            "created": time.time(),
            "method": self.method,
            **listed(self.members),
            "weights": self.weights.tolist(),
            "table": {str(name): row for name, row in table.to_dict("index").items()},
            "verdict": self.verdict,
            "looks": self.looks,
            "rule": self.rule,
            "diversity": self.diversity,
            "left_out": self.left_out,
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
            fitted = unlisted(record), weights, table, record["verdict"], held_out, record["looks"]
            extra = {name: record.get(name) for name in ("rule", "diversity", "left_out")}  # none in raypipe 0.1
            soup = Soup.load(run, record["soup"]) if "soup" in record else None
            return cls(run, record["method"], *fitted, **extra, soup=soup)
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
        nested = "nested" in self.table
        for name in ("", "nested" if nested else "out of fold", f"held-out {metric}, 95 %", "difference to no EEG"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for predictor, row in self.table.iterrows():
            value, low, high = (row[level + name] for name in ("held_out", "low", "high"))
            apart, least, most = (row[level + "difference" + end] for end in ("", "_low", "_high"))
            table.add_row(
                str(predictor),
                f"{row['nested'] if nested else row[level + 'oof']:.3f}",
                f"{value:.3f} ({low:.3f} to {high:.3f})",
                "" if predictor == self.table.index[-1] else f"{apart:+.3f} ({least:+.3f} to {most:+.3f})",
            )
        return table


def fit_ensemble(
    run: RunStore,
    *,
    top: int = 10,
    method: str = AUTO,
    max_members: int | None = None,
    max_mb: float | None = None,
    windows: WindowStore | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Combine the best trials by their out-of-fold predictions, then score once on the held-out subjects.

    Parameters
    ----------
    run
        A run with trials that are complete or were stopped by the time budget.
    top
        How many of the best trials at most.
    method
        Name in `methods.METHODS` or `soup.SOUPS`; ``auto`` for the one of METHODS with the best nested score; ``all``
        for the same with every method, soups too, scored on the held-out subjects.
    max_members, max_mb
        Networks (a trial has one a fold) and megabytes of weights that may be shipped.
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
        No trial can be used, one of the best is damaged, the method is unknown or does not suit, the limits leave no
        trial, or the windows are not the run's.
    LeakError
        Out-of-fold predictions do not follow the run's fold map, or the windows do not.
    """
    names = [AUTO, ALL, *METHODS, *SOUPS]
    if method not in names:
        raise UserError(f"--method {method}: there is no such method; {nearest(method, names)}")
    if top < 1:
        raise UserError(f"--top {top}: an ensemble needs at least one trial")
    ranked = run.ranked()[:top]
    if not ranked:
        raise UserError(_nothing(run))
    trials = [result.number for result in ranked]
    candidates = [Member(result.number, epoch) for result in ranked for epoch in (0, *result.snapshots)]
    windows = open_windows(run.info.data) if windows is None else windows
    if windows.data_hash != run.info.data_hash:
        raise UserError(
            f"{windows.where}: not the windows that {run.where} was made from (hash {windows.data_hash[:12]}, the run "
            f"has {run.info.data_hash[:12]})"
        )
    run.require_whole(trials)
    audit_store(windows, run.folds)
    members = read_members_oof(run, candidates, windows.subjects, windows.targets)
    order = ranking(members)
    candidates, members = [candidates[place] for place in order], members.only(order)
    most = most_members(run, candidates, max_members, max_mb)

    # All that is fitted and chosen, on out-of-fold predictions.
    open_choice = method in (AUTO, ALL)
    wanted = list(METHODS) if open_choice else [name for name in METHODS if name in ("best", "equal", method)]
    judged = judge(members, wanted, most=most, auto=open_choice)
    if not open_choice and method in judged.left_out:
        raise UserError(f"--method {method}: {judged.left_out[method]}; use --method auto")
    usable = [name for name in wanted if name not in judged.left_out]
    chosen = judged.winner(run.info.metric, usable) if open_choice else method
    rules = {
        name: (METHODS[name].fit if name == "best" else limited(METHODS[name].fit, most))(members) for name in usable
    }
    diversity = {
        "members": members.names,
        "correlations": correlations(members).round(4).tolist(),
        "curve": curve(members),
    }

    soups, family = _soups(run, windows, members, candidates, method, judged.left_out, progress)

    n = len(candidates)
    module = build_module(*read_members(run, windows, candidates, [1.0 / n] * n))
    out = run.folds.held_out_index(windows.subjects)
    answers_MFNO, variances_MFN = member_answers(module, windows, out, n, progress)
    soup_answers = {}
    for name, made in soups.items():
        module = build_module(*read_members(run, windows, candidates, [], soup=made.soup))
        soup_answers[name] = member_answers(module, windows, out, 1, progress)[0][0].mean(axis=0)
    looks = _count_look(run, trials, method)
    side = Side(windows.targets[out], windows.subjects[out], run.folds.folds(windows.subjects)[out])
    search = Side(members.targets, members.subjects, members.folds)
    shown = {ENSEMBLE: chosen, EQUAL: "equal", BEST: "best"}
    if method == ALL:
        shown |= {name: name for name in [*usable, *soups] if name not in ROWS}
    rows, nested = {}, {}
    for row, name in shown.items():
        if name in soups:
            rows[row], nested[row] = (soups[name].answers, soup_answers[name]), soups[name].nested
        else:
            rows[row] = applied(rules[name], members), by_fold(rules[name], answers_MFNO, variances_MFN)
            nested[row] = judged.predictions[name]
    if open_choice:
        nested[ENSEMBLE] = judged.predictions[AUTO]
    n_classes = len(windows.classes)
    table = verdict.score_table(run.info.metric, run.info.kind, n_classes, rows, search, side)
    given = {row: held_out for row, (_, held_out) in rows.items()}
    table = nested_columns(table, members, nested, given, side, BEST, n_classes)
    against = None
    if n > 1 and chosen != "best":
        own = "subject_held_out" in table
        level, both = (side.per_subject() if own else side), (rows[ENSEMBLE][1], rows[BEST][1])
        pair = tuple(side.mean(each) if own else each for each in both)
        against = verdict.difference(run.info.metric, level, *pair)
    words = verdict.write_verdict(table, run.info.metric, run.info.task, against)
    if n > 1:
        words += " " + nested_words(table, ENSEMBLE, BEST, minimize=run.info.direction == "minimize")
    if chosen in soups:
        words += " " + soup_words(chosen, soups[chosen], candidates, family)
    if len(looks) > 1:
        words += (
            f" The held-out subjects have now been looked at {len(looks)} times in this run: choosing the best of "
            "several looks would make the score optimistic."
        )
    brewed = soups.get(chosen)
    if brewed is None:
        places, weights, rule = shipped(rules[chosen], n)
    else:
        places = [candidates.index(member) for member in brewed.soup.members]
        weights, rule = np.full(len(places), 1.0 / len(places)), None
    held_out = HeldOut(
        windows=out,
        subjects=np.array([str(subject) for subject in side.subjects]),
        targets=side.targets,
        predictions=rows[ENSEMBLE][1].astype(np.float32),
        trials=answers_MFNO[places].mean(axis=1).astype(np.float32),
        constant=constant_prediction(run.info.kind, search.targets, 1, n_classes)[0],
    )
    kept = [candidates[place] for place in places]
    fitted = kept, weights, table, words, held_out, len(looks), rule, diversity, judged.left_out
    return Ensemble(run, chosen, *fitted, soup=brewed.soup if brewed else None)


def _soups(
    run: RunStore,
    windows: WindowStore,
    members: Members,
    candidates: list[Member],
    method: str,
    left_out: dict[str, str],
    progress: Progress | None,
) -> tuple[dict[str, Made], list[Member]]:
    """The soups that a method wants, by name, and the members that they are of."""
    wanted = [method] if method in SOUPS else list(SOUPS) if method == ALL else []
    if not wanted:
        return {}, []
    try:
        family = kin(run, candidates)
    except UserError as error:
        if method != ALL:
            raise
        left_out |= {name: str(error) for name in wanted}
        return {}, []
    pot = Pot(run, windows, members.only([candidates.index(member) for member in family]), family, progress)
    made = {}
    for name in wanted:
        try:
            made[name] = make(pot, name)
        except UserError as error:
            if method != ALL:
                raise
            left_out[name] = str(error)
    return made, family


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
