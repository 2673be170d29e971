"""Hostile and broken bundles, submissions and runs: one line, in little time and memory, or numbers that are finite.

The short form draws some dozens of each. The long form (`make test-all`) draws for ten minutes.
"""

from __future__ import annotations

import collections
import json
import resource
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from raypipe.cli.doctor import diagnose
from raypipe.core.errors import UserError
from raypipe.ensembles.fitted import Ensemble
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_files import RECORD, TENSORS
from raypipe.packaging.check import check_submission
from raypipe.packaging.manifest import MANIFEST
from raypipe.packaging.submission import export_submission
from raypipe.reporting.run import Run
from raypipe.reporting.status import read_status
from raypipe.storage.records import digest
from tests.support.damage import damage
from tests.support.hostile import (
    KINDS_OF_FILE,
    change_bytes,
    change_json,
    change_tensors,
    forged,
    replace_by,
    write_hostile_zip,
)

MAX_MEGABYTES = 500
"""Memory that all inputs together may add to the process."""
MAX_CPU_SECONDS = 30
HUNG_SECONDS = 300
"""Time after which an input waits for something, however busy the machine is."""


class HungError(BaseException):
    """An input took too long; a BaseException, so that no handler of errors catches it."""


def one_line(error) -> None:
    text = str(error)
    assert "\n" not in text and "\x1b" not in text and len(text) < 2000, repr(text)


# Bundles


def hostile_bundle(bundle: Path, draw) -> None:
    """Change a copy of a bundle."""
    record, tensors = bundle / RECORD, bundle / TENSORS
    what = draw(st.sampled_from(["json", "json", "json", "tensors", "bytes", "kind", "more"]))
    if what == "json":
        record.write_bytes(forged(change_json(json.loads(record.read_bytes()), draw)))
    elif what == "tensors":
        data = change_tensors(tensors.read_bytes(), draw)
        tensors.write_bytes(data)
        found = json.loads(record.read_bytes())
        found["sha256"][TENSORS] = digest(data)
        record.write_bytes(forged(found))
    elif what == "bytes":
        file = draw(st.sampled_from([record, tensors]))
        file.write_bytes(change_bytes(file.read_bytes(), draw))
    elif what == "kind":
        replace_by(draw(st.sampled_from(sorted(bundle.iterdir()))), draw(st.sampled_from(KINDS_OF_FILE)))
    else:
        (bundle / "more").write_bytes(b"")
        replace_by(bundle / "more", draw(st.sampled_from(KINDS_OF_FILE)))


def try_bundle(bundle: Path, draw) -> str:
    hostile_bundle(bundle, draw)
    try:
        loaded = load_ensemble(bundle)
        shape = len(loaded.channels), loaded.info.n_times
        windows = np.random.default_rng(0).normal(0, 10, (3, *shape)).astype(np.float32)
        predictions = loaded.predict(windows)
    except UserError as error:
        one_line(error)
        return "refused"
    assert np.isfinite(predictions).all() and predictions.shape == (3, loaded.info.n_outputs)
    if loaded.classes:
        np.testing.assert_allclose(predictions.sum(1), 1.0, atol=5e-3)
    return "loaded"


# Submissions


def try_submission(path: Path, files: dict[str, bytes], draw, monkeypatch) -> str:
    """Check a hostile zip, whose code would change the answer of the scorer."""
    files = dict(files)
    if draw(st.booleans()):
        files[MANIFEST] = forged(change_json(json.loads(files[MANIFEST]), draw))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(files)))
        files[name] = change_bytes(files[name], draw)
    write_hostile_zip(path, files, draw)
    answer = change_json({"import": [["imports", True, "x"]], "1": [["loads", True, "y"], ["time", False, "z"]]}, draw)
    kind = draw(st.sampled_from([*KINDS_OF_FILE, *["answer"] * 8]))

    def run(command, cwd, stderr, timeout):
        stderr.write_bytes(b"\x1b[2J\n\xff")
        target = Path(command[-1])
        target.write_text(json.dumps(answer))
        if kind != "answer":
            replace_by(target, kind)
        return 1

    monkeypatch.setattr("raypipe.packaging.scorer_process.run_limited", run)
    try:
        report = check_submission(path)
    except UserError as error:
        one_line(error)
        return "refused"
    for line in report.lines:
        one_line(line.name + line.detail)
    return "checked"


# Runs


def hostile_run(where: Path, draw, data) -> None:
    what = draw(st.sampled_from(["json", "json", "bytes", "kind", "damage"]))
    files = sorted(path for path in where.rglob("*") if path.is_file() and "/log/" not in path.as_posix())
    if what == "damage":
        damage(where, data)
        return
    chosen = [path for path in files if what != "json" or path.suffix == ".json"]
    file = draw(st.sampled_from(chosen))
    if what == "json":
        file.write_bytes(forged(change_json(json.loads(file.read_bytes()), draw)))
    elif what == "bytes":
        file.write_bytes(change_bytes(file.read_bytes(), draw))
    else:
        replace_by(file, draw(st.sampled_from(KINDS_OF_FILE)))


