"""Several stores of the same windows: windows, subjects and targets agree, signals differ."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.arrays import from_arrays
from raypipe.data.named_stores import NamedStores, window_keys
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from tests.support.records import edit_record
from tests.support.stores import Subset, filtered, write_two_stores
from tests.support.toys import ToyWindows, write_store


@pytest.fixture
def places(tmp_path):
    return write_two_stores(tmp_path)


def test_windows_of_stores_with_other_preprocessing_are_the_same(places):
    both = open_windows(places)
    assert both.names == ("broad", "low")
    assert both.where == f"broad={places['broad']},low={places['low']}"
    assert both.left_out_line() == ""
    broad, low = (WindowStore(place) for place in places.values())
    some = np.array([5, 0, 63])
    np.testing.assert_array_equal(both.gather(some), broad.gather(some))
    np.testing.assert_array_equal(both.of("low").gather(some), low.gather(some))
    np.testing.assert_array_equal(both.of("").gather(some), broad.gather(some))
    assert both.of("low").sfreq == 25.0 and both.sfreq == 50.0
    assert list(both.damaged()) == []


def test_windows_that_only_some_stores_have_are_left_out_everywhere(tmp_path):
    subjects = [f"s{n:02d}" for n in range(8)]
    one = write_store(tmp_path / "one", Subset(subjects[:7]))
    other = write_store(tmp_path / "other", Subset(subjects[1:]))
    both = open_windows({"one": one, "other": other})
    assert len(both) == 48 and both.left_out == {"one": 8, "other": 8}
    assert "8 of store one, 8 of store other" in both.left_out_line()
    assert both.left_out_line() in both.describe()
    assert sorted(set(both.subjects)) == subjects[1:7]
    np.testing.assert_array_equal(both.table["window"], np.arange(48))
    for name, store in (("one", WindowStore(one)), ("other", WindowStore(other))):
        view = both.of(name)
        np.testing.assert_array_equal(window_keys(view), window_keys(both))
        rows = [list(window_keys(store)).index(key) for key in window_keys(both)]
        np.testing.assert_array_equal(view.whole(np.arange(48)), store.whole(rows))
        np.testing.assert_array_equal(view.targets, store.targets[rows])


def test_a_pickle_opens_the_stores_again(places):
    both = open_windows(places)
    again = pickle.loads(pickle.dumps(both))
    assert isinstance(again, NamedStores) and again.data_hash == both.data_hash and again.where == both.where
    view = pickle.loads(pickle.dumps(both.of("low")))
    np.testing.assert_array_equal(view.gather([3]), both.of("low").gather([3]))


def test_the_hash_has_names_and_content(places):
    both = open_windows(places)
    assert open_windows(both.where).data_hash == both.data_hash
    swapped = {"broad": places["low"], "low": places["broad"]}
    assert open_windows(swapped).data_hash != both.data_hash != WindowStore(places["broad"]).data_hash


def test_other_targets_of_the_same_window_are_one_line(tmp_path, places):
    toy = filtered()
    toy.targets[9] += 1.0
    toy.targets[11] += 1.0
    other = write_store(tmp_path / "other", toy)
    with pytest.raises(UserError, match=r"different targets of 2 windows, first of sub-s01 at 2 s: ") as caught:
        open_windows({"broad": places["broad"], "other": other})
    assert "\n" not in str(caught.value)


def test_stores_of_other_windows_are_one_line(tmp_path, places):
    classes = write_store(tmp_path / "classes", ToyWindows(classes=True))
    with pytest.raises(UserError, match="different kinds of targets: regression and classification"):
        open_windows({"broad": places["broad"], "classes": classes})
    longer = write_store(tmp_path / "longer", ToyWindows(spare=8))
    with pytest.raises(UserError, match="windows of different lengths"):
        open_windows({"broad": places["broad"], "longer": longer})
    for field, value, what in (("tmin", 0.5, "at different times after their events"), ("crop_samples", 9, "crops of")):
        other = WindowStore(write_store(tmp_path / field, ToyWindows()))
        plan = other.manifest.plan.model_dump(mode="json") | {field: value}
        edit_record(str(other.path), "manifest.json", {"plan": plan})
        with pytest.raises(UserError, match=what):
            open_windows({"broad": places["broad"], "other": str(other.path)})
    toy = ToyWindows()
    toy.subjects = np.array([f"x{name}" for name in toy.subjects])
    strangers = write_store(tmp_path / "strangers", toy)
    with pytest.raises(UserError, match="no window is in all stores"):
        open_windows({"broad": places["broad"], "strangers": strangers})


def test_stores_of_one_table_may_spell_its_path_in_two_ways(tmp_path, places):
    specs = {"broad": "table:labels.csv:score", "low": f"table:{tmp_path}/labels.csv:score"}
    for name, place in places.items():
        plan = WindowStore(place).manifest.plan.model_dump(mode="json")
        named = {"target": specs[name], "joined_on": ["participant_id"]}
        edit_record(str(place), "manifest.json", {"plan": plan | named})
    assert len(open_windows(places)) == len(WindowStore(places["broad"]))
    other = {"target": "table:labels.csv:age", "joined_on": ["participant_id"]}
    edit_record(str(place), "manifest.json", {"plan": plan | other})
    with pytest.raises(UserError, match="predict different targets: table:score and table:age; only preprocessing"):
        open_windows(places)


def test_stores_of_other_values_under_one_name_are_one_line(tmp_path):
    rng, who = np.random.default_rng(0), [f"s{n // 2}" for n in range(12)]
    x_NCT, y_NK = rng.normal(size=(12, 2, 50)), rng.normal(size=(12, 2))
    options = {"ch_names": ["A", "B"], "sfreq": 50.0, "unit": "uV", "name": "score"}
    one = from_arrays(x_NCT, y_NK[:, 0], who, out=tmp_path / "one", **options)
    two = from_arrays(x_NCT, y_NK, who, out=tmp_path / "two", **options)
    assert one.manifest.plan.target == two.manifest.plan.target
    with pytest.raises(UserError, match="stores one and two have different values: one and "):
        open_windows({"one": one.path, "two": two.path})


def test_an_unknown_name_names_the_nearest(places):
    both = open_windows(places)
    with pytest.raises(UserError, match="did you mean 'broad'"):
        both.of("brod")
    with pytest.raises(UserError, match="one store without a name"):
        WindowStore(places["low"]).of("low")
