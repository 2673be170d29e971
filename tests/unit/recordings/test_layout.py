from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raypipe.core.errors import UserError
from raypipe.recordings.layout import (
    DERIVED,
    NO_FIRST_PART,
    NO_SUBJECT,
    NO_SUFFIX,
    OTHER_LABEL,
    OTHER_PLACE,
    dataset_folders,
    find_recordings,
    is_derived,
    read_layout,
    recording_from_file,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_finds_every_format_with_and_without_sessions(tmp_path):
    touch(
        tmp_path,
        "sub-02/eeg/sub-02_task-rest_eeg.edf",
        "sub-01/ses-a/eeg/sub-01_ses-a_task-rest_run-2_eeg.set",
        "sub-01/ses-a/eeg/sub-01_ses-a_task-rest_run-2_eeg.fdt",
        "sub-01/ses-b/eeg/sub-01_ses-b_task-x_eeg.vhdr",
        "sub-03/eeg/sub-03_task-rest_split-01_eeg.fif",
        "sub-03/eeg/sub-03_task-rest_split-02_eeg.fif",
        "sub-04/eeg/sub-04_task-rest_eeg.BDF",
        "sub-04/eeg/sub-04_task-rest_channels.tsv",
        "derivatives/sub-05/eeg/sub-05_task-rest_eeg.edf",
    )
    layout = read_layout(tmp_path)
    found = layout.recordings
    assert [r.key for r in found] == [
        "sub-01_ses-a_task-rest_run-2",
        "sub-01_ses-b_task-x",
        "sub-02_task-rest",
        "sub-03_task-rest_split-01",
        "sub-04_task-rest",
    ]
    first = found[0]
    assert (first.subject, first.session, first.task, first.run) == ("01", "a", "rest", "2")
    assert first.root == tmp_path
    assert found[2].session is None and found[2].run is None
    assert layout.subjects == ["01", "02", "03", "04"] and not layout.left_out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-1/eeg/sub-1_task-a_eeg.edf.gz", "a format that raypipe does not read (.edf.gz)"),
        ("sub-1/eeg/sub-1_task-a_eeg.cnt", "a format that raypipe does not read (.cnt)"),
        ("sub-1/eeg/recording.cnt", "a format that raypipe does not read (.cnt)"),
        ("sub-1/eeg/sub-1_task-a_eeg.mff/info.xml", "a format that raypipe does not read (.mff)"),
        ("sub-1/eeg/sub-1_task-b_eeg.eeg", "a format that raypipe does not read (.eeg)"),
        ("sub-1/eeg/sub-1_task-b.edf", NO_SUFFIX),
        ("sub-1/sub-1_task-b_eeg.edf", OTHER_PLACE),
        ("sub-1/ses-1/sub-1_ses-1_eeg.bdf", OTHER_PLACE),
        ("night.edf", OTHER_PLACE),
        ("sub-1/eeg/sub-2_task-b_eeg.edf", OTHER_LABEL),
        ("sub-1/ses-1/eeg/sub-1_ses-2_task-b_eeg.edf", OTHER_LABEL),
        ("sub-1/ses-1/eeg/sub-1_task-b_eeg.edf", OTHER_LABEL),
        ("sub-1/eeg/task-b_eeg.edf", NO_SUBJECT),
        ("sub-1/eeg/run1/sub-1_task-b_eeg.edf", OTHER_PLACE),
        ("sub-1/visit1/eeg/sub-1_task-b_eeg.edf", OTHER_PLACE),
        ("sub_04/eeg/sub_04_task-b_eeg.edf", OTHER_PLACE),
        ("sub-1/eeg/sub-1_task-b_split-02_eeg.fif", NO_FIRST_PART),
        ("sub-1/eeg/sub-1_task-b_eeg.edf.zip", "a format that raypipe does not read (.edf.zip)"),
        ("sub-1/eeg/sub-1_task-b_eeg.trc", "a format that raypipe does not read (.trc)"),
        ("sub-1/eeg/sub-1_task-b_eeg.txt", "a format that raypipe does not read (.txt)"),
        ("sub-1/eeg/sub-1_task-a_desc-clean_eeg.edf", DERIVED),
    ],
)
def test_files_that_look_like_recordings_are_left_out_with_the_reason(tmp_path, name, reason):
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf", name)
    layout = read_layout(tmp_path)
    assert [r.key for r in layout.recordings] == ["sub-1_task-a"]
    (path,) = layout.left_out
    assert layout.left_out[path] == reason and name.startswith(path.relative_to(tmp_path).as_posix())


