"""GPUs that Ray counts and torch cannot use: one line at once, and no GPU-hours of a CPU."""

from __future__ import annotations

import pytest
import torch

from raypipe import pretrain, sweep
from raypipe.core.errors import UserError
from raypipe.storage.run_store import RunStore

pytestmark = [pytest.mark.ray, pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")]
LINE = r"^--gpus-per-worker {:g}: no GPU for the worker on \S+: torch .*; install a torch .* --gpus-per-worker 0$"


@pytest.mark.parametrize(("workers", "share"), [(2, 1), pytest.param(3, 0.6, marks=pytest.mark.long)])
def test_a_sweep_ends_with_one_line_and_its_trials_stay_open(toy, shared, tmp_path, workers, share):
    """Workers start, whatever their share: by the sum of its GPUs, one node would have all three of 0.6."""
    gpus = shared.node(num_cpus=3, num_gpus=2), shared.node(num_cpus=3, num_gpus=2)
    with gpus[0], gpus[1], pytest.raises(UserError, match=LINE.format(share)) as raised:
        sweep(
            toy / "space.py",
            toy / "store",
            tmp_path / "run",
            trials=3,
            folds=4,
            workers=workers,
            gpus_per_worker=share,
            track=[],
            address=shared.address,
        )
    assert len(str(raised.value).splitlines()) == 1
    run = RunStore.open(tmp_path / "run")
    assert run.numbers() and not run.results()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_pretraining_ends_with_one_line(toy, shared, tmp_path, workers):
    params = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 8, "epochs": 2}
    with shared.node(num_cpus=2, num_gpus=2), pytest.raises(UserError, match=LINE.format(1)):
        pretrain(
            "mae",
            toy / "store",
            tmp_path / "run",
            params=params,
            folds=3,
            workers=workers,
            gpus_per_worker=1,
            address=shared.address,
        )
