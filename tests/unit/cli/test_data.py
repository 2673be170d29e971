"""`raypipe inspect`, and the errors of `prepare` that name it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from raypipe.cli import app


def run(*arguments: object) -> int:
    """Return the exit status of ``raypipe ARGUMENTS``."""
    with pytest.raises(SystemExit) as leave:
        app.main([str(argument) for argument in arguments])
    return int(leave.value.code or 0)


def test_inspect_prints_what_is_there_and_commands_that_work(tiny_bids, tmp_path, monkeypatch, capsys):
    assert run("inspect", tiny_bids) == 0
    captured = capsys.readouterr()
    assert not captured.err
    lines = captured.out.splitlines()
    assert lines[0] == "Recordings" and "  6 found, 6 can be read, 0 left out" in lines
    command = next(line for line in lines if "--target participants:sex" in line)
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(command)[1:], "--jobs", "1") == 0
    assert (tmp_path / "windows" / "sex" / "manifest.json").is_file()


def test_inspect_shows_several_folders_and_damaged_recordings(tiny_bids, tmp_path, capsys):
    bids = shutil.copytree(tiny_bids, tmp_path / "bids")
    next(bids.glob("sub-*/eeg/*_eeg.bdf")).write_bytes(b"no header")
    assert run("inspect", bids, "--jobs", "1") == 0
    out = capsys.readouterr().out
    assert "6 found, 5 can be read, 1 left out" in out and "not a supported EEG file" in out


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_inspect_of_nothing_is_one_line(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("inspect", tmp_path / name) == 2
    captured = capsys.readouterr()
    assert not captured.out and len(captured.err.splitlines()) == 1
    assert str(tmp_path / name) in captured.err


@pytest.mark.parametrize(
    ("flags", "is_about_data"),
    [
        (("--target", "events:left_targt,right_target"), True),
        (("--target", "participants:nothing"), True),
        (("--target", "participants:release_number"), True),
        (("--target", "bids-task:rest,sleep"), True),
        (("--target", "nothing:x"), False),
        (("--target", "challenge1", "--window", "-1"), False),
        (("--target", "challenge1", "--band", "0.5", "0.1"), False),
        (("--target", "challenge1", "--channels", ""), False),
    ],
)
def test_errors_about_the_data_name_inspect(flags, is_about_data, tiny_bids, tmp_path, capsys):
    assert error_of(tiny_bids, tmp_path, flags, capsys).endswith(
        f"; raypipe inspect {tiny_bids} shows what is there"
    ) == (is_about_data)


def error_of(bids: Path, tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert run("prepare", bids, *flags, "--out", tmp_path / "store") == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_without_subjects_is_not_to_be_inspected(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "inspect" not in error_of(tmp_path / "empty", tmp_path, ("--target", "challenge1"), capsys)
    (tmp_path / "empty" / "sub-1").mkdir()
    assert "raypipe inspect" in error_of(tmp_path / "empty", tmp_path, ("--target", "challenge1"), capsys)
