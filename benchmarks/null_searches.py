"""Simulate searches of data without any effect, and compare every nested score with the truth.

    python benchmarks/null_searches.py                        # 200 searches of classes and 200 of values, drawn members
    python benchmarks/null_searches.py --members linear       # the same with linear models that are trained
    python benchmarks/null_searches.py --trained              # 20 searches of small Conformers, classes
    python benchmarks/null_searches.py --quick                # a smoke test

A search is 12 trials of 8 epochs in 4 folds; each person has a random label. Classes have 24 people, half of each
class. Values have 96: NRMSE divides by the standard deviation of the people who are scored, which for 24 biases it by a
few hundredths. Drawn members predict noise whose errors correlate over trials and epochs as those of real members do.
Linear models are trained by gradient descent on features of which half of the variance is the person's; Conformers on
signals. `--halving` ends two of three trials after two epochs, by the scores of all people. `--repeats` draws the folds
as often.

The truth is known. New people's labels are random too, so any classifier has an AUC of 0.5. The NRMSE of values follows
from the mean square of the predictions for 500 new people, by the networks of one fold, as out-of-fold scores are.

Columns: the naive score (chosen and scored by the same people); what was called nested before (epoch and trials are
chosen by all people, method and weights by the others; of the first searches only); the nested score; the truth; and
the share of the 95 % intervals of nested scores that cover it. Errors are standard errors of the mean over searches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import where_and_when
from benchmarks.toys import ToyWindows, fold_trainer, tiny
from raypipe.core.fold_drawing import make_folds
from raypipe.core.metrics import Kind, get_metric
from raypipe.ensembles.methods import METHODS, auto_methods
from raypipe.ensembles.nested_cv import AUTO, error_correlations, run_nested_cv, simplest_within_error
from raypipe.ensembles.oof import Floats, MemberPredictions
from raypipe.ensembles.scores import EvaluationSet, score_interval
from raypipe.ensembles.trial_pool import PooledTrial, TrialPool
from raypipe.models.combine import Rule, combine
from raypipe.storage.out_of_fold import EpochPredictions
from raypipe.storage.records import Member

PEOPLE: dict[Kind, int] = {"classification": 24, "regression": 96}
FOLDS, TRIALS, EPOCHS, TOP = 4, 12, 8, 10
WINDOWS, FEATURES, STEPS, NEW_PEOPLE = 2, 24, 6, 500
TRAINED_WINDOWS, TRAINED_FOLDS = 4, 3
SEED = 20


@dataclass(frozen=True)
class Search:
    """A search without effect."""

    pool: TrialPool
    new_TEFN: NDArray[np.float32] | None  # noqa: N815 - axes
    """Predictions for new people's windows, by trial, epoch and fold; None where they are not needed."""


class Row(NamedTuple):
    """Scores of a method in one search."""

    naive: float
    before: float
    nested: float
    truth: float
    covered: float
    """1.0 if the interval covers the truth, else 0.0."""


# Searches


class People(NamedTuple):
    """People with random labels."""

    subject_N: NDArray[np.int64]  # noqa: N815 - axes
    fold_RN: NDArray[np.int64]  # noqa: N815 - axes
    """For each repeat."""
    y_N: NDArray[Any]  # noqa: N815 - axes

    @property
    def n_folds(self) -> int:
        """Return the number of folds of all repeats."""
        return int(self.fold_RN.max()) + 1

    def of_folds(self, values_XFN: NDArray[Any]) -> NDArray[Any]:
        """Return the out-of-fold ones of the networks' predictions for all windows: (..., repeats x windows)."""
        return np.concatenate([values_XFN[..., fold_N, np.arange(len(fold_N))] for fold_N in self.fold_RN], axis=-1)


def draw_people(kind: Kind, rng: np.random.Generator, windows: int, n_folds: int, repeats: int) -> People:
    n = PEOPLE[kind]
    names = np.arange(n + 1)  # the last is held out, and not used
    labels_S = rng.permutation(np.arange(n) % 2) if kind == "classification" else rng.normal(size=n)
    labels_S = np.append(labels_S, labels_S[0])
    folds = make_folds(
        names,
        labels_S,
        classes=kind == "classification",
        n_folds=n_folds,
        repeats=repeats,
        held_out=[str(n)],
        seed=int(rng.integers(2**31)),
    )
    subject_N = np.repeat(names[:n], windows)
    fold_RN = np.stack([folds.folds(subject_N, repeat) for repeat in range(repeats)])
    return People(subject_N, fold_RN, np.asarray(labels_S[subject_N]))


