"""Bundles of ensembles whose members take windows of different stores."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from raypipe import Run
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.core.store_names import parse_stores
from raypipe.data.prepare import prepare
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.window_cache import open_windows
from raypipe.ensembles.fit import fit_ensemble
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_files import RECORD
from raypipe.packaging.graphs import export_graph
from raypipe.packaging.predict import predict
from raypipe.packaging.stream import stream
from raypipe.packaging.submission import export_submission
from raypipe.simulation.contrast_change import simulate
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.toys import make_run, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a BIDS folder and a run on two stores of it: a network and a linear model on each."""
    root = tmp_path_factory.mktemp("stores")
    bids = simulate(root / "bids", subjects=9, channels=4, trials=6)
    prepare(bids, "challenge1", root / "broad", jobs=1)
    low = Preprocessing(band=(0.5, 8.0), reject=None)
    prepare(bids, "challenge1", root / "low", jobs=1, sfreq=50.0, band=low.band)
    both = open_windows({"broad": root / "broad", "low": root / "low"})
    run = make_run(root / "run", both, data=both.where)
    for number in range(4):
        store = both.names[number % 2]
        network = tiny(data__store=store, epochs=1, loss__name="nll", model__variance=True)
        linear = parse_config({"model/name": "linear", "data/store": store})
        run.add_trial(number, network if number < 2 else linear)
        run_trial(run, both, number)
    return bids, RunStore.open(run.where)


@pytest.fixture(scope="module")
def bundle(made, tmp_path_factory):
    _, run = made
    ensemble = fit_ensemble(run, method="equal")
    return ensemble, export_bundle(run, ensemble, tmp_path_factory.mktemp("bundle") / "out")


