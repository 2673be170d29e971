"""The section on the ensemble: pictures only where there is something to see."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.ensembles.family_record import Family
from raypipe.reporting.plotting import new_figure, widen_score_axis
from raypipe.reporting.sections import ensemble
from raypipe.reporting.sections.ensemble import (
    _curve_caption,
    _families_table,
    _nested_table,
    describe_correlations,
    ensemble_section,
    error_correlations,
    score_by_size,
)
from raypipe.storage.records import Member


def of_members(fitted, n):
    """Return an ensemble of so many of its trials."""
    members = [Member(k % 3, k // 3) for k in range(n)]
    r_MM = np.eye(n) * 0.4 + 0.6
    diversity = {
        "members": [str(member) for member in members],
        "correlations": r_MM.tolist(),
        "curve": {"by rank": [(0.8, 0.7, 0.9)] * n, "complementing": [(0.79, None, None)] * n},
    }
    return replace(fitted, members=members, weights=np.full(n, 1 / n), diversity=diversity)


@pytest.fixture(scope="module")
def fitted(classes):
    return classes.ensemble()


@pytest.mark.parametrize(("n", "images"), [(1, 0), (2, 1), (3, 2), (4, 3), (16, 3)])
def test_few_members_have_few_pictures(fitted, n, images):
    text = str(ensemble_section(of_members(fitted, n)))
    assert text.count("<svg") == images and "could not be drawn" not in text
    assert "A member&#39;s prediction is the mean of its 3 fold models" in text
    assert "Errors correlate least between" not in text, "all correlate by 0.60"
    assert ("Errors of all members correlate by 0.60: combining them helps more" in text) == (n > 2)
    assert ("Errors of trial 1 (conformer) and trial 0 (conformer) correlate by 0.60: combining" in text) == (n == 2)


def test_a_method_that_was_named_is_no_choice(fitted, monkeypatch):
    alone = of_members(fitted, 1)
    for method, said in (("auto", True), ("all", True), ("best", False)):
        monkeypatch.setattr(ensemble, "read_evaluations", lambda run, asked=method: [SimpleNamespace(method=asked)])
        assert ("The first row scores the choice among methods" in str(ensemble_section(alone))) == said


def test_every_plot_of_correlations_has_the_same_colours():
    for r in (0.95, -0.3):
        (image,) = error_correlations(["a", "b"], [[1.0, r], [r, 1.0]]).axes[0].get_images()
        assert image.get_clim() == (-1.0, 1.0)


def test_the_most_and_the_least_alike_are_named():
    r_MM = [[1.0, 0.9, 0.2], [0.9, 1.0, None], [0.2, None, 1.0]]
    text = describe_correlations(["a", "b", "c"], r_MM)
    assert "least between c and a (0.20), most between b and a (0.90)" in text
    assert describe_correlations(["a"], [[1.0]]) == ""


def test_correlations_that_look_equal_have_no_order():
    r_MM = [[1.0, 0.999, 0.998], [0.999, 1.0, 1.0], [0.998, 1.0, 1.0]]
    text = describe_correlations(["a", "b", "c"], r_MM, "trials")
    assert text == "Errors of all trials correlate by 1.00: combining them cannot help much."
    text = describe_correlations(["a", "b"], [[1.0, 0.3], [0.3, 1.0]])
    assert text == "Errors of b and a correlate by 0.30: combining them helps more where this is lower."


def test_one_trial_that_is_shipped_alone_is_no_member(fitted):
    found = replace(of_members(fitted, 4), members=[Member(0)], weights=np.ones(1), merged=None)
    text = str(ensemble_section(found))
    assert "Errors of all trials correlate" in text and "Correlation of the trials&#39; errors" in text


def test_baselines_choose_nothing_and_have_no_optimism(fitted):
    table = _nested_table(fitted)
    column = table.head.index("nested minus naive")
    cells = {row[0]: row[column] for row in table.rows}
    chosen = [name for name in cells if name in ("ensemble", "best single trial")]
    assert chosen and all(cells[name] for name in chosen)
    names = [each.name for each in fitted.baselines] + ["prior baseline"]
    assert [cells[name] for name in names] == [""] * len(names)


def test_baselines_whose_weights_of_classes_were_chosen_show_their_optimism(fitted):
    name = fitted.baselines[0].name
    table = fitted.table.copy()
    table.loc[name, "optimism"] = -0.02
    shown = _nested_table(replace(fitted, table=table))
    (row,) = (row for row in shown.rows if row[0] == name)
    assert row[shown.head.index("nested minus naive")] == "−0.020"


def test_what_families_bring_has_intervals_below_the_numbers_so_that_the_table_fits_a_page(fitted):
    family = Family(
        name="covariance",
        trials=3,
        best="trial 1",
        score=0.914,
        low=0.85,
        high=0.97,
        gain=-0.0001,
        gain_low=-0.037,
        gain_high=0.012,
        correlation=0.86,
        weight=1.0,
        without=None,
        loss=None,
        loss_low=None,
        loss_high=None,
    )
    (row,) = _families_table(replace(fitted, families=[family])).rows
    assert row[:2] == ["covariance", "3"] and row[4:6] == ["0.860", "1.00"]
    assert row[2].replace("\u00a0", " ") == "0.914\n0.850 to 0.970"
    assert row[3].replace("\u00a0", " ") == "+0.000\n−0.037 to +0.012"
    assert row[6].replace("\u00a0", " ") == "undefined\nno interval"
    assert "what each family" in str(ensemble_section(replace(fitted, families=[family]))).lower()


def test_two_lines_that_coincide_are_both_seen():
    scores = [(0.6, 0.5, 0.7), (0.7, 0.6, 0.8), (0.7, None, None)]
    curve = {"by rank": scores, "complementing": scores}
    below, above = score_by_size({"curve": curve}, "auc").axes[0].get_lines()[:2]
    assert (below.get_linestyle(), above.get_linestyle()) == ("-", "--")
    assert below.get_markersize() > above.get_markersize()


def test_scores_by_number_of_members_have_their_intervals():
    curve = {"by rank": [(0.6, 0.5, 0.7), (0.7, None, None)], "complementing": [(0.6, 0.4, 0.8), (0.7, 0.6, 0.9)]}
    by_rank, other = score_by_size({"curve": curve}, "auc").axes[0].collections
    ends = [[sorted(line[:, 1]) for line in each.get_segments() if len(line)] for each in (by_rank, other)]
    assert ends == [[[0.5, 0.7]], [[0.4, 0.8], [0.6, 0.9]]]
    assert by_rank.get_segments()[0][0, 0] < 1 < other.get_segments()[0][0, 0], "side by side"
    assert "Bars: 95 % intervals over people" in _curve_caption(curve)
    assert "Bars" not in _curve_caption({"by rank": [(0.6, None, None)]})


@pytest.mark.parametrize(
    ("metric", "scores", "low", "high"), [("auc", (0.81, 0.815), 0.5, 1.0), ("nrmse", (0.97, 0.98), 0.0, 1.0)]
)
def test_an_axis_of_scores_reaches_from_no_skill(metric, scores, low, high):
    _, (axes,) = new_figure(3, 3)
    axes.plot(scores)
    widen_score_axis(axes, metric)
    bottom, top = axes.get_ylim()
    assert bottom <= low and top >= high and bottom <= min(scores) and top >= max(scores)


def test_an_axis_of_other_scores_stays_as_it_is():
    _, (axes,) = new_figure(3, 3)
    axes.plot([3.0, 4.0])
    before = axes.get_ylim()
    widen_score_axis(axes, "rmse")
    assert axes.get_ylim() == before
