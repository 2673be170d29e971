from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.core.network_config import ConformerConfig
from raypipe.models.ensemble import EnsembleModule
from raypipe.models.from_config import build_model
from raypipe.packaging import contents
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_files import CARD, RECORD, TENSORS
from raypipe.packaging.bundle_info import BundleInfo
from raypipe.storage.records import digest
from tests.support.faults import truncate
from tests.support.records import edit_record


@pytest.fixture(scope="module", params=["values", "classes"])
def made(request, tmp_path_factory):
    """A finished run, its ensemble and the bundle of it."""
    finished = request.getfixturevalue(request.param)
    ensemble = finished.ensemble(top=2)
    path = export_bundle(finished.run, ensemble, tmp_path_factory.mktemp("out") / "bundle", windows=finished.windows)
    return finished, ensemble, path


def test_a_bundle_predicts_as_the_ensemble_did(made):
    finished, ensemble, path = made
    loaded = load_ensemble(path)
    held = ensemble.held_out
    answers = loaded.predict(finished.windows.gather(held.windows), batch_size=7)
    assert answers.dtype == np.float32 and answers.shape == held.predictions.shape
    np.testing.assert_allclose(answers, held.predictions, rtol=1e-5, atol=1e-6)
    assert loaded.channels == finished.windows.channels and loaded.sfreq == finished.windows.sfreq
    assert loaded.classes == finished.run.info.classes
    assert not any(module.training for module in loaded.module.modules())


def test_the_record_describes_run_data_and_members(made):
    finished, ensemble, path = made
    info, run = load_ensemble(path).info, finished.run
    assert sum(member.weight for member in info.members) == pytest.approx(1.0)
    assert len(info.members) == 2 * run.folds.n_folds
    assert info.fold_map == run.folds and info.data_hash == run.info.data_hash
    assert info.prepare == finished.windows.manifest.plan
    assert info.config_hashes == {number: run.config(number).hash() for number in ensemble.trials}
    card = (path / CARD).read_text()
    assert ensemble.verdict in card and "| best single trial |" in card and "no basis for a diagnosis" in card


@pytest.mark.parametrize("limit", [None, 50])
def test_a_bundle_that_could_not_be_read_is_not_written(made, tmp_path, monkeypatch, limit):
    """One that is replaced stays."""
    finished, ensemble, path = made
    bundle = shutil.copytree(path, tmp_path / "bundle")
    message = r"cannot be exported: its record has about [\d,]+ values; at most 50 are read; combine fewer trials"
    if limit is None:
        real = contents.read_members
        message = r"cannot be exported: members.0.*: has values that are not finite"

        def damaged(*args):
            spec, state = real(*args)
            next(tensor for tensor in state.values() if tensor.is_floating_point()).view(-1)[0] = torch.nan
            return spec, state

        monkeypatch.setattr(contents, "read_members", damaged)
    else:
        monkeypatch.setattr(BundleInfo, "max_values", limit)
    with pytest.raises(UserError, match=message) as caught:
        export_bundle(finished.run, ensemble, bundle, windows=finished.windows)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == {
        file.name: file.read_bytes() for file in path.iterdir()
    }


def test_the_module_builds_what_the_trainer_built():
    for config in (
        ConformerConfig(),
        ConformerConfig(filters=6, heads=3, depth=0, kernels="paper", features="log-power"),
    ):
        shape = {"n_channels": 3, "n_times": 200, "n_outputs": 2, "sfreq": 100.0}
        torch.manual_seed(1)
        expected = build_model(config, **shape)
        member = {"trial": 0, "fold": 0, "weight": 1.0, "centre": 0.0, "scale": 1.0, "model": config.model_dump()}
        torch.manual_seed(1)
        module = EnsembleModule({**shape, "kind": "classification", "members": [member]}).eval()
        x_BCT = torch.randn(2, 3, 200)
        torch.testing.assert_close(module(x_BCT), expected.eval()(x_BCT).softmax(1))


def test_loading_does_not_change_the_callers_random_state(made):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_ensemble(made[2])
    assert torch.equal(torch.rand(1), expected)


