from __future__ import annotations

import fcntl
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.arrays import from_arrays
from raypipe.data.epochs import from_epochs
from raypipe.data.prepare import prepare
from raypipe.data.window_limits import spread_draw
from raypipe.simulation.contrast_change import simulate
from tests.support.given import Given, save_epochs, simulate_windows, write_bids

TARGET = "participants:age"


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    """Four people, of whom one has half as many windows as the others, and one has a second run."""
    folder = simulate(tmp_path_factory.mktemp("limits") / "bids", subjects=4, channels=2, trials=10)
    short = simulate(folder.parent / "short", subjects=4, channels=2, trials=5)
    for name, source in (("sub-SIM0001", short), ("sub-SIM0000", folder)):
        for path in list((source / name / "eeg").glob("*run-1*")):
            run = "run-1" if source is short else "run-2"
            shutil.copy(path, folder / name / "eeg" / path.name.replace("run-1", run))
    return folder


@given(st.integers(0, 300), st.integers(1, 100), st.integers(0, 2**32))
def test_a_draw_takes_one_of_each_part(count, most, seed):
    drawn = spread_draw(count, most, seed)
    assert len(drawn) == min(count, most) and (np.diff(drawn) > 0).all()
    assert (drawn == spread_draw(count, most, seed)).all()
    if count > most:
        assert (drawn * most // count >= np.arange(most) - 1).all() and np.diff(drawn).max(
            initial=0
        ) < 2 * count / most + 1


def test_people_have_as_many_windows_as_are_drawn(bids, tmp_path):
    whole = prepare(bids, TARGET, tmp_path / "whole", jobs=1)
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, max_windows=8)
    counts = whole.table["subject"].value_counts()
    assert counts.min() > 8 and set(store.table["subject"].value_counts()) == {8}
    both = store.table.merge(whole.table, on=["recording", "onset"], suffixes=("", "_whole"))
    assert len(both) == len(store) == 32 and (both["digest"] == both["digest_whole"]).all()
    np.testing.assert_array_equal(store.gather(range(32)), whole.gather(both["window_whole"]))
    parts = store.manifest.accounting.parts_left_out["windows beyond the 8 drawn of a person"]
    assert parts == {person: n - 8 for person, n in counts.items()}
    two_runs = store.table[store.table["subject"] == "SIM0000"]
    assert (two_runs["run"].value_counts() == 4).all()  # spread over both
    assert list(store.damaged()) == [] and store.manifest.summary.windows == 32
    other = prepare(bids, TARGET, tmp_path / "other", jobs=1, max_windows=8, seed=1)
    assert list(other.table["onset"]) != list(store.table["onset"])
    again = prepare(bids, TARGET, tmp_path / "store", jobs=1, max_windows=8)
    assert again.is_up_to_date and again.data_hash == store.data_hash


def test_a_draw_does_not_depend_on_other_people(bids, tmp_path):
    fewer = shutil.copytree(bids, tmp_path / "bids")
    shutil.rmtree(fewer / "sub-SIM0002")
    one = prepare(bids, TARGET, tmp_path / "one", jobs=1, max_windows=5).table
    other = prepare(fewer, TARGET, tmp_path / "other", jobs=1, max_windows=5).table
    same = one[one["subject"] != "SIM0002"]
    assert list(same["onset"]) == list(other["onset"]) and list(same["recording"]) == list(other["recording"])


def test_people_with_too_few_windows_are_left_out_and_counted(bids, tmp_path):
    counts = prepare(bids, TARGET, tmp_path / "whole", jobs=1).table["subject"].value_counts()
    least = int(counts["SIM0001"]) + 1
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=least, max_windows=least)
    assert set(store.table["subject"]) == {"SIM0000", "SIM0002", "SIM0003"}
    accounting = store.manifest.accounting
    assert accounting.people_left_out == {"of a person with too few windows": ("SIM0001",)}
    assert accounting.parts_left_out[f"windows of people with fewer than {least}"] == {"SIM0001": least - 1}
    assert accounting.recordings_used == store.manifest.summary.recordings == 4
    with pytest.raises(UserError, match="no person has 9999 windows; choose a lower --min-windows"):
        prepare(bids, TARGET, tmp_path / "none", jobs=1, min_windows=9999)


def test_limits_may_change_until_a_store_is_finished(bids, tmp_path):
    """Shards do not depend on them, so a prepare that leaves no person does not fix them, and its shards are kept."""
    with pytest.raises(UserError, match="no person has 9999 windows"):
        prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=9999)
    with pytest.raises(UserError, match=r"sfreq left to its default, not '50\.0', but holds no finished store; delete"):
        prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=9999, sfreq=50)
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=2)
    assert store.redone == 0 and store.manifest.settings.min_windows == 2
    assert store.data_hash == prepare(bids, TARGET, tmp_path / "other", jobs=1, min_windows=2).data_hash
    store.verify()
    with pytest.raises(UserError, match="was made with min_windows '2', not '1'; choose another folder"):
        prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=1)


def test_limits_of_given_windows_may_change_until_a_store_is_finished(tmp_path):
    given = simulate_windows(subjects=4, each=10)
    with pytest.raises(UserError, match="no person has 11 windows"):
        from_arrays(**given.arguments(out=tmp_path / "store"), min_windows=11)
    assert len(from_arrays(**given.arguments(out=tmp_path / "store"), min_windows=10)) == 40


def test_a_prepare_with_other_limits_waits_for_one_that_is_writing(bids, tmp_path):
    with pytest.raises(UserError, match="no person has 9999 windows"):
        prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=9999)
    with open(tmp_path / "store" / "settings.json") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another prepare is writing there"):
            prepare(bids, TARGET, tmp_path / "store", jobs=1, min_windows=2)


def test_recordings_of_which_nothing_is_drawn_are_counted(bids, tmp_path):
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, max_windows=1)
    (left_out,) = store.manifest.accounting.recordings_left_out
    assert left_out.person == "SIM0000" and left_out.reason == "of which no window was drawn"


def test_given_windows_have_the_limits_of_recordings(tmp_path):
    windows = simulate_windows(subjects=4, each=10)
    keep = np.ones(40, bool)
    keep[:7] = False  # three windows are left of the first person
    some = Given(windows.X[keep], windows.y[keep], windows.subject[keep])
    limits = {"max_windows": 6, "min_windows": 5, "seed": 4}
    cut = prepare(
        write_bids(tmp_path / "bids", some), "events:left,right", tmp_path / "cut", jobs=1, window=1.0, **limits
    )
    arrays = from_arrays(**some.arguments(out=tmp_path / "arrays"), **limits)
    (tmp_path / "files").mkdir()
    save_epochs(tmp_path / "files", some)
    epochs = from_epochs(tmp_path / "files" / "*.fif", subject="filename:sub", out=tmp_path / "epochs", **limits)
    for store in (arrays, epochs):
        assert store.table["digest"].tolist() == cut.table["digest"].tolist() and len(store) == 18
        parts = store.manifest.accounting.parts_left_out
        assert parts["windows of people with fewer than 5"] == {"01": 3}
        assert parts == cut.manifest.accounting.parts_left_out
    with pytest.raises(UserError, match="seed 4: draws the windows of max_windows, which is not given"):
        from_arrays(**some.arguments(out=tmp_path / "other"), seed=4)