def pool_of(kind: Kind, people: People, out_TEN: NDArray[np.float32], *, halving: bool) -> TrialPool:
    """Return the pool of a search with these out-of-fold values, or probabilities of the second class."""
    repeats, n = people.fold_RN.shape
    like = MemberPredictions(
        names=["like"],
        predictions=as_outputs(kind, out_TEN[:1, 0]).astype(np.float64),
        targets=np.tile(people.y_N, repeats),
        subjects=np.tile([f"s{number:03d}" for number in people.subject_N], repeats),
        folds=people.fold_RN.reshape(-1),
        windows=np.tile(np.arange(n), repeats),
        metric="auc" if kind == "classification" else "nrmse",
        kind=kind,
        level="person",
    )
    epochs = np.full(len(out_TEN), out_TEN.shape[1])
    if halving:  # by the scores of all people
        rung = max(1, EPOCHS // 4)
        losses = [get_metric(like.metric).sign * like.score(as_outputs(kind, out_EN[rung - 1])) for out_EN in out_TEN]
        epochs[np.argsort(losses)[len(out_TEN) // 3 :]] = rung

    def read(member: Member) -> EpochPredictions:
        return EpochPredictions(as_outputs(kind, out_TEN[member.trial, member.epoch - 1]))

    return TrialPool([PooledTrial(t, tuple(range(1, n + 1))) for t, n in enumerate(epochs)], read, like, TOP)


def as_outputs(kind: Kind, values: NDArray[Any]) -> NDArray[Any]:
    """Add the axis of outputs: values, or the probabilities of both classes."""
    return np.stack([1 - values, values], axis=-1) if kind == "classification" else values[..., None]


def drawn_search(kind: Kind, rng: np.random.Generator, halving: bool, repeats: int) -> Search:
    """Draw predictions that have nothing to do with the labels: of the person, the trial, its epoch and its fold."""
    people = draw_people(kind, rng, WINDOWS, FOLDS, repeats)
    n_folds = people.n_folds
    size_T11 = rng.uniform(0.2, 0.5, size=(TRIALS, 1, 1))

    def draw(n_people: int) -> Floats:
        """Return predictions (T, E, F, N), by the networks of each fold."""
        shared_S = rng.normal(size=n_people)
        own_TES = np.cumsum(rng.normal(size=(TRIALS, EPOCHS, n_people)), axis=1) / EPOCHS**0.5
        of_windows_N = 0.3 * rng.normal(size=n_people * WINDOWS)
        person_TEN = np.repeat(size_T11 * (shared_S + own_TES), WINDOWS, axis=2) + size_T11 * of_windows_N
        return np.asarray(person_TEN[:, :, None] + offset_TEF[..., None])

    offset_TEF = 0.2 * rng.normal(size=(TRIALS, 1, n_folds)) + 0.1 * rng.normal(size=(TRIALS, EPOCHS, n_folds))
    out_TEFN, new_TEFN = (link(kind, draw(n)).astype(np.float32) for n in (PEOPLE[kind], NEW_PEOPLE))
    out_TEN = people.of_folds(out_TEFN)
    return Search(pool_of(kind, people, out_TEN, halving=halving), new_TEFN)


def linear_search(kind: Kind, rng: np.random.Generator, halving: bool, repeats: int) -> Search:
    """Train the linear models of a search, and predict new people."""
    people = draw_people(kind, rng, WINDOWS, FOLDS, repeats)
    out_TEN, new_TEFN = train_models(
        kind, rng, people, draw_features(rng, PEOPLE[kind]), draw_features(rng, NEW_PEOPLE)
    )
    return Search(pool_of(kind, people, out_TEN, halving=halving), new_TEFN)


def link(kind: Kind, values: Floats) -> Floats:
    """Return values, or the probabilities of the second class that have them as logits."""
    return np.asarray(1 / (1 + np.exp(-values))) if kind == "classification" else values


def draw_features(rng: np.random.Generator, people: int) -> Floats:
    """Return features (N, C) of windows, of which half of the variance is that of people."""
    person_SC = rng.normal(size=(people, FEATURES))
    return np.asarray((np.repeat(person_SC, WINDOWS, axis=0) + rng.normal(size=(people * WINDOWS, FEATURES))) / 2**0.5)


def train_models(
    kind: Kind, rng: np.random.Generator, people: People, x_NC: Floats, new_NC: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train the linear models of all trials and folds at once.

    Returns
    -------
    out_TEN
        Out-of-fold predictions after every epoch.
    new_TEFN
        Predictions for new people.
    """
    y_N, n_folds = people.y_N.astype(np.float64), people.n_folds
    rate_T1 = 10 ** rng.uniform(-2.0, -0.7, size=(TRIALS, 1))
    used_T1C = rng.random((TRIALS, 1, FEATURES)) < 0.7
    w_TFC = np.where(used_T1C, 0.1 * rng.normal(size=(TRIALS, n_folds, FEATURES)), 0.0)
    train_FN = np.stack([people.fold_RN[fold // FOLDS] != fold for fold in range(n_folds)])
    share_FN = train_FN / train_FN.sum(1, keepdims=True)
    b_TF = np.tile(share_FN @ y_N, (TRIALS, 1))
    if kind == "classification":
        b_TF = np.log(b_TF / (1 - b_TF))
    out_TEN = np.empty((TRIALS, EPOCHS, people.fold_RN.size), np.float32)
    new_TEFN = np.empty((TRIALS, EPOCHS, n_folds, len(new_NC)), np.float32)
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            error_TFN = (link(kind, w_TFC @ x_NC.T + b_TF[:, :, None]) - y_N) * share_FN
            w_TFC = w_TFC - rate_T1[:, :, None] * np.where(used_T1C, error_TFN @ x_NC, 0.0)
            b_TF = b_TF - rate_T1 * error_TFN.sum(2)
        out_TEN[:, epoch] = people.of_folds(link(kind, w_TFC @ x_NC.T + b_TF[:, :, None]))
        new_TEFN[:, epoch] = link(kind, w_TFC @ new_NC.T + b_TF[:, :, None])
    return out_TEN, new_TEFN


def trained_search(kind: Kind, rng: np.random.Generator, halving: bool, repeats: int) -> Search:
    """Train the small networks of a search on signals of people with random labels."""
    people = draw_people(kind, rng, TRAINED_WINDOWS, TRAINED_FOLDS, repeats)
    toy = ToyWindows(subjects=PEOPLE[kind], each=TRAINED_WINDOWS, classes=True)
    person_SCT = rng.normal(size=(PEOPLE[kind], *toy.x.shape[1:]))
    toy.x = (person_SCT[people.subject_N] + rng.normal(size=toy.x.shape)).astype(np.float32)
    toy.targets = people.y_N.astype(np.int64)
    out_TEN = np.empty((TRIALS, EPOCHS, people.fold_RN.size), np.float32)
    for trial in range(TRIALS):
        lr, decay = 10 ** rng.uniform(-3.5, -1.5), float(rng.uniform(0, 0.1))
        config = tiny(optim__lr=float(lr), optim__weight_decay=decay, epochs=EPOCHS, batch_size=16, seed=trial)
        for fold in range(people.n_folds):
            fold_N, first = people.fold_RN[fold // TRAINED_FOLDS], fold // TRAINED_FOLDS * len(people.y_N)
            train, validation = (np.flatnonzero(side) for side in (fold_N != fold, fold_N == fold))
            trainer = fold_trainer(config, toy, train, validation, fold=fold)
            for epoch in range(EPOCHS):
                out_TEN[trial, epoch, first + validation] = trainer.run_epoch().predictions[:, 1]
    return Search(pool_of(kind, people, out_TEN, halving=halving), None)


# Scores


def score_search(search: Search, names: Sequence[str], *, before: bool) -> dict[str, Row]:
    """Return the scores of every method, and of the choice among them."""
    pool, like = search.pool, search.pool.like
    everyone_N = np.ones(len(like.targets), dtype=bool)
    members, auto = pool.choose(everyone_N), auto_methods(like.kind)
    windows = EvaluationSet(like.targets, like.subjects, like.folds, cross_validated=True)
    nested = run_nested_cv(pool, names, auto=auto)
    old = run_nested_cv(members, names, auto=auto).scores if before else {}
    among = {each: nested.predictions[each] for each in auto if each in nested.predictions}
    found = {}
    for name, predictions_NO in nested.predictions.items():
        rule = METHODS[simplest_within_error(among, like) if name == AUTO else name].fit(members)
        truth = true_score(search, members, rule)
        interval = score_interval(like.metric, windows.per_subject(), windows.mean_per_subject(predictions_NO))
        covered = float(interval.low <= truth <= interval.high)
        naive = like.score(members.combine(rule))
        found[name] = Row(naive, old.get(name, np.nan), nested.scores[name], truth, covered)
    return found


def true_score(search: Search, members: MemberPredictions, rule: Rule) -> float:
    """Return the expected score on new people."""
    if members.kind == "classification":
        return 0.5
    assert search.new_TEFN is not None
    by_name = {str(Member(trial, epoch + 1)): (trial, epoch) for trial, epoch in np.ndindex(TRIALS, EPOCHS)}
    new_MFN = np.stack([search.new_TEFN[by_name[name]] for name in members.names]).astype(np.float64)
    of_people_MFS = new_MFN.reshape(*new_MFN.shape[:2], NEW_PEOPLE, WINDOWS).mean(3)
    values = [combine(rule, torch.from_numpy(of_people_MFS[:, fold, :, None])) for fold in range(new_MFN.shape[1])]
    return float((1 + torch.stack(values).square().mean()) ** 0.5)  # labels have mean 0 and variance 1


# Tables


Make = Callable[[Kind, np.random.Generator, bool, int], Search]


def run_searches(title: str, kind: Kind, make: Make, args: argparse.Namespace) -> None:
    """Simulate searches, and print a table of their scores."""
    names = list(METHODS) if args.all else auto_methods(kind)
    rows: dict[str, list[Row]] = {}
    correlations, start = [], time.perf_counter()
    for number in range(args.searches):
        search = make(kind, np.random.default_rng([SEED, number]), args.halving, args.repeats)
        members = search.pool.choose(np.ones(len(search.pool.like.targets), dtype=bool))
        correlations.append(float(np.median(error_correlations(members))))
        for name, row in score_search(search, names, before=number < args.before).items():
            rows.setdefault(name, []).append(row)
    print(f"\n{title}: {args.searches} searches, seeds {SEED}, 0 to {args.searches - 1}, ", end="")
    print(f"{time.perf_counter() - start:.0f} s; median correlation of members' errors {np.mean(correlations):.2f}\n")
    print("| row | naive | called nested before | nested | truth | nested minus truth | intervals that cover |")
    print("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        naive_R, before_R, nested_R, truth_R, covered_R = np.array(found).T
        error = (nested_R - truth_R).std() / len(found) ** 0.5
        difference = f"{(nested_R - truth_R).mean():+.3f} ± {error:.3f}"
        before = f"{np.nanmean(before_R):.3f}" if np.isfinite(before_R).any() else ""
        means = f"{naive_R.mean():.3f} | {before} | {nested_R.mean():.3f} | {truth_R.mean():.3f}"
        print(f"| {name} | {means} | {difference} | {100 * covered_R.mean():.0f} % |", flush=True)


SEARCHES: dict[str, Make] = {"drawn": drawn_search, "linear": linear_search, "trained": trained_search}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--searches", type=int, help="searches of each table (200; trained: 20)")
    parser.add_argument("--before", type=int, default=50, help="searches whose old scores are computed")
    parser.add_argument("--members", choices=["drawn", "linear"], default="drawn", help="what a simulated search has")
    parser.add_argument("--kind", choices=["classification", "regression"], help="one of the two (both)")
    parser.add_argument("--all", action="store_true", help="all methods, not only those of auto")
    parser.add_argument("--halving", action="store_true", help="two of three trials end early")
    parser.add_argument("--repeats", type=int, default=1, help="times that the folds are drawn (1)")
    parser.add_argument("--trained", action="store_true", help="train networks")
    parser.add_argument("--quick", action="store_true", help="two searches")
    args = parser.parse_args()
    args.searches = args.searches or (2 if args.quick else 20 if args.trained else 200)
    torch.set_num_threads(1)
    print(where_and_when("cpu"))
    kinds: list[tuple[Kind, str]] = [("classification", "AUC"), ("regression", "NRMSE")]
    for kind, metric in kinds[:1] if args.trained else kinds:
        if args.kind in (None, kind):
            members = "trained" if args.trained else args.members
            repeats = f", {args.repeats} repeats" if args.repeats > 1 else ""
            run_searches(f"{metric}, {members} members{repeats}", kind, SEARCHES[members], args)


if __name__ == "__main__":
    main()