def test_wrong_windows_are_refused(made):
    loaded = load_ensemble(made[2])
    x_NCT = np.zeros((2, len(loaded.channels), loaded.info.n_times), np.float32)
    assert loaded.predict(x_NCT[:0]).shape == (0, loaded.info.n_outputs)
    assert np.isfinite(loaded.predict(x_NCT)).all()
    for wrong in (x_NCT[0], x_NCT[:, :2], x_NCT[:, :, :-1]):
        with pytest.raises(UserError, match=r"takes \(N, 3 channels, 64 samples at 50 Hz\)"):
            loaded.predict(wrong)
    x_NCT[1, 0, 3] = np.nan
    with pytest.raises(UserError, match="1 values that are not finite"):
        loaded.predict(x_NCT)
    with pytest.raises(UserError, match="batch_size 0"):
        loaded.predict(x_NCT[:1], batch_size=0)


def test_windows_by_store_are_refused_where_there_is_one_store(made):
    loaded = load_ensemble(made[2])
    x_NCT = made[0].windows.gather(range(2))
    with pytest.raises(
        UserError, match=r"^windows of low, high: this ensemble takes an array, since it has one store$"
    ):
        loaded.predict({"low": x_NCT, "high": x_NCT})


def test_export_replaces_a_bundle_but_nothing_else(made, tmp_path):
    finished, ensemble, _ = made
    for _ in range(2):
        export_bundle(finished.run, ensemble, tmp_path / "bundle", windows=finished.windows)
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == sorted([CARD, RECORD, TENSORS])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(thesis\.txt\)"):
        export_bundle(finished.run, ensemble, tmp_path / "home", windows=finished.windows)
    with pytest.raises(UserError, match="a bundle is a folder"):
        export_bundle(finished.run, ensemble, tmp_path / "home" / "thesis.txt", windows=finished.windows)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / RECORD).unlink(), "no bundle"),
        (lambda b: (b / RECORD).write_text("{"), "damaged"),
        (lambda b: change(b, metric=3), "metric: "),
        (lambda b: change(b, surprise=1), "surprise: Extra inputs"),
        (lambda b: change(b, format="raypipe-bundle/0"), "format 'raypipe-bundle/0', expected"),
        (lambda b: change(b, n_outputs=5), "outputs: 0 names for regression with 5 outputs"),
        (lambda b: (b / TENSORS).unlink(), "members.safetensors is missing"),
        (lambda b: (b / TENSORS).write_bytes(b"12345"), r"members\.safetensors: damaged"),
        (lambda b: (b / TENSORS).write_bytes(b"12345") and checksum(b), "not the weights"),
        (lambda b: truncate(b / TENSORS, 0.9), r"members\.safetensors: damaged"),
        (lambda b: truncate(b / TENSORS, 0.9) or checksum(b), "not the weights"),
        (lambda b: (b / "extra.pt").write_bytes(b""), "a pickle"),
        (lambda b: (b / "notes.txt").write_bytes(pickle.dumps([1])), "a pickle"),
    ],
)
def test_damaged_bundles_are_refused(values, tmp_path, damage, message):
    bundle = export_bundle(values.run, values.ensemble(top=1), tmp_path / "bundle", windows=values.windows)
    damage(bundle)
    with pytest.raises(UserError, match=message) as caught:
        load_ensemble(bundle)
    assert "\n" not in str(caught.value)


def checksum(bundle):
    """Update the checksum of the tensors in the record."""
    change(bundle, sha256={TENSORS: digest((bundle / TENSORS).read_bytes())})


def change(bundle, **fields):
    edit_record(str(bundle), RECORD, fields)


def test_loading_needs_no_ray(values, tmp_path):
    bundle = export_bundle(values.run, values.ensemble(top=1), tmp_path / "bundle", windows=values.windows)
    code = (
        "import sys; sys.modules['ray'] = None; import numpy as np\n"
        "from raypipe.packaging.bundle import load_ensemble\n"
        f"e = load_ensemble({str(bundle)!r}); print(e.predict(np.ones((1, 3, 64))).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 1)"
