from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from types import ModuleType

import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.packaging import scorer
from raypipe.packaging.bundle import export_bundle
from raypipe.packaging.check import check_submission
from raypipe.packaging.submission import CODE

SPAWN = """
import json, os, sys, traceback
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import scorer
sys.path.pop(0)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        sys.stderr = open(order["stderr"], "w")
        os.chdir(order["cwd"])
        folder, asked, answered = map(scorer.Path, order["command"][-3:])
        try:
            found = scorer.check(folder, json.loads(asked.read_text(encoding="utf-8")))
            answered.write_text(json.dumps(found), encoding="utf-8")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

pytestmark = pytest.mark.usefixtures("four_channels")


@pytest.fixture(scope="module")
def scorers():
    """Start a process that has imported torch and forks for every submission, which is faster than a new process."""
    command = [sys.executable, "-I", "-c", SPAWN, scorer.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        yield parent
        parent.stdin.close()


@pytest.fixture
def quick(scorers, monkeypatch):
    """Make `check_submission` run the scorer in a fork of that process."""

    def run(command, cwd, stderr, timeout):
        assert command[:3] == [sys.executable, "-I", str(scorer.__file__)]
        order = {"command": command, "cwd": str(cwd), "stderr": str(stderr)}
        scorers.stdin.write(json.dumps(order) + "\n")
        scorers.stdin.flush()
        return int(scorers.stdout.readline())

    monkeypatch.setattr("raypipe.packaging.scorer_process.run_limited", run)


def repack(source, target, change):
    """Copy a zip, its files changed by ``change(files)``."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def test_a_submission_passes_every_check(submission, simulated, tmp_path):
    bundle = export_bundle(simulated.run, simulated.ensemble(top=2), tmp_path / "b", windows=simulated.windows)
    report = check_submission(submission, bundle=bundle)
    assert report.ok, str(report)
    assert report.challenges == [1] and "has only challenge 1" in str(report)
    assert len(report.lines) == 15 and "FAIL" not in str(report) and "those of the bundle given" in str(report)
    with zipfile.ZipFile(submission) as archive:
        assert sorted(archive.namelist()) == sorted([*CODE, "manifest.json", "model_challenge_1.pt"])


def changed(name, old, new):
    def change(files):
        text = files[name].decode()
        assert old in text
        files[name] = text.replace(old, new).encode()

    return change


def other_weights(files):
    tensors = torch.load(io.BytesIO(files["model_challenge_1.pt"]), weights_only=True)
    buffer = io.BytesIO()
    torch.save({name: t + 0.1 if t.is_floating_point() else t for name, t in tensors.items()}, buffer)
    files["model_challenge_1.pt"] = buffer.getvalue()


def missing_tensor(files):
    tensors = torch.load(io.BytesIO(files["model_challenge_1.pt"]), weights_only=True)
    tensors.pop(next(iter(tensors)))
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    files["model_challenge_1.pt"] = buffer.getvalue()


def in_a_folder(files):
    for name in list(files):
        files[f"mine/{name}"] = files.pop(name)


