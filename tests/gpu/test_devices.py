"""Where networks are run: the device that was asked for, with the numbers of a CPU up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.oof import read_oof_predictions
from raypipe.ensembles.soup import SoupMaker
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.device import available_bytes, parse_device, worker_device
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny, write_store

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=[False, True], ids=["values", "classes"])
def run(request, tmp_path_factory) -> RunStore:
    """Two trials of one seed, trained on the GPU."""
    root = tmp_path_factory.mktemp("run")
    store = write_store(root / "store", ToyWindows(subjects=20, each=6, classes=request.param))
    windows = WindowStore(store)
    edit_record(make_run(root / "run", windows).folder, "run.json", {"data": str(store)})
    made = RunStore.open(root / "run")
    for number, lr in enumerate((3e-3, 1e-2)):
        made.add_trial(number, tiny(optim__lr=lr, epochs=2, batch_size=16))
        assert run_trial(made, windows, number, device="cuda").state == "complete"
    return made


def test_a_worker_computes_on_its_gpu_within_its_share():
    device = worker_device(0.05, ["0"])
    try:
        assert device == torch.device("cuda", torch.cuda.current_device())
        total = torch.cuda.get_device_properties(device).total_memory
        assert available_bytes(device, 0.05) <= 0.05 * total
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.06 * total), dtype=torch.uint8, device=device)
        torch.empty(int(0.02 * total), dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_gpu_that_ray_has_not_given_is_one_line():
    with pytest.raises(UserError, match=r"^--gpus-per-worker 1: no GPU for the worker on .*: Ray has given"):
        worker_device(1, [])


def test_a_gpu_that_is_not_visible_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^--device cuda: torch finds no GPU.*; use --device cpu$"):
        parse_device("cuda")


def test_an_ensemble_is_the_same_on_either_device(run):
    cpu, gpu = (fit_ensemble(run, method="equal", device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.held_out.predictions, cpu.held_out.predictions, atol=1e-4)
    np.testing.assert_allclose(gpu.table["held_out"], cpu.table["held_out"], atol=1e-3)


def test_a_distilled_network_is_trained_on_the_gpu(run):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    student = fit_ensemble(run, method="equal", distilled=True).merged
    assert torch.cuda.max_memory_allocated() > before
    assert {tensor.device.type for tensor in student.folds[0].values()} == {"cpu"}


def test_a_soup_is_the_same_on_either_device(run):
    windows = WindowStore(run.info.data)
    members = [Member(0), Member(1)]
    predictions = read_oof_predictions(run, members, windows.subjects, windows.targets)
    cpu, gpu = (SoupMaker(run, windows, predictions, members, device=torch.device(name)) for name in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.predict((0, 1)), cpu.predict((0, 1)), atol=1e-4)
    for one, other in zip(gpu.soup((0, 1)).folds, cpu.soup((0, 1)).folds, strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [4, 64], ids=["stacked", "one by one"])
def test_a_bundle_predicts_the_same_on_either_device(run, tmp_path, batch_size):
    windows = WindowStore(run.info.data)
    bundle = export_bundle(run, fit_ensemble(run, method="equal"), tmp_path / "bundle", windows=windows)
    cpu, gpu = load_ensemble(bundle), load_ensemble(bundle, device="cuda")
    assert (cpu.device.type, gpu.device.type) == ("cpu", "cuda")
    x_NCT = windows.gather(np.arange(20))
    np.testing.assert_allclose(
        gpu.predict(x_NCT, batch_size=batch_size), cpu.predict(x_NCT, batch_size=batch_size), atol=1e-4
    )
