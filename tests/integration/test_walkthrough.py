"""From a BIDS folder to predictions, by command line: the README's steps, on little and on real data."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raypipe import Run, load_ensemble
from raypipe.data.window_store import WindowStore

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def raypipe(*arguments: object, folder: Path | None = None) -> str:
    """Run a command that must work; what it printed."""
    command = [Path(sys.executable).with_name("raypipe"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def own_modules(tmp_path):
    """Make a folder of a user's own modules, whose names are those of modules that raypipe and Ray import."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("raypipe", "signal", "types", "queue", "random", "numpy", "torch", "ray"):
        (folder / f"{name}.py").write_text(f"raise AssertionError('{name}.py of the user was imported')\n")
    return folder


def test_from_simulation_to_predictions(tmp_path, own_modules):
    raypipe("simulate", tmp_path / "bids", "--subjects", 9, "--channels", 6, "--trials", 12)
    prepared = raypipe(
        "prepare", tmp_path / "bids", "--target", "challenge1", "--out", tmp_path / "store", "--jobs", 2,
        folder=own_modules,
    )  # fmt: skip
    assert "windows of 6 channels x 200 samples" in prepared
    raypipe(
        "sweep", "smoke", "--data", tmp_path / "store", "--run", tmp_path / "run",
        "--trials", 2, "--folds", 3, "--no-prune", folder=own_modules,
    )  # fmt: skip
    fitted = raypipe("ensemble", tmp_path / "run", "--top", 2)
    assert "report.html" in fitted
    raypipe("export", tmp_path / "run", tmp_path / "bundle")
    raypipe("export", tmp_path / "run", tmp_path / "model.onnx")
    raypipe("check", tmp_path / "model.onnx", "--bundle", tmp_path / "bundle")
    raypipe("predict", tmp_path / "bundle", tmp_path / "bids", "--out", tmp_path / "predictions.csv")
    table = pd.read_csv(tmp_path / "predictions.csv")
    windows = WindowStore(tmp_path / "store")
    assert len(table) >= len(windows)  # trials without a response are predicted too
    predicted = load_ensemble(tmp_path / "bundle").predict(windows.gather(range(len(windows))))[:, 0]
    listed = table.filter(like="predict").iloc[:, 0].to_numpy()
    assert np.abs(predicted[:, None] - listed[None]).min(axis=1).max() < 1e-4
    assert Run(tmp_path / "run").trials.state.tolist() == ["complete"] * 2


@pytest.mark.long
@pytest.mark.real
def test_the_readme_on_real_recordings(real_data, tmp_path):
    readme = (ROOT / "README.md").read_text()
    steps = re.search(r"```sh\n(raypipe inspect .*?)```", readme, re.DOTALL).group(1)
    for line in steps.strip().splitlines():
        line = line.replace("../shared/data", str(real_data)).replace(" arithmetic/", f" {tmp_path}/")
        line = line.replace(" all_families ", " smoke ")
        line = re.sub(r"--trials \d+", "--trials 2", line)
        raypipe(*shlex.split(line)[1:])
    assert (tmp_path / "run/report.html").stat().st_size < 5e6
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table.groupby("recording").ngroups == 72
    assert set(table["role"]) == {"training", "held out"}

    (block,) = re.findall(r"```python\n(from raypipe import .*?)```", readme, re.DOTALL)
    block = block.replace("../shared/data", str(real_data)).replace('"arithmetic/', f'"{tmp_path}/')
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("complete", "arithmetic", "an AUC of"))
