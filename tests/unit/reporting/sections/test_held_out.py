"""The section on held-out subjects: plots at the primary level, and none that the people are too few for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raypipe.ensembles.held_out_record import HeldOut
from raypipe.reporting.plotting import inline_svg, new_figure, to_svg
from raypipe.reporting.sections.held_out import (
    confusion_matrix,
    held_out_section,
    predicted_against_true,
    primary_level,
    roc_curves,
    scores_by_subject,
    subject_scores,
)
from raypipe.storage.run_store import RunStore


def held_out_of(ensemble, n_people, each=5, *, classes=2, of_people=True):
    """Return the ensemble with invented predictions for people held out, who have one class each or all of them."""
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(n_people), each)
    targets = (number if of_people else np.arange(len(number))) % classes
    predictions = rng.dirichlet(np.ones(classes), size=len(number)).astype(np.float32)
    subjects = np.array([f"s{k:02d}" for k in number])
    held = HeldOut(
        windows=np.arange(len(number)),
        subjects=subjects,
        groups=subjects,
        targets=targets,
        predictions=predictions,
        trials=predictions[None],
        constant=np.full(classes, 1 / classes),
        baselines=predictions[None],
        baseline_weights=np.ones((1, classes)),
    )
    table = ensemble.table.assign(**({"window_held_out": 0.5} if of_people else {}))
    table = table if of_people else table.drop(columns=[c for c in table if c.startswith("subject_")])
    info = ensemble.run.info.model_copy(update={"classes": [f"class{k}" for k in range(classes)]})
    run = RunStore(ensemble.run.folder, info, ensemble.run.folds, ensemble.run.space)
    calibration = ensemble.calibration if classes == 2 else None
    return run, replace(ensemble, run=run, held_out=held, table=pd.DataFrame(table), calibration=calibration)


@pytest.fixture(scope="module")
def ensemble(classes):
    return classes.ensemble()


def test_where_the_target_is_a_persons_every_plot_is_of_people(ensemble):
    run, fitted = held_out_of(ensemble, 20)
    shown = primary_level(fitted)
    assert len(shown.targets) == 20 and shown.predictions.shape == (20, 2) and shown.of_people
    text = str(held_out_section(run, fitted))
    for words in ("ROC curve of people", "Calibration of people", "Confusion matrix of people"):
        assert words in text
    assert "Primary level: one mean prediction for each of 20 people." in text
    assert "windows" not in text and "could not be drawn" not in text


def test_where_each_window_has_a_target_plots_are_of_windows(ensemble):
    run, fitted = held_out_of(ensemble, 4, of_people=False)
    text = str(held_out_section(run, fitted))
    assert "ROC curve of windows" in text and "Calibration of windows" in text
    assert "Primary level: 20 windows of 4 people." in text and "Bars: 95 % intervals over people" in text


@pytest.mark.parametrize("n", [2, 3])
def test_two_people_have_no_calibration_curve(ensemble, n):
    run, fitted = held_out_of(ensemble, 2, classes=n)
    text = str(held_out_section(run, fitted))
    assert "Calibration of" not in text and "No reliability curve of the held-out people: 2 are too few." in text
    assert text.count("<svg") == 3 and "could not be drawn" not in text


def test_scores_of_people_are_shown_on_the_whole_range(ensemble):
    run, fitted = held_out_of(ensemble, 8)
    (axes,) = scores_by_subject(subject_scores(run, fitted)).axes
    assert axes.get_ylim() == (0.0, 1.03)


def test_three_classes_have_a_calibration_of_the_predicted_one(ensemble):
    run, fitted = held_out_of(ensemble, 30, classes=3)
    assert str(held_out_section(run, fitted)).count("<svg") == 4


def test_names_with_a_dollar_are_no_formulas():
    y, p = np.arange(6) % 2, np.full((6, 2), 0.5)
    for figure in (
        confusion_matrix(y, p, ["$low", "5$ to 10$_"]),
        roc_curves(y, p, ["a", "$b_c{$"]),
        predicted_against_true(y.astype(float), p[:, :1], 0.0, True, "$iq^$"),
    ):
        assert inline_svg(figure, "names")


def test_powers_of_ten_stay_formulas():
    figure, (axes,) = new_figure(3.0, 3.0)
    axes.plot([1, 1000], [0, 1])
    axes.set_xscale("log")
    to_svg(figure)
    assert all(label.get_parse_math() for label in axes.get_xticklabels())


def test_many_classes_are_colours_without_numbers():
    rng = np.random.default_rng(0)
    y, p, names = rng.integers(0, 100, 200), rng.dirichlet(np.ones(100), 200), [f"class {k}" for k in range(100)]
    (axes,) = confusion_matrix(y, p, names).axes
    assert not axes.texts and len(axes.get_xticks()) == 20
    (axes,) = roc_curves(y, p, names).axes
    assert axes.get_legend() is None and axes.get_title() == "ROC of each of 100 classes"
