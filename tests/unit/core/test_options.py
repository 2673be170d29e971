"""Options of a sweep: how they are parsed and which are refused."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.options import (
    MAX_SEED,
    PretrainOptions,
    SweepOptions,
    default_of,
    flag_of,
    help_of,
    parse_options,
    parse_pretrain_options,
)


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
        ({"seed": 2**32}, "--seed 4294967296: must be less than or equal to 4294967294"),
        ({"seed": -1}, "--seed -1: must be greater than or equal to 0"),
        ({"time_budget": "1e400d"}, "--time-budget inf: must be a finite number"),
        ({"cpus_per_worker": float("inf")}, "--cpus-per-worker inf: must be a finite number"),
        ({"held_out": "nan"}, "--held-out nan: must be a finite number"),
        ({"stem": "slow"}, "--stem slow: must be 'auto', 'fourier' or 'direct'"),
        ({"gpus_per_worker": 1.5}, "--gpus-per-worker 1.5: must be less than or equal to 1"),
        ({"gpu_hours": 3}, "--gpu-hours: the sweep uses no GPU, so they never run out; give --gpus-per-worker too"),
    ],
)
def test_a_wrong_option_is_one_line(given, line):
    with pytest.raises(UserError) as caught:
        parse_options(given)
    assert str(caught.value) == line


def test_workers_of_one_pretraining_do_not_share_a_gpu():
    with pytest.raises(UserError, match=r"^--gpus-per-worker 0\.5: NCCL does not let 2 workers .* or --workers 1$"):
        parse_pretrain_options({"gpus_per_worker": 0.5, "workers": 2})
    for given in ({"workers": 2}, {"workers": 2, "gpus_per_worker": 1}, {"gpus_per_worker": 0.5}):
        parse_pretrain_options(given)


def test_every_seed_that_is_allowed_splits_subjects():
    subjects, targets = np.array(list("aabbccddee")), np.arange(10.0)
    assert parse_options({"seed": MAX_SEED}).seed == parse_pretrain_options({"seed": MAX_SEED}).seed == MAX_SEED
    assert make_folds(subjects, targets, classes=False, n_folds=2, seed=MAX_SEED).seed == MAX_SEED
    with pytest.raises(UserError, match="--seed 4294967295: must be"):
        parse_pretrain_options({"seed": MAX_SEED + 1})


@pytest.mark.parametrize("options", [SweepOptions, PretrainOptions])
def test_every_option_is_described(options):
    for name in options.model_fields:
        assert help_of(options, name).endswith(".") and flag_of(options, name).group
        assert default_of(options, name) != "None"
