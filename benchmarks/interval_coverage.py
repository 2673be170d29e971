"""Count wrong claims about new people, where the difference to the predictor without EEG is 0 in truth.

    python benchmarks/interval_coverage.py [--sets 2000] [--quick]

Each cell is a rate in percent, of "better" and of "worse", over simulated sets of held-out people: first of percentile
intervals, then of the verdict's rule (`raypipe.core.intervals`). Promised is 2.5 a side. A dash: the verdict says that
these people are too few. Of families the columns are numbers of families.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.bootstrap import MAX_CHANCE, smallest_chance
from raypipe.core.intervals import Samples, contain_zero, interval_of, sign_flip_chance, widened

Array = NDArray[np.float64]
PEOPLE = (6, 8, 12, 20, 36, 60, 100)
RESAMPLES, TRIALS, SEED = 2000, 8, 0


class Sets(NamedTuple):
    """Simulated sets of people."""

    statistic: Array
    """(sets, parts), 0 in truth."""
    claimable: bool
    """People are enough for a claim."""
    cross_validated: bool = False
    """Predictions are those of a cross-validation."""
    units: int | None = None
    """What is resampled, if it is not as many as people."""


@cache
def parts(people: int) -> Array:
    """Return how often each part has each person: all, all but one, resamples (1 + S + R, S)."""
    drawn = np.random.default_rng(SEED).multinomial(people, np.full(people, 1 / people), size=RESAMPLES)
    return np.concatenate([np.ones((1, people)), 1 - np.eye(people), drawn]).astype(np.float64)


def auc_of(wins_BSS: Array, positive_BS: Array, negative_BS: Array, counts_PS: Array) -> Array:
    """Return AUC - 0.5 of each part from the pairs that each two people win."""
    won = np.einsum("bps,ps->bp", np.matmul(counts_PS, wins_BSS), counts_PS)
    pairs = (positive_BS @ counts_PS.T) * (negative_BS @ counts_PS.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan) - 0.5


def classes_of_trials(sets: int, people: int, rng: np.random.Generator) -> Sets:
    """Each person has both classes, a level of its own, and an effect of its own of mean 0."""
    level = rng.standard_normal((sets, people, 1))
    effect = 0.5 * rng.standard_normal((sets, people, 1))
    of_one = level + effect / 2 + rng.standard_normal((sets, people, TRIALS))
    of_other = level - effect / 2 + rng.standard_normal((sets, people, TRIALS))
    wins = (of_one[:, :, None, :, None] > of_other[:, None, :, None, :]).sum((3, 4)).astype(np.float64)
    trials = np.full((sets, people), float(TRIALS))
    y, subjects = np.tile([0, 1], people), np.repeat(np.arange(people), 2)
    statistic = auc_of(wins, trials, trials, parts(people))
    return Sets(statistic, smallest_chance(y, subjects, classes=True) <= MAX_CHANCE)


def classes_of_people(sets: int, people: int, rng: np.random.Generator) -> Sets:
    """Half of the people are of each class."""
    one = np.argsort(rng.random((sets, people)), axis=1) < people // 2
    scores = rng.standard_normal((sets, people))
    wins = (scores[:, :, None] > scores[:, None, :]) & one[:, :, None] & ~one[:, None, :]
    of_class = one.astype(np.float64)
    statistic = auc_of(wins.astype(np.float64), of_class, 1.0 - of_class, parts(people))
    return Sets(statistic, smallest_chance(one[0].astype(int), np.arange(people), classes=True) <= MAX_CHANCE)


def cross_validated_classes(sets: int, people: int, rng: np.random.Generator, *, widen: bool) -> Sets:
    """Each person is scored by ridge regression on noise, fitted to the people of the four other parts."""
    features = round(0.4 * people)
    x_BSC = rng.standard_normal((sets, people, features))
    one_S, part_S = np.arange(people) % 2 == 1, np.arange(people) // 2 % 5  # parts have both classes
    one = np.tile(one_S, (sets, 1))
    scores = np.empty((sets, people))
    for part in range(5):
        inside = part_S != part
        gram = np.einsum("bsc,bsd->bcd", x_BSC[:, inside], x_BSC[:, inside]) + people * np.eye(features)
        moment = np.einsum("bsc,s->bc", x_BSC[:, inside], one_S[inside] - one_S[inside].mean())
        weights_BC1 = np.linalg.solve(gram, moment[..., None])
        scores[:, ~inside] = (x_BSC[:, ~inside] @ weights_BC1)[..., 0]
    same = part_S[:, None] == part_S
    pairs = (one[:, :, None] & ~one[:, None, :] & same).astype(np.float64)
    wins = pairs * (scores[:, :, None] > scores[:, None, :])
    counts = parts(people)
    won, tried = (np.einsum("bps,ps->bp", np.matmul(counts, each), counts) for each in (wins, pairs))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = np.where(tried > 0, won / tried, np.nan) - 0.5
    shown = part_S if widen else None
    chance = smallest_chance(one_S.astype(int), np.arange(people), classes=True, parts=shown)
    return Sets(statistic, chance <= MAX_CHANCE, cross_validated=widen)


def nrmse_of(y_BSW: Array, predicted_BSW: Array, counts_PS: Array) -> Array:
    """Return the NRMSE of the true mean minus that of predictions: positive is better."""
    sums_BSD = np.stack(
        [np.ones_like(y_BSW), y_BSW, y_BSW**2, (y_BSW - predicted_BSW) ** 2], axis=-1
    ).sum(2)  # fmt: skip
    n, y, square, error = np.moveaxis(np.matmul(counts_PS, sums_BSD), -1, 0)
    variance = square / n - (y / n) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-12, (np.sqrt(square / n) - np.sqrt(error / n)) / np.sqrt(variance), np.nan)


def values(sets: int, people: int, rng: np.random.Generator, *, of_people: bool, heavy: bool = False) -> Sets:
    """Predictions follow the target a little, with noise that makes their error that of the mean."""
    draw = partial(rng.standard_t, 5) if heavy else rng.standard_normal
    variance = (5 / 3 if heavy else 1.0) if of_people else 0.49 + np.exp(2 * 0.16)
    y: Array
    if of_people:
        y = np.asarray(draw(size=(sets, people, 1)))
    else:
        spread = np.exp(0.4 * rng.standard_normal((sets, people, 1)))
        y = 0.7 * rng.standard_normal((sets, people, 1)) + spread * rng.standard_normal((sets, people, TRIALS))
    slope = 0.3
    noise = np.sqrt(variance * (1 - (1 - slope) ** 2) / (1 if of_people else 2))
    predicted: Array = slope * y + noise * rng.standard_normal((sets, people, 1))
    if not of_people:
        predicted = predicted + noise * rng.standard_normal(y.shape)
    return Sets(nrmse_of(y, predicted, parts(people)), 2.0**-people <= MAX_CHANCE)


def families(sets: int, people: int, rng: np.random.Generator, *, by_family: bool) -> Sets:
    """Families of `TRIALS` people, who share half of the variance of their targets and of their predictions."""

    def draw() -> Array:
        own = rng.standard_normal((sets, people, TRIALS))
        return np.asarray((rng.standard_normal((sets, people, 1)) + own) / 2**0.5)

    y, slope = draw(), 0.3
    predicted = slope * y + np.sqrt(1 - (1 - slope) ** 2) * draw()
    if by_family:
        return Sets(nrmse_of(y, predicted, parts(people)), 2.0**-people <= MAX_CHANCE)
    y, predicted = (each.reshape(sets, people * TRIALS, 1) for each in (y, predicted))
    return Sets(nrmse_of(y, predicted, parts(people * TRIALS)), claimable=True, units=people * TRIALS)


def skewed_mean(sets: int, people: int, rng: np.random.Generator) -> Sets:
    """Each person's part of the difference has a skewness of 1.4, to show where the rule reaches its limits."""
    part = 2.0 - rng.gamma(2.0, 1.0, (sets, people))
    counts = parts(people)
    return Sets(part @ counts.T / counts.sum(1), 2.0**-people <= MAX_CHANCE)


