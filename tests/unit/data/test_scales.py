from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.scales import channels_of_other_scales, check_usual_scale, other_scales


def test_the_recordings_of_most_are_of_the_usual_scale():
    assert other_scales({"a": 20.0, "b": 30.0, "c": 20_000.0}).keys() == {"c"}
    assert other_scales({"a": 20.0, "b": 30.0, "c": 0.02}).keys() == {"c"}
    assert other_scales({"a": 20e3, "b": 30e3, "c": 25.0, "d": 3e7}).keys() == {"c", "d"}
    assert other_scales({"a": 20.0, "b": 20_000.0}).keys() == {"b"}
    assert other_scales({"a": 20.0, "b": 0.0, "c": 300.0, "d": 2_900.0}) == {}
    assert other_scales({}) == other_scales({"a": 1.0}) == {}
    assert "0.02 uV, those of 2 other recordings over 25 uV" in other_scales({"a": 20.0, "b": 30.0, "c": 0.02})["c"]


def test_a_scale_far_from_the_median_is_found_though_others_lie_between():
    assert other_scales({"a": 1.0, "b": 1.0, "c": 30.0, "d": 900.0, "e": 1.0}).keys() == {"d"}


def test_recordings_that_are_all_of_another_unit_are_refused():
    def records(scale: float, confirmed: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(scale=scale, has_confirmed_units=confirmed)] * 3

    for scale in (0.02, 20.0, 20e3, 0.0):
        check_usual_scale(records(scale, False))
    for scale in (20e-6, 20e6):
        check_usual_scale(records(scale, True))
        with pytest.raises(UserError, match="not on the scale of EEG"):
            check_usual_scale(records(scale, False))


def test_channels_of_another_scale_are_named_if_they_are_not_most():
    usual = {"a": (20.0, 30.0, 20.0), "b": (20.0, 30.0, 20.0), "c": (20.0, 30e3, 20.0), "d": (20e3, 30e3, 20e3)}
    (sentence,) = channels_of_other_scales(usual, ["Fp1", "C3", "Cz"])
    assert sentence.endswith("c: C3.") and channels_of_other_scales({"a": (1.0,)}, ["Fp1"]) == []


@given(st.lists(st.floats(5, 45), min_size=3, max_size=20), st.sampled_from([1e-6, 1e-3, 1e3, 1e6]), st.data())
def test_fewer_than_half_in_another_unit_are_found(scales, factor, data):
    wrong = data.draw(st.sets(st.integers(0, len(scales) - 1), max_size=(len(scales) - 1) // 2))
    given_scales = {str(n): scale * (factor if n in wrong else 1) for n, scale in enumerate(scales)}
    assert other_scales(given_scales).keys() == {str(n) for n in wrong}