ANSWER = "return y_BO[:, -1:]"
MEMORY = "self.last = 0.9 * getattr(self, 'last', 0.0) + y_BO[:, -1:].mean(); return y_BO[:, -1:] + self.last"
TAMPERED = {
    "a plural getter": (
        changed("submission.py", "def get_model_challenge_1", "def get_models_challenge_1"),
        "loads",
        "has no get_model_challenge_1, which the scorer calls; it has .*get_models_challenge_1",
    ),
    "a list of models": (
        changed("submission.py", 'return self._model("1")', 'return [self._model("1")]'),
        "loads",
        r"returns a list, not a torch\.nn\.Module",
    ),
    "another class": (changed("submission.py", "class Submission", "class Entry"), "loads", "no class Submission"),
    "a tensor is missing": (missing_tensor, "loads", "Missing key"),
    "no weights": (lambda files: files.pop("model_challenge_1.pt"), "loads", "FileNotFoundError"),
    "other weights": (other_weights, "reference predictions", "predictions differ from those of the bundle at export"),
    "training mode": (changed("submission.py", ".eval()", ".train()"), "evaluation mode", "in training mode"),
    "a flat answer": (changed("ensemble.py", ANSWER, "return y_BO[:, -1]"), "one number per window", r"shape \(1,\)"),
    "no number": (changed("ensemble.py", ANSWER, "return y_BO[:, -1:] / 0 * 0"), "one number per window", "not finite"),
    "memory": (changed("ensemble.py", ANSWER, MEMORY), "no memory of windows", "the model remembers windows"),
    "statistics of the batch": (
        changed("ensemble.py", ANSWER, "return y_BO[:, -1:] - 0.1 * y_BO[:, -1:].mean()"),
        "any batch size",
        "windows influence each other",
    ),
    "chance": (
        changed("ensemble.py", ANSWER, "return y_BO[:, -1:] + 1e-2 * torch.rand(1, device=y_BO.device)"),
        "reproducible",
        "something is random",
    ),
    "raypipe is imported": (
        changed("submission.py", "import json", "import json\nimport raypipe"),
        "imports",
        "No module named 'raypipe' where submissions are scored.*submission.py, line",
    ),
    "ray is imported late": (
        changed("submission.py", "        manifest = json", "        import ray\n        manifest = json"),
        "loads",
        "No module named 'ray'",
    ),
    "code that does not parse": (changed("submission.py", "import json", "import ("), "imports", "SyntaxError"),
    "it ends the process": (changed("submission.py", "import json", "import os; os._exit(3)"), "ends", "exit status 3"),
    "files in a folder": (in_a_folder, "flat", "'mine/.*is in a folder.*submission.py at the top"),
    "an escape": (lambda files: files.update({"../evil.py": b""}), "safe to unpack", "outside the folder"),
    "an absolute path": (lambda files: files.update({"/evil.py": b""}), "safe to unpack", "outside the folder"),
    "a backslash": (lambda files: files.update({"..\\evil.py": b""}), "safe to unpack", "outside the folder"),
    "no manifest": (lambda files: files.pop("manifest.json"), "manifest", "manifest.json is missing"),
    "a damaged manifest": (lambda files: files.update({"manifest.json": b"{"}), "manifest", "damaged"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_submissions_fail(submission, tmp_path, quick, case):
    change, name, reason = TAMPERED[case]
    report = check_submission(repack(submission, tmp_path / "tampered.zip", change))
    assert not report.ok
    details = [line.detail for line in report.failures if line.name.endswith(name)]
    assert details and re.search(reason, details[0]), str(report)
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.parametrize(("fastest", "slow"), [(0.1, False), (0.6, True)])
def test_the_time_of_a_window_is_that_of_the_fastest(monkeypatch, fastest, slow):
    request = {"device": "cpu", "n_channels": 2, "n_times": 10}
    checks = scorer.ChallengeChecks(ModuleType("submission"), "1", request)
    seconds = iter([0.9, fastest, *[0.9] * scorer.N_TIMED_WINDOWS])  # other programs only add to it
    monkeypatch.setattr(checks, "_seconds", lambda x_1CT: next(seconds))
    if not slow:
        assert checks._time() == "100.0 ms per window (cpu), 167 min for 100,000 windows"
        return
    with pytest.raises(AssertionError, match=r"600\.0 ms per window .*: too slow; use fewer trials"):
        checks._time()


def test_a_bundle_of_other_windows_fails(submission, values, tmp_path):
    bundle = export_bundle(values.run, values.ensemble(top=1), tmp_path / "bundle", windows=values.windows)
    report = check_submission(submission, bundle=bundle)
    assert [line.detail for line in report.failures] == ["the bundle's n_channels is 3, the zip's 4"]


def test_other_files_than_submissions_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        check_submission(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(UserError, match="not a zip file"):
        check_submission(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"no submission.py in it"):
        check_submission(tmp_path / "other.zip")


def test_a_submission_that_never_ends_is_stopped(submission, tmp_path):
    change = changed("submission.py", "import json", "import threading; threading.Event().wait()\nimport json")
    report = check_submission(repack(submission, tmp_path / "endless.zip", change), timeout=0.5)
    assert [line.detail for line in report.failures] == ["the scorer's process did not end within 0.5 s"]
