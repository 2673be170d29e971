"""Stores of given windows go the whole way: a search, an ensemble, a report and a bundle that predicts."""

from __future__ import annotations

import pytest

import raypipe
from raypipe.core.errors import UserError
from raypipe.packaging.predict import predict
from tests.support.given import simulate_windows, write_bids
from tests.support.plain import plain_sweep
from tests.support.toys import SPACE

WINDOWS = simulate_windows(subjects=9, each=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> raypipe.Run:
    """A sweep of two trials over windows from arrays, with its ensemble."""
    root = tmp_path_factory.mktemp("given")
    raypipe.from_arrays(**WINDOWS.arguments(out=root / "store"))
    (root / "space.py").write_text(SPACE)
    found = plain_sweep(root / "space.py", root / "store", root / "run", trials=2, folds=3)
    found.ensemble(top=2, method="equal")
    return found


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return run.export(tmp_path_factory.mktemp("given") / "bundle")


def test_a_store_from_arrays_is_searched_and_reported(run):
    assert run.trials["state"].tolist() == ["complete", "complete"]
    html = run.report().read_text()
    assert "left against right" in html
    assert "raypipe.from_arrays(..., out=&#39;STORE&#39;)  # in Python" in html


def test_its_bundle_cuts_no_recordings(bundle, tmp_path):
    bids = write_bids(tmp_path / "bids", WINDOWS)
    with pytest.raises(UserError, match="its windows were given, so it cuts none from recordings"):
        predict(bundle, bids)


def test_prepare_names_the_function_instead(tmp_path):
    bids = write_bids(tmp_path / "bids", WINDOWS)
    with pytest.raises(UserError, match=r"target 'arrays': .* make them with raypipe.from_arrays\("):
        raypipe.prepare(bids, "arrays", tmp_path / "store")
