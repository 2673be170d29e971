from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from raypipe.core.errors import DiskFullError, StorageError, UserError
from raypipe.search.pretrain import pretrain
from raypipe.search.sweep import resume, sweep
from raypipe.storage.files import LocalFolder, check_places, lock, open_folder, write_atomic
from raypipe.storage.remote import RemoteFolder
from tests.support.faults import FailingFolder, Killed
from tests.support.storage import DyingFileSystem, MemoryStore, dying_at


@pytest.fixture(params=["path", "uri"])
def folder(request, tmp_path):
    return open_folder(tmp_path / "f" if request.param == "path" else f"file://{tmp_path}/f")


def test_a_path_is_local_and_a_uri_is_not(tmp_path):
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert isinstance(open_folder(f"file://{tmp_path}"), RemoteFolder)


def test_files_are_written_listed_read_and_removed(folder):
    assert folder.names() == []
    assert not folder.exists("a/b.txt")
    folder.write("a/b.txt", b"one")
    folder.write("a/b.txt", b"two")
    folder.write("c", b"")
    assert folder.read("a/b.txt") == b"two"
    assert folder.names() == ["a/b.txt", "c"]
    assert folder.names("a") == ["a/b.txt"]
    folder.remove("c")
    folder.remove("c")
    assert not folder.exists("c")
    with pytest.raises(FileNotFoundError):
        folder.read("c")


@settings(max_examples=30)
@given(old=st.binary(max_size=50), new=st.binary(max_size=50), cut=st.integers(0, 50))
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path_factory, old, new, cut):
    folder = tmp_path_factory.mktemp("w")
    path = folder / "file"
    path.write_bytes(old)

    def write(file):
        file.write(new[:cut])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_atomic(path, write)
    assert path.read_bytes() == old
    assert list(folder.iterdir()) == [path]


# Processes that die at any step


class Disk:
    """A folder of this machine."""

    def __init__(self, path):
        self.path = path

    @contextlib.contextmanager
    def dying(self, step):
        with dying_at(step):
            yield LocalFolder(self.path)

    def healthy(self):
        return LocalFolder(self.path)


class Renaming(Disk):
    """A file system behind a URI that can rename."""

    @contextlib.contextmanager
    def dying(self, step):
        yield self.healthy(step)

    def healthy(self, step=1 << 30):
        files = DyingFileSystem(fs.LocalFileSystem(), step)
        return RemoteFolder(f"file://{self.path}", filesystem=(files, self.path))


class Objects(Disk):
    """An object store."""

    def __init__(self, path):
        self.store = MemoryStore()

    @contextlib.contextmanager
    def dying(self, step):
        begin = len(self.store.calls)
        self.store.lost = step % 2 == 1  # the process dies after or before the store executes the call
        self.store.fault = lambda number, call: Killed() if number >= begin + step // 2 else None
        yield RemoteFolder("s3://bucket", filesystem=(self.store, "bucket"))
        self.store.fault = lambda number, call: None

    def healthy(self):
        self.store.fault = lambda number, call: None
        return RemoteFolder("s3://bucket", filesystem=(self.store, "bucket"))


@pytest.mark.parametrize("kind", [Disk, Renaming, Objects])
@settings(max_examples=150)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(["a", "b/c", "b/d"]), st.one_of(st.none(), st.binary(max_size=9)), st.integers(0, 11)
        ),
        max_size=10,
    )
)
def test_a_process_that_dies_at_any_step_leaves_every_file_old_or_new(kind, calls):
    with tempfile.TemporaryDirectory() as path:
        storage, model = kind(path), {}
        for name, data, step in calls:
            allowed = [data]
            try:
                with storage.dying(step) as folder:
                    folder.remove(name) if data is None else folder.write(name, data)
            except Killed:
                allowed.append(model.get(name))
            folder = storage.healthy()
            found = {other: folder.read(other) for other in folder.names()}
            assert found.get(name) in allowed
            assert {k: v for k, v in found.items() if k != name} == {k: v for k, v in model.items() if k != name}
            model = found


