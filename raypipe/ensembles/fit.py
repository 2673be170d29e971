"""Ensembles: weights fitted on out-of-fold predictions only, scores on held-out subjects that nothing else has seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import constant_prediction
from raypipe.core.progress import Progress
from raypipe.data.splits import audit_subjects
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles import verdict
from raypipe.ensembles.distillation import distill, require_scratch
from raypipe.ensembles.fitted import Ensemble, HeldOut
from raypipe.ensembles.inference import by_fold, deployable, predict_members
from raypipe.ensembles.members import build_module, most_members, read_members
from raypipe.ensembles.methods import METHODS, ranking
from raypipe.ensembles.nested_cv import AUTO, applied, correlations, curve, limited, nested_scores
from raypipe.ensembles.oof import Floats, Members, read_members_oof
from raypipe.ensembles.scores import Side, difference, nested_columns, score_table
from raypipe.ensembles.soup import SOUPS, SoupCandidates, SoupResult, make_soup, same_start, soup_sentence
from raypipe.ensembles.verdict import (
    BEST,
    DISTILLED,
    ENSEMBLE,
    EQUAL,
    alone_words,
    nested_words,
    student_words,
    worth_words,
)
from raypipe.storage.files import read_json, write_json
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

__all__ = ["Ensemble", "HeldOut", "fit_ensemble"]

LOOKS = "ensemble/looks.json"
ALL = "all"
ROWS = {"best": BEST, "equal": EQUAL}
"""Methods whose rows in the table have names of their own."""


def fit_ensemble(
    run: RunStore,
    *,
    top: int = 10,
    method: str = AUTO,
    max_members: int | None = None,
    max_mb: float | None = None,
    distilled: bool = False,
    windows: WindowStore | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Combine the best trials by their out-of-fold predictions, then score once on the held-out subjects.

    Parameters
    ----------
    run
        A run with trials that are complete or were stopped by a budget.
    top
        How many of the best trials at most.
    method
        Name in `methods.METHODS` or `soup.SOUPS`; ``auto`` for the one of METHODS with the best nested score; ``all``
        for the same with every method, soups too, scored on the held-out subjects.
    max_members, max_mb
        Networks (a trial has one a fold) and megabytes of weights that may be shipped.
    distilled
        Ship one network that was trained to answer as the ensemble does (`raypipe.ensembles.distillation`).
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
    if distilled:
        require_scratch(run, candidates[0])
    audit_subjects(windows, run.folds)
    members = read_members_oof(run, candidates, windows.subjects, windows.targets)
    order = ranking(members)
    candidates, members = [candidates[place] for place in order], members.only(order)
    most = most_members(run, candidates, max_members, max_mb)

    # All that is fitted and chosen, on out-of-fold predictions.
    open_choice = method in (AUTO, ALL)
    wanted = list(METHODS) if open_choice else [name for name in METHODS if name in ("best", "equal", method)]
    judged = nested_scores(members, wanted, most=most, auto=open_choice)
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
    answers_MFNO, variances_MFN = predict_members(module, windows, out, n, progress)
    soup_answers = {}
    for name, each in soups.items():
        module = build_module(*read_members(run, windows, candidates, [], soup=each.soup))
        soup_answers[name] = predict_members(module, windows, out, 1, progress)[0][0].mean(axis=0)
    if open_choice:
        taught = judged.predictions[AUTO]
    else:
        taught = soups[chosen].nested if chosen in soups else judged.predictions[chosen]
    student = distill(run, windows, candidates[0], members.windows, taught, progress) if distilled else None
    looks = _count_look(run, trials, method)
    side = Side(windows.targets[out], windows.subjects[out], run.folds.folds(windows.subjects)[out])
    search = Side(members.targets, members.subjects, members.folds)
    shown = {ENSEMBLE: chosen, EQUAL: "equal", BEST: "best"}
    if method == ALL:
        shown |= {name: name for name in [*usable, *soups] if name not in ROWS}
    rows: dict[str, tuple[Floats | None, Floats]] = {}
    nested: dict[str, Floats] = {}
    for row, name in shown.items():
        if name in soups:
            rows[row], nested[row] = (soups[name].answers, soup_answers[name]), soups[name].nested
        else:
            rows[row] = applied(rules[name], members), by_fold(rules[name], answers_MFNO, variances_MFN)
            nested[row] = judged.predictions[name]
    if open_choice:
        nested[ENSEMBLE] = taught
    if student is not None:
        module = build_module(*read_members(run, windows, candidates, [], soup=student))
        rows[DISTILLED] = None, predict_members(module, windows, out, 1, progress)[0][0].mean(axis=0)
    n_classes = len(windows.classes)
    table = score_table(run.info.metric, run.info.kind, n_classes, rows, search, side)
    given = {row: held_out for row, (_, held_out) in rows.items()}
    table = nested_columns(table, members, nested, given, side, BEST, n_classes)
    against = None
    if n > 1 and chosen != "best":
        own = "subject_held_out" in table
        level, both = (side.per_subject() if own else side), (rows[ENSEMBLE][1], rows[BEST][1])
        pair = tuple(side.mean(each) if own else each for each in both)
        against = difference(run.info.metric, level, *pair)
    made = soups.get(chosen)
    if made is None:
        places, weights, rule = deployable(rules[chosen], n)
        rule = None if student is not None else rule  # the student answers by itself
    else:
        places = [candidates.index(member) for member in made.soup.members]
        weights, rule = np.full(len(places), 1.0 / len(places)), None
    alone = str(candidates[places[0]]) if len(places) == 1 and made is None and student is None else None
    words = verdict.write_verdict(table, run.info.metric, run.info.task, against, alone or "the ensemble")
    if n > 1 and alone is None:
        words += " " + nested_words(table, ENSEMBLE, BEST, minimize=run.info.direction == "minimize")
    if student is not None:
        words += " " + student_words(table, ENSEMBLE, DISTILLED, run.info.metric)
    elif chosen in soups:
        words += " " + soup_sentence(chosen, soups[chosen], candidates, family)
    if len(looks) > 1:
        words += (
            f" The held-out subjects have now been looked at {len(looks)} times in this run: choosing the best of "
            "several looks would make the score optimistic."
        )
    scores = judged.scores if open_choice else None
    if alone is not None:
        words += " " + alone_words(alone, n, chosen, run.info.metric, scores)
    elif n > 1:
        words += " " + worth_words(table, run.info.metric, ENSEMBLE, against, chosen, scores or {})
    brewed = student or (made.soup if made else None)
    held_out = HeldOut(
        windows=out,
        subjects=np.array([str(subject) for subject in side.subjects]),
        targets=side.targets,
        predictions=rows[ENSEMBLE if student is None else DISTILLED][1].astype(np.float32),
        trials=answers_MFNO[places].mean(axis=1).astype(np.float32),
        constant=constant_prediction(run.info.kind, search.targets, 1, n_classes)[0],
    )
    kept = [candidates[place] for place in places]
    fitted = kept, weights, table, words, held_out, len(looks), rule, diversity, judged.left_out
    return Ensemble(run, chosen, *fitted, soup=brewed)


def _soups(
    run: RunStore,
    windows: WindowStore,
    members: Members,
    candidates: list[Member],
    method: str,
    left_out: dict[str, str],
    progress: Progress | None,
) -> tuple[dict[str, SoupResult], list[Member]]:
    """The soups that a method wants, by name, and the members that they are of."""
    wanted = [method] if method in SOUPS else list(SOUPS) if method == ALL else []
    if not wanted:
        return {}, []
    try:
        family = same_start(run, candidates)
    except UserError as error:
        if method != ALL:
            raise
        left_out |= {name: str(error).removeprefix("--method soup: ") for name in wanted}
        return {}, []
    pot = SoupCandidates(run, windows, members.only([candidates.index(member) for member in family]), family, progress)
    made = {}
    for name in wanted:
        try:
            made[name] = make_soup(pot, name)
        except UserError as error:
            if method != ALL:
                raise
            left_out[name] = str(error).removeprefix(f"--method {name}: ")
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
