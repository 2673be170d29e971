"""Options of a sweep: how they are parsed and which are refused."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.core.options import PretrainOptions, SweepOptions, default_of, flag_of, help_of, parse_options


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129600), (3600, 3600)]
)
def test_a_time_budget_may_have_a_unit(given, seconds):
    assert parse_options({"time_budget": given}).time_budget == seconds


@pytest.mark.parametrize(
    ("given", "held_out"),
    [("auto", "auto"), ("0.2", 0.2), (0.2, 0.2), ("NDAR1, R5", ["NDAR1", "R5"]), (["R5"], ["R5"]), (",", [])],
)
def test_held_out_subjects_are_a_share_or_names(given, held_out):
    assert parse_options({"held_out": given}).held_out == held_out


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"trials": 0}, "--trials 0: must be greater than or equal to 1"),
        ({"trials": "many"}, "--trials many: must be a valid integer"),
        ({"trails": 3}, "trails: no such option of a sweep; did you mean 'trials'?"),
        ({"time_budget": "soon"}, "--time-budget soon: must be a time such as 90s, 30m or 2h"),
        ({"time_budget": "-5m"}, "--time-budget -5m: must be longer than 0 s"),
        ({"time_budget": -5}, "--time-budget -5: must be greater than 0"),
        ({"stem": "slow"}, "--stem slow: must be 'auto', 'fourier' or 'direct'"),
        ({"gpu_hours": 3}, "--gpu-hours: the sweep uses no GPU, so they never run out; give --gpus-per-worker too"),
    ],
)
def test_a_wrong_option_is_one_line(given, line):
    with pytest.raises(UserError) as caught:
        parse_options(given)
    assert str(caught.value) == line


@pytest.mark.parametrize("options", [SweepOptions, PretrainOptions])
def test_every_option_is_described(options):
    for name in options.model_fields:
        assert help_of(options, name).endswith(".") and flag_of(options, name).group
        assert default_of(options, name) != "None"
