"""Recordings behind a URI: their windows equal those of a folder, little disk is used, and prepare can resume."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import mne
import numpy as np
import pytest

import raypipe.data.shards
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore
from raypipe.recordings import remote_bids
from raypipe.recordings.layout import find_recordings
from raypipe.recordings.remote_bids import RemoteBids, open_remote_bids
from raypipe.storage.files import LocalFolder, open_folder
from tests.support.eeg_files import write_brainvision
from tests.support.recordings import microvolts
from tests.unit.data.test_prepare import rewrite, same_windows

TARGET = "challenge1"


@pytest.fixture
def release(tiny_bids: Path, tmp_path: Path) -> Path:
    """Copy a release of three subjects into a folder of releases."""
    root = tmp_path / "hbn" / "R5_mini_L100_bdf"
    for number in range(3):
        shutil.copytree(tiny_bids / f"sub-SIM{number:04d}", root / f"sub-SIM{number:04d}")
    shutil.copy(tiny_bids / "participants.tsv", root)
    return root


@pytest.fixture
def bucket(s3, release: Path) -> str:
    """Copy the folder of releases to a bucket, and return its URI."""
    uri, here = s3.new_folder(), LocalFolder(release.parent)
    there = open_folder(uri)
    for name in here.names():
        there.write(name, here.read(name))
    return uri


def inside(uri: str, name: str) -> str:
    place, _, options = uri.partition("?")
    return f"{place}/{name}?{options}"


def hidden_files(out: Path) -> list[Path]:
    return list(out.glob(".*"))


def test_a_bucket_gives_the_windows_of_a_folder(bucket, release, tmp_path):
    here = prepare(release.parent, TARGET, tmp_path / "here", jobs=1)
    there = prepare(bucket, TARGET, tmp_path / "there", jobs=2)  # each process fetches the recordings that it reads
    assert same_windows(here, there) and len(there) == len(here) > 0
    assert set(there.releases.values()) == {"R5"}
    assert hidden_files(tmp_path / "there") == []
    assert prepare(bucket, TARGET, tmp_path / "there", jobs=1).redone == 0
    single = prepare(inside(bucket, release.name), "challenge2", tmp_path / "single", jobs=1)
    assert same_windows(prepare(release, "challenge2", tmp_path / "again", jobs=1), single)


def test_only_what_has_changed_is_fetched_again(bucket, release, tmp_path, monkeypatch):
    first = prepare(bucket, TARGET, tmp_path / "out", jobs=1)
    name = f"{release.name}/sub-SIM0001/eeg/{next((release / 'sub-SIM0001/eeg').glob('*_events.tsv')).name}"
    text = open_folder(bucket).read(name).decode()
    cut = text[: text.rindex("contrastTrial_start")].rpartition("\n")[0] + "\n"
    open_folder(bucket).write(name, cut.encode())
    fetched: list[str] = []
    fetch = RemoteBids.fetch

    def spy(self, paths, max_bytes=None):
        fetched.extend(p.name for p in paths if max_bytes is None and p.suffix == ".bdf")
        fetch(self, paths, max_bytes)

    monkeypatch.setattr(RemoteBids, "fetch", spy)
    second = prepare(bucket, TARGET, tmp_path / "out", jobs=1)
    assert second.redone == 1 and len(second) == len(first) - 1
    assert len(fetched) == 1 and "SIM0001" in fetched[0]


def test_the_mirror_holds_headers_during_planning_and_then_one_recording_at_a_time(release, tmp_path, monkeypatch):
    """Count the disk blocks of the mirror's files each time a recording is read."""
    out, held = tmp_path / "out", {"probe": [], "cut": []}

    def watch(name, function, kind):
        def watched(recording, *rest):
            (top,) = out.glob(f"{remote_bids._PREFIX}*")
            held[kind].append([p.name for p in top.rglob("*.bdf") if p.stat().st_blocks * 512 > 60_000])
            assert all(p.stat().st_size > 60_000 for p in top.rglob("*.bdf"))
            return function(recording, *rest)

        monkeypatch.setattr(raypipe.data.shards, name, watched)

    watch("OpenRecording", raypipe.data.shards.OpenRecording, "probe")
    watch("_make_shard", raypipe.data.shards._make_shard, "cut")
    prepare(f"file://{release}", TARGET, out, jobs=1)
    assert held["probe"][:3] == [[], [], []]
    assert [len(names) for names in held["cut"]] == [1, 1, 1] and len({names[0] for names in held["cut"]}) == 3


