"""Trials that choose among stores of the same windows."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.cli.windows_checks import check_run_windows
from raypipe.core.errors import UserError
from raypipe.core.options import parse_options
from raypipe.core.search_space import load_space
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.search import outer
from raypipe.search.forecast import forecast
from raypipe.search.pretrain import pretrain
from raypipe.search.run_setup import check_unchanged, open_run
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.run_store import RunStore
from raypipe.training.store_loaders import StoreLoaders
from raypipe.trial.local import run_trial
from tests.support.stores import filtered, write_two_stores
from tests.support.toys import TINY, make_run, tiny, write_store

OPTIONS = parse_options({"folds": 3})
SPACE = {name: value for name, value in TINY.items() if name != "optim/lr"} | {"epochs": 1}


@pytest.fixture
def places(tmp_path):
    return write_two_stores(tmp_path)


def test_a_trial_trains_on_its_store_as_it_does_alone(tmp_path, places):
    both = open_windows(places)
    run = make_run(tmp_path / "run", both)
    for number, name in enumerate(places):
        run.add_trial(number, tiny(data__store=name, epochs=2))
        run_trial(run, both, number)
        alone = WindowStore(places[name])
        single = make_run(tmp_path / f"run-{name}", alone)
        single.add_trial(number, tiny(epochs=2))
        run_trial(single, alone, number)
        np.testing.assert_array_equal(run.oof(number).predictions, single.oof(number).predictions)
        np.testing.assert_array_equal(run.oof(number).windows, single.oof(number).windows)
    assert not np.array_equal(run.oof(0).predictions, run.oof(1).predictions)


def test_each_store_is_loaded_when_a_trial_needs_it(places):
    both = open_windows(places)
    loaders = StoreLoaders(both)
    assert loaders._loaders == {}
    low = loaders.of("low")
    assert low is loaders.of("low") and low.windows is both.of("low")
    assert list(loaders._loaders) == ["low"]


def test_a_run_remembers_its_stores_and_their_hashes(tmp_path, places):
    both = open_windows(places)
    space = load_space(SPACE, both.names)
    run = open_run(space, both, str(tmp_path / "run"), OPTIONS)
    again = RunStore.open(run.where)
    assert again.info.data == both.where and again.space == space
    assert {config.data.store for config in again.space.draw(20)} == {"broad", "low"}
    check_unchanged(again, open_windows(again.info.data), again.space, OPTIONS)
    toy = filtered()
    toy.x[0] += 1
    other = {"broad": places["broad"], "low": write_store(tmp_path / "other", toy)}
    for changed in (other, {"broad": places["broad"]}, dict(reversed(places.items())), places["broad"]):
        with pytest.raises(UserError, match="the run was made from other data"):
            check_unchanged(again, open_windows(changed), again.space, OPTIONS)


def test_an_encoder_fits_stores_of_one_shape_only(tmp_path, places):
    both = open_windows(places)
    with pytest.raises(UserError, match="--init: windows of stores broad and low have different shapes"):
        open_run(load_space(SPACE, both.names), both, str(tmp_path / "run"), OPTIONS, init=tmp_path / "encoder")


def test_an_outer_cross_validation_remembers_its_stores(tmp_path, places):
    both = open_windows(places)
    outer._open(load_space(SPACE, both.names), both, str(tmp_path / "cv"), OPTIONS, 3, None)
    found = OuterRun(tmp_path / "cv")
    assert found.info.data == both.where and found.read_space().stores == ("broad", "low")
    assert sorted(name for part in found.info.parts for name in part) == sorted(set(both.subjects))


def test_plan_measures_every_store(places):
    linear = {"model/name": "linear", "START": [{}, {}]}
    assert len(forecast(linear, places, trials=2, folds=3).costs) >= 2
    with pytest.raises(UserError, match="data/store=lo: no such store; did you mean 'low'"):
        forecast(linear | {"data/store": "lo"}, places, trials=2, folds=3)


def test_an_encoder_is_pretrained_on_one_store(tmp_path, places):
    with pytest.raises(UserError, match="an encoder is pretrained on one store; name one"):
        pretrain("mae", open_windows(places).where, tmp_path / "run")


def test_a_run_of_several_stores_is_intact(tmp_path, places):
    both = open_windows(places)
    run = make_run(tmp_path / "run", both, data=both.where)
    assert {finding.level for finding in check_run_windows(run, whole=True)} == {"ok"}
    shard = next((places["low"] / "shards").glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    broken = [finding.what for finding in check_run_windows(run, whole=True) if finding.level == "broken"]
    assert len(broken) == 1 and str(shard) in broken[0]
