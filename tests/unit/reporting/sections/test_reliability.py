from __future__ import annotations

from dataclasses import replace

from raypipe.ensembles.reliability import Bin, Estimate, Reliability
from raypipe.reporting.sections.reliability import reliability_plot, reliability_section


def test_the_section_shows_probabilities_or_intervals(classes, values):
    text = str(reliability_section(classes.ensemble()))
    assert "Reliability" in text and "expected calibration error" in text and "as the networks gave them" in text
    text = str(reliability_section(values.ensemble()))
    assert "promised" in text and "95%" in text and "expected calibration error" not in text
    assert "could not be drawn" not in text


def test_a_soup_without_nested_predictions_has_no_section(classes):
    assert reliability_section(replace(classes.ensemble(), reliability=None)) == ""


def test_a_group_of_one_person_has_no_bar():
    bins = [Bin(rows=3, predicted=0.2, observed=Estimate(value=0.25, low=None, high=None))]
    figure = reliability_plot(Reliability(bins=bins), "probability of on")
    assert figure.axes[0].get_xlabel() == "predicted probability of on"