def test_the_fault_injection_covers_every_step_of_a_write(tmp_path):
    """Check the fault injection: without deaths at every step, the test above would prove nothing."""
    seen = {}
    for step in range(12):
        path = tmp_path / str(step)
        path.mkdir()
        (path / "a").write_bytes(b"old!")
        with contextlib.suppress(Killed), dying_at(step):
            LocalFolder(path).write("a", b"new!")
        seen[step] = sorted(p.read_bytes() for p in path.iterdir())
    assert seen[0] == seen[1] == [b"old!"]
    assert seen[2] == [b"ne", b"old!"]
    assert seen[3] == seen[4] == [b"new!", b"old!"]
    assert all(files == [b"new!"] for step, files in seen.items() if step >= 5)


@pytest.mark.parametrize(("when", "left"), [("before", b"old"), ("after", b"new")])
def test_a_failing_folder_fails_at_the_given_call(tmp_path, when, left):
    inner = LocalFolder(tmp_path)
    inner.write("a", b"old")
    folder = FailingFolder(inner, 1, times=1, error=OSError("no"), when=when, calls=["write"])
    folder.write("b", b"1")
    assert folder.read("a") == b"old"
    with pytest.raises(OSError, match="no"):
        folder.write("a", b"new")
    assert inner.read("a") == left
    folder.write("a", b"again")
    assert (inner.read("a"), folder.count) == (b"again", 3)
    dead = FailingFolder(inner, 0, when=when)
    for call in (lambda: dead.write("a", b"new"), lambda: dead.remove("b"), lambda: dead.names()):
        with pytest.raises(Killed):
            call()
    assert inner.read("a") == (b"again" if when == "before" else b"new") and inner.exists("b")


def test_a_full_disk_gives_one_line_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"file: no space left.*same command again"):
        write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_are_not_listed(tmp_path):
    (tmp_path / ".x.1234.part").write_bytes(b"half")
    assert open_folder(tmp_path).names() == []


@pytest.mark.parametrize("leave", [lambda path: path.rename(path.with_name("moved")), shutil.rmtree])
def test_a_folder_that_is_renamed_or_removed_while_it_is_used_is_not_made_again(tmp_path, leave):
    folder = LocalFolder(tmp_path / "run")
    folder.write("a", b"1")
    assert folder.exists("a") and folder.gone_error() is None
    with pytest.raises(FileNotFoundError):
        folder.read("b")
    leave(folder.path)
    for use in (lambda: folder.write("trials/b", b"2"), lambda: folder.read("a")):
        with pytest.raises(StorageError, match="run: this folder was renamed or removed; use it where it is now"):
            use()
    assert not folder.path.exists() and not folder.exists("a")


def test_names_that_are_no_utf_8_are_one_line(tmp_path, monkeypatch):
    check_places("run", tmp_path / "Größe µ", "s3://bucket/run", None)
    for name in ("r\udcff", Path("r\udcff"), "s3://bucket/r\udcff"):
        with pytest.raises(UserError, match="this name is no UTF-8 text here; rename it, or choose a UTF-8 locale"):
            check_places("run", name)
    here = tmp_path / "r\udcff"
    here.mkdir()
    monkeypatch.chdir(here)
    check_places(tmp_path, "s3://bucket/run")
    with pytest.raises(UserError, match="no UTF-8"):
        check_places("run")


@pytest.mark.parametrize(
    "call", [lambda name: sweep(name, name, name), resume, lambda name: pretrain("mae", name, name)]
)
def test_nothing_is_driven_under_a_name_that_is_no_utf_8(call):
    with pytest.raises(UserError, match="r\udcff: this name is no UTF-8 text here"):
        call("r\udcff")


def test_a_uri_of_an_unknown_storage_gives_one_line():
    with pytest.raises(UserError, match="ftp://x: not a storage"):
        open_folder("ftp://x")


def test_a_lock_is_exclusive_or_shared(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with open(path, "rb") as one, open(path, "rb") as other:
        assert lock(one)
        assert not lock(other)
        assert not lock(other, shared=True)
        one.close()
        assert lock(other)
    with open(path, "rb") as one, open(path, "rb") as other:
        assert lock(one, shared=True) and lock(other, shared=True)
        assert not lock(one)


def test_on_a_file_system_without_locks_every_lock_succeeds(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "lock", "wb") as file:
        assert lock(file) and lock(file, shared=True)


def test_a_link_in_a_circle_hides_no_other_name(tmp_path: Path) -> None:
    names = [f"trials/{number:04d}/trial.json" for number in range(20)]
    folder = LocalFolder(tmp_path)
    for name in names:
        folder.write(name, b"{}")
    (tmp_path / "trials/loop").symlink_to("loop")
    assert folder.names("trials") == [*names, "trials/loop"]