def test_a_bundle_predicts_held_out_windows_as_the_ensemble_did(made, bundle):
    ensemble, path = bundle
    loaded = load_ensemble(path)
    both, index = open_windows(made[1].info.data), ensemble.held_out.windows
    given = {name: both.of(name).gather(index) for name in loaded.info.recipes}
    np.testing.assert_allclose(loaded.predict(given), ensemble.held_out.predictions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded.predict(given, batch_size=5), loaded.predict(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["confidence", "ridge", "sample"])
def test_rules_combine_members_of_different_stores(made, tmp_path, method):
    _, run = made
    ensemble = fit_ensemble(run, method=method)
    loaded = load_ensemble(export_bundle(run, ensemble, tmp_path / "out"))
    both, index = open_windows(run.info.data), ensemble.held_out.windows
    names = loaded.info.recipes or {"": None}
    given = {name: both.of(name or run.config(ensemble.members[0].trial).data.store).gather(index) for name in names}
    found = loaded.predict(given if loaded.info.recipes else given[""])
    np.testing.assert_allclose(found, ensemble.held_out.predictions, rtol=1e-4, atol=1e-5)


def test_predict_prepares_new_recordings_once_per_recipe(made, bundle):
    bids, run = made
    ensemble, path = bundle
    table = predict(path, bids)
    both, index = open_windows(run.info.data), ensemble.held_out.windows
    offline = both.table.iloc[index][["recording", "onset"]].assign(offline=ensemble.held_out.predictions[:, 0])
    joined = offline.merge(table, on=["recording", "onset"])
    assert len(joined) == len(index) and set(joined["role"]) == {"held out"}
    np.testing.assert_allclose(joined["prediction"], joined["offline"], rtol=1e-3, atol=1e-4)
    assert len(table) >= len(both)  # windows without a target are predicted too
    per = predict(path, bids, level="recording")
    assert per["windows"].sum() == len(table)


def test_windows_of_one_store_are_refused_in_one_line(bundle):
    _, path = bundle
    loaded = load_ensemble(path)
    recipe = loaded.info.recipes["low"]
    x = np.zeros((2, len(recipe.channels), recipe.n_times))
    with pytest.raises(UserError, match="windows of stores broad and low, which are prepared differently"):
        loaded.predict(x)
    with pytest.raises(UserError, match="an array, or a set of epochs, takes windows of one"):
        predict(loaded, x)
    by_store = r"prepared windows by store with load_ensemble\(bundle\).predict\(\{'broad': ..., 'low': ...\}\)"
    for given in (x, {"low": x, "broad": x}):
        with pytest.raises(UserError, match=f"it predicts recordings, or {by_store};"):
            predict(loaded, given)
    with pytest.raises(UserError, match=r"; raypipe\.predict takes windows of one"):
        predict(loaded, {"low": x, "broad": x})
    with pytest.raises(UserError, match="a stream takes windows of one"):
        stream(loaded, "EEG")
    with pytest.raises(UserError, match="windows of low: this ensemble takes broad, low"):
        loaded.predict({"low": x})
    with pytest.raises(UserError, match=r"windows of store broad of shape \(2, "):
        loaded.predict({"low": x, "broad": x})
    for name in ("channels", "sfreq", "module"):
        with pytest.raises(UserError, match="prepared differently"):
            getattr(loaded, name)


def test_graphs_and_submissions_need_members_of_one_store(bundle, tmp_path):
    ensemble, _ = bundle
    with pytest.raises(UserError, match="networks take windows of stores broad and low, and a graph takes those of"):
        export_graph(ensemble, tmp_path / "out.pt2", "pt2")
    with pytest.raises(UserError, match="and a submission takes those of one"):
        export_submission({1: ensemble}, tmp_path / "out.zip")


def test_members_of_one_store_make_a_bundle_of_one_recipe(made, tmp_path):
    _, run = made
    best = fit_ensemble(run, method="best")
    path = export_bundle(run, best, tmp_path / "out")
    loaded = load_ensemble(path)
    own = open_windows(run.info.data).of(run.config(best.members[0].trial).data.store)
    assert loaded.info.recipes == {} and "recipes" not in json.loads((path / RECORD).read_bytes())
    assert (loaded.sfreq, loaded.channels) == (own.sfreq, list(own.channels))
    given = own.gather(best.held_out.windows)
    found = loaded.predict(given)
    np.testing.assert_allclose(found, best.held_out.predictions, rtol=1e-4, atol=1e-5)
    graph, _ = export_graph(best, tmp_path / "out.pt2", "pt2")
    (y_BO,) = torch.export.load(graph).module()(torch.from_numpy(given))
    np.testing.assert_allclose(y_BO.numpy(), found, rtol=1e-4, atol=1e-5)


def test_stores_of_one_table_in_two_spellings_make_a_bundle(tmp_path):
    bids = simulate(tmp_path / "bids", subjects=6, channels=4, trials=2)
    rows = [f"{folder.name},{number}" for number, folder in enumerate(sorted(bids.glob("sub-*")))]
    (tmp_path / "labels.csv").write_text("\n".join(["participant_id,score", *rows]))
    for name, file in (("broad", tmp_path / "labels.csv"), ("low", f"{tmp_path}/./labels.csv")):
        band = (0.5, 40.0 if name == "broad" else 8.0)
        prepare(bids, f"table:{file}:score", tmp_path / name, jobs=1, band=band)
    both = open_windows({name: tmp_path / name for name in ("broad", "low")})
    run = make_run(tmp_path / "run", both, data=both.where)
    for number, name in enumerate(both.names):
        run.add_trial(number, parse_config({"model/name": "linear", "data/store": name}))
        run_trial(run, both, number)
    ensemble = fit_ensemble(RunStore.open(run.where), method="equal")
    bundle = export_bundle(run, ensemble, tmp_path / "out")
    table = predict(bundle, bids)
    assert set(load_ensemble(bundle).info.recipes) == {"broad", "low"} and np.isfinite(table["prediction"]).all()


def test_the_card_has_all_recipes(bundle):
    _, path = bundle
    card = (path / "README.md").read_text()
    assert "Recipe `low`: 4 channels x" in card and "Hz, in microvolts; channels" in card and card.count("```json") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": [0]}, "a member is in none or in several"),
        ({"sfreq": 10.0}, "prepare/sfreq"),
        ({"scale": -1.0}, "scale"),
    ],
)
def test_recipes_that_do_not_fit_are_one_line(bundle, tmp_path, change, words):
    from raypipe.core.record import with_digest

    path = shutil.copytree(bundle[1], tmp_path / "copy")
    record = json.loads((path / RECORD).read_bytes())
    del record["digest"]
    record["recipes"]["low"] |= change
    (path / RECORD).write_bytes(with_digest(record))
    with pytest.raises(UserError, match=words) as caught:
        load_ensemble(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bundle", "model.pt2", "oof"])
def test_a_store_that_was_prepared_anew_with_other_steps_is_refused(made, tmp_path, name):
    bids, run = made
    ensemble, best = fit_ensemble(run, method="equal"), fit_ensemble(run, method="best")
    low = parse_stores(run.info.data)["low"]
    kept = shutil.move(low, tmp_path / "kept")
    try:
        prepare(bids, "challenge1", low, jobs=1, sfreq=50.0, band=(0.5, 20.0))
        with pytest.raises(UserError, match=r"not the windows that .* was made from"):
            if name == "oof":
                Run(run).oof()
            elif name == "bundle":
                export_bundle(run, ensemble, tmp_path / name)
            else:
                export_graph(best, tmp_path / name, "pt2")
    finally:
        shutil.rmtree(low)
        shutil.move(kept, low)
    assert not (tmp_path / name).exists()
