"""Successive halving over stored scores."""

from __future__ import annotations

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.search.pruner import SuccessiveHalving

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_of(curves, direction="minimize"):
    study = optuna.create_study(direction=direction)
    for curve in curves:
        trial = study.ask()
        for step, value in curve.items():
            trial.report(value, step)
    return study


def stops(pruner, *curves):
    """Return whether the last of the trials is stopped at its last step."""
    study = study_of(curves)
    return pruner.prune(study, study.trials[-1])


def test_halving_stops_at_a_rung_only_and_keeps_the_best_third():
    pruner = SuccessiveHalving(grace=2, eta=3)
    five = [{1: 0.9, 2: v} for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert not stops(pruner, *five, {1: 0.9, 2: 0.15})
    assert stops(pruner, *five, {1: 0.9, 2: 0.25})
    assert not stops(pruner, *five, {1: 0.99})  # before the rung
    assert not stops(pruner, *five, {1: 0.9, 2: 0.25, 3: 9.0})  # between rungs
    assert not stops(pruner, *five, {1: 0.15, 2: 0.25})  # its best so far counts


def test_halving_lets_the_first_trials_of_a_rung_continue():
    pruner = SuccessiveHalving(grace=2, eta=3)
    assert not stops(pruner, {2: 0.1})
    assert not stops(pruner, {2: 0.1}, {2: 0.2}, {2: 0.3})
    assert stops(pruner, {2: 0.1}, {2: 0.2}, {2: 0.3}, {2: 0.4})


def test_halving_counts_both_passes_of_sam():
    pruner = SuccessiveHalving(grace=3, eta=2)
    plain = [{1: 0.5, 2: 0.5, 3: 0.5}] * 3
    assert not stops(pruner, *plain, {2: 0.9})
    assert stops(pruner, *plain, {2: 0.9, 4: 0.9})


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True), st.integers(2, 4))
def test_the_best_trial_is_never_stopped_and_direction_is_symmetric(scores, eta):
    pruner = SuccessiveHalving(grace=1, eta=eta)
    low = study_of([{1: s} for s in scores])
    high = study_of([{1: -s} for s in scores], "maximize")
    stopped = [pruner.prune(low, t) for t in low.trials]
    assert not stopped[scores.index(min(scores))]
    assert stopped == [pruner.prune(high, t) for t in high.trials]
