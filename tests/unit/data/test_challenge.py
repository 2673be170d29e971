from __future__ import annotations

import random
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.challenge import MIN_COPIED_TRIALS, NO_FEEDBACK, contrast_trials, copied_trials, scorer_offsets
from raypipe.data.prepare import prepare
from raypipe.data.target_base import Labels, TargetSpec, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.recordings.recording import Recording
from raypipe.simulation.contrast_change import simulate

LAYOUT = WindowTiming(2.0, 2.0, 0.5)
START, LEFT, RIGHT = "contrastTrial_start", "left_target", "right_target"
PRESS = "left_buttonPress"


def events(*rows):
    return pd.DataFrame(rows, columns=["onset", "value"]).astype({"onset": float})


def write(root, run, text, subject="a"):
    path = root / f"sub-{subject}_task-contrastChangeDetection_run-{run}_eeg.bdf"
    path.with_name(path.name.replace("eeg.bdf", "events.tsv")).write_text(text)
    return Recording(path, root, subject, task="contrastChangeDetection", run=str(run))


def block(rts, begin=0.0, header="onset\tvalue\tfeedback"):
    lines = [header]
    for number, rt in enumerate(rts):
        at = begin + 6 * number
        lines += [f"{at}\t{START}\tn/a", f"{at + 2.8}\t{LEFT}\tn/a", f"{at + 2.8 + rt}\t{PRESS}\tsmiley_face"]
    lines.append(f"{begin + 6 * len(rts)}\t{START}\tn/a")
    return "\n".join(lines) + "\n"


# Irregularities of real event files


def test_the_last_start_begins_no_trial():
    assert len(contrast_trials(events((0, START), (2, LEFT), (3, PRESS)))) == 0


def test_a_press_before_the_target_is_no_response_but_makes_the_trial_early():
    table = contrast_trials(events((0, START), (1, PRESS), (2, LEFT), (3.5, PRESS), (5, START), (7, RIGHT), (8, START)))
    assert table["rt"].tolist()[0] == 1.5 and np.isnan(table["rt"][1])
    assert table["early"].tolist() == [True, False]


def test_a_press_in_the_next_trial_is_no_response_to_this_one():
    assert np.isnan(contrast_trials(events((0, START), (2, LEFT), (3, START), (3.1, PRESS), (9, START)))["rt"][0])


def test_response_times_are_measured_from_the_first_target():
    table = contrast_trials(events((0, START), (2, LEFT), (2.5, RIGHT), (4, "right_buttonPress"), (6, START)))
    assert table["rt"].tolist() == [2.0]


def test_response_times_of_zero_and_before_the_window_are_kept():
    table = contrast_trials(
        events((0, START), (2, LEFT), (2, PRESS), (4, START), (5, LEFT), (5.006, PRESS), (7, START))
    )
    assert table["rt"].round(3).tolist() == [0.0, 0.006]


def test_rows_out_of_order_are_sorted_by_onset():
    table = contrast_trials(events((6, START), (3.5, PRESS), (2, LEFT), (0, START)))
    assert table["rt"].tolist() == [1.5]


@pytest.mark.parametrize("stray", ["break cnt", "9999", "boundary", "IEND", "IBEG", "net", "video_start", "n/a"])
def test_stray_values_change_nothing(stray):
    plain = [(0, START), (2, LEFT), (3.5, PRESS), (6, START)]
    with_stray = [row for onset, value in plain for row in ((onset, value), (onset + 0.1, stray))]
    pd.testing.assert_frame_equal(contrast_trials(events(*plain)), contrast_trials(events(*with_stray)))


def test_the_sample_column_is_optional_and_missing_feedback_is_counted(tmp_path):
    target = parse_target("challenge1")
    whole = write(tmp_path, 1, block([1.5]))
    onsets = [each.onset for each in target.segment(whole, 99, LAYOUT, Labels("regression")).segments]
    sample = "\n".join(line + ("\tsample" if n == 0 else "\t7") for n, line in enumerate(block([1.5]).splitlines()))
    with_sample = write(tmp_path, 2, sample + "\n")
    assert [s.onset for s in target.segment(with_sample, 99, LAYOUT, Labels("regression")).segments] == onsets
    bare = "\n".join(line.rpartition("\t")[0] for line in block([1.5]).splitlines())
    cut = target.segment(write(tmp_path, 3, bare + "\n"), 99, LAYOUT, Labels("regression"))
    assert [s.onset for s in cut.segments] == onsets and +cut.left_out == {NO_FEEDBACK: 1}


def test_copies_of_an_earlier_block_are_left_out_of_a_joined_run(tmp_path):
    """285 real runs have two blocks with 9999 between them; 277 subjects have a run that repeats trials of another."""
    one, two = [1.1, 1.2, 1.3, 1.4, 1.5, 1.6], [1.6, 1.5, 1.75, 1.2, 1.05, 1.9]
    write(tmp_path, 1, block(one))
    joined = block(one) + "37\t9999\tn/a\n" + "\n".join(block(two, begin=40).splitlines()[1:]) + "\n"
    run = write(tmp_path, 2, joined)
    target = parse_target("challenge1")
    # The last start of the first block begins a trial without a target, which lasts until the second block.
    plain = target.segment(run, 199, LAYOUT, Labels("regression"))
    assert len(plain.segments) == 12 and plain.left_out["trials without a target"] == 1
    option = parse_target("challenge1:drop-duplicates")
    fresh = option.segment(run, 199, LAYOUT, Labels("regression"))
    assert [round(s.target, 2) for s in fresh.segments] == two
    assert fresh.left_out["trials of a block that an earlier run repeats"] == 6
    assert [p.name for p in option.extra_files(run)] == ["sub-a_task-contrastChangeDetection_run-1_events.tsv"]
    assert target.extra_files(run) == []


