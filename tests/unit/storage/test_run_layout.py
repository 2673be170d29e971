"""A link, a fifo, or a folder in place of a file is found before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raypipe.cli.doctor import diagnose
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.core.search_space import SearchSpace
from raypipe.data.window_store import WindowStore
from raypipe.search.reconcile import open_study
from raypipe.search.run_setup import open_run
from raypipe.search.study import StudyQueue
from raypipe.search.sweep import _fix_trials
from raypipe.storage.creation import sole_creator
from raypipe.storage.files import LocalFolder
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import LOCK_FILE, Lease
from raypipe.storage.records import TrialResult, write_options
from raypipe.storage.run_layout import misplaced
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback
from tests.support.toys import SPACE, ToyWindows, make_run, tiny, write_store


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    return WindowStore(write_store(tmp_path_factory.mktemp("windows") / "store", ToyWindows(subjects=6, each=2)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, windows):
    """A run with a trial that failed, a trial under way, and a lock."""
    options = SweepOptions(trials=4, folds=3)
    run = open_run(SearchSpace(SPACE, "toy.py"), windows, str(tmp_path_factory.mktemp("whole") / "run"), options)
    with Lease(run.folder):
        queue = StudyQueue(run, windows, open_journal(run), trials=4)
        queue.close(queue.next(), "failed", "toy", "non-finite")
        queue.next()
        write_options(run.folder, options.model_dump(mode="json"), run.run_id)
    (run.local / "compute").mkdir()
    return run


@pytest.fixture
def run(tmp_path, whole):
    return RunStore.open(shutil.copytree(whole.local, tmp_path / "run"))


def to_link(path: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def to_circle(path: Path) -> None:
    remove(path)
    path.symlink_to(path)


def to_nowhere(path: Path) -> None:
    remove(path)
    path.symlink_to(path.parent / "elsewhere")


def to_fifo(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


def to_other(path: Path) -> None:
    """Put a folder in place of a file, and a file in place of a folder."""
    is_folder = path.is_dir()
    remove(path)
    path.write_text("") if is_folder else path.mkdir()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def resume(where):
    """Continue a run up to its study, as a driver does."""
    run = RunStore.open(where)
    with Lease(run.folder):
        open_study(run, SweepCallback())


def content(where: Path) -> dict[str, bytes]:
    files = {path.relative_to(where).as_posix(): path for path in where.rglob("*")}
    ours = {"driver.json", "aside"}
    return {name: path.read_bytes() for name, path in files.items() if path.is_file() and name not in ours}


PLACES = ["study.journal", "trials/0001", "trials", "compute", "driver.json", "driver.lock", "trials/0000/result.json"]
PLACES += ["run.json", "trials/0001/trial.json", "options.json"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "change", [to_link, to_circle, to_nowhere, to_fifo, to_other], ids=lambda change: change.__name__
)
def test_what_is_no_file_is_refused_before_anything_is_written_and_found_by_doctor(run, place, change):
    change(run.local / place)
    before = content(run.local)
    with pytest.raises(UserError) as caught:
        resume(run.where)
    assert f"{run.local / place}: " in str(caught.value) and "\n" not in str(caught.value)
    assert "; put the " in str(caught.value) or "; remove it" in str(caught.value)
    assert content(run.local) == before
    found = [finding.what for finding in diagnose(run.where) if finding.level == "broken"]
    assert any(str(run.local / place) in what for what in found), found


def test_a_whole_run_and_files_of_others_are_left_alone(run):
    (run.local / "notes").symlink_to(run.local)
    (run.local / "trials" / "0000" / ".DS_Store").mkdir()
    (run.local / "trials" / "0001 (copy)").symlink_to(run.local)
    assert misplaced(run.folder) == []


def test_several_are_counted_in_one_line(run):
    for name in ("trials/0000", "trials/0001"):
        to_link(run.local / name)
        (run.local / "trials" / "aside").rename(run.local / f"aside-{name[-1]}")
    with pytest.raises(UserError, match=r"0000: a link, .* \(and 1 more: raypipe doctor "):
        resume(run.where)


def test_a_trial_behind_a_link_is_not_passed_over_by_a_reader(run):
    to_link(run.local / "trials" / "0001")
    with pytest.raises(UserError, match="0001: a link, and raypipe writes through none"):
        run.listing()
    to_other(run.local / "trials" / "aside")
    (run.local / "trials" / "0001").unlink()
    (run.local / "trials" / "0001").write_text("")
    with pytest.raises(UserError, match="0001: a file where raypipe has a folder"):
        run.results()


def test_what_would_be_below_a_file_is_not_passed_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").write_text("")
    with pytest.raises(UserError, match="run/trials: a file where raypipe has a folder"):
        LocalFolder(tmp_path / "run").names("trials/0000/log")
    assert LocalFolder(tmp_path / "run").names("ensemble/none") == []


def test_no_file_is_written_below_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "compute").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run/compute: a link"):
        LocalFolder(tmp_path / "run").write("compute/x.json", b"{}")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_lock_is_made_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"driver\.lock: a link.*; remove it"), sole_creator(tmp_path / "run"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [".DS_Store", "retry.json", "oof.npz", "notes.txt"])
def test_a_stray_file_makes_no_trial(run, windows, name):
    options = SweepOptions(trials=2, folds=3)
    stray = run.local / "trials" / "0007" / name
    stray.parent.mkdir()
    stray.write_bytes(b"x")
    assert _fix_trials(run, windows, options, open_journal(run), SweepCallback(), None).trials == 2
    assert run.verify() == {}
    run.add_trial(7, tiny())
    run.write_result(
        TrialResult(number=8, state="failed", score=None, best_epoch=0, epochs=0, seconds=0.0, reason="x", finished=0.0)
    )
    assert run.recorded() == [0, 1, 7, 8]


def test_a_folder_in_a_store_of_windows_is_named(windows, tmp_path):
    for name in ("windows.csv", windows.manifest.shards[0].file):
        place = shutil.copytree(windows.path, tmp_path / "copy", dirs_exist_ok=True)
        to_other(place / name)
        found = [finding.what for finding in diagnose(place) if finding.level == "broken"]
        assert found and all("Errno" not in what and str(place) in what for what in found), found
        shutil.rmtree(place)


def test_make_run_is_whole(tmp_path):
    assert misplaced(make_run(tmp_path / "toy", ToyWindows()).folder) == []


@pytest.mark.parametrize("name", ["folds.json", "space.py"])
def test_a_missing_file_is_named_in_plain_words(run, name):
    (run.local / name).unlink()
    with pytest.raises(UserError, match=rf"^{run.local}/{name}: missing; restore it from a copy$"):
        RunStore.open(run.where)
