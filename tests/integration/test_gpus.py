"""GPUs that Ray counts and torch cannot use: one line at once, and no GPU-hours of a CPU."""

from __future__ import annotations

import pytest
import torch

from raypipe import pretrain, sweep
from raypipe.core.errors import UserError
from raypipe.storage.run_store import RunStore

pytestmark = [pytest.mark.ray, pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")]
LINE = r"^--gpus-per-worker 1: no GPU for the worker on \S+: torch .*; install a torch .* --gpus-per-worker 0$"


def test_a_sweep_ends_with_one_line_and_its_trials_stay_open(toy, shared, tmp_path):
    with shared.node(num_cpus=2, num_gpus=2), pytest.raises(UserError, match=LINE) as raised:
        sweep(
            toy / "space.py",
            toy / "store",
            tmp_path / "run",
            trials=3,
            folds=4,
            workers=2,
            gpus_per_worker=1,
            track=[],
            address=shared.address,
        )
    assert len(str(raised.value).splitlines()) == 1
    run = RunStore.open(tmp_path / "run")
    assert run.numbers() and not run.results()


@pytest.mark.parametrize("workers", [1, 2])
def test_pretraining_ends_with_one_line(toy, shared, tmp_path, workers):
    params = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 8, "epochs": 2}
    with shared.node(num_cpus=2, num_gpus=2), pytest.raises(UserError, match=LINE):
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
