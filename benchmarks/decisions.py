"""Simulate three classes, and compare nested scores by chosen weights of classes with those of the most probable class.

    python benchmarks/decisions.py [--sets 20] [--quick]

Features are normal, and probabilities those of Bayes' rule, so that nothing but the decision can be improved. Windows:
24 people have 20 windows of all classes. People: 60 people have one class each, and 20 equal windows. A cell is the
nested score minus that of the most probable class, over simulated sets, with its standard error. Without effect on the
best choice, as where classes are equally frequent, a gain is luck.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import where_and_when
from raypipe.core.class_metrics import OF_CONFUSION
from raypipe.core.metrics import score
from raypipe.ensembles.calibration import calibrate_across
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.oof import MemberPredictions

RARE, EVEN = (0.8, 0.13, 0.07), (1 / 3, 1 / 3, 1 / 3)
EFFECTS, EACH, SEED = (0.8, 1.5), 20, 0
PEOPLE = {False: 24, True: 60}


def simulate(
    prior: tuple[float, ...], effect: float, people: int, seed: int, *, of_people: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return probabilities (N, K), classes and people of windows."""
    rng = np.random.default_rng([SEED, seed])
    n, k = people if of_people else people * EACH, len(prior)
    y = rng.choice(k, p=prior, size=n)
    x_NK = rng.normal(size=(n, k)) + effect * np.eye(k)[y]
    odds_NK = np.array(prior) * np.exp(effect * x_NK)
    p_NK = odds_NK / odds_NK.sum(1, keepdims=True)
    if of_people:
        p_NK, y = np.repeat(p_NK, EACH, axis=0), np.repeat(y, EACH)
    return p_NK, y, np.repeat(np.arange(people), EACH)


def gain(metric: str, p_NK: NDArray[Any], y: NDArray[Any], people: NDArray[Any]) -> float:
    """Return the nested score by weights that others chose minus that of the most probable class."""
    zeros = np.zeros(len(y), np.int64)
    like = MemberPredictions(["a"], p_NK[None], y, people, zeros, np.arange(len(y)), metric, "classification")
    nested_NK, weights_NK = calibrate_across(like, p_NK)
    return score(metric, y, decide(nested_NK, weights_NK)) - score(metric, y, decide(nested_NK))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=20, help="simulated sets of people per cell")
    parser.add_argument("--quick", action="store_true", help="two sets")
    args = parser.parse_args()
    sets = 2 if args.quick else args.sets
    print(where_and_when("cpu"))
    print(f"\n| classes | scored | effect | {' | '.join(OF_CONFUSION)} |")
    print("|---" * (3 + len(OF_CONFUSION)) + "|")
    for prior, name in ((RARE, "80, 13, 7 %"), (EVEN, "equally frequent")):
        for of_people, people in PEOPLE.items():
            for effect in EFFECTS:
                cells = []
                for metric in OF_CONFUSION:
                    drawn = [simulate(prior, effect, people, seed, of_people=of_people) for seed in range(sets)]
                    found = np.array([gain(metric, *each) for each in drawn])
                    cells.append(f"{found.mean():+.3f} ± {found.std() / sets**0.5:.3f}")
                what = "people" if of_people else "windows"
                print(f"| {name} | {what} | {effect} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
