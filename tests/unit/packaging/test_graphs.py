"""Ensembles as ONNX graphs and as programs of torch.export: the same numbers as torch, without raypipe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

import raypipe
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import build_module, read_members
from raypipe.ensembles.people import People
from raypipe.models.covariance import log_matrix
from raypipe.packaging import graphs
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.check_graph import check_graph, level_text
from raypipe.packaging.graph_info import RECORD, read_graph_info
from raypipe.packaging.graphs import DecidingModule, export_graph, make_graph
from raypipe.packaging.predict_people import people_table
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny, write_store

NETWORKS = ("conformer", "shallow", "eegnet", "tcn", "vit")
FITTED = {
    "log-euclid": {"model/name": "covariance"},
    "riemann": {
        "model/name": "covariance",
        "model/components": 3,
        "model/geometry": "riemann",
        "model/order": 2,
        "model/scale": "window",
        "model/taper": "hann",
    },
    "no shrinkage": {"model/name": "covariance", "model/shrinkage": 0.0, "model/scale": "band"},
    "prototypes": {"model/name": "covariance", "model/prototypes": 2, "model/bands": "even", "model/n_bands": 1},
    "band power": {"model/name": "linear"},
    "time courses": {"model/name": "linear", "model/predictors": "time-courses", "model/components": 2},
}
READOUTS = [
    tiny(model__name="conformer", model__bins=9, model__features="log-power", model__norm="robust", epochs=1),
    tiny(model__name="tcn", model__bins=9, model__norm="window", epochs=1),
    tiny(model__name="shallow", model__variance=True, loss__name="nll", model__norm="none", epochs=1),
]
"""Regression only."""
CONFIGS = {name: tiny(model__name=name, epochs=1) for name in NETWORKS} | {
    name: parse_config(params) for name, params in FITTED.items()
}


def trained(folder, configs, *, classes, windows=ToyWindows):
    toy = windows(subjects=12, each=6, channels=4, classes=classes)
    store = WindowStore(write_store(folder / "store", toy))
    run = make_run(folder / "run", store, data=str(folder / "store"))
    for number, config in enumerate(configs):
        run.add_trial(number, config)
        run_trial(run, store, number)
    return SimpleNamespace(run=run, store=store, n=len(configs))


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A run of classes with a trial of every family, and its windows."""
    return trained(tmp_path_factory.mktemp("families"), list(CONFIGS.values()), classes=True)


@pytest.fixture(scope="module")
def readouts(tmp_path_factory):
    """A run of a regression with trials that predict a variance too, and its windows."""
    configs = [*READOUTS, CONFIGS["band power"]]
    return trained(tmp_path_factory.mktemp("readouts"), configs, classes=False)


def first_fold(where, *trials):
    """The networks of the first fold of trials, as a module."""
    members = [Member(number) for number in trials]
    spec, state = read_members(where.run, where.store, members, [1.0 / len(members)] * len(members))
    kept = [number for number, member in enumerate(spec["members"]) if member["fold"] == 0]
    state = {
        f"members.{place}.{name.removeprefix(f'members.{number}.')}": tensor
        for place, number in enumerate(kept)
        for name, tensor in state.items()
        if name.startswith(f"members.{number}.")
    }
    spec["members"] = [spec["members"][number] | {"weight": 1.0 / len(kept)} for number in kept]
    return DecidingModule(build_module(spec, state), [0.4, 0.6] if spec["kind"] == "classification" else None)


def assert_equal(module, x_NCT, format):
    """The graph of a module equals it for one window and for 64."""
    with torch.no_grad():
        expected = [each.numpy() for each in module(x_NCT)]
    graph = make_graph(module, format)
    for batch in (1, 64):
        answers = [each.numpy() for each in graph.run(x_NCT[:batch])]
        assert len(answers) == len(expected)
        np.testing.assert_allclose(answers[0], expected[0][:batch], rtol=1e-5, atol=1e-5)
        if len(answers) > 1:
            np.testing.assert_array_equal(answers[1], (answers[0] * module.weights_K.numpy()).argmax(1))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_every_family_equals_torch(families, format):
    module = first_fold(families, *range(families.n))
    assert_equal(module, torch.from_numpy(families.store.gather(np.arange(64))), format)


class AverageReference(ToyWindows):
    """The channels of each window sum to zero."""

    def __init__(self, **options):
        super().__init__(**options)
        self.x = self.x - self.x.mean(1, keepdims=True)