def test_a_crash_keeps_finished_shards_and_its_mirror_is_removed(bucket, tmp_path, monkeypatch):
    out, make = tmp_path / "out", raypipe.data.shards._make_shard

    def die(recording, *rest):
        if "SIM0002" in recording.key:
            raise KeyboardInterrupt
        return make(recording, *rest)

    monkeypatch.setattr(raypipe.data.shards, "_make_shard", die)
    # A killed process would not remove its mirror.
    monkeypatch.setattr(remote_bids.shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(KeyboardInterrupt):
        prepare(bucket, TARGET, out, jobs=1)
    monkeypatch.undo()
    assert len(hidden_files(out)) == 1
    assert prepare(bucket, TARGET, out, jobs=1).redone == 1
    assert hidden_files(out) == []


def test_a_mirror_in_use_is_not_removed(release, tmp_path):
    out = tmp_path / "out"
    with (
        open_remote_bids([f"file://{release}"], out) as (one,),
        open_remote_bids([f"file://{release}"], out) as (other,),
    ):
        assert one.local != other.local and one.local.is_dir() and other.local.is_dir()
    assert not out.exists()


def test_recordings_without_a_header_at_the_start_are_fetched_whole(release, tmp_path):
    for recording in find_recordings(release):
        rewrite(recording)
    here = prepare(release, TARGET, tmp_path / "here", jobs=1)
    assert same_windows(here, prepare(f"file://{release}", TARGET, tmp_path / "there", jobs=1))


def mirrored_recording(root: Path, out: Path):
    """Return a context manager that gives the recording of a folder through a mirror."""

    @contextlib.contextmanager
    def open_recording():
        with open_remote_bids([f"file://{root}"], out) as (there,):
            (found,) = find_recordings(there.local, there)
            yield found

    return open_recording()


def test_all_files_of_a_split_recording_are_fetched(tmp_path):
    folder = tmp_path / "bids" / "sub-a" / "eeg"
    folder.mkdir(parents=True)
    x_CT = np.random.default_rng(0).normal(size=(4, 250_000))
    raw = mne.io.RawArray(x_CT, mne.create_info(4, 100.0, "eeg"), verbose="ERROR")
    raw.save(folder / "sub-a_task-x_eeg.fif", split_size="2MB", split_naming="bids", verbose="ERROR")
    assert len(list(folder.iterdir())) > 1
    with mirrored_recording(tmp_path / "bids", tmp_path / "out") as recording, recording.fetched():
        np.testing.assert_allclose(microvolts(recording), x_CT * 1e6, rtol=1e-6)


def test_the_signal_of_brainvision_is_not_fetched_for_the_header(tmp_path):
    folder = tmp_path / "bids" / "sub-a" / "eeg"
    folder.mkdir(parents=True)
    write_brainvision(folder / "sub-a_eeg.vhdr", np.ones((20_000, 2), "<f4"))
    with mirrored_recording(tmp_path / "bids", tmp_path / "out") as recording:
        with recording.fetched(header=True):
            x_CT = microvolts(recording)
            assert x_CT.shape == (2, 20_000) and not x_CT.any()
        with recording.fetched():
            assert microvolts(recording).max() == pytest.approx(1)
        assert sum(path.stat().st_blocks for path in recording.files()) == 0


def test_drop_duplicates_works_behind_a_uri(release, tmp_path):
    for path in sorted(release.glob("sub-*/eeg/*_run-1_*")):
        shutil.copy(path, path.with_name(path.name.replace("_run-1_", "_run-2_")))
    target = "challenge1:drop-duplicates"
    here = prepare(release, target, tmp_path / "here", jobs=1)
    there = prepare(f"file://{release}", target, tmp_path / "there", jobs=1)
    assert same_windows(here, there) and set(there.table["run"].astype(str)) == {"1"}


# Errors


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as leave:
        app.main([str(word) for word in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert leave.value.code == 2 and len(lines) == 1, lines
    return lines[0].removeprefix("raypipe: error: ")


def test_error_messages_name_the_uri(s3, bucket, release, tmp_path, capsys):
    out = tmp_path / "out"
    shown = bucket.partition("?")[0]
    path = next(release.glob("sub-SIM0002/eeg/*.bdf"))
    name = path.relative_to(release.parent).as_posix()
    open_folder(bucket).write(name, path.read_bytes()[:-300])
    line = refused(capsys, "prepare", bucket, "--target", TARGET, "--out", out)
    assert line.startswith(f"{shown}/{name}: truncated")
    store = prepare(bucket, TARGET, out, jobs=1, skip_unreadable=True)
    assert store.manifest.accounting.counts()["unreadable"] == 1 and "SIM0002" not in store.subjects

    open_folder(bucket).remove(f"{release.name}/participants.tsv")
    line = refused(capsys, "prepare", bucket, "--target", "challenge2", "--out", tmp_path / "two")
    assert line.startswith(f"{shown}/{release.name}/participants.tsv: no such file")
    assert not (tmp_path / "two").exists()

    assert "no BIDS folder there" in refused(capsys, "prepare", s3.new_folder(), "--target", TARGET, "--out", out)
    line = refused(capsys, "prepare", s3.uri("elsewhere/hbn"), "--target", TARGET, "--out", out)
    assert line.startswith("s3://elsewhere/hbn: there is no bucket 'elsewhere'")


def test_a_file_that_changes_after_the_listing_gives_one_line(release, tmp_path):
    with (
        pytest.raises(UserError, match=r"has changed since.*same command again"),
        open_remote_bids([f"file://{release}"], tmp_path / "out") as (there,),
    ):
        path = next(there.local.rglob("*.bdf"))
        with open(release / path.relative_to(there.local), "ab") as file:
            file.write(b"more")
        there.fetch([path])
    with (
        pytest.raises(UserError, match=f"^file://{release}/sub.*has changed since"),
        open_remote_bids([f"file://{release}"], tmp_path / "out") as (there,),
    ):
        path = next(there.local.rglob("*.bdf"))
        (release / path.relative_to(there.local)).unlink()
        there.fetch([path])


def test_a_store_can_be_continued_from_a_copy_of_the_bucket(release, tmp_path):
    """Shards are reused if the copy has the same modification times."""
    store = prepare(f"file://{release}", TARGET, tmp_path / "out", jobs=1)
    assert prepare(release, TARGET, tmp_path / "out", jobs=1).redone == 0
    assert isinstance(store, WindowStore) and np.isfinite(store.gather([0])).all()
