"""A store from MNE epochs is the one that `prepare` makes of the recordings that they were cut from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from raypipe.core.errors import UserError
from raypipe.data import epochs_files
from raypipe.data.epochs import from_epochs
from raypipe.data.epochs_files import DAMAGED, find_epochs
from raypipe.data.prepare import prepare
from raypipe.data.splits import audit_subjects, folds_of
from raypipe.data.window_store import WindowStore
from raypipe.recordings.signal import UnreadableRecordingError
from tests.support.given import CHANNELS, SFREQ, info, manifest_of, simulate_windows, store_files, write_bids

WINDOWS = simulate_windows(subjects=5, each=8)
CODES = {"left": 1, "right": 2}


def metadata_of(subject: str, n: int = 8) -> pd.DataFrame:
    number = int(subject)
    return pd.DataFrame(
        {
            "subject": [subject] * n,
            "rt": 0.3 + 0.01 * np.arange(n) + 0.1 * number,
            "correct": np.arange(n) % 2,
            "site": "AB"[number % 2],
            "age": 20 + number,
        }
    )


def make_epochs(x_NCT, y, metadata=None, onsets=None, sfreq=SFREQ, tmin=0.0, of=None, **options) -> mne.BaseEpochs:
    samples = np.arange(len(y)) * x_NCT.shape[2] if onsets is None else np.round(np.asarray(onsets) * sfreq)
    events = np.stack([samples, np.zeros(len(y)), [CODES[name] for name in y]], axis=1).astype(int)
    present = {name: code for name, code in CODES.items() if name in y}
    of = of or mne.create_info(list(CHANNELS), sfreq, "eeg")
    return mne.EpochsArray(x_NCT, of, events, tmin, present, metadata=metadata, verbose="ERROR", **options)


def of_subject(subject: str) -> tuple[np.ndarray, np.ndarray]:
    rows = WINDOWS.subject == subject
    return WINDOWS.X[rows].astype(float), WINDOWS.y[rows]


PEOPLE = tuple(dict.fromkeys(WINDOWS.subject))
IN_MEMORY = [make_epochs(*of_subject(who), metadata_of(who)) for who in PEOPLE]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A file of epochs per subject, cut by MNE from the recordings of a BIDS folder beside it."""
    root = tmp_path_factory.mktemp("epochs")
    write_bids(root / "bids", WINDOWS)
    for who in PEOPLE:
        raw = mne.io.read_raw_fif(root / f"bids/sub-{who}/eeg/sub-{who}_eeg.fif", verbose="ERROR")
        table = pd.read_csv(root / f"bids/sub-{who}/eeg/sub-{who}_events.tsv", sep="\t")
        samples = np.round(table["onset"] * SFREQ)
        events = np.stack([samples, 0 * samples, table["value"].map(CODES)], axis=1).astype(int)
        cut = {"tmin": 0, "tmax": 1 - 1 / SFREQ, "baseline": None, "metadata": metadata_of(who)}
        epochs = mne.Epochs(raw, events, CODES, **cut, verbose="ERROR")
        epochs.save(root / f"sub-{who}_epo.fif", verbose="ERROR")
    return root


def test_files_give_the_store_of_their_recordings(files, tmp_path, monkeypatch):
    monkeypatch.setattr(epochs_files, "BLOCK_BYTES", 3 * 8 * 4 * 100)
    prepare(files / "bids", "events:left,right", tmp_path / "bids-store", window=1.0, jobs=1)
    from_epochs(str(files / "sub-*_epo.fif"), subject="filename:sub", out=tmp_path / "store")
    assert store_files(tmp_path / "bids-store") == store_files(tmp_path / "store")
    assert manifest_of(tmp_path / "bids-store") == manifest_of(tmp_path / "store")


@pytest.mark.parametrize("how", ["list", "paths", "one object", "one file", "subjects"])
def test_every_way_of_giving_them_gives_the_same_windows(files, tmp_path, how):
    first = from_epochs(files / "sub-*_epo.fif", out=tmp_path / "first")
    subject = "metadata:subject"
    if how == "list":
        given = [mne.read_epochs(path, verbose="ERROR") for path in sorted(files.glob("*.fif"))]
    elif how == "paths":
        given = sorted(files.glob("*_epo.fif"))
    elif how == "subjects":
        given, subject = IN_MEMORY, list(PEOPLE)
    else:
        given = mne.concatenate_epochs(IN_MEMORY, verbose="ERROR")
        if how == "one file":
            given.save(tmp_path / "all_epo.fif", verbose="ERROR")
            given = tmp_path / "all_epo.fif"
    store = from_epochs(given, subject=subject, out=tmp_path / "store")
    np.testing.assert_array_equal(store.gather(range(40)), first.gather(range(40)))
    np.testing.assert_array_equal(store.targets, first.targets)
    assert store.subjects.tolist() == first.subjects.tolist()
    audit_subjects(store, folds_of(store, 2, 0.2, 0))


