from __future__ import annotations

from dataclasses import replace

import pytest

from raypipe.ensembles.reliability import Bin, Estimate, Reliability
from raypipe.reporting.sections.reliability import describe_calibration, reliability_plot, reliability_section


def test_the_section_shows_probabilities_or_intervals(classes, values):
    text = str(reliability_section(classes.ensemble()))
    assert "Reliability" in text and "expected calibration error" in text and "as the networks gave them" in text
    text = str(reliability_section(values.ensemble()))
    assert (
        "nominal coverage" in text
        and "observed coverage" in text
        and "promised" not in text
        and "95%" in text
        and "expected calibration error" not in text
    )
    assert "could not be drawn" not in text


def test_a_soup_without_nested_predictions_has_no_section(classes):
    assert reliability_section(replace(classes.ensemble(), reliability=None)) == ""


def test_a_group_of_one_person_has_no_bar():
    bins = [Bin(rows=3, predicted=0.2, observed=Estimate(value=0.25, low=None, high=None))]
    figure = reliability_plot(Reliability(bins=bins), "probability of on")
    assert figure.axes[0].get_xlabel() == "predicted probability of on"


def of_errors(after, before):
    low, high = 0.05, 0.05
    one, two = (Estimate(value=v, low=v - low, high=v + high) for v in (after, before))
    return Reliability(calibration_error=one, error_before=two)


def test_calibration_that_does_not_help_is_said():
    text = describe_calibration(of_errors(0.359, 0.137))
    assert "Calibration did not help here" in text and "0.359 with it, 0.137 without" in text
    assert "do not overlap" in text and "may be chance" not in text
    assert "may be chance" in describe_calibration(of_errors(0.2, 0.15))
    assert describe_calibration(of_errors(0.1, 0.2)) == describe_calibration(of_errors(0.1001, 0.1)) == ""
    alone = Estimate(value=0.2, low=None, high=None)
    text = describe_calibration(
        Reliability(calibration_error=alone, error_before=alone.model_copy(update={"value": 0.1}))
    )
    assert "did not help" in text and "interval" not in text


@pytest.mark.parametrize(("n", "drawn"), [(14, False), (15, True)])
def test_search_people_have_a_curve_from_the_number_of_held_out_ones(classes, n, drawn):
    fitted = classes.ensemble()
    observed = Estimate(value=0.25, low=0.1, high=0.5)
    bins = [Bin(rows=rows, predicted=0.2, observed=observed) for rows in (7, n - 7)]
    found = of_errors(0.359, 0.137).model_copy(update={"bins": bins})
    text = str(reliability_section(replace(fitted, reliability=found)))
    assert ("<svg" in text) == drawn and "Calibration did not help here" in text
    assert (f"No reliability curve of the search windows: {n} are too few." in text) != drawn
    assert "0.087 to 0.187" in text, "the error without calibration has an interval"
