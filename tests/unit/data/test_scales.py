from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raypipe.data.scales import other_scales


def test_the_recordings_of_most_are_of_the_usual_scale():
    assert other_scales({"a": 20.0, "b": 30.0, "c": 20_000.0}).keys() == {"c"}
    assert other_scales({"a": 20.0, "b": 30.0, "c": 0.02}).keys() == {"c"}
    assert other_scales({"a": 20e3, "b": 30e3, "c": 25.0, "d": 3e7}).keys() == {"c", "d"}
    assert other_scales({"a": 20.0, "b": 20_000.0}).keys() == {"b"}
    assert other_scales({"a": 20.0, "b": 0.0, "c": 300.0, "d": 2_900.0}) == {}
    assert other_scales({}) == other_scales({"a": 1.0}) == {}
    assert "0.02 uV, those of 2 other recordings over 25 uV" in other_scales({"a": 20.0, "b": 30.0, "c": 0.02})["c"]


@given(st.lists(st.floats(5, 45), min_size=3, max_size=20), st.sampled_from([1e-6, 1e-3, 1e3, 1e6]), st.data())
def test_fewer_than_half_in_another_unit_are_found(scales, factor, data):
    wrong = data.draw(st.sets(st.integers(0, len(scales) - 1), max_size=(len(scales) - 1) // 2))
    given_scales = {str(n): scale * (factor if n in wrong else 1) for n, scale in enumerate(scales)}
    assert other_scales(given_scales).keys() == {str(n) for n in wrong}
