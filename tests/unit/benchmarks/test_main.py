"""`make bench`: all benchmarks by one command."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import benchmarks.__main__ as bench
from benchmarks import draws, report
from benchmarks.runner import Job, measure
from benchmarks.toys import ToyWindows, make_run
from raypipe.core.search_space import load_space
from raypipe.core.shipped import shipped_space

ROOT = Path(__file__).parents[3]


def results(path, job, peer):
    found = report.result("a title")
    report.add_ratio(found, "ours / peer", peer, [1.0, 1.0, 1.0])
    report.save(path, {"results": [found | {"job": job}]})
    return json.loads(path.read_text())


def compared(path, new):
    return "\n".join(bench.compare(bench.earlier_results([path]), new))


def test_ratios_are_compared_by_benchmark(tmp_path):
    results(old := tmp_path / "2026-01-01.json", "step", [2.0, 2.0, 2.0])
    worse = compared(old, results(tmp_path / "new.json", "step", [1.0, 1.0, 1.0]))
    assert worse.endswith("1 ratios:\nstep: ours / peer: 1.00, was 2.00 (spread 0.04) in 2026-01-01.json")
    as_good = compared(old, results(tmp_path / "good.json", "step", [2.0, 2.0, 2.0]))
    assert as_good == "\nNone of 1 ratios is worse than before by more than its spread."
    other = results(tmp_path / "other.json", "folds", [1.0, 1.0, 1.0])
    assert compared(old, other) == "Compared with nothing: folds.", "and nothing is claimed"


def test_seconds_are_not_compared_and_neither_is_what_has_no_spread_or_no_predecessor(tmp_path):
    first, second = report.result("a title"), report.result("a title")
    report.add_ratio(first, "once", [9.0], [1.0])
    report.add_ratio(second, "once", [1.0], [1.0])
    report.add_ratio(second, "added", [1.0, 1.0], [1.0, 1.0])
    report.add_times(first, {"a": [1.0, 1.0]})
    report.add_times(second, {"a": [9.0, 9.0]})
    report.save(tmp_path / "first.json", {"results": [first | {"job": "step"}]})
    assert compared(tmp_path / "first.json", {"results": [second | {"job": "step"}]}) == "Compared with nothing: step."


def test_a_ratio_that_is_not_measured_is_said_and_the_next_one_is_compared_with_the_last_that_was(tmp_path):
    results(old := tmp_path / "2026-01-01.json", "step", [30.0] * 3)
    without = report.result("a title")
    report.add_ratio(without, "ours / other", [2.0] * 3, [1.0] * 3)
    report.save(tmp_path / "2026-01-02.json", new := {"results": [without | {"job": "step"}]})
    assert "Not measured this time: step: ours / peer." in compared(old, new)
    slow = results(tmp_path / "slow.json", "step", [3.0] * 3)
    lines = bench.compare(bench.earlier_results(tmp_path.glob("2026*.json")), slow)
    assert "step: ours / peer: 3.00, was 30.00 (spread 0.60) in 2026-01-01.json" in lines
    assert "Not measured this time: step: ours / other." in lines


def test_each_benchmark_is_compared_with_its_last_result_however_that_run_ended(tmp_path):
    results(tmp_path / "2026-01-01.json", "folds", [3.0, 3.0, 3.0])
    for number in (9, 10):
        results(tmp_path / f"2026-01-01-{number}.json", "step", [float(number)] * 3)
    report.save(tmp_path / "2026-01-02.json", {"results": [{"job": "step", "failed": "killed"}]})
    found = bench.earlier_results(tmp_path.glob("*.json"))
    assert {job: path.stem for (job, _), (path, _) in found.items()} == {"folds": "2026-01-01", "step": "2026-01-01-10"}


def test_results_of_a_day_are_numbered(tmp_path):
    first = bench.new_file(tmp_path)
    assert first.name == f"{date.today()}.json"
    first.write_text("{}")
    (tmp_path / "2026-01-01.json").write_text("{}")
    second = bench.new_file(tmp_path)
    assert second.name == f"{date.today()}-2.json"


def test_every_script_runs_by_it_or_is_listed_with_its_command(capsys, monkeypatch):
    helpers = {"__init__", "__main__", "report", "roofline", "runner", "timing", "toys", "peers", "processes"}
    scripts = (
        {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - helpers - {"simulated_sweep", "simulated_groups"}
    )
    assert scripts == {job.module for job in bench.JOBS + bench.LONG} | set(bench.ELSEWHERE) - {"chaos"}
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--list"])
    assert bench.main() == 0
    assert "make chaos" in capsys.readouterr().out


def test_benchmarks_import_no_tests():
    code = (
        "import importlib, pathlib, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tests', 'pytest'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "for path in pathlib.Path('benchmarks').glob('*.py'): importlib.import_module(f'benchmarks.{path.stem}')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_of_them_run_with_small_sizes(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [each["job"] for each in found] == [job.name for job in bench.JOBS]
    assert not [each for each in found if "failed" in each]


def test_a_quick_run_of_one_is_compared_only_when_asked(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "ranking", "--out"]
    first = subprocess.run([*command, str(tmp_path / "a.json")], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "orse than" not in first.stdout
    against = [str(tmp_path / "b.json"), "--against", str(tmp_path / "a.json")]
    second = subprocess.run([*command, *against], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "Compared with nothing: ranking." in second.stdout, "it has no ratios"


def test_a_result_is_found_wherever_the_command_is_given(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    found = measure(Job("ranking", "ranking", ("--quick",)), Path("there"), 300)
    assert "failed" not in found and found["tables"] and (tmp_path / "there" / "ranking.json").is_file()


def test_the_queue_draws_in_the_benchmark_of_draws():
    space = load_space(shipped_space("focal_mixup_sam"))
    trials = draws.ended_trials(space, 30)
    with TemporaryDirectory() as folder:
        queue = draws.queue_of(make_run(Path(folder) / "run", ToyWindows(subjects=20), space=space.source), trials)
        first = len(trials) + len(space.start)
        assert [draws.draw_by_queue(queue) for _ in range(3)] == [first, first + 1, first + 2]
        queue.put_back(first)
        with pytest.raises(RuntimeError, match=f"has handed out trial {first}, and drawn none"):
            draws.draw_by_queue(queue)


def test_a_script_that_only_prints_has_what_it_printed_as_its_result(tmp_path):
    job = Job("coverage", "interval_coverage", ("--quick",), saves=False)
    assert "6 people" in measure(job, tmp_path, 300)["text"]
