"""`raypipe prepare --epochs`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from raypipe.cli import app
from raypipe.data.manifest import read_manifest
from raypipe.data.window_store import WindowStore
from raypipe.reporting.sections.provenance import prepare_command
from tests.support.given import save_epochs, simulate_windows

WINDOWS = simulate_windows(subjects=4, each=6)


def run(*arguments: object) -> int:
    """Return the exit status of ``raypipe ARGUMENTS``."""
    with pytest.raises(SystemExit) as leave:
        app.main([str(argument) for argument in arguments])
    return int(leave.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_epochs(folder, WINDOWS)
    return folder


def test_files_of_epochs_become_windows_and_the_report_knows_the_command(files, tmp_path, monkeypatch, capsys):
    options = ["--subject", "filename:sub", "--target", "event", "--out", tmp_path / "store"]
    more = ["--crop", "0.5", "--channels", "Oz,Cz", "--groups", "metadata:site", "--metric", "f1", "--dtype", "float16"]
    more += ["--max-windows", "5", "--min-windows", "2", "--seed", "3"]
    assert run("prepare", "--epochs", files / "sub-*_epo.fif", *options, *more) == 0
    out = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("preparing")]
    assert out[0].startswith(
        f"{tmp_path / 'store'}: 20 windows of 2 channels x 100 samples at 100 Hz from 4 recordings"
    )
    assert out[1:3] == ["recordings: 4 found, 4 used, 0 left out", "people: 4 found, 4 used, 0 left out"]
    settings = read_manifest(tmp_path / "store").settings
    command = shlex.join(prepare_command(settings)).replace("FILES", str(files / "sub-*_epo.fif"))
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(command.replace("STORE", "again"))[1:]) == 0
    assert WindowStore(tmp_path / "again").data_hash == WindowStore(tmp_path / "store").data_hash
    assert read_manifest(tmp_path / "again").settings == settings


def test_several_patterns_are_one_store(files, tmp_path):
    patterns = ["--epochs", files / "sub-0[12]_epo.fif", "--epochs", files / "sub-0[34]_epo.fif"]
    assert run("prepare", *patterns, "--target", "metadata:rt", "--out", tmp_path / "store") == 0
    assert len(WindowStore(tmp_path / "store")) == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "prepare needs a BIDS folder, or files of MNE epochs"),
        (["BIDS", "--subject", "metadata:x"], "--subject: only with --epochs"),
        (["BIDS", "--mini"], "--mini: only with hbn:R1 to hbn:R11"),
        (["BIDS", "--cache", "hbn"], "--cache: only with hbn:R1 to hbn:R11"),
        (["BIDS", "--epochs", "*.fif"], "BIDS: not with --epochs; put a pattern in quotes"),
        (["--epochs", "*.fif", "--band", "1", "40"], "--band: not with --epochs"),
        (["--epochs", "*.fif", "--jobs", "2"], "--jobs: not with --epochs, which one process reads"),
        (["--epochs", "*.fif"], "*.fif: no file fits"),
        (["--epochs", "FOUND", "--max-windows", "0"], "max_windows 0: must be at least 1"),
        (["--epochs", "FOUND", "--channels", ""], "channel '' is not there"),
        (["--epochs", "FOUND", "--dtype", "int8"], "dtype int8: must be 'float16' or 'float32'"),
        (["BIDS", "--align", "foo"], "prepare --align foo: 'foo' is not one of 'recording', 'subject'"),
        (["--epochs", "FOUND", "--target", "participants:age"], "target 'participants:age': epochs take event"),
    ],
)
def test_wrong_combinations_are_one_line(files, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [str(files / "*.fif") if word == "FOUND" else word for word in words]
    target = [] if "--target" in words else ["--target", "event"]
    assert run("prepare", *words, *target, "--out", tmp_path / "store") == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_recording_in_place_of_epochs_is_named_as_a_path(tmp_path, capsys):
    path = tmp_path / "sub-01_eeg.bdf"
    path.write_bytes(b"\xffBIOSEMI" + b" " * 600)
    assert run("prepare", "--epochs", path, "--target", "event", "--out", tmp_path / "store") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"raypipe: error: {path}: not a FIF file of MNE epochs") and "PosixPath" not in line
