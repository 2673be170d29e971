"""A recorded file that is replayed as a stream gives the predictions of `predict`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid

import mne
import numpy as np
import pandas as pd
import pytest

import raypipe
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.data.prepare import prepare
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.predict import predict
from raypipe.packaging.stream import table_head, table_line
from raypipe.recordings.live import JITTER
from raypipe.recordings.lsl import WAIT
from tests.support.streams import FakeSource, chunks_of, outlet
from tests.unit.cli.test_flags import options
from tests.unit.conftest import finish

RATE = 250.0
NAMES = ("Fz", "Cz", "Pz", "Oz")
STEPS = {"window": 1.0, "stride": 0.5, "sfreq": 100.0, "band": (2.0, 40.0), "notch": 50.0, "reference": "average"}


def write_recording(path, seed, seconds):
    rng = np.random.default_rng(seed)
    x_CT = (rng.normal(size=(4, 4)) @ rng.normal(size=(4, round(seconds * RATE))) * 1e-5).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    mne.io.RawArray(x_CT, mne.create_info(list(NAMES), RATE, "eeg"), verbose="ERROR").save(path, verbose="ERROR")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle of two classes, and a recording of a new person."""
    root = tmp_path_factory.mktemp("stream")
    for number in range(9):
        for turn, task in enumerate(("rest", "count")):
            name = f"sub-{number}_task-{task}_eeg.fif"
            write_recording(root / "bids" / f"sub-{number}" / "eeg" / name, 2 * number + turn, 9.0)
    prepare(root / "bids", "bids-task:rest,count", root / "store", jobs=1, **STEPS)
    made = finish(root, root / "store", root / "bids", target="bids-task:rest,count")
    bundle = export_bundle(made.run, made.ensemble(top=2), root / "bundle", windows=made.windows)
    write_recording(root / "sub-new_task-rest_eeg.fif", 99, 40.0)
    return bundle, root / "sub-new_task-rest_eeg.fif"


def samples(path):
    """Return the samples of a recording in microvolts, and stamps from 0 on."""
    x_CT = mne.io.read_raw_fif(path, verbose="ERROR").get_data() * 1e6
    return x_CT, np.arange(x_CT.shape[1]) / RATE


def replayed(out, x_CT, start):
    """Push a recording once someone listens."""
    out.wait_for_consumers(60.0)
    for first in range(0, x_CT.shape[1], 500):
        part = slice(first, min(first + 500, x_CT.shape[1]))
        out.push_chunk(
            np.ascontiguousarray(x_CT[:, part].T, np.float32), list(start + np.arange(part.start, part.stop) / RATE)
        )


def test_a_recording_that_is_replayed_over_lsl_has_the_predictions_of_its_file(lsl, trained, tmp_path, capsys):
    bundle, path = trained
    expected = predict(bundle, path)
    x_CT, _ = samples(path)
    order = [2, 0, 3, 1]  # channels are found by name
    out = outlet(lsl, name := f"raypipe {uuid.uuid4()}", [NAMES[place] for place in order], RATE)
    start = lsl.local_clock()
    player = threading.Thread(target=replayed, args=(out, x_CT[order], start))
    player.start()
    answers = tmp_path / "answers.tsv"
    with pytest.raises(SystemExit) as left:
        app.main(["stream", str(bundle), "--lsl", name, "--out", str(answers), "--wait", "2"])
    player.join()
    assert not left.value.code
    table = pd.read_csv(answers, sep="\t", keep_default_na=False)
    assert list(table.columns) == ["start", "probability_rest", "probability_count", "prediction", "flag"]
    assert len(table) == len(expected) == 79 and set(table["flag"]) == {""}
    np.testing.assert_allclose(table["start"] - start, expected["onset"], atol=5e-3)
    columns = ["probability_rest", "probability_count"]
    np.testing.assert_allclose(table[columns], expected[columns], atol=1e-5)
    assert list(table["prediction"]) == list(expected["prediction"])
    captured = capsys.readouterr()
    assert captured.out == ""
    head, ended, summary = captured.err.strip().splitlines()
    assert head.startswith(f"{name}: 4 channels at 250 Hz, 4 used; windows of 1 s every 0.5 s; predictions lie ")
    assert "ended: no sample for 2 s" in ended
    assert summary.startswith("79 windows predicted; 0 gaps; 99 % of the predictions within ")


def test_the_public_function_takes_any_source(trained):
    bundle, path = trained
    x_CT, stamps_T = samples(path)
    live = raypipe.stream(load_ensemble(bundle), FakeSource(chunks_of(x_CT, stamps_T, [50]), RATE, NAMES), every=2.0)
    windows = list(live)
    expected = predict(bundle, path).set_index("onset").loc[[window.start for window in windows]]
    assert len(windows) == 20
    found = np.array([window.prediction for window in windows])
    np.testing.assert_allclose(found, expected[["probability_rest", "probability_count"]], atol=1e-5)
    assert [window.label for window in windows] == list(expected["prediction"])
    assert all(window.delay >= 0.0 for window in windows)
    assert table_head(live.ensemble).split("\t")[1:3] == ["probability_rest", "probability_count"]
    for window in windows:
        assert len(table_line(live.ensemble, window).split("\t")) == 5


def test_what_cannot_be_streamed_is_said_before_the_stream_is_looked_for(trained, simulated, tmp_path):
    bundle = export_bundle(simulated.run, simulated.ensemble(top=1), tmp_path / "bundle", windows=simulated.windows)
    with pytest.raises(UserError, match="windows are at events"):
        raypipe.stream(bundle, "no such stream", wait=1e9)


def test_lines_come_one_by_one_until_ctrl_c(lsl, trained):
    bundle, path = trained
    x_CT, _ = samples(path)
    out = outlet(lsl, name := f"raypipe {uuid.uuid4()}", NAMES, RATE)
    process = subprocess.Popen(
        [sys.executable, "-m", "raypipe", "stream", str(bundle), "--lsl", name, "--wait", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    replayed(out, x_CT, lsl.local_clock())
    lines = [process.stdout.readline() for _ in range(11)]  # the stream goes on
    assert lines[0].startswith("start\t") and all(line.count("\t") == 4 for line in lines)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "windows predicted; 0 gaps" in errors.splitlines()[-1]


def test_an_answer_file_that_exists_is_kept(lsl, trained, tmp_path, capsys):
    bundle, _ = trained
    (tmp_path / "answers.tsv").write_text("of yesterday")
    out = outlet(lsl, name := f"raypipe {uuid.uuid4()}", NAMES, RATE)
    with pytest.raises(SystemExit) as left:
        app.main(["stream", str(bundle), "--lsl", name, "--out", str(tmp_path / "answers.tsv")])
    assert left.value.code == 2 and "answers.tsv: exists; name a new file" in capsys.readouterr().err
    assert (tmp_path / "answers.tsv").read_text() == "of yesterday"
    del out


def test_defaults_of_the_flags_are_those_of_the_function():
    assert (options("stream")["jitter"].default, options("stream")["wait"].default) == (JITTER, WAIT)