@pytest.mark.parametrize("applied", [False, True])
def test_a_projector_is_applied_where_the_user_has_applied_it(tmp_path, applied):
    given = []
    for who in PEOPLE:
        epochs = make_epochs(*of_subject(who), metadata_of(who)).set_eeg_reference(projection=True, verbose="ERROR")
        given.append(epochs.apply_proj(verbose="ERROR") if applied else epochs)
        epochs.save(tmp_path / f"sub-{who}_epo.fif", verbose="ERROR")
    store = from_epochs(given, subject=list(PEOPLE), out=tmp_path / "given")
    read = from_epochs(tmp_path / "sub-*_epo.fif", subject="metadata:subject", out=tmp_path / "read")
    x_NCT = store.gather(range(40))
    np.testing.assert_allclose(read.gather(range(40)), x_NCT, rtol=0, atol=1e-5 * np.abs(x_NCT).max())
    assert (np.abs(x_NCT.mean(axis=1)).max() < 1e-5 * np.abs(x_NCT).max()) == applied


def test_a_column_of_numbers_is_a_regression_target_and_codes_are_classes(files, tmp_path):
    pattern = files / "sub-*_epo.fif"
    rt = from_epochs(pattern, target="metadata:rt", groups="metadata:site", out=tmp_path / "rt")
    expected = np.concatenate([metadata_of(who)["rt"] for who in PEOPLE]).astype(np.float32)
    assert rt.kind == "regression" and rt.group_of == {who: "AB"[int(who) % 2] for who in PEOPLE}
    np.testing.assert_array_equal(rt.targets, expected)
    assert from_epochs(pattern, target="metadata:correct", out=tmp_path / "c").classes == ["0", "1"]
    assert from_epochs(pattern, target="metadata:age", out=tmp_path / "a").kind == "regression"
    site = from_epochs(pattern, target="metadata:site", out=tmp_path / "s")
    assert site.classes == ["A", "B"] and site.manifest.target == "epochs:metadata:site"
    order = from_epochs(pattern, target="event:right,left", out=tmp_path / "o")
    assert order.classes == ["right", "left"] and order.manifest.target == "epochs:event:right,left"


@pytest.mark.parametrize(
    "missing",
    [
        {"value": np.nan, "dtype": float},
        {"value": None, "dtype": object},
        {"value": pd.NA, "dtype": object},
        {"value": pd.NA, "dtype": "Float64"},
    ],
    ids=["NaN", "None", "NA", "nullable"],
)
def test_epochs_that_are_left_out_are_counted(tmp_path, missing):
    given = []
    for who in PEOPLE:
        x_NCT, y = of_subject(who)
        table = metadata_of(who)
        if who == "02":
            table["rt"] = table["rt"].astype(missing["dtype"])
            table.loc[2:4, "rt"] = missing["value"]
            x_NCT[5, 1, 3] = np.nan
        if who == "03":
            x_NCT[0, 2] *= 100
        limits = {"reject": {"eeg": 400e-6}} if who == "03" else {}
        given.append(make_epochs(x_NCT, y, table, **limits))
    given[3].drop([0, 1], verbose="ERROR")
    store = from_epochs(given, target="metadata:rt", out=tmp_path / "store")
    assert len(store) == 40 - 3 - 1 - 1 - 2
    assert store.manifest.accounting.parts_left_out == {
        "epochs without a target": {"02": 3},
        "windows with missing samples": {"02": 1},
        "epochs dropped by MNE (amplitude)": {"03": 1},
        "epochs dropped by MNE (USER)": {"04": 2},
    }
    store.verify()
    events = from_epochs(given, target="event:left,right", out=tmp_path / "events")
    assert "epochs of other events" not in events.manifest.accounting.parts_left_out