@given(st.lists(st.integers(0, 3), min_size=0, max_size=14), st.lists(st.integers(0, 3), min_size=0, max_size=14))
def test_copies_are_consecutive_equal_trials(own, other):
    def table(values):
        return pd.DataFrame({"start": 0.0, "stimulus": 2.0, "rt": [1 + v / 10 for v in values]}, dtype=float)

    expected = np.zeros(len(own), bool)
    for i in range(len(own) - MIN_COPIED_TRIALS + 1):
        for j in range(len(other) - MIN_COPIED_TRIALS + 1):
            if own[i : i + MIN_COPIED_TRIALS] == other[j : j + MIN_COPIED_TRIALS]:
                expected[i : i + MIN_COPIED_TRIALS] = True
    assert copied_trials(table(own), [table(other)]).tolist() == expected.tolist()


def test_early_presses_are_marked_on_request(tmp_path):
    run = write(
        tmp_path, 1, f"onset\tvalue\tfeedback\n0\t{START}\t\n1\t{PRESS}\t\n2\t{LEFT}\t\n3\t{PRESS}\t\n5\t{START}\t\n"
    )
    marks = [
        [s.mark for s in parse_target(spec).segment(run, 99, LAYOUT, Labels("regression")).segments]
        for spec in ("challenge1", "challenge1:mark-early")
    ]
    assert marks == [[""], ["early"]]


# Challenge 2


def test_scorer_offsets_equal_draws_of_the_scorers_generator():
    draw = random.Random(42)
    assert scorer_offsets(50, 200) == [draw.randint(0, 200) for _ in range(50)]
    assert scorer_offsets(3, 200) == scorer_offsets(50, 200)[:3] and scorer_offsets(2, 0) == [0, 0]


def test_challenge2_needs_a_table_with_the_factor(tmp_path):
    target = parse_target("challenge2")
    run = write(tmp_path, 1, "")
    with pytest.raises(UserError, match=r"participants\.tsv: no such file"):
        target.read_labels([run])
    (tmp_path / "participants.tsv").write_text("participant_id\tp_factor\nsub-a\t1\n")
    with pytest.raises(UserError, match="no column 'externalizing'"):
        target.read_labels([run])
    (tmp_path / "participants.tsv").write_text("participant_id\texternalizing\nsub-a\tn/a\nsub-b\t0.5\n")
    with pytest.raises(UserError, match=r"0 subject\(s\) have a value of"):
        target.read_labels([run])


def test_challenge2_can_use_recordings_of_other_tasks():
    assert parse_target("challenge2").bids_tasks == ("contrastChangeDetection",)
    asked = TargetSpec(target="challenge2:no-caution", bids_task=("RestingState", "ThePresent"))
    assert parse_target(asked).bids_tasks == ("RestingState", "ThePresent")


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory):
    """Write R1 and R5 side by side, with different subjects; one of R5 has no factor."""
    root = tmp_path_factory.mktemp("releases")
    simulate(root / "R1_mini_L100_bdf", subjects=3, channels=4, trials=3)
    later = simulate(root / "R5_mini_L100_bdf", subjects=3, channels=4, trials=3, seed=1)
    for path in sorted(later.rglob("*SIM*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.replace("SIM", "NEW")))
    table = later / "participants.tsv"
    rows = [line.split("\t") for line in table.read_text().replace("SIM", "NEW").splitlines()]
    rows[1][rows[0].index("externalizing")] = "n/a"
    table.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    return root


def test_two_releases_make_one_store(two_releases, tmp_path):
    store = prepare(two_releases, "challenge2", tmp_path / "store", jobs=1)
    plan = store.manifest.plan
    assert (plan.window_samples, plan.crop_samples, plan.stride, plan.crops) == (400, 200, 2.0, "scorer")
    assert store.releases["SIM0000"] == "R1" and store.releases["NEW0001"] == "R5" and "NEW0000" not in store.releases
    assert store.manifest.accounting.counts()["of a subject without a target"] == 1
    for _, rows in store.table.groupby("recording"):
        assert rows["onset"].tolist() == [2.0 * i for i in range(len(rows))]
        assert rows["offset"].tolist() == scorer_offsets(len(rows), 200)
    again = prepare(
        [two_releases / "R5_mini_L100_bdf", two_releases / "R1_mini_L100_bdf"], "challenge2", tmp_path / "b", jobs=1
    )
    assert sorted(again.subjects) == sorted(store.subjects)
    (tmp_path / "link").symlink_to(two_releases / "R1_mini_L100_bdf")
    assert len(prepare([two_releases, tmp_path / "link"], "challenge2", tmp_path / "d", jobs=1)) == len(store)
    shutil.copytree(two_releases / "R1_mini_L100_bdf", tmp_path / "copy")
    twice = prepare([two_releases, tmp_path / "copy"], "challenge2", tmp_path / "c", jobs=1)
    assert sum("with the same samples" in note for note in twice.manifest.accounting.notes) == 3
    assert {"copy/SIM0000", "R1_mini_L100_bdf/SIM0000"} <= set(twice.subjects)


def test_the_table_has_no_column_of_marks_without_marks(two_releases, tmp_path):
    plain = prepare(two_releases, "challenge1", tmp_path / "plain", jobs=1)
    assert "mark" not in plain.table and Counter(plain.releases.values()) == {"R1": 3, "R5": 3}
