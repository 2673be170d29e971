from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.driver import Options, _layout, crew_size
from raypipe.errors import UserError


@pytest.mark.parametrize(
    ("folds", "room", "size"), [(4, 2, 2), (5, 2, 1), (5, 5, 5), (5, 4, 1), (4, 16, 4), (3, 1, 1), (6, 4, 3), (8, 4, 4)]
)
def test_workers_a_trial(folds, room, size):
    assert crew_size(folds, room) == size


@given(st.integers(2, 20), st.integers(1, 64))
def test_hardly_any_worker_idles(folds, room):
    size = crew_size(folds, room)
    assert 1 <= size <= min(folds, room)
    assert folds / (size * -(-folds // size)) >= 0.95


def layout(n_folds=4, cpus=2.0, gpus=0.0, **options):
    return _layout(Options(**options), n_folds, {"CPU": cpus, "GPU": gpus})


def test_all_that_fits_runs_at_a_time():
    assert layout() == (2, 1)
    assert layout(n_folds=5) == (1, 2)
    assert layout(cpus=16) == (4, 4)
    assert layout(cpus=16, concurrent=2) == (4, 2)
    assert layout(cpus=16, concurrent=99) == (4, 4)
    assert layout(cpus=16, workers=8) == (4, 4)  # no more workers than folds
    assert layout(cpus=16, gpus=2, gpus_per_worker=0.25) == (4, 2)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r"4 worker\(s\) of 1 CPU.*there are 2 CPU"):
        layout(workers=4)
    with pytest.raises(UserError, match=r"1 GPU\(s\) each do not fit: there are 2 CPU\(s\) and 0 GPU"):
        layout(gpus_per_worker=1)
