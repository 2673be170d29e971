"""Private and deprecated API of Optuna that raypipe uses does what it expects."""

from __future__ import annotations

import optuna

from raypipe.search.optuna_compat import enqueued_params, open_trial


def test_a_trial_is_opened_again_with_what_it_has_drawn():
    study = optuna.create_study()
    first = study.ask()
    drawn = first.suggest_float("x", 0, 1)
    again = open_trial(study, study.get_trials()[0])
    assert again.suggest_float("x", 0, 1) == drawn
    again.report(0.5, 1)
    assert study.get_trials()[0].intermediate_values == {1: 0.5}


def test_parameters_of_enqueued_trials_are_known():
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.25})
    study.ask()
    study.ask()
    assert [enqueued_params(trial) for trial in study.get_trials()] == [{"x": 0.25}, None]
