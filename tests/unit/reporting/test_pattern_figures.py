"""Figures of activation patterns: which bands, times and outputs are drawn, and what the caption says of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.core.parameters import parse_config
from raypipe.models.from_config import build_model
from raypipe.reporting import pattern_figures
from raypipe.reporting.closed_form_patterns import ScalpPatterns
from raypipe.reporting.pattern_figures import draw_patterns
from tests.support.toys import ToyWindows
from tests.unit.conftest import TEN_TWENTY


@pytest.fixture
def drawn(monkeypatch):
    """The maps that were drawn."""
    found = []
    plot = pattern_figures._plot_maps
    monkeypatch.setattr(pattern_figures, "_plot_maps", lambda maps: found.append(maps) or plot(maps))
    return found


def draw(values_OMC, *, unit="uV", classes=(), outputs=(), **params):
    windows = ToyWindows(names=TEN_TWENTY)
    windows.classes, windows.outputs, windows.manifest = list(classes), list(outputs), SimpleNamespace(unit=unit)
    windows.n_outputs = len(classes) or len(outputs) or 1
    config = parse_config({f"model/{name}": value for name, value in params.items()}).model
    model = build_model(config, n_channels=19, n_times=64, n_outputs=windows.n_outputs, sfreq=windows.sfreq)
    power = params.get("predictors") != "time-courses"
    return draw_patterns("trial 7", config, model, ScalpPatterns(np.asarray(values_OMC), power), windows, 50)


def test_bands_have_their_names_and_classes_a_row_each(drawn):
    values = np.random.default_rng(0).normal(size=(4, 4, 19))
    block = draw(values, name="covariance", classes="abcd", scale="band")
    (maps,) = drawn
    assert list(maps.columns) == ["1–4 Hz", "4–8 Hz", "8–13 Hz", "13–30 Hz"], "gamma starts above 25 Hz"
    assert list(maps.rows) == ["a", "b", "c"] and maps.unit == "dB per SD" and not block.failures
    np.testing.assert_array_equal(maps.values, values[:3])
    assert "The first 3 of 4 classes are shown." in block.caption
    assert "relative to the band's power, changes with each class's logit" in block.caption


def test_two_classes_have_one_row_of_log_odds(drawn):
    block = draw(np.ones((1, 4, 19)), name="linear", classes=["off", "on"])
    assert drawn[0].rows == [] and "the predicted log odds of on, from 50 windows" in block.caption
    assert block.caption.startswith("Trial 7 (fit of fold 0): how the log power at each channel changes")


@pytest.mark.parametrize(
    ("unit", "scale", "expected"), [("uV", "none", "µV"), ("1", "none", "units"), ("uV", "window", "window RMS")]
)
def test_times_are_those_of_the_largest_changes(drawn, unit, scale, expected):
    values = np.zeros((2, 32, 19))
    values[:, [3, 4, 20]] = [[[1.0], [2.0], [3.0]]]
    block = draw(
        values, name="linear", predictors="time-courses", rate=25.0, scale=scale, outputs=["x", "y"], unit=unit
    )
    (maps,) = drawn
    assert {"180 ms", "820 ms"} <= set(maps.columns) and "140 ms" not in maps.columns, "a neighbour of 180 ms"
    assert maps.unit == f"{expected} per SD" and len(maps.columns) == 6 and list(maps.rows) == ["x", "y"]
    assert "Shown are the 6 of 32 times" in block.caption and len(block.images) == 2 and not block.failures