@pytest.mark.parametrize(
    "name",
    [
        "sub-1/eeg/._sub-1_task-b_eeg.edf",
        "sub-1/eeg/.sub-1_task-b_eeg.edf",
        "sub-1/eeg/sub-1_task-b_eeg.json",
        "sub-1/eeg/sub-1_task-b_eeg.tsv.gz",
        "sub-1/eeg/notes.gz",
        "sub-1/eeg/sub-1_task-a_eeg.json",
        "sub-1/meg/sub-1_task-b_meg.fif",
        "sub-1/eeg/sub-1_photo.jpg",
        "sub-1/ieeg/sub-1_task-b_ieeg.edf",
        "sub-1/beh/sub-1_task-b_beh.tsv",
        "sourcedata/sub-1/eeg/sub-1_task-b_eeg.edf",
        "participants.tsv",
    ],
)
def test_other_files_are_no_recordings(tmp_path, name):
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf", name)
    layout = read_layout(tmp_path)
    assert len(layout.recordings) == 1 and not layout.left_out


@pytest.mark.parametrize(
    "name",
    [
        "sub-1/EEG/sub-1_task-b_eeg.edf",
        "sub-1/eeg/sub-1_task-b_EEG.edf",
        "sub-1/eeg/sub-1_task-b_eeg.EDF",
        "Sub-1/eeg/sub-1_task-b_eeg.vhdr",
        "sub-1/eeg/SUB-1_task-b_eeg.fif",
        "sub-1/Ses-x/eeg/sub-1_ses-X_task-b_eeg.fif",
        "sub-1/eeg/sub-1_task-b_desc-clean_eeg.edf",
    ],
)
def test_names_in_other_case_are_found(tmp_path, name):
    touch(tmp_path, name)
    layout = read_layout(tmp_path)
    assert [(r.subject, r.task) for r in layout.recordings] == [("1", "b")] and not layout.left_out


def test_subjects_without_a_recording_are_listed(tmp_path):
    touch(tmp_path, "sub-1/eeg/sub-1_task-b_eeg.edf", "sub-2/anat/sub-2_T1w.nii.gz", "sub-3/eeg/sub-3_notes.txt")
    assert read_layout(tmp_path).subjects == ["1", "2", "3"]


def test_composed_and_decomposed_letters_are_one_label(tmp_path):
    touch(tmp_path, "sub-Jose\u0301/eeg/sub-Jos\u00e9_task-a_eeg.edf")
    (recording,) = find_recordings(tmp_path)
    assert recording.subject == "Jos\u00e9" and recording.key == "sub-Jos\u00e9_task-a"


def test_wrong_folders_give_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_recordings(tmp_path / "none")
    with pytest.raises(UserError, match=r"no recording there; raypipe looks for sub-\*"):
        find_recordings(tmp_path)
    touch(tmp_path, "file")
    with pytest.raises(UserError, match="a file, not a BIDS folder"):
        find_recordings(tmp_path / "file")
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf.gz")
    with pytest.raises(UserError, match=r"left out: sub-1/eeg/sub-1_task-a_eeg\.edf\.gz \(a format that"):
        find_recordings(tmp_path)


def test_one_recording_in_two_formats_is_refused(tmp_path):
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf", "sub-1/eeg/sub-1_task-a_eeg.bdf")
    with pytest.raises(UserError, match=r"sub-1_task-a_eeg\.bdf is the same recording"):
        find_recordings(tmp_path)


def test_a_single_file_is_a_recording(tiny_bids, tmp_path):
    shutil.copytree(tiny_bids / "sub-SIM0000", tmp_path / "sub-SIM0000")
    (first,) = find_recordings(tmp_path)
    assert recording_from_file(first.path) == first
    plain = tmp_path / "night.bdf"
    shutil.copy(first.path, plain)
    recording = recording_from_file(plain)
    assert (recording.subject, recording.task, recording.key) == ("night", None, "night")
    with pytest.raises(UserError, match="no such file"):
        recording_from_file(tmp_path / "none.bdf")
    (tmp_path / "x.csv").touch()
    with pytest.raises(UserError, match="not a supported format"):
        recording_from_file(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("table", "recording", "applies"),
    [
        ("task-rest_channels.tsv", "sub-1/eeg/sub-1_task-rest_eeg.edf", True),
        ("task-rest_channels.tsv", "sub-1/eeg/sub-1_task-eyes_eeg.edf", False),
        ("task-rest_run-01_channels.tsv", "sub-1/ses-2/eeg/sub-1_ses-2_task-rest_run-01_eeg.edf", True),
        ("channels.tsv", "sub-1/eeg/sub-1_task-rest_eeg.edf", True),
        ("sub-1/sub-1_task-rest_channels.tsv", "sub-1/eeg/sub-1_task-rest_run-1_eeg.edf", True),
        ("sub-1/sub-1_channels.tsv", "sub-1/ses-2/eeg/sub-1_ses-2_task-rest_eeg.edf", True),
        ("sub-1/ses-2/sub-1_ses-2_channels.tsv", "sub-1/ses-2/eeg/sub-1_ses-2_task-rest_eeg.edf", True),
        ("sub-1/eeg/sub-1_task-rest_channels.tsv", "sub-1/eeg/sub-1_task-rest_run-1_eeg.edf", True),
        ("sub-1/eeg/sub-1_task-rest_channels.tsv", "sub-1/eeg/sub-1_task-rest_split-01_eeg.fif", True),
        ("sub-1/eeg/sub-1_task-rest_run-1_channels.tsv", "sub-1/eeg/sub-1_task-rest_run-01_eeg.edf", True),
        ("sub-1/eeg/sub-1_task-rest_run-2_channels.tsv", "sub-1/eeg/sub-1_task-rest_run-1_eeg.edf", False),
        ("sub-1/eeg/sub-1_task-rest_acq-a_channels.tsv", "sub-1/eeg/sub-1_task-rest_eeg.edf", False),
        ("sub-1/eeg/sub-1_task-rest_my_channels.tsv", "sub-1/eeg/sub-1_task-rest_eeg.edf", False),
        ("sub-2/sub-2_task-rest_channels.tsv", "sub-1/eeg/sub-1_task-rest_eeg.edf", False),
    ],
)
def test_tables_are_inherited(tmp_path, table, recording, applies):
    touch(tmp_path, table, recording)
    (found,) = find_recordings(tmp_path)
    assert (found.sidecar("channels.tsv") == tmp_path / table) == applies
    assert (tmp_path / table in found.files()) == applies


