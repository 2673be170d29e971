"""Users' networks are shipped as programs, which run without their code."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import raypipe
from raypipe.core import own_code
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.core.record import with_digest, without_digest
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.members import build_module, read_members
from raypipe.models.own import OwnNetwork
from raypipe.models.program import ProgramNetwork, check_program
from raypipe.packaging import contents
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_info import BundleInfo
from raypipe.packaging.check import check_submission
from raypipe.packaging.check_graph import check_graph
from raypipe.packaging.graph_info import GraphInfo
from raypipe.packaging.graphs import export_graph
from raypipe.packaging.manifest import SubmissionManifest
from raypipe.packaging.programs import Unexportable, export_program
from raypipe.packaging.submission import export_submission
from raypipe.search.run_setup import open_run
from raypipe.trial.local import run_trial
from tests.support.own import METRIC, NET, SPACE, write_space
from tests.support.plain import plain_sweep
from tests.support.toys import ToyWindows, write_store

ATTENTION = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, n_chans, n_times, n_outputs):
        super().__init__()
        self.embed = nn.Linear(n_times, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("ramp", torch.linspace(0, 1, 8), persistent=False)
        self.head = nn.Linear(8, n_outputs)
    def forward(self, x):
        y = self.blocks(self.embed(x) * self.ramp + torch.arange(8, device=x.device))
        return self.head(y.mean(1))
"""
SPECTRUM = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, n_chans, n_times, n_outputs):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, (n_chans, 1)))
        self.head = nn.LazyLinear(n_outputs)
    def forward(self, x):
        y = torch.fft.rfft(self.conv(x.unsqueeze(1)), dim=-1).abs().add(1.0).log()
        return self.head(y.flatten(1))
"""
RECURRENT = """
from torch import nn
class Net(nn.Module):
    def __init__(self, n_chans, n_times, n_outputs):
        super().__init__()
        self.pool = nn.AvgPool1d(8)
        self.rnn = nn.GRU(n_chans, 6, batch_first=True)
        self.head = nn.Linear(6, n_outputs)
    def forward(self, x):
        return self.head(self.rnn(self.pool(x).mT)[0][:, -1])
"""
WRITES = NET.replace("y = self", "x -= x.mean(1, keepdim=True)\n        y = self")
UNTRACED = NET.replace("return self.head(", "y = y if float(y.detach().sum()) > 1e9 else y\n        return self.head(")

CAUSAL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, n_chans, n_times, n_outputs, width=4):
        super().__init__()
        self.embed = nn.Conv1d(n_chans, 2 * width, 8, stride=8)
        self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(n_times // 8))
        self.head = nn.Linear(2 * width, n_outputs)
    def forward(self, x):
        y = self.embed(x).mT
        y = y + self.attention(y, y, y, attn_mask=self.mask, need_weights=False)[0]
        return self.head(y.mean(1))
"""
MASKS = {
    "buffer": CAUSAL,
    "attribute": CAUSAL.replace('self.register_buffer("mask", ', "self.mask = (").replace(
        "=self.mask", "=self.mask.to(x)"
    ),
    "parameter": CAUSAL.replace('self.register_buffer("mask", ', "self.mask = nn.Parameter(requires_grad=False, data="),
    "unknown": CAUSAL.replace(
        "self.head =", 'self.register_buffer("ages", torch.full((2,), torch.nan))\n        self.head ='
    ),
}
FAILS = """
        import os
        if os.environ.get("RAYPIPE_TEST_FAILS") == "%s":
            raise TypeError("first\\nsecond")
"""


def own(net, outputs=1):
    torch.manual_seed(0)
    code = keep_source(SourceFile("my_nets.py", net))
    made = OwnNetwork(3, 64, outputs, sfreq=50.0, name="my_nets.py:Net", code=code, args={}, norm="channel")
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "net",
    [NET, ATTENTION, SPECTRUM, RECURRENT, WRITES],
    ids=["norm", "attention", "spectrum", "recurrent", "writes"],
)
def test_a_program_gives_what_its_network_gives(net):
    network = own(net)
    found = export_program(network)
    program = json.loads(json.dumps(found.program))
    shipped = ProgramNetwork(3, 64, 1, program=program, norm="channel").eval()
    shipped.load_state_dict({**network.state_dict(), **found.constants})
    for batch in (1, 2, 17):
        x_BCT = torch.randn(batch, 3, 64) * 20
        torch.testing.assert_close(shipped(x_BCT), network(x_BCT), rtol=1e-6, atol=1e-6)
    count = [sum(p.numel() for p in each.parameters()) for each in (network, shipped)]
    assert count[0] == count[1]