def test_other_events_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(CODES, "other", 3)
    given = []
    for who in PEOPLE:
        x_NCT, y = of_subject(who)
        given.append(make_epochs(x_NCT, [*y[:6], "other", "other"], metadata_of(who)))
    store = from_epochs(given, target="event:left,right", out=tmp_path / "store")
    assert store.manifest.accounting.parts_left_out == {"epochs of other events": dict.fromkeys(PEOPLE, 2)}


def test_channels_of_other_types_are_left_out_and_bad_ones_named(tmp_path):
    given = []
    for who in PEOPLE:
        epochs = make_epochs(*of_subject(who), metadata_of(who))
        epochs.set_channel_types({"Fz": "eog"}, on_unit_change="ignore", verbose="ERROR")
        epochs.info["bads"] = ["Cz"] if who == "03" else []
        given.append(epochs)
    given[0].reorder_channels(["Oz", "Pz", "Cz", "Fz"])
    store = from_epochs(given, out=tmp_path / "store")
    assert store.channels == ["Oz", "Pz", "Cz"]
    np.testing.assert_array_equal(
        store.gather([39])[0], of_subject("05")[0][7, [3, 2, 1]].astype(np.float32) * np.float32(1e6)
    )
    assert store.manifest.accounting.channels_left_out == {"eog": {"Fz": 5}}
    assert store.manifest.accounting.notes == ("Channels that MNE has marked as bad are kept: epochs[2]: Cz.",)
    two = from_epochs(given, channels=["Cz", "Pz"], out=tmp_path / "two")
    assert two.channels == ["Cz", "Pz"]
    assert two.manifest.accounting.channels_left_out["not among --channels"] == {"Oz": 5}


def test_onsets_are_in_the_clock_of_the_recording(tmp_path):
    given = []
    for who in PEOPLE:
        raw = mne.io.RawArray(np.concatenate(of_subject(who)[0], axis=1), info(), verbose="ERROR")
        events = np.array([[100 + 50 * k, 0, 1 + k % 2] for k in range(12)])
        epochs = mne.Epochs(raw, events, CODES, -0.2, 0.5, metadata=metadata_of(who, 12), verbose="ERROR")
        given.append(epochs.decimate(2, verbose="ERROR"))
    store = from_epochs(given, out=tmp_path / "store")
    assert store.sfreq == 50 and store.manifest.plan.tmin == -0.2
    np.testing.assert_allclose(store.table["onset"][:12], 1.0 + 0.5 * np.arange(12) - 0.2)
    assert set(store.table["recording"]) == {f"sub-{who}" for who in PEOPLE}