def test_the_nearest_table_applies_and_the_one_with_most_entities(tmp_path):
    names = [
        "sub-1/eeg/sub-1_task-a_run-1_events.tsv",
        "sub-1/eeg/sub-1_task-a_events.tsv",
        "sub-1/sub-1_task-a_run-1_events.tsv",
        "task-a_events.tsv",
    ]
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_run-1_acq-x_eeg.edf", *names)
    (found,) = find_recordings(tmp_path)
    for name in names:
        assert found.sidecar("events.tsv") == tmp_path / name
        (tmp_path / name).unlink()
    assert not found.sidecar("events.tsv").exists()


def test_two_tables_that_apply_alike_are_refused(tmp_path):
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_run-1_eeg.edf")
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_events.tsv", "sub-1/eeg/sub-1_run-1_events.tsv")
    (found,) = find_recordings(tmp_path)
    with pytest.raises(UserError, match=r"sub-1_task-a_events\.tsv applies to the same recordings"):
        found.sidecar("events.tsv")


def test_data_sets_in_a_folder_are_found_but_no_derived_ones(tmp_path):
    for name in ("R1", "R2", "derivatives", "cleaned", "other"):
        touch(tmp_path, f"{name}/sub-1/eeg/sub-1_task-a_eeg.edf")
    touch(tmp_path, "empty/readme.txt")
    (tmp_path / "cleaned" / "dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))
    (tmp_path / "other" / "dataset_description.json").write_text("not json")
    assert [folder.name for folder in dataset_folders(tmp_path)] == ["R1", "R2", "other"]
    assert dataset_folders(tmp_path / "R1") == [tmp_path / "R1"]
    assert dataset_folders(tmp_path / "nowhere") == [tmp_path / "nowhere"]
    assert is_derived(tmp_path / "cleaned") and not is_derived(tmp_path / "R1")


def test_later_parts_of_a_fif_are_parts_of_it_and_of_other_formats_recordings(tmp_path):
    touch(
        tmp_path,
        "sub-1/eeg/sub-1_task-a_eeg.fif",
        "sub-1/eeg/sub-1_task-a_eeg-1.fif",
        "sub-1/eeg/sub-1_split-02_eeg.edf",
    )
    touch(tmp_path, "sub-1/eeg/sub-1_task-b_split-01_eeg.fif", "sub-1/eeg/sub-1_task-b_split-02_eeg.fif")
    layout = read_layout(tmp_path)
    assert [r.key for r in layout.recordings] == ["sub-1_split-02", "sub-1_task-a", "sub-1_task-b_split-01"]
    assert not layout.left_out


def test_derived_data_sets_are_found_where_there_are_no_others(tmp_path):
    touch(tmp_path, "derivatives/prep/sub-1/eeg/sub-1_task-a_eeg.edf")
    assert dataset_folders(tmp_path / "derivatives") == [tmp_path / "derivatives" / "prep"]


def test_links_to_folders_above_are_not_followed(tmp_path):
    touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf")
    (tmp_path / "sub-1" / "loop").symlink_to(tmp_path)
    (tmp_path / "all").symlink_to(tmp_path)
    layout = read_layout(tmp_path)
    assert len(layout.recordings) == 1 and not layout.left_out
