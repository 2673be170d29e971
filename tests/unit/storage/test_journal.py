"""The study's journal behind a URI: numbered files that are merged, and writers that are killed at any call."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage

from raypipe.core.errors import UserError
from raypipe.search.study import StudyQueue
from raypipe.storage import journal
from raypipe.storage.files import LocalFolder, open_folder
from raypipe.storage.journal import MERGE_COUNT, FolderJournal, open_journal
from raypipe.storage.run_store import RunStore
from raypipe.storage.transfer import pull_run
from tests.support.toys import ToyWindows, make_run


class KilledError(Exception):
    pass


class Memory:
    """A folder in memory. `before` is called before each operation on it."""

    where = "memory"

    def __init__(self):
        self.files, self.calls, self.before = {}, 0, lambda what, name: None

    def _do(self, what, name):
        self.calls += 1
        self.before(what, name)

    def write(self, name, data):
        self._do("write", name)
        self.files[name] = data

    def read(self, name):
        self._do("read", name)
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def exists(self, name):
        self._do("exists", name)
        return name in self.files

    def names(self, prefix=""):
        self._do("names", prefix)
        return sorted(self.files)

    def remove(self, name):
        self._do("remove", name)
        self.files.pop(name, None)


def reader(folder):
    return FolderJournal(folder, read_only=True)


def entries(journal):
    return [entry["n"] for entry in journal.read_logs(0)]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(journal, "MERGE_COUNT", 4)


def test_a_reader_sees_what_the_writer_has_written(tmp_path):
    folder = open_folder(tmp_path)
    one, two = FolderJournal(folder), reader(folder)
    assert list(two.read_logs(0)) == []
    one.append_logs([{"a": 1}, {"a": 2}])
    assert list(two.read_logs(1)) == [{"a": 2}]
    one.append_logs([{"a": 3}])
    assert list(two.read_logs(1)) == [{"a": 2}, {"a": 3}]
    assert list(FolderJournal(folder).read_logs(0)) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_two_writers_overwrite_nothing(tmp_path):
    folder = open_folder(tmp_path)
    one, two = FolderJournal(folder), FolderJournal(folder)
    one.append_logs([{"n": 0}])
    two.append_logs([{"n": 1}])
    one.append_logs([{"n": 2}])
    assert entries(one) == entries(reader(folder)) == [0, 1, 2]


@pytest.mark.parametrize("entries_of_mine", [2, 4])
@pytest.mark.parametrize("entries_of_another", [1, 2, 4, 7])
def test_a_suspended_writer_overwrites_nothing(short, entries_of_mine, entries_of_another):
    """A driver was suspended while another took over the run, wrote and merged files; then the first one writes."""
    folder, numbers = Memory(), []
    one, two = FolderJournal(folder), FolderJournal(folder)

    def write(writer, count):
        for _ in range(count):
            numbers.append(len(numbers))
            writer.append_logs([{"n": numbers[-1]}])

    write(one, entries_of_mine)
    write(two, entries_of_another)
    write(one, 5)
    assert entries(one) == entries(reader(folder)) == numbers
    write(two, 5)
    assert entries(two) == entries(FolderJournal(folder)) == numbers


def test_files_that_overlap_are_refused_and_none_is_removed(short):
    folder = Memory()
    for first, last in ((0, 3), (2, 5), (6, 6)):
        folder.files[journal._name(first, last)] = b'{"n":0}\n'
    with pytest.raises(UserError, match=r"study/00000002-00000005.jsonl: overlaps the file before it; restore"):
        FolderJournal(folder).read_logs(0)
    assert len(folder.files) == 3


def test_a_long_journal_has_few_files_and_needs_few_calls():
    folder = Memory()
    writer = FolderJournal(folder)
    writer.read_logs(0)
    folder.calls = 0
    for n in range(3 * MERGE_COUNT):
        writer.append_logs([{"n": n}])
        writer.read_logs(0)
    assert folder.calls <= 4 * 3 * MERGE_COUNT + 3 * 3, "an entry takes two checks, a write and a removal"
    writer.append_logs([{"n": 3 * MERGE_COUNT}])
    assert len(folder.files) == 4
    folder.calls = 0
    assert entries(reader(folder)) == list(range(3 * MERGE_COUNT + 1))
    assert folder.calls == 5


def test_unmerged_files_are_merged_when_the_journal_is_opened_for_writing(short):
    folder = Memory()
    for n in range(9):
        folder.files[f"study/{n:08d}.jsonl"] = b'{"n":%d}\n' % n
    assert entries(reader(folder)) == list(range(9))
    assert len(folder.files) == 9, "a reader merges no files"
    assert entries(FolderJournal(folder)) == list(range(9))
    assert list(folder.files) == ["study/00000000-00000008.jsonl"]


def test_a_missing_or_damaged_file_gives_one_line(short):
    folder = Memory()
    writer = FolderJournal(folder)
    for n in range(7):
        writer.append_logs([{"n": n}])
    kept = dict(folder.files)
    for name in list(kept)[:-1]:
        folder.files = {other: data for other, data in kept.items() if other != name}
        with pytest.raises(UserError, match=r"memory/study/\d{8}.jsonl: missing; restore it from a copy"):
            FolderJournal(folder).read_logs(0)
        folder.files = kept | {name: kept[name][:-3]}
        with pytest.raises(UserError, match=f"memory/{name}: damaged"):
            FolderJournal(folder).read_logs(0)


def test_a_reader_continues_after_its_files_were_merged(short):
    folder = Memory()
    writer, readers = FolderJournal(folder), [reader(folder) for _ in range(12)]
    for n, each in enumerate(readers):
        assert entries(each) == list(range(n))
        writer.append_logs([{"n": n}])
    for each in readers:
        assert entries(each) == list(range(12))


def test_files_that_are_merged_during_the_reading_are_read_again(short):
    folder = Memory()
    writer = FolderJournal(folder)
    for n in range(3):
        writer.append_logs([{"n": n}])

    def merge_before_the_first_read(what, name):
        if what == "read":
            folder.before = lambda what, name: None
            writer.append_logs([{"n": 3}])

    folder.before = merge_before_the_first_read
    assert entries(reader(folder)) == [0, 1, 2, 3]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 5))
def test_no_entry_is_lost_or_repeated_however_often_the_writer_is_killed(calls_of_writers, merge_count):
    """Each writer is killed before one of its calls; the entries that it has written before are kept."""
    folder, written, number = Memory(), [], itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "MERGE_COUNT", merge_count)
        for calls in calls_of_writers:
            left = iter(range(calls))

            def die(what, name, left=left):
                if next(left, None) is None:
                    raise KilledError

            folder.before = die
            try:
                writer = FolderJournal(folder)
                while True:
                    n = next(number)
                    try:
                        writer.append_logs([{"n": n}])
                    except KilledError:
                        folder.before = lambda what, name: None
                        found = entries(reader(folder))
                        assert found in (written, [*written, n]), "only the entry being written may be missing"
                        written = found
                        raise
                    written.append(n)
                    assert entries(writer) == written
            except KilledError:
                pass
            folder.before = lambda what, name: None
            assert entries(reader(folder)) == written
        assert entries(FolderJournal(folder)) == written
        assert len(folder.files) < merge_count + len(written) / merge_count + 1


def test_a_pulled_run_continues_its_study(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    writer = StudyQueue(run, windows, JournalStorage(FolderJournal(run.folder)), trials=5)
    numbers = [writer.next() for _ in range(3)]
    for number in numbers[:2]:
        writer.close(number, "failed", "for a test", "error")
    again = StudyQueue(run, windows, open_journal(run), trials=5)
    assert again.asked == 3 and [again.next() for _ in range(2)] == [2, 3]
    assert not (run.local / "study.journal").exists()


def test_a_run_is_pulled_while_its_driver_removes_listed_files(tmp_path, monkeypatch):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    read, removed = LocalFolder.read, ["folds.json"]

    def vanishing(folder, name):
        if name in removed:
            removed.remove(name)
            raise FileNotFoundError(name)
        return read(folder, name)

    RunStore.open(run.where)
    monkeypatch.setattr("raypipe.storage.transfer.RunStore.open", lambda where: run)
    monkeypatch.setattr(LocalFolder, "read", vanishing)
    assert pull_run(run.where, str(tmp_path / "there")) == len(run.folder.names())
    assert open_folder(tmp_path / "there").names() == run.folder.names()
    removed += ["folds.json"] * 3
    with pytest.raises(FileNotFoundError):
        pull_run(run.where, str(tmp_path / "elsewhere"))
