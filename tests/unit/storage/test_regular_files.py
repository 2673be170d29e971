from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.storage.files import LocalFolder
from raypipe.storage.regular_files import read_regular
from tests.support.hostile import KINDS_OF_FILE, replace_by


@pytest.mark.parametrize("kind", KINDS_OF_FILE)
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    assert read_regular(path, 1) == LocalFolder(tmp_path).read("file") == b"1"
    replace_by(path, kind)
    if kind == "empty":
        assert read_regular(path, 1) == b""
        return
    with pytest.raises((UserError, FileNotFoundError)):
        read_regular(path, 1)


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless"])
def test_a_folder_reads_no_fifo_and_no_device(tmp_path, kind):
    (tmp_path / "file").write_bytes(b"1")
    replace_by(tmp_path / "file", kind)
    with pytest.raises(UserError, match="file: not a regular file"):
        LocalFolder(tmp_path).read("file")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"large: 1,048,576\.0 MB; at most 1\.0 MB are read"):
        read_regular(tmp_path / "large", 2**20)
