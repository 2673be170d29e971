"""Whatever is damaged in a run's folder: it is refused in one line, or the same numbers come out."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.cli.doctor import diagnose
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions, parse_options
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.reconcile import open_study
from raypipe.search.run_setup import check_unchanged
from raypipe.search.study import StudyQueue
from raypipe.search.sweep import recorded_options, recount_usage
from raypipe.storage.journal import JOURNAL_FILE
from raypipe.storage.lease import DRIVER_FILE, Lease
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.training.result import Reply
from raypipe.trial.autotune import ComputePlan
from raypipe.trial.callback import SweepCallback
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.failures import DrawError
from raypipe.trial.fold_runner import FoldRunner
from tests.support.damage import KINDS, damage
from tests.support.records import edit_record
from tests.support.toys import SPACE, ToyWindows, break_off, make_run, write_store

TRIALS, SPENT = 8, 1000.0


class Said(SweepCallback):
    """What a driver says about the study."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def on_warning(self, line):
        self.warnings.append(line)

    def on_study_rebuilt(self, reason, trials, again):
        self.lines.append(f"{reason}; {again}")


def open_queue(run, windows, said):
    return StudyQueue(run, windows, open_study(run, said), trials=TRIALS, pruner=SuccessiveHalving(1, 2))


def train(queue, number, limit=99):
    """Train a trial as the backend does: each epoch is scored and observed; return whether it was interrupted."""
    run, windows = queue.run, queue.windows
    evaluator, ends = TrialEvaluator(run, windows, number), queue.awaited_end(number)
    reasons = []

    def report(epoch, outcomes):
        evaluator.add_epoch(epoch, outcomes)
        if ends is None and not queue.observe(number):
            reasons.append(queue.early_end(number))
        return Reply(not (ends or reasons or evaluator.over), evaluator.best)

    if ends or not evaluator.over:
        FoldRunner(run, WindowLoader(windows, "cpu"), number, range(run.folds.n_folds)).train(
            evaluator.done - (ends is not None), report
        )
    queue.close(number, *(ends or next(iter(reasons), ("complete", "trained to the end"))))


def continue_run(where, windows, said):
    """Continue a run to its end, as `raypipe resume` does, without Ray."""
    run = RunStore.open(where)
    options = parse_options(recorded_options(run))
    check_unchanged(run, windows, run.space, options)
    with Lease(run.folder, run=run.run_id, on_lost=lambda: recount_usage(run, options, said)) as lease:
        queue = open_queue(run, windows, said)
        assert lease.spent >= SPENT or said.warnings, "spent time is forgotten"
        while True:
            try:
                number = queue.next()
            except DrawError:
                continue
            if number is None:
                return run
            train(queue, number)


def numbers_of(run):
    """Return all numbers of a run that has ended."""
    study = open_study(run, SweepCallback()).get_all_trials(0)
    found = {}
    run.require_whole(run.numbers())
    for result in run.results():
        number = result.number
        oof = None if result.state == "failed" else run.oof(number).predictions
        folds = range(run.folds.n_folds) if result.state == "complete" else ()
        weights = [run.weights(number, fold) for fold in folds]
        history = [(e.score, e.fold_scores, e.losses) for e in run.history(number)]
        found[number] = (run.config(number), result.state, result.score, history, oof, weights)
    ends = [(t.number, t.state, t.values, t.params, t.intermediate_values, t.system_attrs) for t in study]
    ensemble = Ensemble.load(run)
    looks = [evaluation.method for evaluation in read_evaluations(run)]
    shipped = ensemble.members, ensemble.weights, ensemble.held_out.predictions, ensemble.table_record()
    if not looks:
        raise UserError("the log of scorings is lost")
    run.compute(ComputePlan, "0")  # if it is lost, it is measured again
    return found, ends, looks, shipped


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool((one == other).all()) if hasattr(one, "all") else one == other


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    return WindowStore(write_store(tmp_path_factory.mktemp("windows") / "store", ToyWindows(subjects=8, each=4)))


@pytest.fixture(scope="module")
def left(tmp_path_factory, windows):
    """A run with an ensemble whose driver was killed: five trials and a rerun have ended, one has two epochs."""
    root = tmp_path_factory.mktemp("damage")
    run = make_run(root / "run", windows, space=SPACE)
    edit_record(run.folder, "run.json", {"data": windows.where})
    write_options(run.folder, SweepOptions(trials=TRIALS, folds=3).model_dump(mode="json"), run.run_id)
    run = RunStore.open(root / "run")
    queue = open_queue(run, windows, SweepCallback())
    for _ in range(5):
        train(queue, queue.next())
    queue.enqueue_reruns(1, 1)
    queue.trials = TRIALS
    train(queue, queue.next())
    fit_ensemble(run, windows=windows, top=2, method="confidence").save()
    number = queue.next()
    break_off(run, windows, number, 2)
    queue.observe(number)
    states = [result.state for result in run.results()]
    assert "pruned" in states and "complete" in states
    choice = ComputePlan(key="0", stem="direct", stacked=False, what="toy", seconds={})
    run.write_compute("0", choice)
    with Lease(run.folder, run=run.run_id):
        pass
    edit_record(run.folder, DRIVER_FILE, {"spent": SPENT, "gpu_hours": 1.0})
    return root / "run"


