"""Several columns of numbers are one regression of several values; whoever lacks one is left out and counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raypipe.core.errors import UserError
from raypipe.data.arrays import from_arrays
from raypipe.data.epochs import from_epochs
from raypipe.data.prepare import prepare
from raypipe.data.several_columns import split_columns
from raypipe.data.targets import parse_target
from raypipe.data.window_store import WindowStore
from tests.support.given import simulate_windows, store_files, write_bids
from tests.unit.data.test_epochs import make_epochs, metadata_of

WINDOWS = simulate_windows(subjects=6, each=6)
PEOPLE = list(dict.fromkeys(WINDOWS.subject))
SCORES = {who: (1.5 * k + 0.25, -2.0 * (k % 3) + 0.1) for k, who in enumerate(PEOPLE)}


def people(**other):
    columns = {"p_factor": [SCORES[who][0] for who in PEOPLE], "attention": [SCORES[who][1] for who in PEOPLE]}
    return pd.DataFrame({"participant_id": [f"sub-{who}" for who in PEOPLE], **columns, **other})


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    table = people(
        sex=["F", "M"] * 3,
        code=[0, 1] * 3,
        lacking=[*range(4), "n/a", "n/a"],
        same=[1] * 6,
        **{"age, years": [*range(20, 26)]},
    )
    folder = write_bids(root / "bids", WINDOWS, table)
    for k, who in enumerate(PEOPLE):
        file = folder / f"sub-{who}" / "eeg" / f"sub-{who}_events.tsv"
        events = pd.read_csv(file, sep="\t")
        events["rt"] = 0.3 + 0.01 * np.arange(len(events)) + 0.1 * k
        events["conf"] = [str(n) if n % 3 else "n/a" for n in range(len(events))]
        events.to_csv(file, sep="\t", index=False)
    return folder


def test_columns_of_participants_have_a_column_each(bids, tmp_path):
    store = prepare(bids, "participants:p_factor,attention", tmp_path / "store", window=1.0, jobs=1)
    assert (store.kind, store.metric, store.outputs, store.n_outputs) == (
        "regression", "nrmse", ["p_factor", "attention"], 2,
    )  # fmt: skip
    assert store.targets.shape == (36, 2) and store.targets.dtype == np.float32
    np.testing.assert_allclose(store.targets, [SCORES[who] for who in store.subjects], rtol=1e-6)
    assert "target" not in store.table and list(store.table.columns)[7:9] == ["target:p_factor", "target:attention"]
    assert "regression of 2 values (p_factor, attention)" in store.describe()
    again = WindowStore(tmp_path / "store")
    np.testing.assert_array_equal(again.targets, store.targets)
    np.testing.assert_array_equal(again.target_at([3, 1], [0, 0]), store.targets[[3, 1]])
    unchanged = prepare(bids, "participants:p_factor,attention", tmp_path / "store", window=1.0, jobs=1)
    assert unchanged.is_up_to_date


def test_arrays_give_the_store_of_columns(bids, tmp_path):
    prepare(bids, "participants:p_factor,attention", tmp_path / "bids-store", window=1.0, jobs=1)
    y_NK = np.array([SCORES[who] for who in WINDOWS.subject])
    given = WINDOWS.arguments(y=y_NK, target_names=["p_factor", "attention"], out=tmp_path / "store")
    store = from_arrays(**given)
    assert store_files(tmp_path / "bids-store") == store_files(tmp_path / "store")
    assert store.manifest.target == "arrays:p_factor and attention" and store.kind == "regression"
    unnamed = from_arrays(**WINDOWS.arguments(y=y_NK, out=tmp_path / "unnamed"))
    assert unnamed.outputs == ["y1", "y2"]


def test_people_without_one_of_the_values_are_left_out_and_counted(bids, tmp_path):
    store = prepare(bids, "participants:p_factor,lacking", tmp_path / "store", window=1.0, jobs=1)
    assert sorted(set(store.subjects)) == PEOPLE[:4]
    accounting = store.manifest.accounting
    assert "'lacking' is n/a for 2 of 6 with a value in another column; they are left out." in accounting.notes
    assert {each.reason for each in accounting.recordings_left_out} == {"of a subject without a target"}


def test_events_need_a_value_in_each_column(bids, tmp_path):
    store = prepare(bids, "events-column:rt,conf", tmp_path / "store", window=0.5, jobs=1)
    assert store.outputs == ["rt", "conf"] and len(store) == 24
    assert store.targets[0].tolist() == pytest.approx([0.31, 1.0])
    assert store.manifest.accounting.counts()["events whose 'conf' is n/a"] == 12


def test_a_table_of_labels_and_its_rows_of_events(bids, tmp_path):
    labels = tmp_path / "labels.csv"
    people().to_csv(labels, index=False)
    store = prepare(bids, f"table:{labels}:p_factor,attention", tmp_path / "store", window=1.0, jobs=1)
    np.testing.assert_allclose(store.targets, [SCORES[who] for who in store.subjects], rtol=1e-6)
    rows = [(who, onset, 0.1 * onset + 0.7, k, "n/a") for who in PEOPLE for k, onset in enumerate((0.0, 1.0, 2.0))]
    events = pd.DataFrame(rows, columns=["participant_id", "onset", "A", "B", "C"])
    events.loc[0, "B"] = np.nan
    events.to_csv(labels, index=False)
    store = prepare(bids, f"table:{labels}:A,B", tmp_path / "events", window=0.5, jobs=1)
    assert store.outputs == ["A", "B"] and len(store) == 17
    assert store.targets[0].tolist() == pytest.approx([0.8, 1.0])


def test_metadata_of_epochs(tmp_path):
    epochs = []
    for who in PEOPLE[:4]:
        rows = WINDOWS.subject == who
        metadata = metadata_of(who, 6).assign(conf=[np.nan, *range(5)])
        epochs.append(make_epochs(WINDOWS.X[rows].astype(float), WINDOWS.y[rows], metadata))
    store = from_epochs(epochs, target="metadata:rt,conf", out=tmp_path / "store")
    assert store.outputs == ["rt", "conf"] and store.targets.shape == (20, 2)
    assert store.manifest.target == "epochs:metadata:rt,conf"
    assert store.manifest.accounting.counts()["epochs without a target"] == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("participants:p_factor,p_factor", "'p_factor' is given twice"),
        ("participants:p_factor,attention:classification", "predict classes one at a time"),
        ("participants:p_factor,sex", r"column 'sex' holds classes \(F, M\), and several columns must be numbers"),
        ("participants:p_factor,code", r"column 'code' holds codes of classes \(0, 1\); ':regression' behind"),
        ("participants:attention,p_facto", "p_facto"),
        ("participants:p_factor,same", "column 'same' is 1 for every subject"),
        ("events-column:rt,onset", "the onset is when the event is"),
        ("events-column:rt,nothing", "no events.tsv has the column 'nothing'"),
    ],
)
def test_mistakes_are_one_line(bids, tmp_path, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(bids, spec, tmp_path / "store", window=0.5, jobs=1)
    assert "\n" not in str(caught.value)


def test_codes_are_numbers_where_that_is_said(bids, tmp_path):
    store = prepare(bids, "participants:p_factor,code:regression", tmp_path / "store", window=1.0, jobs=1)
    assert sorted(set(store.targets[:, 1])) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": np.zeros((36, 2))}, r"y \('y1'\) is 0 for every window"),
        ({"y": np.full((36, 2), np.nan)}, r"y \('y1'\) is missing"),
        ({"y": [["a", 1.0]] * 36}, r"y \('y1'\) holds text"),
        ({"y": np.zeros((5, 2))}, "y has 5 rows, subject has 36 values"),
        ({"kind": "classification"}, "2 columns, which are predicted as numbers"),
        ({"target_names": ["a"]}, "needs 2 different names"),
        ({"target_names": [1, 1]}, "needs 2 different names"),
        ({"y": [[1.0, 2.0], *([[1.0]] * (len(WINDOWS.y) - 1))]}, "y has a list for window 0: it needs one value"),
        ({"target_names": ["a", "a"]}, "needs 2 different names"),
        ({"y": WINDOWS.y, "target_names": ["a"]}, "name it by 'name'"),
    ],
)
def test_wrong_arrays_are_one_line(tmp_path, options, message):
    y_NK = np.random.default_rng(0).normal(size=(36, 2))
    with pytest.raises(UserError, match=message) as caught:
        from_arrays(**WINDOWS.arguments(**{"y": y_NK, "out": tmp_path / "store", **options}))
    assert "\n" not in str(caught.value)


def test_the_columns_of_a_table_name_its_values(tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(36, 2)), columns=["a", "b"])
    assert from_arrays(**WINDOWS.arguments(y=table, out=tmp_path / "own")).outputs == ["a", "b"]
    renamed = WINDOWS.arguments(y=table, target_names=["c", "d"], out=tmp_path / "given")
    assert from_arrays(**renamed).outputs == ["c", "d"]
    unnamed = WINDOWS.arguments(y=pd.DataFrame(table.to_numpy()), out=tmp_path / "unnamed")
    assert from_arrays(**unnamed).outputs == ["y1", "y2"]


@pytest.mark.parametrize("codes", [[0, 1], [1.0, 2.0], [False, True]])
def test_codes_in_metadata_are_numbers_where_that_is_said(tmp_path, codes):
    epochs = []
    for who in dict.fromkeys(WINDOWS.subject):
        rows = np.flatnonzero(np.array(WINDOWS.subject) == who)
        metadata = pd.DataFrame({"subject": who, "rt": np.linspace(0.3, 0.9, len(rows))})
        metadata["correct"] = [codes[number % 2] for number in range(len(rows))]
        epochs.append(make_epochs(WINDOWS.X[rows].astype(float), WINDOWS.y[rows], metadata))
    names = rf"\({float(codes[0]):g}, {float(codes[1]):g}\)"
    with pytest.raises(UserError, match=f"column 'correct' holds codes of classes {names}; ':regression' behind the"):
        from_epochs(epochs, target="metadata:rt,correct", out=tmp_path / "store")
    store = from_epochs(epochs, target="metadata:rt,correct:regression", out=tmp_path / "store")
    assert store.outputs == ["rt", "correct"] and sorted(set(store.targets[:, 1])) == codes


def test_a_column_whose_name_has_a_comma_is_one(bids, tmp_path):
    store = prepare(bids, "participants:age, years", tmp_path / "store", window=1.0, jobs=1)
    assert store.outputs == [] and store.targets.shape == (36,)
    assert parse_target("participants:age:regression").columns == ("age",)


@pytest.mark.parametrize("argument", ["a,", ",a", "a,,b", ",", "a,:regression"])
def test_a_comma_beside_no_column_is_refused(argument):
    with pytest.raises(UserError, match=f"target 'participants:{argument}': a comma stands before or after no column"):
        split_columns(f"participants:{argument}", argument)
