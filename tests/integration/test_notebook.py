"""A notebook goes from recordings to an ensemble; a sweep shows its progress there and leaves the kernel as it was."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbclient import NotebookClient

from raypipe.simulation.contrast_change import simulate

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

STATE = """
    import json, logging, os, signal, sys, threading, warnings

    import mne, optuna, ray, sklearn, torch  # whose imports change some of this by themselves
    import ray.train, ray.tune

    import raypipe

    def state():
        # Text is compared, for what is compared should say how it differs.
        return {
            "environment": dict(os.environ),
            "standard output": repr(sys.stdout),
            "standard error": repr(sys.stderr),
            "warning filters": [repr(each) for each in warnings.filters],
            "showwarning": repr(warnings.showwarning),
            "signal handlers": {name.name: repr(signal.getsignal(name)) for name in (signal.SIGINT, signal.SIGTERM)},
            "excepthook": repr(sys.excepthook),
            "threads of torch": torch.get_num_threads(),
            "folder": os.getcwd(),
            "ray": ray.is_initialized(),
        }

    before = state()
"""
PREPARE = """
    store = raypipe.prepare("bids", "challenge1", "store")
    store
"""
SWEEP = """
    run = raypipe.sweep(
        SPACE, store.where, "run", trials=2, folds=3, prune=False, callback=raypipe.PrintProgress(every=0)
    )
"""
CHANGED = """
    after = state()
    print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""
ENSEMBLE = """
    ensemble = run.ensemble(top=2)
    print(ensemble.verdict)
    run.report()
    loaded = raypipe.load_ensemble(run.export("bundle"))
    print(loaded.predict(store.gather(range(4))).shape)
    run.trials
"""


def texts(cell, stream: str = "stdout") -> str:
    """What a cell printed."""
    return "".join(output["text"] for output in cell["outputs"] if output.get("name") == stream)


INTERRUPTED = """
    class Interrupt(raypipe.SweepCallback):
        def on_epoch(self, number, epoch, score, fold_scores):
            os.kill(os.getpid(), signal.SIGINT)  # what a kernel is sent by its stop button
            os.kill = lambda *_: None  # once

        def on_draining(self, running):
            print("draining")

    kill = os.kill
    try:
        # One trial at a time, so that the second is left however soon the first ends
        raypipe.sweep(SPACE, store.where, "second", trials=2, folds=3, prune=False, concurrent=1, callback=Interrupt())
    except raypipe.InterruptedSweepError as error:
        print(error)
    os.kill = kill
"""
RESUMED = """
    run = raypipe.resume("second")
    run
"""


def run_cells(sources, folder):
    """Return the cells of a notebook after each has run in one kernel."""
    cells = [nbformat.v4.new_code_cell(dedent(each).strip()) for each in sources]
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=cells), timeout=500, kernel_name="python3", resources=resources
    )
    return client.execute().cells


@pytest.mark.long  # notebooks of test_examples.py run in any case
def test_from_recordings_to_an_ensemble_and_a_second_sweep_that_is_interrupted(tmp_path):
    simulate(tmp_path / "bids", subjects=9, channels=6, trials=12)
    space = f"SPACE = {str(ROOT / 'search_spaces/smoke.py')!r}"
    sources = [STATE, space, PREPARE, SWEEP, CHANGED, ENSEMBLE, "before = state()", INTERRUPTED, RESUMED, CHANGED]
    _, _, prepared, swept, changed, fitted, _, interrupted, resumed, unchanged = run_cells(sources, tmp_path)

    assert "windows of 6 channels x 200 samples" in prepared["outputs"][-1]["data"]["text/plain"]
    lines = texts(swept).splitlines()
    assert lines[0] == "starting Ray on this machine"
    assert sum(line.startswith(("trial 0 complete, score", "trial 1 complete, score")) for line in lines) == 2
    assert any(" trials ended  " in line and "epoch" in line for line in lines), "progress between a trial's ends"
    assert all(
        line.startswith(("starting Ray", "trial ")) or " at a time, " in line or " ended  " in line for line in lines
    )
    assert texts(swept, "stderr") == ""
    assert json.loads(texts(changed)) == {}
    assert "(4, 1)" in texts(fitted) and "NRMSE" in texts(fitted)
    assert "text/html" in fitted["outputs"][-1]["data"], "the trials are a table"
    assert (tmp_path / "run/report.html").is_file()

    # An interrupt lets epochs end; the next cell continues the sweep and shows its progress.
    assert "draining" in texts(interrupted) and "continue" in texts(interrupted)
    shown = [output["data"] for output in resumed["outputs"] if output["output_type"] == "display_data"]
    assert len(shown) == 1, "one display that changes in place"
    assert "<progress" in shown[0]["text/html"] and "2/2 trials ended" in shown[0]["text/plain"]
    result = resumed["outputs"][-1]["data"]
    assert "2 of 2 trials (2 complete)" in result["text/plain"] and "<table" in result["text/html"]
    assert texts(resumed) == texts(resumed, "stderr") == ""
    assert json.loads(texts(unchanged)) == {}