@pytest.fixture(scope="module")
def undisturbed(left, windows, tmp_path_factory):
    where = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(left, where)
    return numbers_of(continue_run(where, windows, SweepCallback()))


def check(left: Path, where: Path, windows, undisturbed, harm: Callable[[Path], str], counts) -> None:
    """Damage a copy of the run, and check what comes out."""
    shutil.copytree(left, where)
    done = harm(where)
    said = Said()
    try:
        run = continue_run(where, windows, said)
    except UserError as error:
        require_found(where, done, error)
        counts["refused by resume, found by doctor"] += 1
        return
    try:
        numbers = numbers_of(run)
    except UserError as error:
        require_found(where, done, error)
        counts["refused where it is read, found by doctor"] += 1
        return
    assert same(numbers, undisturbed), (done, said.lines)
    counts["rebuilt" if said.lines else "as before"] += 1


def require_found(where, done, error):
    assert "\n" not in str(error), done
    found = [finding.what for finding in diagnose(where) if finding.level == "broken"]
    assert found, (done, str(error))
    assert not any("Errno" in what for what in found), (done, found)


def drawn(count):
    return settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))


def play(count, left, windows, undisturbed, tmp_path_factory):
    counts = collections.Counter()

    @drawn(count)
    @given(data=st.data())
    def one(data):
        where = tmp_path_factory.mktemp("damaged") / "run"
        try:
            check(left, where, windows, undisturbed, lambda place: damage(place, data), counts)
        finally:
            shutil.rmtree(where.parent)

    one()
    print(f"\n{sum(counts.values())} damages of {len(KINDS)} kinds: {dict(counts)}; 0 tracebacks, 0 silent changes")


@pytest.mark.parametrize("name", ["history.json"])
def test_a_lost_file_of_the_trial_under_way_is_made_again(left, windows, undisturbed, tmp_path, name):
    counts = collections.Counter()

    def delete(where):
        (where / "trials/0006" / name).unlink()
        return f"delete {name}"

    check(left, tmp_path / "run", windows, undisturbed, delete, counts)
    assert not any("refused" in what for what in counts), counts


def _changed(place, **changes):
    """Change entries of a line of the journal, counted from its end."""

    def change(lines):
        return [*lines[:place], _line(lines, place, changes), *lines[len(lines) + place + 1 :]]

    return change


def _added(place, **changes):
    """Add a line to the journal that is another one but for these entries."""
    return lambda lines: [*lines, _line(lines, place, changes)]


def _line(lines, place, changes):
    entry = {name: value for name, value in (json.loads(lines[place]) | changes).items() if value is not None}
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _attribute(**value):
    return _added(-1, op_code=8, step=None, intermediate_value=None, user_attr=value)


NEW = {"datetime_start": "2026-11-29T06:12:20.495874+00:00"}
EDITS = {
    "a later step": _changed(-1, step=4),
    "a step beyond the last epoch": _changed(-1, step=9),
    "a step before it, later": _changed(-2, step=3),
    "another score": _changed(-1, intermediate_value=0.5),
    "a step of another trial": _changed(-1, trial_id=5),
    "a step more": _added(-1, step=3, intermediate_value=0.5),
    "a good step more": _added(-1, step=4, intermediate_value=0.01),
    "a step far away": _added(-1, step=10**9),
    "ended": _attribute(ended="COMPLETE"),
    "pruned": _attribute(ended="PRUNED"),
    "stopped": _attribute(stopped_at={"epochs": 3, "reason": "x"}),
    "stopped, of another form": _attribute(stopped_at=3),
    "complete in the study": _added(-1, op_code=6, step=None, intermediate_value=None, state=1, values=[0.9]),
    "pruned in the study": _added(-1, op_code=6, step=None, intermediate_value=None, state=2, values=[0.9]),
    "failed in the study": _added(-1, op_code=6, step=None, intermediate_value=None, state=3),
    "another parameter": _changed(-4, param_value_internal=0.0098),
    "a trial more": _added(-5, **NEW),
    "a trial more with a parameter": lambda lines: _added(-5, trial_id=7, param_value_internal=0.005)(
        _added(-5, **NEW)(lines)
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_in_what_the_journal_has_of_the_trial_under_way_changes_nothing(
    left, windows, undisturbed, tmp_path, edit
):
    counts = collections.Counter()

    def change(where):
        path = where / JOURNAL_FILE
        path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
        return "edit"

    check(left, tmp_path / "run", windows, undisturbed, change, counts)
    assert not any("refused" in what for what in counts), counts


def test_some_drawn_damages(left, windows, undisturbed, tmp_path_factory):
    play(25, left, windows, undisturbed, tmp_path_factory)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_500_drawn_damages(left, windows, undisturbed, tmp_path_factory):
    play(500, left, windows, undisturbed, tmp_path_factory)
