"""Parameter importance, parallel coordinates and contours, and warnings where there are few trials."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.parameters import parse_config
from raypipe.reporting.sections.importance import (
    NOT_USED,
    contour_plot,
    importance_section,
    importances,
    lines_shown,
    parallel_coordinates,
    spread_over,
)
from raypipe.reporting.trial_table import is_unused, trials_table
from tests.support.toys import ToyWindows, add_ended, make_run


def test_the_parameter_that_decides_is_found(twelve):
    table = trials_table(twelve)
    shares = importances(table[table["state"] == "complete"], "minimize")
    assert set(shares) == {"optim/lr", "optim/weight_decay", "loss/name"}
    assert next(iter(shares)) == "optim/lr" and shares["optim/lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("trials", "trees"), [(60, 64), (100, 64), (200, 32), (400, 16)])
def test_a_forest_for_many_trials_takes_no_longer_than_one_for_a_hundred(monkeypatch, trials, trees):
    made = []

    class Evaluator(optuna.importance.FanovaImportanceEvaluator):
        def __init__(self, *, n_trees, seed):
            made.append(n_trees)
            super().__init__(n_trees=n_trees, seed=seed)

    monkeypatch.setattr(optuna.importance, "FanovaImportanceEvaluator", Evaluator)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"optim/lr": rng.random(trials), "sam/rho": rng.random(trials)})
    table["score"] = table["optim/lr"] + 0.3 * table["sam/rho"] ** 2
    shares = importances(table, "minimize")
    assert made == [trees] and list(shares) == ["optim/lr", "sam/rho"]
    assert shares["optim/lr"] == pytest.approx(0.9, abs=0.06), "1 / 12 over 1 / 12 + .09 x 4 / 45"


def test_lines_of_parallel_coordinates_end_at_the_scores(twelve):
    table = trials_table(twelve)
    table = table[table["state"] == "complete"]
    (axes,) = parallel_coordinates(table, ["optim/lr", "loss/name"], "NRMSE", "minimize").axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert len(lines) == 12
    heaviest = max(lines, key=lambda line: line.get_linewidth())
    assert heaviest.get_ydata()[2] == 0.0, "the best of scores that are to be low"
    assert {line.get_ydata()[1] for line in lines} == {0.0, 1.0} and axes.get_yticks().size == 0


def test_the_contour_plot_has_every_trial_and_leaves_no_trace(twelve):
    from matplotlib import pyplot, rcParams

    table = trials_table(twelve)
    table = table[table["state"] == "complete"]
    style, open_ones = dict(rcParams), pyplot.get_fignums()
    axes, bar = contour_plot(table, ["optim/lr", "loss/name"], "NRMSE", "minimize").axes
    assert {axes.get_xlabel(), axes.get_ylabel()} == {"optim/lr", "loss/name"} and "NRMSE" in bar.get_ylabel()
    dots = [c for c in axes.collections if len(c.get_offsets()) == 12]
    assert len(dots) == 1 and len(axes.collections) > 2
    assert dict(rcParams) == style and pyplot.get_fignums() == open_ones


@pytest.fixture
def few(tmp_path):
    """Makes a run of so many complete trials, beside two that were pruned; every second one with SAM."""

    def made(complete: int):
        run = make_run(tmp_path / f"run{complete}", ToyWindows())
        for number in range(complete + 2):
            state = "complete" if number < complete else "pruned"
            sam = {"sam__name": "sam", "sam__rho": 0.02 * (number + 1)} if number % 2 else {}
            add_ended(run, number, 1.0 + 0.01 * number, state, optim__lr=10 ** (-3 - number / 9), **sam)
        return run

    return made


def section_of(run):
    return importance_section(run, trials_table(run))


def test_fewer_than_ten_trials_have_no_importance(few):
    html = section_of(few(9))
    assert "Importances are not computed from 9 fully trained trial(s): 10 are needed" in html
    assert "Importance of parameters" not in html and "Contour" not in html
    assert "Parallel coordinates" in html and "Grey, dashed: pruned" in html
    html = section_of(few(10))
    assert "Importance of parameters" in html and "Parallel coordinates" in html
    assert "Contour" not in html, "one number alone is used by all trials"
    assert "could not be drawn" not in html


def test_a_line_has_no_dot_where_a_parameter_is_switched_off_and_ends_at_the_score(few):
    from matplotlib.colors import to_hex

    from raypipe.reporting.plotting import GREY

    table = trials_table(few(4))
    (axes,) = parallel_coordinates(table, ["sam/name", "sam/rho"], "NRMSE", "minimize").axes
    lines = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert sorted(line.get_markevery() for line in lines) == [[0, 1, 2]] * 3 + [[0, 2]] * 3
    for line in lines:
        with_dot = np.isin(np.arange(3), line.get_markevery())
        assert ((line.get_ydata() >= 0.0) == with_dot).all(), "through no value that the trial does not have"
        assert (line.get_ydata()[~with_dot] == NOT_USED).all()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["not used"] and axes.get_ylim()[0] < NOT_USED
    assert all(label.xyann[0] > 0 for label in axes.texts), "beside the dots"
    assert sum(to_hex(line.get_color()) == GREY for line in lines) == 2
    assert is_unused({"loss/name": "plain"}, "loss/gamma") and not is_unused({"loss/name": "focal"}, "loss/gamma")
    assert not is_unused({"sam/name": "none"}, "sam/name") and not is_unused({}, "epochs")


def test_trials_of_several_families_are_compared_and_have_gaps_where_a_model_lacks_a_parameter(tmp_path):
    run = make_run(tmp_path, ToyWindows())
    for number in range(6):
        add_ended(run, number, 0.5 + 0.01 * number, optim__lr=1e-3 * (number + 1))
    for number in range(6, 12):
        model = parse_config({"model/name": "covariance", "model/shrinkage": 0.01 * number})
        add_ended(run, number, 0.3 + 0.01 * number, config=model)
    table = trials_table(run)
    assert is_unused(table.loc[0].to_dict(), "model/shrinkage") and is_unused(table.loc[7].to_dict(), "model/depth")
    assert {"model/name", "model/shrinkage"} <= set(importances(table, "minimize"))
    html = section_of(run)
    assert "its line is below that parameter" in html
    (axes,) = parallel_coordinates(table, ["model/shrinkage"], "NRMSE", "minimize").axes
    lines = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(lines) == 12 and all(line.get_ydata()[-1] >= 0.0 for line in lines), "every model has a score"
    assert "Contour" not in html, "a model lacks each number of the other"


def test_of_many_trials_some_have_a_line_and_the_best_one_always(few, monkeypatch):
    from raypipe.reporting.sections import importance

    run = few(30)
    table = trials_table(run)
    assert len(lines_shown(table, "minimize")) == len(table) == 32, "all of few trials"
    monkeypatch.setattr(importance, "MAX_TRIALS", 12)
    table.loc[17, "score"] = 0.5
    shown = lines_shown(table, "minimize")
    assert 17 in shown.index and len(shown) in (12, 13) and {0, 31} <= set(shown.index)
    assert shown.index.is_monotonic_increasing
    html = importance_section(run, table)
    assert "12 of the 30 fully trained trials, evenly spaced in the search" in html
    assert f"Drawn are {len(shown)} of the 32 trials: the best, and others evenly spaced in the search" in html
    assert "could not be drawn" not in html


@given(count=st.integers(1, 200), limit=st.integers(2, 50))
def test_rows_are_spread_over_the_table(count, limit):
    table = pd.DataFrame({"score": range(count)})
    rows = spread_over(table, limit)["score"].tolist()
    assert len(rows) == min(count, limit) and rows[0] == 0 and rows[-1] == count - 1
    gaps = np.diff(rows)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