def test_a_network_whose_course_depends_on_numbers_is_no_program():
    with pytest.raises(Unexportable, match=r"^torch.export: "):
        export_program(own(UNTRACED))


def program(*nodes, output=0, tensors=None):
    return {"tensors": tensors or {}, "nodes": list(nodes), "output": output}


X = {"input": 0}
SMALL = ["aten.mean.dim", [X, [1, 2]], {}]
COLUMN = ["aten.view.default", [{"node": 0}, [-1, 1]], {}]


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (program(["os.system", ["true"], {}]), "calls 'os.system', which is no operator of Core ATen"),
        (program(["aten.from_file.default", ["/etc/passwd"], {}]), "which is no operator of Core ATen"),
        (program(["aten.__class__.__base__", [], {}]), "no operator of Core ATen|is not in torch"),
        (program(["aten.full.default", [[10**6, 10**6], 1.0], {}]), "computes 1,000,000,000,000 values at once"),
        (program(["mul", [10**9, 10**9], {}], output=0), "a size that is too large"),
        (program(["getitem", [{"node": 3}, 0], {}]), "step 0 of a program needs step 3"),
        (program(SMALL, output=5), "returns step 5, and has 1"),
        (program(SMALL), r"must give \(2, 1\)"),
        (program(["aten.mean.dim", [{"tensor": "network.x"}, [0]], {}]), "does not run"),
        (program(["aten.mean.dim", [X, {"dtype": "object"}], {}]), "argument dtype 'object'"),
        (
            program(SMALL, tensors={"forward": {"shape": [1], "dtype": "float32", "parameter": True}}),
            "a tensor 'forward'",
        ),
        (
            program(SMALL, tensors={"network.forward": {"shape": [1], "dtype": "float32", "parameter": True}}),
            "whose name is taken",
        ),
    ],
)
def test_a_program_from_elsewhere_calls_nothing_else_and_stays_small(hostile, message):
    with pytest.raises(ValueError, match=message):
        check_program(hostile, n_channels=3, n_times=64, n_outputs=1)


def test_a_small_program_runs():
    check_program(program(SMALL, COLUMN, output=1), n_channels=3, n_times=64, n_outputs=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    def make(net):
        folder = tmp_path_factory.mktemp("own")
        store = WindowStore(write_store(folder / "store", ToyWindows()))
        run = open_run(load_space(write_space(folder, net)), store, str(folder / "run"), SweepOptions(folds=3))
        for number in (0, 1):
            run.add_trial(number, run.space.draw(number + 1)[number].model_copy(update={"epochs": 2}))
            run_trial(run, store, number)
        return run, store, fit_ensemble(run, windows=store, top=2, method="equal")

    return make


@pytest.fixture(scope="module")
def ensemble(made):
    return made(NET)


def test_a_bundle_runs_in_a_process_that_has_no_source(ensemble, tmp_path):
    run, store, fitted = ensemble
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    x_NCT = store.gather(np.arange(5))
    np.save(tmp_path / "x.npy", x_NCT)
    code = (
        "import numpy as np, raypipe, sys; from raypipe.core import own_code\n"
        f"e = raypipe.load_ensemble({str(bundle)!r}); np.save({str(tmp_path / 'y.npy')!r}, e.predict(np.load("
        f"{str(tmp_path / 'x.npy')!r})))\nassert not own_code._sources"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "def forward" not in (bundle / "bundle.json").read_text()
    here = raypipe.load_ensemble(bundle).predict(x_NCT)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), here)
    module = build_module(*read_members(run, store, fitted.members, fitted.weights.tolist(), fitted.rule))
    np.testing.assert_allclose(here, module(torch.from_numpy(x_NCT)).numpy(), rtol=1e-6, atol=1e-6)


