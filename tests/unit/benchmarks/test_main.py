"""`make bench`: all benchmarks by one command."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

import benchmarks.__main__ as bench
from benchmarks import report
from benchmarks.runner import Job, measure

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
    assert worse.endswith("before:\na title: ours / peer: 1.00, was 2.00 (spread 0.04) in 2026-01-01.json")
    as_good = compared(old, results(tmp_path / "good.json", "step", [2.0, 2.0, 2.0]))
    assert "No ratio is worse" in as_good and "nothing" not in as_good
    other = results(tmp_path / "other.json", "folds", [1.0, 1.0, 1.0])
    assert compared(old, other).endswith("Compared with nothing: folds.")


def test_each_benchmark_is_compared_with_its_last_result_however_that_run_ended(tmp_path):
    results(tmp_path / "2026-01-01.json", "folds", [3.0, 3.0, 3.0])
    for number in (9, 10):
        results(tmp_path / f"2026-01-01-{number}.json", "step", [float(number)] * 3)
    report.save(tmp_path / "2026-01-02.json", {"results": [{"job": "step", "failed": "killed"}]})
    found = bench.earlier_results(tmp_path.glob("*.json"))
    assert {job: path.stem for job, (path, _) in found.items()} == {"folds": "2026-01-01", "step": "2026-01-01-10"}


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
    assert "No ratio is worse" in second.stdout


def test_a_script_that_only_prints_has_what_it_printed_as_its_result(tmp_path):
    job = Job("coverage", "interval_coverage", ("--quick",), saves=False)
    assert "6 people" in measure(job, tmp_path, 300)["text"]
