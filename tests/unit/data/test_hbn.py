from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from raypipe.core.errors import UserError
from raypipe.data import hbn
from raypipe.data.splits import subjects_of
from raypipe.recordings.recording import Recording

COLUMNS = (
    "participant_id\trelease_number\texternalizing\tcontrastChangeDetection_1\tcontrastChangeDetection_2\tThePresent"
)


def recordings(root, names, task="contrastChangeDetection", run="1"):
    return [Recording(root / f"sub-{n}_task-{task}_run-{run}_eeg.bdf", root, n, task=task, run=run) for n in names]


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("ds005505", "R1"),
        ("ds005512-bdf", "R8"),
        ("ds005514", "R9"),
        ("ds005516", "R11"),
        ("ds005513", None),
        ("R5", "R5"),
        ("R11_L100_bdf", "R11"),
        ("R1_mini_L100_bdf", "R1"),
        ("release-R10", "R10"),
        ("R12_L100_bdf", None),
        ("HBN2024", None),
        ("bids", None),
    ],
)
def test_release_of_a_folder(name, release):
    assert hbn.release_of(name) == release


def test_eleven_releases_and_nine_excluded_subjects_without_prefix():
    assert len(set(hbn.RELEASES.values())) == 11
    assert len(hbn.EXCLUDED) == 9 and not any(name.startswith("sub-") for name in hbn.EXCLUDED)


def test_the_release_comes_from_the_table_if_the_folders_name_has_none(tmp_path):
    (tmp_path / "participants.tsv").write_text(f"{COLUMNS}\nsub-a\tR3\t1\tavailable\tavailable\tavailable\n")
    assert [r.release for r in hbn.add_releases(recordings(tmp_path, ["a", "b"]))] == ["R3", None]


def test_availability_and_exclusion(tmp_path):
    rows = ["sub-a\tR1\t1\tavailable\tunavailable\tcaution", "sub-b\tR1\t1\tcaution\tn/a\tavailable"]
    rows.append("sub-NDARWV769JM7\tR1\t1\tavailable\tavailable\tavailable")
    (tmp_path / "participants.tsv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    everyone = ["a", "b", "NDARWV769JM7"]
    first, second = recordings(tmp_path, everyone), recordings(tmp_path, everyone, run="2")
    film = recordings(tmp_path, ["a"], task="ThePresent", run=None)
    left_out = hbn.excluded_recordings([*first, *second, *film])
    assert {(r.subject, r.run): reason for r, reason in left_out.items()} == {
        ("NDARWV769JM7", "1"): "of a subject that the challenge excludes",
        ("NDARWV769JM7", "2"): "of a subject that the challenge excludes",
        ("a", "2"): "marked unavailable in participants.tsv",
    }
    assert hbn.excluded_recordings(first, with_excluded=True, no_caution=True) == {
        first[1]: "marked caution in participants.tsv"
    }
    assert hbn.availability(film[0], {"ThePresent": "Caution"}) == "caution"


def test_names_of_releases_are_replaced_by_their_subjects():
    release = {"a": "R5", "b": "R1", "c": "R5"}
    assert subjects_of(["R5", "b"], release) == ["a", "c", "b"]
    with pytest.raises(UserError, match="held out R7: no subject is of that release; available: R1, R5"):
        subjects_of(["R7"], release)
    assert subjects_of(["R5", "R7", "R1"], release, {"a", "R7", "R1"}) == ["a", "c", "R7", "R1"]


def test_without_eegdash_one_line_explains_how_to_get_the_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "eegdash", None)
    with pytest.raises(
        UserError, match=r"pip install -c \S+ 'raypipe-eeg\[hbn\]'.*s3://nmdatasets/NeurIPS25/R5_mini_L100_bdf"
    ):
        hbn.fetch("hbn:R5", tmp_path, mini=True)
    with pytest.raises(UserError, match=r"hbn:R55: no such release; did you mean 'R5'"):
        hbn.fetch("hbn:R55", tmp_path)
    assert hbn.bucket_of("R2") == "s3://nmdatasets/NeurIPS25/R2_L100_bdf"


def test_the_folder_that_eegdash_filled_is_returned(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, release, mini, cache_dir):
            assert (release, mini) == ("R5", True)
            (tmp_path / "ds005509-bdf-mini" / "sub-A" / "eeg").mkdir(parents=True)
            self.datasets = []

    monkeypatch.setitem(sys.modules, "eegdash", type(sys)("eegdash"))
    monkeypatch.setattr(sys.modules["eegdash"], "EEGChallengeDataset", Fake, raising=False)
    assert hbn.fetch("hbn:R5", tmp_path, mini=True) == [tmp_path / "ds005509-bdf-mini"]


def test_release_1_is_not_mistaken_for_release_10_in_the_same_cache(tmp_path, monkeypatch):
    for name in ("R1_L100_bdf", "R10_L100_bdf", "R11_L100_bdf"):
        (tmp_path / name / "sub-A" / "eeg").mkdir(parents=True)
    fake = type(sys)("eegdash")
    fake.EEGChallengeDataset = lambda release, mini, cache_dir: SimpleNamespace(datasets=[])
    monkeypatch.setitem(sys.modules, "eegdash", fake)
    assert hbn.fetch("hbn:R1", tmp_path) == [tmp_path / "R1_L100_bdf"]
