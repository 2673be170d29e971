"""Stores from MOABB and braindecode, by stand-ins with the interfaces that their documentation has."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest

from raypipe.core.errors import UserError
from raypipe.data import other_packages
from raypipe.data.arrays import from_arrays
from raypipe.data.other_packages import from_braindecode, from_moabb
from tests.support.given import CHANNELS, SFREQ, info, simulate_windows

WINDOWS = simulate_windows(subjects=4, each=12)
PEOPLE = list(dict.fromkeys(WINDOWS.subject))


class Dataset:
    """A data set of MOABB, whose subjects are numbers."""

    subject_list = (1, 2, 3, 4)


class Paradigm:
    """A paradigm of MOABB: epochs in volts, labels and metadata of subjects; two sessions of two runs."""

    def __init__(self, broken: int = 0) -> None:
        self.broken, self.asked = broken, []

    def get_data(self, dataset, subjects, return_epochs=False):
        assert isinstance(dataset, Dataset) and return_epochs
        self.asked.append(list(subjects))
        if self.broken in subjects:
            raise OSError("no network")
        rows = np.isin(WINDOWS.subject, [f"{each:02d}" for each in subjects])
        y = WINDOWS.y[rows]
        events = np.stack([np.arange(12) * 300, np.zeros(12), 1 + (y == "right")], axis=1).astype(int)
        epochs = mne.EpochsArray(WINDOWS.X[rows].astype(float), info(), events, verbose="ERROR")
        labels = {
            "subject": subjects[0],
            "session": np.repeat(["0train", "1test"], 6),
            "run": np.tile(list("000111"), 2),
        }
        return epochs, y, pd.DataFrame(labels)


def test_moabb_gives_labels_subjects_and_recordings(tmp_path):
    paradigm = Paradigm()
    store = from_moabb(Dataset(), paradigm, tmp_path / "store", metric="kappa")
    assert paradigm.asked == [[1], [2], [3], [4]], "one subject at a time"
    assert store.manifest.target == "moabb:left,right" and store.metric == "kappa"
    assert store.table["recording"][:12:3].tolist() == [
        f"sub-1_ses-{session}_run-{run}" for session in ("0train", "1test") for run in "01"
    ]
    assert store.table["session"].iloc[0] == "0train" and store.table["onset"][:3].tolist() == [0.0, 3.0, 6.0]
    np.testing.assert_array_equal(store.gather(range(48)), (WINDOWS.X.astype(float) * 1e6).astype(np.float32))
    assert [store.classes[k] for k in store.targets] == WINDOWS.y.tolist()
    assert [each.name for each in tmp_path.iterdir()] == ["store"]
    some = from_moabb(Dataset(), paradigm, tmp_path / "[lab]*" / "some", subjects=[1, 3], channels=["Oz"])
    assert set(some.subjects) == {"1", "3"} and some.channels == ["Oz"]


def test_moabb_by_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "moabb", None)
        with pytest.raises(UserError, match=r"^BNCI2014_001: moabb is not installed; .*moabb"):
            from_moabb("BNCI2014_001", "LeftRightImagery", tmp_path / "store")
    modules = {"moabb": ModuleType("moabb"), "moabb.datasets": ModuleType("d"), "moabb.paradigms": ModuleType("p")}
    modules["moabb.datasets"].Dataset, modules["moabb.paradigms"].Paradigm = Dataset, Paradigm
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert len(from_moabb("Dataset", "Paradigm", tmp_path / "store")) == 48
    with pytest.raises(UserError, match=r"^moabb.datasets has no 'Dataset2'; did you mean 'Dataset'"):
        from_moabb("Dataset2", "Paradigm", tmp_path / "store")


def test_what_moabb_cannot_give_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^subject 3: MOABB cannot give its epochs \(no network\)$"):
        from_moabb(Dataset(), Paradigm(broken=3), tmp_path / "store")
    with pytest.raises(UserError, match=r"^from_moabb: needs a data set and a paradigm"):
        from_moabb(Dataset(), 3, tmp_path / "store")
    assert not list(tmp_path.iterdir())


class Windowed:
    """Windows of one recording in a data set of braindecode: float32 samples, an integer target, and indices."""

    def __init__(self, who: str, rows, run: int, lazy: bool) -> None:
        x_NCT = WINDOWS.X[rows]
        eog = np.full((len(x_NCT), 1, 100), 1.0, np.float32)
        self._x_NCT = np.concatenate([eog, x_NCT], axis=1)
        kinds = mne.create_info(["HEOG", *CHANNELS], SFREQ, ["eog"] + 4 * ["eeg"])
        setattr(self, "raw" if lazy else "windows", SimpleNamespace(info=kinds, ch_names=kinds.ch_names))
        self.y = (WINDOWS.y[rows] == "right").astype(int).tolist()
        starts = 150 * np.arange(len(x_NCT))
        self.metadata = pd.DataFrame({"i_window_in_trial": 0, "i_start_in_trial": starts, "target": self.y})
        self.description = pd.Series({"subject": who, "session": "a", "run": run, "site": "AB"[int(who) % 2]})

    def __len__(self) -> int:
        return len(self._x_NCT)

    def __getitem__(self, row: int):
        return self._x_NCT[row], self.y[row], [0, 0, 100]


def windowed(lazy: bool, runs=(1, 2)) -> SimpleNamespace:
    halves = [
        (who, rows, run)
        for who in PEOPLE
        for rows, run in zip(np.split(np.flatnonzero(WINDOWS.subject == who), 2), runs, strict=True)
    ]
    return SimpleNamespace(datasets=[Windowed(*each, lazy) for each in halves])


@pytest.mark.parametrize("lazy", [False, True])
def test_braindecode_gives_targets_subjects_and_recordings(tmp_path, lazy, monkeypatch):
    monkeypatch.setattr(other_packages, "BLOCK_BYTES", 4 * 8 * 5 * 100)
    options = {"mapping": {"left": 0, "right": 1}, "groups": "site", "crop": 0.5}
    store = from_braindecode(windowed(lazy), tmp_path / "store", **options)
    assert store.manifest.target == "braindecode:left,right" and store.channels == list(CHANNELS)
    assert store.table["recording"][:12:6].tolist() == ["sub-01_ses-a_run-1", "sub-01_ses-a_run-2"]
    np.testing.assert_array_equal(store.table["onset"][:6], 1.5 * np.arange(6))
    assert store.group_of == {who: "AB"[int(who) % 2] for who in PEOPLE}
    plain = from_arrays(**WINDOWS.arguments(out=tmp_path / "plain", crop=0.5))
    np.testing.assert_array_equal(store.whole(range(48)), plain.whole(range(48)))
    np.testing.assert_array_equal(store.targets, plain.targets)


def test_targets_without_a_mapping_and_recordings_of_one_name(tmp_path):
    store = from_braindecode(windowed(True, runs=(1, 1)), tmp_path / "store")
    assert store.classes == ["0", "1"]
    assert store.table["recording"][:12:6].tolist() == ["sub-01_ses-a_run-1_part-0", "sub-01_ses-a_run-1_part-1"]


def broken(**how) -> SimpleNamespace:
    found = windowed(True)
    for name, value in how.items():
        setattr(found.datasets[1], name, value)
    return found


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (SimpleNamespace(datasets=[]), {}, "from_braindecode: the data set is empty"),
        (3, {}, "from_braindecode: a int holds no windows"),
        (windowed(True), {"subject": "who"}, "recording 0: its description has no 'who'"),
        (windowed(True), {"groups": "sites"}, "recording 0: its description has no 'sites'; did you mean 'site'"),
        (broken(targets_from="channels"), {}, "from_braindecode: its targets are channels"),
        (
            broken(raw=SimpleNamespace(info=mne.create_info(2, 50.0, "eeg"), ch_names=["0", "1"])),
            {},
            "recording 1 has 2 EEG",
        ),
        (windowed(True), {"unit": "MV"}, "unit 'MV': not a unit"),
    ],
)
def test_wrong_data_sets_of_braindecode_are_one_line(tmp_path, dataset, options, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        from_braindecode(dataset, tmp_path / "store", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()