def try_run(where: Path, draw, data) -> str:
    hostile_run(where, draw, data)
    outcome = "read"

    def opened():
        return Run(where)

    for read in (
        lambda: opened().trials,
        lambda: opened().oof(0),
        lambda: read_status(opened().store),
        lambda: Ensemble.load(opened().store).render(),
        lambda: [one_line(finding.what + finding.fix) for finding in diagnose(where)],
    ):
        try:
            read()
        except UserError as error:
            one_line(error)
            outcome = "refused"
    return outcome


# Draws


class Meter:
    """Count inputs by outcome, and measure time and memory."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest = 0.0
        self.before = self.peak()

    @staticmethod
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def measure(self, attempt) -> None:
        def hung(*_):
            raise HungError(f"an input took more than {HUNG_SECONDS} s")

        old = signal.signal(signal.SIGALRM, hung)
        signal.setitimer(signal.ITIMER_REAL, HUNG_SECONDS)
        start = time.process_time()
        try:
            self.counts[attempt()] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        self.longest = max(self.longest, time.process_time() - start)
        assert self.longest < MAX_CPU_SECONDS
        assert self.peak() - self.before < MAX_MEGABYTES

    def __str__(self) -> str:
        total = sum(self.counts.values())
        return (
            f"{total} inputs {dict(self.counts)}; 0 tracebacks; the longest took {self.longest:.2f} s of CPU time; "
            f"{self.peak() - self.before:.0f} MB more than before"
        )


def drawn(count: int, number: int):
    """Return the decorators of a round of `count` inputs."""

    def decorate(test):
        test = given(data=st.data())(test)
        test = settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))(test)
        return seed(number)(test)

    return decorate


def play(name: str, attempt, count: int, seconds: float | None = None) -> None:
    """Draw `count` inputs, or rounds of them until `seconds` have passed; print what came out."""
    meter, end, number = Meter(), time.monotonic() + (seconds or 0), 0
    while number == 0 or time.monotonic() < end:

        @drawn(count, number)
        def one(data):
            meter.measure(lambda: attempt(data))

        one()
        number += 1
    print(f"\n{name}: {meter}")


@pytest.fixture(scope="module", params=["values", "classes"])
def whole_bundle(request, tmp_path_factory):
    finished = request.getfixturevalue(request.param)
    ensemble = finished.ensemble(top=2)
    return export_bundle(finished.run, ensemble, tmp_path_factory.mktemp("whole") / "bundle", windows=finished.windows)


@pytest.fixture(scope="module")
def zip_files(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "submission.zip"
    export_submission({1: simulated.ensemble(top=1)}, path, windows={1: simulated.windows})
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def whole_run(values, tmp_path_factory):
    where = shutil.copytree(values.run.local, tmp_path_factory.mktemp("whole") / "run")
    run = Run(where)
    from raypipe.ensembles.fit import fit_ensemble

    fit_ensemble(run.store, windows=values.windows, top=2).save()
    return where


def in_a_copy(source: Path, root: Path, attempt):
    """Call ``attempt(copy)`` with a copy of a folder that is removed afterwards."""
    drawn = root / "drawn"  # damage puts files beside the copy
    shutil.rmtree(drawn, ignore_errors=True)
    shutil.copytree(source, drawn / "copy")
    try:
        return attempt(drawn / "copy")
    finally:
        shutil.rmtree(drawn)


BUNDLES, SUBMISSIONS, RUNS = (60, None), (60, None), (40, None)
LONG = [pytest.param(200, seconds, marks=[pytest.mark.long, pytest.mark.timeout(1200)]) for seconds in (150,)]


@pytest.mark.parametrize(("count", "seconds"), [BUNDLES, *LONG])
def test_hostile_bundles_are_one_line_or_predict_finite_numbers(whole_bundle, tmp_path, count, seconds):
    def attempt(data):
        return in_a_copy(whole_bundle, tmp_path, lambda copy: try_bundle(copy, data.draw))

    play("bundles", attempt, count, seconds)


@pytest.mark.parametrize(("count", "seconds"), [SUBMISSIONS, *LONG])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_submissions_are_reported_line_by_line(zip_files, tmp_path, monkeypatch, count, seconds):
    def attempt(data):
        return try_submission(tmp_path / "hostile.zip", zip_files, data.draw, monkeypatch)

    play("submissions", attempt, count, seconds)


@pytest.mark.parametrize(("count", "seconds"), [RUNS, *LONG])
def test_hostile_runs_are_one_line(whole_run, tmp_path, count, seconds):
    def attempt(data):
        return in_a_copy(whole_run, tmp_path, lambda copy: try_run(copy, data.draw, data))

    play("runs", attempt, count, seconds)
