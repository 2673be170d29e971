"""Times of trials: intervals between interruptions, pauses, and how the time was used."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from raypipe.reporting.sections.time_use import measure_time_use
from raypipe.reporting.trial_spans import find_pauses, merge_intervals, trial_spans
from raypipe.storage.driver_record import DriverRecord
from raypipe.storage.files import write_record
from raypipe.storage.lease import DRIVER_FILE
from raypipe.storage.records import trial_file
from raypipe.storage.trial_log import start_text
from tests.support.toys import ToyWindows, add_ended, make_run

START = 1_760_000_000.0


def log(run, number, who, *entries):
    lines = [f"{datetime.fromtimestamp(START + at, UTC):%Y-%m-%dT%H:%M:%S.000000Z} {text}\n" for at, text in entries]
    run.folder.write(trial_file(number, f"log/{who}.txt"), "".join(lines).encode())


@pytest.fixture
def run(tmp_path):
    """Trial 0 by two workers, interrupted after its second epoch and resumed; then trial 1, without a log."""
    made = make_run(tmp_path / "run", ToyWindows())
    for number, requested, ended in ((0, 0, 1000), (1, 1000, 1100)):
        add_ended(made, number, 1.0)
        record = made.record(number).model_copy(update={"started": START + requested})
        write_record(made.folder, trial_file(number, "trial.json"), record)
        made.write_result(made.result(number).model_copy(update={"finished": START + ended}))
    for worker in range(2):
        entries = (30 + worker, start_text("folds 0 on cpu", 0)), (900 + worker, start_text("folds 0 on cpu", 2))
        log(made, 0, f"group-0-worker-{worker}", *entries)
    return made


def test_an_interrupted_trial_has_two_intervals(run):
    first, second = trial_spans(run, run.results())
    assert first.workers == 2 and first.resumed == [START + 900]
    # Two epochs of ten seconds, shared by two workers, then nothing until it is resumed.
    assert first.trained == [(START + 30, START + 40), (START + 900, START + 1000)]
    assert second.workers == 0 and second.trained == [(START + 1000, START + 1100)]


def test_pauses_between_intervals_are_found(run):
    found = trial_spans(run, run.results())
    assert find_pauses(found) == [(START + 40, START + 900)]
    assert find_pauses([]) == [] and merge_intervals([(3, 4), (0, 1), (1, 2)]) == [(0, 2), (3, 4)]


def test_the_time_use_adds_up(run):
    use = measure_time_use(run, trial_spans(run, run.results()))
    assert (use.wall, use.busy, use.driven) == (1100.0, 10.0 + 200.0, None)
    assert (use.assigned, use.trained) == (2 * 110.0, 40.0)
    times = {"started": 0.0, "beat": 0.0, "spent": 300.0, "gpu_hours": 0.0}
    write_record(run.folder, DRIVER_FILE, DriverRecord(id="x", host="there", pid=1, ended=True, **times))
    assert measure_time_use(run, trial_spans(run, run.results())).driven == 300.0


def test_a_log_that_has_lost_its_beginning(run):
    log(run, 0, "group-0-worker-0", (900, start_text("folds 0 on cpu", 2)))
    log(run, 0, "group-0-worker-1")
    first = trial_spans(run, run.results())[0]
    assert first.resumed == [START + 900] and first.trained[0] == (START, START + 20)
