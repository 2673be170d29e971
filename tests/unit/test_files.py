from __future__ import annotations

import errno
import fcntl
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import DiskFullError, UserError
from raypipe.files import LocalFolder, RemoteFolder, lock, open_folder, read_json, write_json, write_whole


@pytest.fixture(params=["path", "uri"])
def folder(request, tmp_path):
    return open_folder(tmp_path / "f" if request.param == "path" else f"file://{tmp_path}/f")


def test_a_path_is_local_and_a_uri_is_not(tmp_path):
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert isinstance(open_folder(f"file://{tmp_path}"), RemoteFolder)


def test_files_come_back(folder):
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


@settings(max_examples=30, deadline=None)
@given(old=st.binary(max_size=50), new=st.binary(max_size=50), cut=st.integers(0, 50))
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path_factory, old, new, cut):
    folder = tmp_path_factory.mktemp("w")
    path = folder / "file"
    path.write_bytes(old)

    def write(file):
        file.write(new[:cut])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_whole(path, write)
    assert path.read_bytes() == old
    assert list(folder.iterdir()) == [path]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"file: no space left.*same command again"):
        write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_are_not_listed(tmp_path):
    (tmp_path / ".x.1234.part").write_bytes(b"half")
    assert open_folder(tmp_path).names() == []


def test_json_round_trip_and_damage(tmp_path):
    folder = open_folder(tmp_path)
    write_json(folder, "x.json", {"a": [1, 2.5, None]})
    assert read_json(folder, "x.json") == {"a": [1, 2.5, None]}
    folder.write("x.json", b'{"a": [1,')
    with pytest.raises(UserError, match=r"x\.json: damaged"):
        read_json(folder, "x.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(folder, "y.json", float("nan"))


def test_a_uri_of_no_known_storage_is_one_line():
    with pytest.raises(UserError, match="ftp://x: not a storage"):
        open_folder("ftp://x")


def test_a_lock_is_one_files_and_looks_may_share_it(tmp_path):
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


def test_a_file_system_without_locks_gives_them_to_everyone(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "lock", "wb") as file:
        assert lock(file) and lock(file, shared=True)
