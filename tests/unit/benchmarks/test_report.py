"""Ratios within rounds, goals, comparisons and tables of benchmarks."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import report


def made(**ratios):
    found = report.result("a title")
    for name, (peer, ours) in ratios.items():
        report.add_ratio(found, name, peer, ours)
    return found


def test_a_ratio_is_taken_within_rounds_so_that_other_load_cancels():
    found = report.result("a title")
    assert report.add_ratio(found, "ours / peer", [2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == 2.0
    assert found["ratios"]["ours / peer"] == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 3}


@pytest.mark.parametrize(
    ("peer", "lines"),
    [
        ([2.0, 2.0, 2.0], 0),
        ([1.97, 1.97, 1.97], 0),  # less than the least spread
        ([1.9, 1.9, 1.9], 1),
        ([1.9, 1.5, 2.1], 0),  # more than the least spread, but less than this one's own
        ([3.0, 3.0, 3.0], 0),
    ],
)
def test_a_ratio_is_worse_by_more_than_the_spread_only(peer, lines):
    old, new = made(ours=([2.0] * 3, [1.0] * 3)), made(ours=(peer, [1.0] * 3))
    assert bool(report.worse(old["ratios"]["ours"], new["ratios"]["ours"])) == lines


@pytest.mark.parametrize(("measured", "met", "cell"), [(5.0, True, "met"), (4.9, False, "not met"), (None, None, "")])
def test_a_goal_is_met_or_not_or_not_measured(measured, met, cell):
    found = report.result("a title")
    report.add_goal(found, "stacked / one by one", measured, 5.0)
    assert found["goals"][0]["met"] is met
    assert report.goal_row(found["goals"][0])[-1] == cell


def test_the_text_has_everything_as_tables_and_the_file_has_the_same(tmp_path, capsys):
    def measure(args):
        found = made(ours=([2.0, 2.0], [1.0, 1.0]))
        report.add_times(found, {"a way": [0.001, 0.003]})
        report.add_table(found, "a simulation", ("n", "p"), [("12", "0.05")])
        report.add_goal(found, "a goal", 2.0, 1.0)
        found["figures"]["GB/s"] = 12.5
        found["rooflines"]["a step"] = {"floor (ms)": 1.5, "share": 0.25}
        found["missing"]["a peer"] = "it is not installed"
        return found

    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    report.main(parser, measure, ["--json", str(tmp_path / "new" / "found.json")])
    shown = capsys.readouterr().out
    for line in (
        "a title",
        "| a way | 2.000 |",
        "| ours ",
        "| 12 | 0.05 |",
        "| a goal |",
        "12.5",
        "not measured, it is not",
    ):
        assert line in shown
    saved = json.loads((tmp_path / "new" / "found.json").read_text())
    assert saved["settings"] == {"batch": 8}
    assert saved["ratios"]["ours"]["median"] == 2.0
    assert report.text(saved).strip() == shown.strip()


def test_a_contestant_that_fails_is_left_out_and_the_result_says_why():
    def breaks():
        raise RuntimeError("out of memory\nand more")

    found = report.result("a title")
    left = report.build(
        found, {"fine": lambda: list, "in building": breaks, "when called": lambda: breaks}, "batch 8: "
    )
    assert list(left) == ["fine"]
    why = "it failed with RuntimeError: out of memory"
    assert found["missing"] == {"batch 8: in building": why, "batch 8: when called": why}
    assert report.has_failed(found)
    assert not report.has_failed({"missing": {"a peer": "it is not installed"}})


def test_a_run_that_is_cut_off_leaves_its_parts_so_far(tmp_path):
    def measure(args):
        args.so_far(made(first=([2.0, 2.0], [1.0, 1.0])))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.main(argparse.ArgumentParser(), measure, ["--json", str(tmp_path / "found.json")])
    assert list(json.loads((tmp_path / "found.json").read_text())["ratios"]) == ["first"]
