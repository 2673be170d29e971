"""Trials on the clock: pieces between interruptions, pauses, and where the time went."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from raypipe.reporting.timeline import account, breaks, spans, together
from raypipe.storage.files import write_json, write_record
from raypipe.storage.lease import DRIVER_FILE, DriverRecord
from raypipe.storage.records import trial_file
from tests.support.toys import ToyWindows, add_ended, make_run

START = 1_760_000_000.0


def say(run, number, who, *entries):
    lines = [f"{datetime.fromtimestamp(START + at, UTC):%Y-%m-%dT%H:%M:%S.000000Z} {text}\n" for at, text in entries]
    run.folder.write(trial_file(number, f"log/{who}.txt"), "".join(lines).encode())


@pytest.fixture
def run(tmp_path):
    """Trial 0 by two workers, interrupted after its second epoch and taken up again; then trial 1, without a log."""
    made = make_run(tmp_path / "run", ToyWindows())
    for number, asked, ended in ((0, 0, 1000), (1, 1000, 1100)):
        add_ended(made, number, 1.0)
        record = made.record(number).model_copy(update={"started": START + asked})
        write_json(made.folder, trial_file(number, "trial.json"), record.model_dump(mode="json"))
        made.write_result(made.result(number).model_copy(update={"finished": START + ended}))
    for worker in range(2):
        taken = (30 + worker, "folds 0 on cpu: starts"), (900 + worker, "folds 0 on cpu: goes on after epoch 2")
        say(made, 0, f"group-0-worker-{worker}", *taken)
    return made


def test_an_interrupted_trial_is_in_pieces(run):
    first, second = spans(run, run.results())
    assert first.workers == 2 and first.taken_up == [START + 900]
    # Two epochs of ten seconds, shared by two workers, then nothing until it is taken up.
    assert first.pieces == [(START + 30, START + 40), (START + 900, START + 1000)]
    assert second.workers == 0 and second.pieces == [(START + 1000, START + 1100)]


def test_a_pause_in_which_nobody_was_at_work(run):
    found = spans(run, run.results())
    assert breaks(found) == [(START + 40, START + 900)]
    assert breaks([]) == [] and together([(3, 4), (0, 1), (1, 2)]) == [(0, 2), (3, 4)]


def test_the_account_adds_up(run):
    spent = account(run, spans(run, run.results()))
    assert (spent.wall, spent.busy, spent.driven) == (1100.0, 10.0 + 200.0, None)
    assert (spent.held, spent.trained) == (2 * 110.0, 40.0)
    times = {"started": 0.0, "beat": 0.0, "spent": 300.0, "gpu_hours": 0.0}
    write_record(run.folder, DRIVER_FILE, DriverRecord(id="x", host="there", pid=1, ended=True, **times))
    assert account(run, spans(run, run.results())).driven == 300.0


def test_a_log_that_has_lost_its_beginning(run):
    say(run, 0, "group-0-worker-0", (900, "folds 0 on cpu: goes on after epoch 2"))
    say(run, 0, "group-0-worker-1")
    first = spans(run, run.results())[0]
    assert first.taken_up == [START + 900] and first.pieces[0] == (START, START + 20)