@pytest.fixture(scope="module")
def referenced(tmp_path_factory):
    """A run of windows after an average reference, with covariance models without shrinkage."""
    params = FITTED["no shrinkage"]
    configs = [params | {"model/geometry": "riemann"}, params | {"model/geometry": "riemann", "model/order": 2}, params]
    folder = tmp_path_factory.mktemp("referenced")
    return trained(folder, [parse_config(each) for each in configs], classes=True, windows=AverageReference)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_windows_after_an_average_reference_equal_torch(referenced, format):
    for trial in range(referenced.n):
        module = first_fold(referenced, trial)
        assert_equal(module, torch.from_numpy(referenced.store.gather(np.arange(64))), format)


@pytest.mark.parametrize(
    "name",
    ["riemann", "no shrinkage", *(pytest.param(name, marks=pytest.mark.long) for name in ("log-euclid", "prototypes"))],
)
def test_shrinkage_spares_a_graph_the_eigenvalues(families, name):
    module = first_fold(families, list(CONFIGS).index(name))
    model = make_graph(module, "onnx").model.model_proto
    kinds = {node.op_type for node in [*model.graph.node, *(each for made in model.functions for each in made.node)]}
    assert ("Loop" in kinds or "jacobi" in kinds) == (name == "no shrinkage")
    assert module.ensemble.members[0].logarithm is log_matrix, "what the graph is compared with has LAPACK's"


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_values_with_variances_equal_torch(readouts, format):
    module = first_fold(readouts, *range(readouts.n))
    assert_equal(module, torch.from_numpy(readouts.store.gather(np.arange(64))), format)


TREES = [{"feature": [0, -1, -1], "threshold": [0.5, 0, 0], "left": [1, 0, 0], "right": [2, 0, 0], "depth": 1}]
RULES = {
    "linear": {"kind": "linear", "weights": [0.3, 0.7], "intercept": 0.0},
    "entropy": {"kind": "entropy", "weights": [0.4, 0.6], "temperatures": [1.5, 0.7], "gamma": 2.0},
    "trees": {"kind": "trees", "start": [0.1], "trees": [[tree | {"value": [0, -0.2, 0.3]}] for tree in TREES]},
    "precision": {"kind": "precision", "floor": [0.5, 0.2], "scale": [1.0, 0.0]},
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_equals_torch(families, readouts, name):
    where = readouts if name == "precision" else families
    module = first_fold(where, 2, 3) if name == "precision" else first_fold(where, families.n - 2, families.n - 1)
    module.ensemble.rule, module.ensemble.n_folds = RULES[name], 1
    if where is families:
        module.ensemble.calibration = {"scale": 1.3, "shift": [0.2, -0.1]}
    assert_equal(module, torch.from_numpy(where.store.gather(np.arange(64))), "onnx")


@pytest.fixture(scope="module")
def exported(classes, tmp_path_factory):
    """A bundle and both kinds of graphs of one ensemble."""
    folder, ensemble = tmp_path_factory.mktemp("exported"), classes.ensemble(top=1)
    export_bundle(classes.run, ensemble, folder / "bundle", windows=classes.windows)
    infos = {
        kind: export_graph(ensemble, folder / f"model.{kind}", kind, windows=classes.windows)[1]
        for kind in ("onnx", "pt2")
    }
    return SimpleNamespace(folder=folder, infos=infos, ensemble=ensemble)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_file_says_what_it_is_and_passes_the_check(exported, classes, kind):
    path = exported.folder / f"model.{kind}"
    info = read_graph_info(path)
    assert info == exported.infos[kind] and info.difference < 1e-5
    assert info.channels == list(classes.windows.channels) and info.unit == "uV"
    assert info.classes == ["off", "on"] and info.decision_weights == exported.ensemble.decision_weights
    assert info.opset == (graphs.OPSET if kind == "onnx" else None)
    report = check_graph(path, bundle=exported.folder / "bundle")
    assert report.ok, str(report)
    names = [line.name for line in report.lines]
    assert names == ["record", "runs", "one by one", "batch of 8", "batch of 64", "classes", "bundle"]
    assert ("opset 18" in str(report)) == (kind == "onnx")


def with_record(path, out, **change):
    """Write an ONNX file with another record."""
    model = onnx.load(path)
    model.metadata_props[0].value = read_graph_info(path).model_copy(update=change).to_json().decode()
    onnx.save(model, out)
    return out


def test_the_record_tells_how_means_of_people_are_read(repeated, tmp_path, capsys):
    run, path = RunStore.open(shutil.copytree(repeated.run.local, tmp_path / "run")), tmp_path / "model.onnx"
    ensemble = raypipe.Run(run).ensemble(method="equal", top=2)
    bundle = load_ensemble(export_bundle(run, ensemble, tmp_path / "bundle", windows=repeated.windows))
    with pytest.raises(SystemExit) as left:
        app.main(["export", str(tmp_path / "run"), str(path)])
    assert not left.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert f"its answers are per window, and target '{bundle.info.target}' is the person's" in said
    record = json.loads({each.key: each.value for each in onnx.load(path).metadata_props}[RECORD])
    assert record["people"] == ensemble.people.model_dump(mode="json") and ensemble.people.scale != 1.0

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    p_NK = session.run(None, {"windows": repeated.windows.gather(np.arange(96))})[0]
    means = pd.DataFrame(p_NK).groupby(repeated.windows.subjects, sort=False).mean().to_numpy()
    powers = means ** record["people"]["scale"]
    named = pd.DataFrame(p_NK, columns=bundle.columns).assign(
        subject=repeated.windows.subjects, recording="a", role="training"
    )
    table = people_table(bundle, named)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), table[bundle.columns], rtol=1e-5)
    chosen = (means * record["decision_weights"]).argmax(1)
    assert [record["classes"][number] for number in chosen] == list(table["prediction"])

    assert check_graph(path, bundle=tmp_path / "bundle").ok
    changed = with_record(path, tmp_path / "changed.onnx", people=ensemble.people.model_copy(update={"scale": 0.5}))
    (line,) = check_graph(changed, bundle=tmp_path / "bundle").failures
    assert (line.name, line.detail) == ("bundle", "the bundle's record has another people")


