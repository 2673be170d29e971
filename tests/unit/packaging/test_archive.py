from __future__ import annotations

import stat
import struct
import zipfile

import pytest

from raypipe.core.errors import UserError
from raypipe.packaging.archive import LayoutError, unpack_submission
from tests.support.hostile import METHODS, replace_by

SCRIPT = b"class Submission: pass\n" * 2000


def zipped(path, method=zipfile.ZIP_DEFLATED, **files):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("submission.py", SCRIPT)
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.mark.parametrize("method", METHODS)
def test_every_compression_is_unpacked(tmp_path, folder, method):
    path = zipped(tmp_path / "s.zip", method, weights=b"0" * 70_000)
    assert unpack_submission(path, folder).startswith("2 files, ")
    assert (folder / "submission.py").read_bytes() == SCRIPT and (folder / "weights").stat().st_size == 70_000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", range(0, 60, 3))
def test_corrupt_data_of_every_compression_is_one_line(tmp_path, folder, method, place):
    path = zipped(tmp_path / "s.zip", method)
    data = bytearray(path.read_bytes())
    start = data.find(b"submission.py") + len("submission.py")
    data[start + place] ^= 0xFF
    path.write_bytes(bytes(data))
    try:
        unpack_submission(path, folder)
    except UserError as error:
        assert "damaged (submission.py: " in str(error) and str(error).isprintable()
    else:
        assert (folder / "submission.py").read_bytes() == SCRIPT


def at(offset, kind, value, mark=b"PK\x01\x02"):
    def change(data):
        start = data.rfind(mark)
        data[start + offset : start + offset + struct.calcsize(kind)] = struct.pack(kind, value)

    return change


CHANGED = {
    "a password": at(8, "<H", 1),
    "an unknown compression": at(10, "<H", 98),
    "another checksum": at(16, "<I", 1),
    "a size that is too large": at(20, "<I", 2**31),
    "a place outside of the file": at(42, "<I", 2**31),
    "a newer version": at(6, "<H", 999),
    "a list of files of 4 GB": at(12, "<I", 2**32 - 2, b"PK\x05\x06"),
    "a list of files elsewhere": at(16, "<I", 2**32 - 2, b"PK\x05\x06"),
    "an absurd dictionary of LZMA": lambda data: data.__setitem__(slice(48, 52), b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_changed_header_is_one_line(tmp_path, folder, case, method):
    path = zipped(tmp_path / "s.zip", method)
    data = bytearray(path.read_bytes())
    CHANGED[case](data)
    path.write_bytes(bytes(data))
    try:
        unpack_submission(path, folder)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 300 + len(str(path))
    except LayoutError as error:
        assert error.detail.isprintable()
    else:
        assert (folder / "submission.py").read_bytes() == SCRIPT


def test_a_list_of_files_is_not_read_whole_where_it_is_huge(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number:040d}", b"")
    with pytest.raises(UserError, match=r"not a zip file \(its list of files takes \d+ MB\)"):
        unpack_submission(tmp_path / "many.zip", folder)


def test_many_files_are_not_unpacked(tmp_path, folder):
    path = zipped(tmp_path / "s.zip", **{str(number): b"" for number in range(1000)})
    with pytest.raises(LayoutError, match="it has 1,001 files; at most 1,000 are unpacked"):
        unpack_submission(path, folder)
    assert not list(folder.iterdir())


def test_a_file_that_grows_a_thousandfold_is_not_unpacked(tmp_path, folder):
    path = zipped(tmp_path / "s.zip", weights=bytes(80 * 2**20))
    with pytest.raises(LayoutError, match=r"unpacked it would take 0\.08 GB, \d+ times as much as the zip"):
        unpack_submission(path, folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SUBMISSION.PY", "is in it twice"),
        ("\x1b]0;owned\x07", r"'\?\]0;owned\?' is not a name that every system can store"),
        ("a\nb", "is not a name"),
        ("n" * 256, "is not a name"),
        ("\u202egnp.exe", "is not a name"),
    ],
)
def test_names_that_mislead_are_not_unpacked(tmp_path, folder, name, reason):
    with pytest.raises(LayoutError, match=reason) as caught:
        unpack_submission(zipped(tmp_path / "s.zip", **{name: b""}), folder)
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless", "loop", "dangling", "empty"])
def test_what_is_no_zip_file_is_one_line(tmp_path, folder, kind):
    path = zipped(tmp_path / "s.zip")
    replace_by(path, kind)
    with pytest.raises(UserError, match=r"no such file|not a file|not a zip file"):
        unpack_submission(path, folder)


def test_a_file_that_would_replace_another_is_not_written(tmp_path, folder):
    (folder / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"damaged \(weights: "):
        unpack_submission(zipped(tmp_path / "s.zip", weights=b"0"), folder)
    assert not (tmp_path / "elsewhere").exists()


def test_modes_in_the_zip_are_not_taken_over(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        info = zipfile.ZipInfo("submission.py")
        info.external_attr = (stat.S_IFREG | 0o4777) << 16
        archive.writestr(info, SCRIPT)
    unpack_submission(tmp_path / "s.zip", folder)
    assert not (folder / "submission.py").stat().st_mode & 0o4111
