"""Recordings that MNE has read are predicted as their files are."""

from __future__ import annotations

import shutil

import mne
import numpy as np
import pandas as pd
import pytest

from raypipe.core.errors import UserError
from raypipe.data.prepare import prepare
from raypipe.packaging.bundle import LoadedEnsemble, export_bundle, load_ensemble
from raypipe.packaging.predict import predict
from raypipe.recordings.layout import find_recordings
from raypipe.recordings.raw import raw_recordings
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.simulation.contrast_change import simulate
from tests.unit.conftest import finish

STEPS = {
    "notch": 30,
    "band": (1, 45),
    "bads": "interpolate",
    "montage": "GSN-HydroCel-129",
    "reference": "average",
    "baseline": (0.5, 0.7),
    "reject": 60,
    "align": "recording",
}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A bundle whose windows are at events and go through many steps, and its BIDS folder of BDF files."""
    root = tmp_path_factory.mktemp("events")
    bids = simulate(root / "bids", subjects=9, channels=8, trials=8)
    for table in sorted(bids.glob("sub-*/eeg/*_channels.tsv"))[::3]:
        head, *rows = table.read_text().splitlines()
        status = ["bad" if row.startswith("E2\t") else "good" for row in rows]
        lines = [f"{head}\tstatus", *(f"{row}\t{one}" for row, one in zip(rows, status, strict=True))]
        table.write_text("\n".join(lines) + "\n")
    prepare(bids, "challenge1", root / "store", jobs=1, **STEPS)
    made = finish(root, root / "store", bids, target="challenge1")
    return load_ensemble(export_bundle(made.run, made.ensemble(top=2), root / "bundle", windows=made.windows)), bids


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """A bundle of the age of people, whose windows are side by side, and its BIDS folder of FIF files with a gap."""
    root = tmp_path_factory.mktemp("ages")
    bids, rng = root / "bids", np.random.default_rng(0)
    rows = ["participant_id\tage"]
    for number in range(12):
        path = bids / f"sub-{number:02d}" / "eeg" / f"sub-{number:02d}_task-rest_eeg.fif"
        path.parent.mkdir(parents=True)
        info = mne.create_info(["Fz", "Cz", "Pz", "eyes"], 200.0, ["eeg"] * 3 + ["eog"])
        raw = mne.io.RawArray(rng.normal(size=(4, 4000)) * 1e-5, info, verbose="ERROR")
        raw.set_annotations(mne.Annotations([5.0], [1.0], ["BAD_ACQ_SKIP"]))
        raw.save(path, verbose="ERROR")
        rows.append(f"sub-{number:02d}\t{20 + number}")
    (bids / "participants.tsv").write_text("\n".join(rows) + "\n")
    prepare(bids, "participants:age", root / "store", jobs=1, window=1.0, band=(2, 40), sfreq=100, bads="drop")
    made = finish(root, root / "store", bids, target="participants:age", epochs=2)
    return load_ensemble(export_bundle(made.run, made.ensemble(top=2), root / "bundle", windows=made.windows)), bids


def read(path, **options):
    return (mne.io.read_raw_fif if path.suffix == ".fif" else mne.io.read_raw_bdf)(path, verbose="ERROR", **options)


def equal(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["events", "ages"])
@pytest.mark.parametrize("preload", [False, True])
def test_a_raw_is_predicted_as_its_file_is(kind, preload, request):
    bundle, bids = request.getfixturevalue(kind)
    files = [recording.path for recording in find_recordings(bids)]
    equal(predict(bundle, read(files[0], preload=preload)), predict(bundle, files[0]))
    equal(predict(bundle, [read(file, preload=preload) for file in files]), predict(bundle, bids))


def test_people_of_raws(ages):
    bundle, bids = ages
    raws = [read(recording.path) for recording in find_recordings(bids)]
    equal(predict(bundle, raws, level="subject"), predict(bundle, bids, level="subject"))
    equal(predict(bundle, raws, level="recording"), predict(bundle, bids, level="recording"))


def test_a_raw_without_a_file_names_its_subject_or_is_told(ages, tmp_path):
    bundle, bids = ages
    file = find_recordings(bids)[3].path
    known, stored = predict(bundle, file), read(file, preload=True)
    raw = mne.io.RawArray(stored.get_data(), stored.info, verbose="ERROR")
    raw.set_annotations(stored.annotations)
    table = predict(bundle, raw)
    np.testing.assert_allclose(table["prediction"], known["prediction"], rtol=1e-6)
    assert set(table["recording"]) == {"raw-1"} and set(table["subject"]) == {""} and set(table["role"]) == {"unknown"}
    with pytest.raises(UserError, match="name no subject; say whose they are by subject"):
        predict(bundle, raw, level="subject")
    raw.info["subject_info"] = {"his_id": "sub-03"}
    assert set(predict(bundle, raw)["subject"]) == {"03"}
    table = predict(bundle, [raw, raw.copy()], subject=["new-1", "03"])
    assert table.groupby("recording")["subject"].first().tolist() == ["new-1", "03"]
    assert set(predict(bundle, raw, subject=3)["subject"]) == {"3"}
    numbered = predict(bundle, [raw, raw.copy()], subject=[1, 2.0])
    assert numbered.groupby("recording")["subject"].first().tolist() == ["1", "2"]
    assert set(predict(bundle, raw, subject=np.array(["sub-03"]))["subject"]) == {"03"}
    assert set(table.loc[table["subject"] == "new-1", "role"]) == {"new"}


def test_raws_without_a_subject_are_not_aligned_as_one_person(ages):
    bundle, bids = ages
    steps = bundle.info.prepare.preprocessing.model_copy(update={"align": "subject"})
    plan = bundle.info.prepare.model_copy(update={"preprocessing": steps})
    bundle = LoadedEnsemble(bundle.info.model_copy(update={"prepare": plan}), bundle.module)
    raws = []
    for recording in find_recordings(bids)[:2]:
        stored = read(recording.path, preload=True)
        raws.append(mne.io.RawArray(stored.get_data(), stored.info, verbose="ERROR"))
    with pytest.raises(UserError, match=r"^raw-1: names no subject, and the bundle aligns .* by subject=\[\.\.\.\]"):
        predict(bundle, raws)
    named = predict(bundle, raws, subject=["a", "b"])
    alone = pd.concat([predict(bundle, raw) for raw in raws])
    np.testing.assert_allclose(named["prediction"], alone["prediction"], rtol=1e-6)


@pytest.mark.parametrize("his_id", ["X", "x", " X ", "sub-X", "", "anonymize"])
def test_raws_with_an_anonymous_header_have_no_subject(ages, his_id):
    """EDF+ writes ``X`` for a patient who is not named; two such people are not one."""
    bundle, bids = ages
    raws = []
    for recording in find_recordings(bids)[:2]:
        stored = read(recording.path, preload=True)
        raws.append(mne.io.RawArray(stored.get_data(), stored.info, verbose="ERROR"))
        raws[-1].info["subject_info"] = {"his_id": his_id}
        if his_id == "anonymize":
            raws[-1].info["subject_info"] = {"his_id": "A12", "last_name": "Doe"}
            raws[-1].anonymize(verbose="ERROR")
    table = predict(bundle, raws)
    assert set(table["subject"]) == {""} and set(table["role"]) == {"unknown"}
    with pytest.raises(UserError, match="name no subject; say whose they are by subject"):
        predict(bundle, raws, level="subject")


def test_channels_that_a_raw_marks_bad_are_bad(ages, events):
    bundle, bids = ages
    raw = read(find_recordings(bids)[0].path)
    raw.info["bads"] = ["Cz"]
    with pytest.raises(UserError, match="channel 'Cz' is marked bad"):
        predict(bundle, raw)
    bundle, bids = events
    file = find_recordings(bids)[1].path
    raw, plain = read(file), predict(bundle, file)
    raw.info["bads"] = ["E2"]
    assert np.abs(predict(bundle, raw)["prediction"] - plain["prediction"]).max() > 1e-6


def test_what_cannot_be_placed_is_one_line(ages, events):
    bundle, bids = events
    file = find_recordings(bids)[0].path
    stored = read(file, preload=True)
    with pytest.raises(UserError, match=r"^raw-1: its windows are at events, which a Raw without a file does not"):
        predict(bundle, mne.io.RawArray(stored.get_data(), stored.info, verbose="ERROR"))
    with pytest.raises(UserError, match=r"its start was cropped, so onsets in its events\.tsv do not fit"):
        predict(bundle, stored.copy().crop(3.0))
    whole = predict(bundle, file)
    fewer = predict(LoadedEnsemble(bundle.info, bundle.module), stored.copy().crop(0, 20.0))
    assert 0 < len(fewer) < len(whole)
    with pytest.raises(UserError, match=f"^{file.stem.removesuffix('_eeg')}: two Raws are of this recording"):
        predict(bundle, [stored, read(file)])
    with pytest.raises(UserError, match="subject: 1 names for 2 Raws"):
        predict(bundle, [stored, read(file)], subject=["a"])
    with pytest.raises(UserError, match=r"subject '\['a'\]': a subject is text or a whole number"):
        predict(bundle, [stored, read(file)], subject=[["a"], ["b", "c"]])
    with pytest.raises(UserError, match="a list of Raws and a PosixPath: all must be Raws"):
        predict(bundle, [stored, file])
    with pytest.raises(UserError, match="sfreq: recordings say it themselves"):
        predict(bundle, stored, sfreq=100)
    two = mne.concatenate_raws([read(each.path, preload=True) for each in find_recordings(ages[1])[:2]])
    assert set(predict(ages[0], two)["role"]) == {"unknown"}, "of several recordings no file's name is taken"


def test_events_of_a_raw_whose_file_is_damaged_since_are_refused(ages, tmp_path):
    file = tmp_path / "sub-00_task-rest_eeg.fif"
    shutil.copy(find_recordings(ages[1])[0].path, file)
    (recording,) = raw_recordings([read(file, preload=True)])
    assert recording.sidecar("events.tsv").name == "sub-00_task-rest_events.tsv"
    file.write_bytes(file.read_bytes()[:10_000])
    with pytest.raises(UnreadableRecordingError, match=r"sub-00_task-rest_eeg\.fif: "):
        recording.sidecar("events.tsv")