def test_a_network_that_gives_other_predictions_than_the_run_holds_is_refused(made, tmp_path, monkeypatch):
    """What a file reads when it is run is in no weights, such as a variable of the environment."""
    reads = "import os\nSHIFT = float(os.environ.get('RAYPIPE_TEST_SHIFT', 0))\n\n\nclass Net"
    run, store, fitted = made(NET.replace("class Net", reads).replace("return self.head(", "return SHIFT + self.head("))
    export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    monkeypatch.setenv("RAYPIPE_TEST_SHIFT", "0.3")
    with own_code.anew(), pytest.raises(UserError, match=r"^my_nets.py:Net: its predictions here differ") as caught:
        export_bundle(run, fitted, tmp_path / "other", windows=store)
    assert "those of trial" in str(caught.value) and "\n" not in str(caught.value)
    assert "by 0.3 of the targets' spread: what it draws or reads when its file is loaded must be" in str(caught.value)


def test_a_changed_program_is_refused(ensemble, tmp_path):
    run, store, fitted = ensemble
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    record = json.loads(without_digest((bundle / "bundle.json").read_bytes()))
    record["programs"]["0"]["nodes"][0][0] = "os.system"
    (bundle / "bundle.json").write_bytes(with_digest(record))
    with pytest.raises(UserError, match=r"calls 'os.system', which is no operator") as caught:
        load_ensemble(bundle)
    assert "\n" not in str(caught.value)


def test_a_submission_runs_programs_and_shows_the_source(ensemble, tmp_path):
    _, store, fitted = ensemble
    path = export_submission({1: fitted}, tmp_path / "submission.zip", windows={1: store})
    report = check_submission(path)
    assert [line.name for line in report.failures] == ["challenge 1: target and windows"], str(report)
    with zipfile.ZipFile(path) as archive:
        (source,) = [name for name in archive.namelist() if name.startswith("source_")]
        assert archive.read(source).decode() == NET and "own.py" not in archive.namelist()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_graph_has_the_program_of_a_network(ensemble, tmp_path, kind):
    run, store, fitted = ensemble
    export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    path, _ = export_graph(fitted, tmp_path / f"model.{kind}", kind, windows=store)
    report = check_graph(path, bundle=tmp_path / "bundle")
    assert report.ok, str(report)