@pytest.mark.parametrize("change", [{"classes": ["on", "off"]}, {"decision_weights": [0.9, 0.1]}])
def test_another_record_than_the_bundles_fails_the_check(exported, tmp_path, change):
    changed = with_record(exported.folder / "model.onnx", tmp_path / "changed.onnx", **change)
    failures = check_graph(changed, bundle=exported.folder / "bundle").failures
    assert failures[-1].detail == f"the bundle's record has another {next(iter(change))}"


def test_a_target_of_windows_has_no_people_in_its_record(exported):
    assert exported.infos["onnx"].people is None and level_text(exported.infos["onnx"]) == ""


def test_the_onnx_file_is_valid_small_and_names_no_file_of_this_machine(exported):
    path = exported.folder / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.output] == ["predictions", "classes"]
    assert {each.domain for each in model.opset_import} <= {""}
    assert [entry.key for entry in model.metadata_props] == [RECORD]
    data = path.read_bytes()
    assert b"raypipe/models" not in data and b"site-packages" not in data


def test_a_program_runs_with_torch_alone(exported, classes, tmp_path):
    np.save(tmp_path / "x.npy", classes.windows.gather(np.arange(3)))
    code = """import sys; sys.modules["raypipe"] = None
import json, numpy as np, torch
files = {"raypipe.json": ""}
model = torch.export.load(sys.argv[1], extra_files=files).module()
print(json.loads(files["raypipe.json"])["sfreq"], model(torch.from_numpy(np.load(sys.argv[2])))[1].tolist())
"""
    command = [sys.executable, "-I", "-c", code, str(exported.folder / "model.pt2"), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = raypipe.load_ensemble(exported.folder / "bundle")
    chosen = loaded.decide(loaded.predict(classes.windows.gather(np.arange(3))))
    assert done.stdout.strip() == f"{classes.windows.sfreq} {[loaded.classes.index(name) for name in chosen]}"


def test_other_numbers_than_at_export_fail_the_check(exported, tmp_path):
    model = onnx.load(exported.folder / "model.onnx")
    record = read_graph_info(exported.folder / "model.onnx")
    changed = record.model_copy(update={"reference": [[1.0 - p, p] for p, _ in record.reference]})
    model.metadata_props[0].value = changed.to_json().decode()
    onnx.save(model, tmp_path / "changed.onnx")
    report = check_graph(tmp_path / "changed.onnx")
    assert [line.name for line in report.failures] == ["one by one", "batch of 8", "batch of 64"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n_times": 10**9}, "n_times"),
        ({"channels": []}, "n_times"),
        ({"classes": ["a", "b", "c"]}, "classes"),
        ({"kind": "regression", "classes": [], "n_outputs": 1, "reference": [[1.0]]}, "decision_weights"),
        ({"reference": [[0.5, 0.5], [1.0]]}, "reference"),
        ({"reference": []}, "reference"),
        ({"people": People(n=9, half_widths=(0.5, 0.5))}, "people"),
        ({"scales": [1.0]}, "scales"),
        ({"unit": "1"}, "unit: 1, but by prepare, windows are in microvolts"),
        ({"scales": [1.0, 0.0]}, "scales"),
    ],
)
def test_a_record_that_contradicts_itself_is_one_line(exported, tmp_path, change, field):
    model = onnx.load(exported.folder / "model.onnx")
    record = read_graph_info(exported.folder / "model.onnx").model_copy(update=change)
    model.metadata_props[0].value = record.to_json().decode()
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match=field) as caught:
        check_graph(tmp_path / "changed.onnx")
    assert "\n" not in str(caught.value)


