"""URIs where a path of this machine is needed: one line, and no folder such as ``s3:``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raypipe
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.packaging.bench import bench
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.check import check_submission
from raypipe.packaging.check_graph import check_graph
from raypipe.packaging.graphs import export_graph
from raypipe.packaging.predict import predict
from raypipe.packaging.submission import export_submission
from raypipe.reporting.report import write_report
from raypipe.reporting.trial_table import trials_table, write_table
from raypipe.storage.local_path import local_path

URI = "s3://lab/out"


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{1,8}:/{1,3}[a-z][a-z/]{0,9}", fullmatch=True))
def test_a_uri_is_no_path_as_text_or_as_a_path(uri):
    for where in (uri, Path(uri)):
        with pytest.raises(UserError, match=r"^[^:]+://[^:]*: windows are written on this machine only; push them$"):
            local_path(where, "windows are written", "push them")


@pytest.mark.parametrize("path", ["a", "/a/b", "./s3/x", "C:/data", "a b/c", "sub-01:x/y", "1:/x", ""])
def test_a_path_is_one(path):
    assert local_path(path, "windows are written", "push them") == Path(path)


def test_a_home_is_found_and_keys_are_not_shown():
    assert local_path("~/a", "", "") == Path.home() / "a"
    with pytest.raises(UserError, match=r"^s3://lab/out: ") as caught:
        local_path("s3://ME:KEY@lab/out", "a table is written", "copy it")
    assert "KEY" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "bids", "--target", "participants:age", "--out", URI],
        ["prepare", "hbn:R1", "--target", "participants:age", "--out", "store", "--cache", URI],
        ["init", URI],
        ["simulate", URI],
        ["simulate", "hbn", URI],
        ["predict", URI, "bids", "--out", "out.csv"],
        ["bench", URI],
        ["check", f"{URI}.onnx"],
        ["check", f"{URI}.zip"],
        ["score", f"{URI}.zip", "--target", "challenge1", "--data", "store"],
        ["score", "a.zip", "--target", "challenge1", "--data", URI],
    ],
)
def test_a_verb_with_a_uri_for_a_path_is_one_line_and_writes_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        app.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"raypipe: error: {URI}") and " on this machine only; " in line
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_to_a_folder_of_the_uri_s_name(simulated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ensemble, windows = simulated.ensemble(top=1), simulated.windows
    x_NCT = np.random.default_rng(0).normal(0, 1e-5, (4, 2, 50))
    for write in (
        lambda: export_bundle(simulated.run, ensemble, URI, windows=windows),
        lambda: export_graph(ensemble, f"{URI}.onnx", "onnx", windows=windows),
        lambda: export_submission({1: ensemble}, f"{URI}.zip", windows={1: windows}),
        lambda: write_report(simulated.run, URI),
        lambda: write_table(trials_table(simulated.run), "csv", URI),
        lambda: predict("no bundle", simulated.bids, URI),
        lambda: predict("no bundle", Path(URI)),
        lambda: load_ensemble(URI),
        lambda: bench(URI),
        lambda: check_graph(f"{URI}.onnx"),
        lambda: check_submission(f"{URI}.zip"),
        lambda: raypipe.from_arrays(x_NCT, [0, 1, 2, 3], list("abcd"), sfreq=100, ch_names=["Fz", "Cz"], out=URI),
    ):
        with pytest.raises(UserError, match=r"^s3://lab/out(\.\w+)?: .* on this machine only; "):
            write()
    assert not list(tmp_path.iterdir())