@pytest.mark.parametrize("baseline", [None, (0, 0.2)])
def test_two_people_who_share_signal_are_refused(tmp_path, baseline):
    def cut(shift: float):
        raw = mne.io.RawArray(np.concatenate(WINDOWS.X[:20].astype(float), axis=1), info(), verbose="ERROR")
        events = np.array([[100 + 50 * k, 0, 1 + k // 2 % 2] for k in range(30)])
        table = pd.DataFrame({"subject": [f"p{k % 3}" for k in range(30)], "family": "one"})
        return mne.Epochs(raw, events, CODES, 0, shift, baseline=baseline, metadata=table, verbose="ERROR")

    with pytest.raises(UserError, match=r"epochs of 'p0' and 'p1' share 0.41 s of signal, from 1.5 s on"):
        from_epochs(cut(0.9), out=tmp_path / "store")
    assert len(from_epochs(cut(0.9), groups="metadata:family", out=tmp_path / "grouped")) == 30
    assert len(from_epochs(cut(0.4), out=tmp_path / "apart")) == 30


def test_several_objects_of_one_subject_are_recordings(tmp_path):
    store = from_epochs([*IN_MEMORY, *[epochs.copy() for epochs in IN_MEMORY]], out=tmp_path / "store")
    assert len(store) == 80 and len(set(store.table["recording"])) == 10
    assert "Recordings sub-01_part-1 and sub-01_part-6 hold 8 windows" in " ".join(store.manifest.accounting.notes)


def changed(**how) -> list:
    """Epochs of which the last ones differ."""
    x_NCT, y = of_subject("05")
    options = {"metadata": metadata_of("05")} | how
    samples = options.pop("samples", 100)
    return [*IN_MEMORY[:4], make_epochs(x_NCT[:, :, :samples], y, **options)]


def renamed(name: str) -> list:
    found = changed()
    found[-1].rename_channels({"Oz": name})
    return found


def microvolts() -> list:
    return [make_epochs(1e6 * of_subject(who)[0], of_subject(who)[1], metadata_of(who)) for who in PEOPLE]


WRONG = {
    "epochs: there are none": {"epochs": []},
    "epochs: a int is neither MNE epochs": {"epochs": [3]},
    "nothing.fif: no such file": {"epochs": "nothing.fif"},
    "no-*.fif: no file fits": {"epochs": "no-*.fif"},
    "subject 'subject': must be metadata:COLUMN or filename:sub": {"subject": "subject"},
    "subject names 2, but there are 5": {"subject": ["a", "b"]},
    "epochs[0]: its metadata has no column 'who'": {"subject": "metadata:who"},
    "epochs[0]: epochs in memory have no file name": {"subject": "filename:sub"},
    "epochs[4]: its epochs have no metadata": {"epochs": lambda: changed(metadata=None)},
    "target 'rt': epochs take event, event:A,B or metadata:COLUMN": {"target": "rt"},
    "target 'event:left': needs two or more": {"target": "event:left"},
    "target 'event:left,up': no epoch of event 'up'": {"target": "event:left,up"},
    "epochs[0]: its metadata has no column 'rtt'; did you mean 'rt'?": {"target": "metadata:rtt"},
    "groups 'site': must be metadata:COLUMN": {"groups": "site"},
    "epochs differ in sampling rate: 100 Hz (epochs[0]) and 200 Hz (epochs[4])": {
        "epochs": lambda: changed(sfreq=200.0)
    },
    "epochs differ in length: 100 samples (epochs[0]) and 90 samples": {"epochs": lambda: changed(samples=90)},
    "epochs differ in start after the event: 0 s (epochs[0]) and -0.2 s": {"epochs": lambda: changed(tmin=-0.2)},
    "epochs[4]: channel 'Oz' is not there; did you mean 'Pz'?; name those": {"epochs": lambda: renamed("O1")},
    "epochs[0]: channel 'POz' is not there": {"channels": ["POz"]},
    "channels: the list is empty": {"channels": []},
    "epochs: windows of one subject only ('01')": {"epochs": IN_MEMORY[:1]},
    "the samples of most recordings spread over": {"epochs": microvolts},
    "--metric auc: target 'epochs:metadata:rt' predicts values": {"target": "metadata:rt", "metric": "auc"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_one_line_and_leave_no_store(tmp_path, message):
    given = {"epochs": IN_MEMORY, "out": tmp_path / "store"} | WRONG[message]
    if callable(given["epochs"]):
        given["epochs"] = given["epochs"]()
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        from_epochs(given.pop("epochs"), **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store/manifest.json").exists()


def test_files_that_hold_no_epochs_are_one_line(files, tmp_path):
    (tmp_path / "sub-1_epo.fif").write_bytes(b"nothing")
    raw = next((files / "bids").glob("sub-01/eeg/*.fif"))
    for path in (tmp_path / "sub-1_epo.fif", raw):
        with pytest.raises(UserError, match=f"^{path}: not a FIF file of MNE epochs"):
            from_epochs(path, out=tmp_path / "store")
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: a folder; name its files by a pattern such as '.*sub-\*_epo\.fif'"
    ):
        from_epochs(tmp_path, out=tmp_path / "store")
    with pytest.raises(UserError, match="its name has no entity 'ses-'"):
        from_epochs(files / "sub-*_epo.fif", subject="filename:ses", out=tmp_path / "store")


def cut_to(part: float):
    return lambda data: data[: int(part * len(data))]


DAMAGES = {
    "cut in its samples": (cut_to(0.7), "truncated: it has"),
    "cut in its header": (cut_to(0.1), "truncated: it has"),
    "empty": (cut_to(0.0), "not a FIF file of MNE epochs"),
    "metadata without meaning": (lambda data: data.replace(b'[{"', b"[{{"), DAMAGED),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_line_or_left_out_and_counted(files, tmp_path, damage):
    change, message = DAMAGES[damage]
    for who in PEOPLE:
        data = (files / f"sub-{who}_epo.fif").read_bytes()
        changed = change(data) if who == "03" else data
        assert (changed != data) == (who == "03")
        (tmp_path / f"sub-{who}_epo.fif").write_bytes(changed)
    pattern, path = tmp_path / "sub-*_epo.fif", tmp_path / "sub-03_epo.fif"
    with pytest.raises(UnreadableRecordingError) as caught:
        from_epochs(pattern, out=tmp_path / "store")
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)
    assert not re.search(r"object|buffer|NoneType|codec", str(caught.value))
    store = from_epochs(pattern, out=tmp_path / "store", skip_unreadable=True)
    assert len(store) == 32 and set(store.subjects) == set(PEOPLE) - {"03"}
    account = store.manifest.accounting
    assert [(each.name, each.reason) for each in account.recordings_left_out] == [(str(path), "unreadable")]
    assert account.recordings_found == 5 and account.recordings_left_out[0].detail == str(caught.value)


def test_where_no_file_can_be_read_there_is_nothing_to_skip_to(tmp_path):
    (tmp_path / "sub-1_epo.fif").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^no file can be read; the last one: .*sub-1_epo\.fif: not a FIF file"):
        from_epochs(tmp_path / "sub-*_epo.fif", out=tmp_path / "store", skip_unreadable=True)


@pytest.fixture(scope="module", params=["neuromag", "bids"])
def split(request, tmp_path_factory) -> list[Path]:
    """Two people's files of 30 epochs, each split into three, and a file beside them that has nearly their name."""
    root = tmp_path_factory.mktemp("split")
    x_NCT = np.random.default_rng(0).normal(0, 1e-5, (60, 8, 2500))
    of = mne.create_info(8, 500.0, "eeg")
    for n, who in enumerate(("01", "02")):
        events = np.stack([np.arange(30) * 2500, np.zeros(30), np.arange(30) % 2 + 1], axis=1).astype(int)
        epochs = mne.EpochsArray(x_NCT[n::2], of, events, event_id=CODES, verbose="ERROR")
        name = root / f"sub-{who}_epo.fif"
        epochs.save(name, split_size="2MB", fmt="double", split_naming=request.param, verbose="ERROR")
    epochs[:4].save(root / "sub-02_epo-7.fif", fmt="double", verbose="ERROR")
    return sorted(root.glob("*.fif"))


def test_parts_of_split_files_are_read_once(split, tmp_path):
    assert len(split) > 5
    pattern = split[0].parent / "sub-*.fif"
    store = from_epochs(pattern, subject="filename:sub", target="event", out=tmp_path / "store")
    assert len(store) == 64 and len({store.gather([n]).tobytes() for n in range(64)}) == 60
    (note,) = (note for note in store.manifest.accounting.notes if "Later parts" in note)
    assert note.startswith("Later parts of split files are read with their first (sub-01_")
    assert len(find_epochs(split[::-1])) == 3


def test_a_later_part_without_its_first_is_one_line(split, tmp_path):
    last = [path for path in split if "sub-01" in path.name and re.search(r"-\d\.fif|split-0[2-9]", path.name)][-1]
    with pytest.raises(UnreadableRecordingError, match=r"a later part of a split file, .* give the first file$"):
        find_epochs(last)[0].facts  # noqa: B018
    alone = shutil.copy(last, tmp_path)
    with pytest.raises(UnreadableRecordingError, match=r"give the first file, which is not there$"):
        find_epochs(alone)[0].facts  # noqa: B018


def test_split_files_that_lack_a_part_or_its_end_are_one_line(split, tmp_path):
    parts = [Path(shutil.copy(path, tmp_path)) for path in split if "sub-01" in path.name]
    first = next(path for path in parts if path.stem.endswith("01_epo"))
    second = sorted(set(parts) - {first})[0]
    second.write_bytes(second.read_bytes()[:-16])
    with pytest.raises(UnreadableRecordingError, match=f"{second.name}: truncated"):
        find_epochs(first)[0].facts  # noqa: B018
    second.unlink()
    with pytest.raises(UnreadableRecordingError, match=f"split, and its part {second.name} is not there"):
        find_epochs(first)[0].facts  # noqa: B018


def test_files_stay_closed_and_on_disk(files, tmp_path, monkeypatch):
    preloaded = []
    read = mne.read_epochs
    monkeypatch.setattr(mne, "read_epochs", lambda *a, **k: preloaded.append(k["preload"]) or read(*a, **k))
    assert isinstance(from_epochs(files / "sub-*_epo.fif", out=tmp_path / "store"), WindowStore)
    assert preloaded and not any(preloaded)