CASES: dict[str, Callable[[int, int, np.random.Generator], Sets]] = {
    "classes, of trials (AUC)": classes_of_trials,
    "classes, of people (AUC)": classes_of_people,
    "values, of trials (NRMSE)": partial(values, of_people=False),
    "values, of people (NRMSE)": partial(values, of_people=True),
    "the same, t with 5 df": partial(values, of_people=True, heavy=True),
    "a mean of skewed parts": skewed_mean,
    "values, of families (NRMSE)": partial(families, by_family=True),
    "the same, people resampled": partial(families, by_family=False),
    "classes, cross-validated (AUC)": partial(cross_validated_classes, widen=True),
    "the same, as if held out": partial(cross_validated_classes, widen=False),
}


def claims(found: Sets, people: int) -> tuple[Array, Array]:
    """Return the rates of "better" and of "worse": of percentile intervals, and of the rule."""
    people = found.units or people
    counts = parts(people)[1 + people :].astype(np.int64)
    plain, ruled = np.zeros((len(found.statistic), 2)), np.zeros((len(found.statistic), 2))
    for row, each in enumerate(found.statistic):
        samples = Samples(float(each[0]), each[1 : 1 + people], each[1 + people :], counts)
        low, high = np.nanquantile(samples.resampled_R, [0.025, 0.975])
        plain[row] = low > 0, high < 0
        interval = interval_of(samples)
        if found.cross_validated:
            interval = widened(interval, samples.all)
        if not interval.low <= 0.0 <= interval.high:
            interval = contain_zero(interval, sign_flip_chance(samples))
        ruled[row] = interval.low > 0, interval.high < 0
    return 100 * plain.mean(0), 100 * ruled.mean(0)


def cell(case: Callable[[int, int, np.random.Generator], Sets], sets: int, people: int) -> str:
    """Return the rates of percentiles and of the rule as text."""
    plain, ruled, done = np.zeros(2), np.zeros(2), 0
    while done < sets:
        some = min(sets - done, max(50, 20_000 // people))
        found = case(some, people, np.random.default_rng([SEED, people, done]))
        one, other = claims(found, people)
        plain, ruled, done = plain + some * one, ruled + some * other, done + some
    before, after = plain / sets, ruled / sets
    shown = f"**{after[0]:.1f} {after[1]:.1f}**" if found.claimable else "-"
    return f"{before[0]:.1f} {before[1]:.1f} → {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=2000, help="simulated sets of people per cell")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="rows (all)")
    parser.add_argument("--quick", action="store_true", help="60 sets of 6 and of 12 people")
    args = parser.parse_args()
    people, sets = ((6, 12), 60) if args.quick else (PEOPLE, args.sets)
    print("| | " + " | ".join(f"{n} people" for n in people) + " |")
    print("|---" * (len(people) + 1) + "|")
    for name in args.only or CASES:
        case = CASES[name]
        print(f"| {name} | " + " | ".join(cell(case, sets, n) for n in people) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
