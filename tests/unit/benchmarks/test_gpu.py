"""`make gpu`: what it says without a device, and what it keeps of parts that fail, with the CPU as a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, timing
from benchmarks.runner import ROOT, Job

LONG = pytest.mark.long
SMALL = ["--batch", "4", "--channels", "3"]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Pretend that there is a device; return a function that runs `make gpu` with jobs of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "where", lambda device: {"device": "a stand-in"})

    def run(*jobs, words=()):
        monkeypatch.setattr(gpu, "JOBS", jobs)
        monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *words])
        status = gpu.main()
        return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()

    return run


def test_a_python_without_torch_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKING.replace('"ray"', '"torch"'))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"{sys.executable} has no torch; name a Python that has: make gpu PYTHON=...\n"
    assert not done.stdout and not (tmp_path / "out").exists()


def test_without_a_device_it_says_so_in_one_line_and_runs_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out")])
    assert gpu.main() == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n"
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_leaves_its_last_lines_and_the_others_their_results(stand_in):
    good = Job("good", "ranking", ("--quick",))
    bad = Job("bad", "ranking", ("--no-such-option",))
    status, found, text = stand_in(bad, good, words=["--only", "bad", "good"])
    assert status == 1
    assert found["results"][0]["failed"] == "exit status 2"
    assert "--no-such-option" in text
    assert "tables" in found["results"][1]
    assert "## Ranking of trials" in text


def test_a_part_is_stopped_at_its_limit_and_not_begun_without_time(stand_in):
    slow = Job("slow", "ranking", (), seconds=1.0)
    status, found, _ = stand_in(slow, words=["--only", "slow"])
    assert (status, found["results"][0]["failed"]) == (1, "stopped after 1 s")
    _, found, text = stand_in(slow, words=["--only", "slow", "--seconds", "1"])
    assert found["results"][0]["failed"] == "no time left"
    assert "slow: no time left" in text


def test_the_tests_are_counted_with_the_reasons_of_skips_and_the_lines_of_failures(monkeypatch, tmp_path):
    xml = """<testsuites><testsuite>
      <testcase classname="a" name="passes"/>
      <testcase classname="a" name="fails"><failure message="short">first\nE  last line</failure></testcase>
      <testcase classname="a" name="breaks"><error message="at setup"/></testcase>
      <testcase classname="a" name="skips"><skipped message="needs two"/></testcase>
    </testsuite></testsuites>"""

    def run(command, seconds, log):
        (tmp_path / "tests.xml").write_text(xml)
        return "exit status 1", "..."

    monkeypatch.setattr(gpu, "run", run)
    found = gpu.run_tests(tmp_path, 10)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, {"needs two": 1})
    assert found["failures"] == {"a.fails": ["first", "E  last line"], "a.breaks": ["at setup"]}
    text = gpu.markdown({"where": {}, "tests": found, "results": []})
    assert "1 passed, 2 failed, skipped 1 (needs two)" in text
    assert "E  last line" in text


def test_a_copy_without_history_has_its_commit_from_the_environment(monkeypatch):
    monkeypatch.setenv(timing.COMMIT, "abc123")
    assert timing.where()["commit"] == "abc123"
    monkeypatch.delenv(timing.COMMIT)
    monkeypatch.setattr(timing, "_output", lambda *words: "")
    assert timing.where()["commit"] == "unknown"


BLOCKING = """import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "typer", "optuna", "mne", "edfio", "tensorboardX"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
"""A `sitecustomize.py`, which workers that a script starts import too."""


@pytest.mark.parametrize(
    "words",
    [
        ["pytest", "tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"],
        pytest.param(["benchmarks.pretraining", *SMALL, "--seconds", "0", "--steps", "1"], marks=LONG),
        pytest.param(["benchmarks.folds", *SMALL, "--folds", "2", "--windows", "16", "--epochs", "1"], marks=LONG),
        pytest.param(["benchmarks.step", *SMALL, "--stack", "2", "--seconds", "0", "--quick"], marks=LONG),
    ],
    ids=lambda words: words[0],
)
def test_no_part_needs_packages_that_a_machine_with_a_gpu_may_lack(words, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
