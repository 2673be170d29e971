"""A store from arrays is the one that `prepare` makes of the same signals; wrong arrays are one line."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.core.levels import level_of
from raypipe.data import arrays
from raypipe.data.arrays import from_arrays
from raypipe.data.prepare import prepare
from raypipe.data.shared_signal import MAX_PAIRS, overlapping_pairs
from raypipe.data.splits import audit_subjects, folds_of
from raypipe.data.window_store import WindowStore
from tests.support.given import CHANNELS, SFREQ, Given, manifest_of, simulate_windows, store_files, write_bids

WINDOWS = simulate_windows()


def store_of(folder: Path, windows: Given = WINDOWS, **others) -> WindowStore:
    return from_arrays(**windows.arguments(out=folder, **others))


def assert_same_store(one: Path, other: Path) -> None:
    assert store_files(one) == store_files(other)
    assert manifest_of(one) == manifest_of(other)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_classes_give_the_store_of_events_in_bids(tmp_path, dtype):
    bids = write_bids(tmp_path / "bids", WINDOWS)
    prepare(bids, "events:left,right", tmp_path / "bids-store", window=1.0, crop=0.8, dtype=dtype, jobs=1)
    store = store_of(tmp_path / "store", crop=0.8, dtype=dtype)
    assert_same_store(tmp_path / "bids-store", tmp_path / "store")
    store.verify()
    assert store.classes == ["left", "right"] and store.manifest.metric == "auc"


def test_float16_is_refused_where_an_offset_hides_the_signal_but_not_for_a_flat_channel(tmp_path):
    x = WINDOWS.X.copy()
    x[:, 0] = 0.0201  # V, not exact in float16
    store = store_of(tmp_path / "flat", Given(x, WINDOWS.y, WINDOWS.subject), dtype="float16")
    assert len(store) == len(x)
    x[:, 1] += 0.02
    with pytest.raises(UserError, match=rf"01: float16 rounds channel '{CHANNELS[1]}' by .* use float32, or a band"):
        store_of(tmp_path / "offset", Given(x, WINDOWS.y, WINDOWS.subject), dtype="float16")
    assert not (tmp_path / "offset" / "manifest.json").exists()


def test_values_of_people_give_the_store_of_a_column_of_participants(tmp_path):
    score = {who: 20.5 + k for k, who in enumerate(dict.fromkeys(WINDOWS.subject))}
    family = {who: "AB"[k % 2] for k, who in enumerate(score)}
    people = {"participant_id": [f"sub-{who}" for who in score], "score": score.values(), "family": family.values()}
    bids = write_bids(tmp_path / "bids", WINDOWS, pd.DataFrame(people))
    prepare(bids, "participants:score", tmp_path / "bids-store", window=1.0, groups="family", jobs=1)
    y = [score[who] for who in WINDOWS.subject]
    store = store_of(tmp_path / "store", Given(WINDOWS.X, np.array(y), WINDOWS.subject), groups=family)
    assert_same_store(tmp_path / "bids-store", tmp_path / "store")
    assert store.kind == "regression" and level_of(store.subjects, store.targets) == "person"
    again = store_of(
        tmp_path / "again", Given(WINDOWS.X, np.array(y), WINDOWS.subject), groups=[*map(family.get, WINDOWS.subject)]
    )
    assert again.data_hash == store.data_hash and again.group_of == family


@pytest.mark.parametrize(
    "how", ["blocks", "windows", "list", "double", "memmap", "microvolts", "generator of subjects"]
)
def test_every_way_of_giving_the_samples_gives_one_store(tmp_path, how, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 7 * 8 * 4 * 100)
    x, unit = WINDOWS.X, "V"
    if how == "blocks":
        x = (WINDOWS.X[start : start + 17] for start in range(0, 60, 17))
    elif how == "windows":
        x = iter(WINDOWS.X)
    elif how == "list":
        x = list(WINDOWS.X)
    elif how == "double":
        x = WINDOWS.X.astype(np.float64)
    elif how == "memmap":
        np.save(tmp_path / "x.npy", WINDOWS.X)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif how == "microvolts":
        x, unit = (WINDOWS.X.astype(np.float64) * 1e6), "uV"
    else:
        x = (WINDOWS.X[WINDOWS.subject == who] for who in dict.fromkeys(WINDOWS.subject))
    store_of(tmp_path / "plain")
    store_of(tmp_path / "other", Given(x, WINDOWS.y, WINDOWS.subject), unit=unit)
    assert_same_store(tmp_path / "plain", tmp_path / "other")


@drawn(seed=st.integers(0, 2**16), block=st.integers(1, 13))
@settings(max_examples=15)
def test_windows_of_several_subjects_may_be_mixed(tmp_path_factory, seed, block):
    folder = tmp_path_factory.mktemp("mixed")
    order = np.random.default_rng(seed).permutation(len(WINDOWS.y))
    blocks = (WINDOWS.X[order[start : start + block]] for start in range(0, len(order), block))
    store = store_of(folder / "store", Given(blocks, WINDOWS.y[order], WINDOWS.subject[order]))
    places = order[np.argsort(WINDOWS.subject[order], kind="stable")]
    np.testing.assert_array_equal(store.gather(range(60)), (WINDOWS.X[places].astype(float) * 1e6).astype(np.float32))
    assert [store.classes[k] for k in store.targets] == WINDOWS.y[places].tolist()
    assert store.subjects.tolist() == WINDOWS.subject[places].tolist()


def test_a_second_call_replaces_the_windows_and_leaves_nothing_behind(tmp_path):
    first = store_of(tmp_path / "store")
    files = store_files(tmp_path / "store")
    assert store_of(tmp_path / "store").data_hash == first.data_hash and store_files(tmp_path / "store") == files
    louder = store_of(tmp_path / "store", Given(2 * WINDOWS.X, WINDOWS.y, WINDOWS.subject))
    assert louder.data_hash != first.data_hash and louder.verify() is None
    with pytest.raises(UserError, match=r"was made with crop left to its default, not '0.5'; choose another folder"):
        store_of(tmp_path / "store", crop=0.5)
    other = Given(WINDOWS.X, WINDOWS.y, np.char.add("x", WINDOWS.subject))
    with pytest.raises(UserError, match="has windows of another data set"):
        store_of(tmp_path / "store", other)


def test_an_error_on_the_way_leaves_an_unfinished_store_that_the_next_call_finishes(tmp_path):
    def broken():
        yield WINDOWS.X[:30]
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        store_of(tmp_path / "store", Given(broken(), WINDOWS.y, WINDOWS.subject))
    assert not list((tmp_path / "store").rglob("*.partial"))
    with pytest.raises(UserError, match="prepare did not finish"):
        WindowStore(tmp_path / "store")
    assert len(store_of(tmp_path / "store")) == 60


@pytest.mark.parametrize(
    ("y", "kind", "classes"),
    [
        (np.tile([3, 5], 30), None, ["3", "5"]),
        (np.tile([0.0, 1.0], 30), None, ["0", "1"]),
        (np.tile([True, False], 30), None, ["False", "True"]),
        (pd.Series(["b", "a", "c"] * 20, dtype="category"), None, ["a", "b", "c"]),
        (np.tile([0.5, 1.5], 30), None, []),
        (np.tile([0.5, 1.5], 30), "classification", ["0.5", "1.5"]),
        (np.arange(60), "regression", []),
        (np.tile([[3], [5]], (30, 1)), None, ["3", "5"]),
    ],
)
def test_kinds_of_targets(tmp_path, y, kind, classes):
    store = store_of(tmp_path / "store", Given(WINDOWS.X, y, WINDOWS.subject), kind=kind)
    assert store.classes == classes
    assert store.kind == ("classification" if classes else "regression")


def test_recordings_and_onsets_are_kept_and_audited(tmp_path):
    recording = np.where(np.arange(60) % 10 < 5, "ses-1_task-rest_run-1", "ses-2_task-rest_run-1")
    onset = 0.5 * (np.arange(60) % 5) + 3.0
    store = store_of(tmp_path / "store", recording=recording, onset=onset)
    table = store.table
    assert table["recording"].unique().tolist()[:2] == ["sub-01_ses-1_task-rest_run-1", "sub-01_ses-2_task-rest_run-1"]
    assert set(table["session"]) == {"1", "2"} and set(table["task"]) == {"rest"} and set(table["run"]) == {"1"}
    np.testing.assert_array_equal(table["onset"], onset)
    audit_subjects(store, folds_of(store, 3, 0.2, 0))


def test_copies_under_two_subjects_are_named(tmp_path):
    twice = WINDOWS.X.copy()
    twice[10:13] = twice[:3]
    store = store_of(tmp_path / "store", Given(twice, WINDOWS.y, WINDOWS.subject))
    assert (
        "Recordings sub-01 and sub-02 hold 3 windows with the same samples; keep one."
        in store.manifest.accounting.lines()
    )


def test_subjects_may_be_numbers_or_have_prefixes_and_odd_characters(tmp_path):
    store = store_of(tmp_path / "numbers", Given(WINDOWS.X, WINDOWS.y, np.repeat(range(6), 10)))
    assert sorted(set(store.subjects)) == list("012345")
    names = np.repeat(["sub-a b", "SUB-c", "d/1", "é", "f.g", "h_i"], 10)
    store = store_of(tmp_path / "names", Given(WINDOWS.X, WINDOWS.y, names))
    assert set(store.subjects) == {"a b", "c", "d/1", "é", "f.g", "h_i"}
    assert set(store.table["recording"]) == {"sub-a-b", "sub-c", "sub-d-1", "sub-é", "sub-f.g", "sub-h_i"}
    store.verify()


X, Y, S = WINDOWS.X, WINDOWS.y, WINDOWS.subject
HOLE = X.copy()
HOLE[17, 2, 5:8] = np.nan
WRONG = {
    "X has the shape (4, 100): it needs three axes": {"X_NCT": X[0]},
    "X is a int: it needs an array": {"X_NCT": 5},
    "X holds 59 windows, subject has 60 values": {"X_NCT": X[:59]},
    "X holds 59 windows, subject has 60 values: both need": {"X_NCT": iter(X[:59])},
    "X holds more windows than subject has values (60)": {"X_NCT": iter([X, X])},
    "X yields an array of the shape (100,)": {"X_NCT": iter(X[0])},
    "X yields a list that is no array (setting an array element": {"X_NCT": iter([[[1.0, 2.0], [3.0]]])},
    "X holds no window": {"X_NCT": iter([])},
    "X: windows from 0 on have 100 channels and 4 samples, ch_names has 4": {"X_NCT": X.transpose(0, 2, 1)},
    "X: windows from 30 on have 4 channels and 90 samples, those before 100": {"X_NCT": iter([X[:30], X[30:, :, :90]])},
    "X: window 17 has 3 samples that are NaN or infinite": {"X_NCT": HOLE},
    "X: 1 of its values are masked": {"X_NCT": np.ma.masked_array(X, np.arange(X.size).reshape(X.shape) == 7)},
    "X: 2 of its values are masked": {"X_NCT": iter([X[:30], np.ma.masked_less(X[30:], np.sort(X[30:], None)[2])])},
    "X holds values of the type complex64": {"X_NCT": X.astype(np.complex64)},
    "X holds values of the type object": {"X_NCT": X.astype(object)},
    "y has 59 values, subject has 60": {"y": Y[:59]},
    "y: 1 of its values are masked": {"y": np.ma.masked_equal(np.arange(60.0) + 0.5, 3.5)},
    "y: 2 of its values are masked": {"y": np.ma.masked_less(np.arange(120.0).reshape(60, 2) + 0.5, 2)},
    "y is missing (NaN, None or empty) for 1 windows (the first: 5)": {
        "y": pd.Series([*np.arange(5.0), pd.NA, *np.arange(54.0)], dtype=object)
    },
    "y ('b') is missing (NaN, None or empty) for 1 windows (the first: 2)": {
        "y": pd.DataFrame({"a": np.arange(60.0), "b": pd.array([0.5, 1.5, None, *np.arange(57.0)], "Float64")})
    },
    "y: 'a\\nb' holds a line break": {"y": ["a\nb", "c"] * 30},
    "subject: '1\\t2' holds a line break": {"subject": ["1\t2", "3", "4"] * 20},
    "y: 'a\\ud800' holds a line break or another control": {"y": ["a\ud800", "c"] * 30},
    "y is a list that is no array (could not broadcast": {"y": [np.zeros((2, 2)), *[np.zeros((2, 3))] * 59]},
    "subject is a list that is no array (could not broadcast": {
        "subject": [np.zeros((2, 2)), *[np.zeros((2, 3))] * 59]
    },
    "subject: '\\ud800a' holds a line break": {"subject": ["\ud800a", "3", "4"] * 20},
    "ch_names: 'C\\nz' holds a line break": {"ch_names": ["Fz", "C\nz", "Pz", "Oz"]},
    "groups: 'a\\x1b' holds a line break": {"groups": ["a\x1b"] * 60},
    "groups: 'a\\u2028b' holds a line break": {"groups": {"01": "a\u2028b"}},
    "recording: 'r\\n1' holds a line break": {"recording": ["r\n1"] * 60},
    "recording: '\\udcff' holds a line break": {"recording": ["\udcff"] * 60},
    "name: 'a\\nb' holds a line break": {"name": "a\nb"},
    "target_names: 'a\\nb' holds a line break": {"y": np.arange(120.0).reshape(60, 2), "target_names": ["a\nb", "c"]},
    "y has 30 rows, subject has 60 values": {"y": Y.reshape(30, 2)},
    "y is missing (NaN, None or empty) for 1 windows (the first: 3)": {
        "y": np.r_[np.arange(3.0), np.nan, np.arange(56.0)]
    },
    "y is missing (NaN, None or empty) for 60 windows": {"y": [None] * 60},
    "y is inf for window 0": {"y": np.r_[np.inf, np.arange(59.0)]},
    "y is left for every window": {"y": ["left"] * 60},
    "y is 2.5 for every window": {"y": [2.5] * 60},
    "y is different for every subject; classes need": {"y": S},
    "y has 60 different values (0, 1, 2, ...): say kind='classification'": {"y": np.arange(60)},
    "y mixes text ('a') and numbers": {"y": ["a", 1] * 30},
    "y spells one class in two ways: 'Left' and 'left'": {"y": ["Left", "left", "right"] * 20},
    "y holds text ('right'); regression needs numbers": {"kind": "regression"},
    "y is rounded by up to": {"y": 1e9 + 0.01 * np.arange(60)},
    "kind 'ordinal': must be classification or regression": {"kind": "ordinal"},
    "subject: windows of one subject only ('1')": {"subject": ["1"] * 60},
    "subject is missing (NaN, None or empty) for 60": {"subject": [np.nan] * 60},
    "subject '1.5': a subject is text or a whole number": {"subject": [1.5, 2.5] * 30},
    "subject or recording: 'a b' and 'a-b' cannot be distinguished": {"subject": ["a b", "a-b", "c"] * 20},
    "groups: subject '01' is of two groups, '0' and '1'": {"groups": np.arange(60)},
    "groups has 3 values": {"groups": [1, 2, 3]},
    "groups names no subject ('01'); did you mean '1'?": {"groups": {"1": "a"}},
    "recording has 2 values": {"recording": ["a", "b"]},
    "onset has 2 values": {"onset": [0.0, 1.0]},
    "onset is nan for window 0": {"onset": [np.nan] * 60},
    "ch_names: 'Cz' is there twice": {"ch_names": ["Fz", "Cz", "Cz", "Oz"]},
    "ch_names: '3' is no name of a channel": {"ch_names": ["Fz", "Cz", 3, "Oz"]},
    "ch_names is empty": {"ch_names": []},
    "sfreq 0: must be": {"sfreq": 0},
    "sfreq nan: must be": {"sfreq": float("nan")},
    "unit 'T': not a unit of voltage": {"unit": "T"},
    "unit 'None': not a unit of voltage": {"unit": None},
    "crop 2: longer than the window (1 s)": {"crop": 2.0},
    "crop -1: must be greater than 0": {"crop": -1.0},
    "dtype float64: ": {"dtype": "float64"},
    "--metric rmse: target 'arrays:left,right' predicts classes": {"metric": "rmse"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_one_line_and_leave_no_store(tmp_path, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        from_arrays(**WINDOWS.arguments(out=tmp_path / "store") | WRONG[message])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store/manifest.json").exists()


@pytest.mark.parametrize("factor", [1e6, 1e5, 1e-6])
def test_a_wrong_unit_is_said_before_anything_is_written(tmp_path, factor):
    with pytest.raises(UserError, match=r"not on the scale of EEG .* say the unit of X, such as unit='uV'"):
        store_of(tmp_path / "store", Given(factor * X.astype(float), Y, S))
    assert not (tmp_path / "store").exists()


def test_a_subject_of_another_scale_is_named(tmp_path):
    mixed = X.astype(float)
    mixed[S == "03"] *= 1000
    with pytest.raises(UserError, match=r"^sub-03: its samples spread over .* 5 other recordings .* in one unit"):
        store_of(tmp_path / "store", Given(mixed, Y, S))


def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path):
    rng = np.random.default_rng(0)

    def peak(n: int) -> int:
        blocks = (rng.normal(0, 1e-5, (6, 4, 20_000)) for _ in range(n))
        tracemalloc.start()
        store_of(tmp_path / f"{n}", Given(blocks, np.arange(6 * n) / 7, np.tile(range(6), n)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(12) < peak(4) + 6 * 4 * 20_000 * 8  # eight more blocks, less than one more in memory


def test_channels_and_rate_are_kept(tmp_path):
    store = store_of(tmp_path / "store")
    assert store.channels == list(CHANNELS) and store.sfreq == SFREQ and store.window_samples == 100
    assert repr(store).startswith(
        f"<WindowStore {tmp_path / 'store'}: 60 windows of 4 channels x 100 samples at 100 Hz"
    )


@pytest.mark.parametrize("one_by_one", [False, True])
def test_two_people_who_share_signal_of_a_recording_are_refused(tmp_path, one_by_one):
    signal_CT = np.random.default_rng(0).normal(0, 2e-5, (2, 1000))

    def write(name, step, *, fresh=False, **others):
        x = np.stack([signal_CT[:, step * k : step * k + 90] for k in range(12)])
        if fresh:
            x = np.random.default_rng(1).normal(0, 2e-5, x.shape)
        given = {"recording": ["run-1"] * 12, "onset": 1 + step / 100 * np.arange(12)} | others
        labels = {"y": [0, 0, 0, 1, 1, 1] * 2, "subject": ["p", "q", "r"] * 4}
        X = iter(x) if one_by_one else x
        return from_arrays(X, **labels, sfreq=100, ch_names=["Cz", "Pz"], out=tmp_path / name, **given)

    with pytest.raises(UserError, match=r"recording 'run-1' of 'p' and 'q' share 0.4 s of signal, from 1.5 s on"):
        write("shared", 50)
    assert len(write("grouped", 50, groups=dict.fromkeys("pqr", "one"))) == 12
    assert len(write("named alike", 50, fresh=True)) == 12  # each person's own recording "run-1"


def test_pairs_of_windows_that_are_compared_are_of_all_people_who_follow_each_other_in_turn():
    """Every fourth pair would be of the same two people."""
    people = ["p", "q", "r", "s"] * MAX_PAIRS
    pairs = overlapping_pairs(np.arange(len(people)) / 100, people, 90, 100)
    assert len(pairs) == MAX_PAIRS and pairs == sorted(set(pairs))
    assert {people[one] + people[other] for one, other in pairs} == {"pq", "qr", "rs", "sp"}
    assert pairs == overlapping_pairs(np.arange(len(people)) / 100, people, 90, 100), "drawn by seed"