def test_code_in_a_bundle_must_be_trusted(made, tmp_path):
    run, store, fitted = made(UNTRACED)
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    with pytest.raises(UserError, match=r"bundle: my_nets.py:Net is there as code, .* trust_code=True"):
        load_ensemble(bundle)
    x_NCT = store.gather(np.arange(3))
    code = (
        f"import numpy as np, raypipe; e = raypipe.load_ensemble({str(bundle)!r}, trust_code=True)\n"
        "print(e.predict(np.ones((1, 3, 64))).shape)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"(1, 1)\n"
    assert np.isfinite(load_ensemble(bundle, trust_code=True).predict(x_NCT)).all()
    with pytest.raises(UserError, match=r"my_nets.py:Net: it cannot run where raypipe is not installed"):
        export_submission({1: fitted}, tmp_path / "submission.zip", windows={1: store})
    with pytest.raises(UserError, match=r"my_nets.py:Net: it cannot run where raypipe is not installed"):
        export_graph(fitted, tmp_path / "model.onnx", "onnx", windows=store)


@pytest.mark.parametrize(("mask", "traced"), [*((mask, True) for mask in MASKS), ("buffer", False)])
def test_a_network_whose_constants_are_not_finite_is_shipped(made, tmp_path, mask, traced):
    """The mask of a causal attention is minus infinity where it hides what comes later."""
    branch = "        if float(x.detach().sum()) > 1e9:\n            x = x + 1\n"
    net = MASKS[mask] if traced else MASKS[mask].replace("        y = self.embed", branch + "        y = self.embed")
    run, store, fitted = made(net)
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    x_NCT = store.gather(np.arange(5))
    found = load_ensemble(bundle, trust_code=not traced).predict(x_NCT)
    module = build_module(*read_members(run, store, fitted.members, fitted.weights.tolist(), fitted.rule))
    np.testing.assert_allclose(found, module(torch.from_numpy(x_NCT)).numpy(), rtol=1e-5, atol=1e-6)


def test_code_that_reads_numbers_of_tensors_is_built_from_a_bundle(made, tmp_path):
    rates = "self.rates = [rate.item() for rate in torch.linspace(0, dropout, 3)]\n        self.drop ="
    run, store, fitted = made(UNTRACED.replace("self.drop =", rates))
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.isfinite(load_ensemble(bundle, trust_code=True).predict(store.gather(np.arange(3)))).all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_programs_that_are_too_large_for_a_bundle_are_shipped_as_code(ensemble, tmp_path, monkeypatch):
    run, store, fitted = ensemble
    bundle, x_NCT = export_bundle(run, fitted, tmp_path / "bundle", windows=store), store.gather(np.arange(5))
    expected = load_ensemble(bundle).predict(x_NCT)
    assert "trust" not in (bundle / "README.md").read_text()
    record = (bundle / "bundle.json").read_bytes()
    monkeypatch.setattr(BundleInfo, "max_values", sum(map(record.count, (b",", b"[", b"{"))) - 1)
    bundle = export_bundle(run, fitted, tmp_path / "code", windows=store)
    with pytest.raises(UserError, match=r"my_nets.py:Net is there as code"):
        load_ensemble(bundle)
    found = load_ensemble(bundle, trust_code=True).predict(x_NCT)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    card = (bundle / "README.md").read_text()
    assert 'load_ensemble("this/folder", trust_code=True)' in card and "predictions.csv --trust-code`" in card
    assert "runs the code of my_nets.py:Net, which can" in card


def test_programs_of_a_package_that_are_too_large_are_refused(ensemble, tmp_path, monkeypatch):
    run, store, fitted = ensemble
    monkeypatch.setattr(BundleInfo, "max_values", 400)
    monkeypatch.setattr(contents, "known_source", lambda code: None)
    with pytest.raises(UserError, match=r"run: cannot be exported: its record has about .* at most 400 are read"):
        export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    assert not (tmp_path / "bundle" / "bundle.json").exists()


@pytest.mark.parametrize("kind", ["zip", "pt2"])
def test_a_submission_or_a_graph_whose_record_could_not_be_read_is_refused(ensemble, tmp_path, monkeypatch, kind):
    _, store, fitted = ensemble
    monkeypatch.setattr(SubmissionManifest if kind == "zip" else GraphInfo, "max_values", 30)
    with pytest.raises(UserError, match=r"cannot be exported: its record has about .* combine fewer trials"):
        if kind == "zip":
            export_submission({1: fitted}, tmp_path / "out.zip", windows={1: store})
        else:
            export_graph(fitted, tmp_path / "out.pt2", "pt2", windows=store)
    assert not list(tmp_path.iterdir())


def test_what_code_in_a_bundle_raises_is_one_line(made, tmp_path, monkeypatch):
    net = UNTRACED.replace("        super().__init__()", "        super().__init__()" + FAILS % "made")
    run, store, fitted = made(net.replace("    def forward(self, x):", "    def forward(self, x):" + FAILS % "run"))
    bundle = export_bundle(run, fitted, tmp_path / "bundle", windows=store)
    ensemble = load_ensemble(bundle, trust_code=True)
    monkeypatch.setenv("RAYPIPE_TEST_FAILS", "made")
    with pytest.raises(UserError, match=r"^my_nets.py:Net: line \d+: TypeError: first$"):
        load_ensemble(bundle, trust_code=True)
    with pytest.raises(UserError, match=r"^my_nets.py:Net: line \d+: TypeError: first$"):
        export_bundle(run, fitted, tmp_path / "other", windows=store)
    monkeypatch.setenv("RAYPIPE_TEST_FAILS", "run")
    with pytest.raises(UserError, match=r"^my_nets.py:Net: line \d+: TypeError: first$"):
        ensemble.predict(store.gather(np.arange(3)))


def test_an_ensemble_of_files_with_unusual_names_is_exported(tmp_path):
    """Browsers write a second download to ``metrics (1).py``."""
    net, metric = "my+nets, für EEG (1).py", tmp_path / "metrics [1]@2.py"
    (tmp_path / net).write_text(NET)
    metric.write_text(METRIC)
    space = write_space(tmp_path, space=SPACE.replace("my_nets.py", net))
    store = write_store(tmp_path / "store", ToyWindows())
    run = plain_sweep(space, store, tmp_path / "run", trials=1, folds=3, metric=f"{metric}:score")
    fitted, windows = run.ensemble(top=1), WindowStore(store)
    bundle = run.export(tmp_path / "bundle")
    assert load_ensemble(bundle).info.metric == "metrics [1]@2.py:score"
    assert np.isfinite(load_ensemble(bundle).predict(windows.gather(np.arange(2)))).all()
    report = check_submission(export_submission({1: fitted}, tmp_path / "submission.zip", windows={1: windows}))
    assert [line.name for line in report.failures] == ["challenge 1: target and windows"], str(report)