def test_a_graph_with_other_outputs_than_its_record_says_fails_the_check(exported, tmp_path):
    model = onnx.load(exported.folder / "model.onnx")
    record = read_graph_info(exported.folder / "model.onnx")
    three = {
        "classes": ["a", "b", "c"],
        "n_outputs": 3,
        "decision_weights": [0.3, 0.3, 0.4],
        "scales": [1.0, 1.0, 1.0],
        "reference": [[0.2, 0.3, 0.5]],
    }
    model.metadata_props[0].value = record.model_copy(update=three).to_json().decode()
    onnx.save(model, tmp_path / "changed.onnx")
    (line,) = check_graph(tmp_path / "changed.onnx").failures
    assert (line.name, line.detail) == ("outputs", "a window gives 2 numbers; expected 3")


@pytest.mark.parametrize("damage", ["encrypted", "deflated", "cut"])
def test_a_damaged_program_is_one_line(tmp_path, damage):
    with zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/raypipe.json", b"{}" * 5000)
    data = bytearray((tmp_path / "model.pt2").read_bytes())
    content = data.find(b"raypipe.json") + len(b"raypipe.json")
    if damage == "encrypted":
        data[6] |= 1
        data[data.find(b"PK\x01\x02") + 8] |= 1
    elif damage == "deflated":
        data[content : content + 10] = b"\xff" * 10
    else:
        del data[content + 5 :]
    (tmp_path / "model.pt2").write_bytes(data)
    with pytest.raises(UserError, match=r"no program of torch\.export, or a damaged one") as caught:
        check_graph(tmp_path / "model.pt2")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_graphs_are_one_line(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "text.pt2").write_text("hello")
    model = onnx.load(exported.folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    for name, message in {
        "text.onnx": "no ONNX file",
        "text.pt2": "no program of torch.export",
        "other.onnx": "not exported by raypipe",
        "none.onnx": "no such file",
        "model.h5": "neither .onnx nor .pt2",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            check_graph(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_graph_that_gives_other_numbers_is_not_written(classes, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"differ from torch's by .* not written"):
        export_graph(classes.ensemble(top=1), tmp_path / "model.pt2", "pt2", windows=classes.windows)
    assert not list(tmp_path.iterdir())


def test_a_graph_is_compared_on_windows_of_the_store_too(classes, tmp_path, monkeypatch):
    """The last channel of random windows is flat; no real one is."""

    def wrong_on_real(module, format):
        return graphs.Graph(None, lambda x_BCT: [module(x_BCT)[0] + x_BCT[:, -1:, 0].sign().abs()])

    monkeypatch.setattr(graphs, "make_graph", wrong_on_real)
    with pytest.raises(UserError, match=r"differ from torch's by .* not written"):
        export_graph(classes.ensemble(top=1), tmp_path / "model.pt2", "pt2", windows=classes.windows)


def test_bad_exports_are_one_line(classes, tmp_path, monkeypatch):
    ensemble = classes.ensemble(top=1)
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(UserError, match=r"x\.onnx: a folder; a graph is a file"):
        export_graph(ensemble, tmp_path / "x.onnx", "onnx", windows=classes.windows)
    with pytest.raises(UserError, match=r"a file of format onnx ends in .onnx"):
        export_graph(ensemble, tmp_path / "model", "onnx", windows=classes.windows)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "raypipe.packaging.onnx_eigh", raising=False)
    with pytest.raises(UserError, match=r"export to ONNX needs onnxscript.*raypipe-eeg\[onnx\]"):
        export_graph(ensemble, tmp_path / "model.onnx", "onnx", windows=classes.windows)
