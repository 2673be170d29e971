from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.reporting.report import write_report
from raypipe.reporting.status import read_status
from raypipe.reporting.tables import show_status
from raypipe.search import sweep
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.reconcile import open_study
from raypipe.search.reruns import Spread, is_rerun, spreads
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import read_options, write_options
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback
from raypipe.trial.local import run_trial
from tests.support.callbacks import Recorder
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_store
from tests.unit.search.test_study import record

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_queue(run, windows, trials, **options) -> StudyQueue:
    return StudyQueue(run, windows, open_journal(run), trials=trials, **options)


def scored(run, windows, queue, scores) -> None:
    """Hand out a trial for each score, and record that score for it."""
    for value in scores:
        number = queue.next()
        record(run, number, [value])
        queue.observe(number)
        result = queue.close(number, "failed", "toy")  # it has no checkpoints to gather
        run.write_result(result.model_copy(update={"state": "complete"}))


@pytest.fixture
def windows():
    return ToyWindows()


@pytest.fixture
def run(tmp_path, windows) -> RunStore:
    """Four trials; the best are 2 and 0."""
    run = make_run(tmp_path / "run", windows)
    scored(run, windows, study_queue(run, windows, 4), [0.6, 0.9, 0.5, 0.8])
    return run


def test_the_best_trials_are_enqueued_again_with_the_seeds_that_follow(run, windows):
    queue = study_queue(run, windows, 4)
    assert queue.exhausted
    assert queue.enqueue_reruns(2, 3) == 4 + 6 and not queue.exhausted
    handed = [queue.next() for _ in range(6)]
    assert handed == [4, 5, 6, 7, 8, 9] and queue.next() is None and queue.exhausted
    assert [run.rerun_of(number) for number in handed] == [2, 0] * 3
    for number in handed:
        config, own = run.config(number), run.config(run.rerun_of(number))
        assert config == own.model_copy(update={"seed": config.seed})
    later = [run.config(number).seed - run.config(run.rerun_of(number)).seed for number in handed]
    assert later == [1, 1, 2, 2, 3, 3]
    assert run.rerun_of(2) is None
    assert all(trial.params == {} for trial in queue.study.trials if is_rerun(trial))


def test_the_same_call_after_a_crash_adds_what_is_missing_only(run, windows):
    queue = study_queue(run, windows, 4)
    queue.enqueue_reruns(1, 2)
    assert queue.next() == 4
    del queue  # killed, before the new number of trials was written

    again = study_queue(RunStore.open(run.where), windows, 4)
    assert again.enqueue_reruns(1, 2) == 6
    assert [again.next() for _ in range(3)] == [4, 5, None]
    record(run, 4, [0.1])  # better than the trial that it reruns, but not rerun itself
    record(run, 5, [0.2])
    for number in (4, 5):
        run.write_result(again.close(number, "failed", "toy").model_copy(update={"state": "complete"}))
    assert study_queue(run, windows, 6).enqueue_reruns(1, 2) == 6
    assert study_queue(run, windows, 6).enqueue_reruns(1, 3) == 7
    assert study_queue(run, windows, 7).enqueue_reruns(2, 3) == 7 + 3


def test_a_sweep_that_continues_after_reruns_draws_from_its_space(run, windows):
    queue = study_queue(run, windows, 4)
    queue.enqueue_reruns(1, 1)
    scored(run, windows, queue, [0.4])
    longer = study_queue(run, windows, 6)
    number = longer.next()
    assert number == 5 and run.rerun_of(number) is None
    assert longer.study.trials[number].params


def test_reruns_are_never_stopped_and_stop_no_other_trial(run, windows):
    queue = study_queue(run, windows, 4, pruner=SuccessiveHalving(1, 2))
    queue.enqueue_reruns(1, 3)
    for value in (5.0, 6.0, 0.01):
        number = queue.next()
        record(run, number, [value])
        assert queue.observe(number)
    fresh = study_queue(run, windows, 8, pruner=SuccessiveHalving(1, 2))
    for _ in range(3):
        fresh.next()  # the reruns, still in flight
    number = fresh.next()
    record(run, number, [0.55])  # third of five drawn trials, fourth if reruns counted
    assert number == 7 and fresh.observe(number)


def test_bad_input_is_refused(tmp_path, run, windows):
    with pytest.raises(UserError, match="--top 0 --seeds 5: both must be 1 or more"):
        study_queue(run, windows, 4).enqueue_reruns(0, 5)
    empty = make_run(tmp_path / "empty", windows)
    with pytest.raises(UserError, match="none can be trained again"):
        study_queue(empty, windows, 4).enqueue_reruns(3, 5)


def test_the_spread_of_hand_made_scores(run, windows):
    queue = study_queue(run, windows, 4)
    queue.enqueue_reruns(2, 3)
    scored(run, windows, queue, [0.5, 0.7, 0.6, 0.8])  # of trials 2, 0, 2, 0
    queue.next()
    best, second = spreads(run)
    assert best == Spread(2, 0.5, {4: 0.5, 6: 0.6}, 1)
    assert best.mean == pytest.approx(0.55) and best.sd == pytest.approx(0.0707107, rel=1e-5)
    assert best.describe("nrmse") == (
        "trial 2: nrmse 0.5000 as found; on 2 new seeds 0.5500 on average (SD 0.0707, 0.5000 to 0.6000); 1 without a "
        "score"
    )
    assert second == Spread(0, 0.6, {5: 0.7, 7: 0.8}, 0)
    assert Spread(1, 0.5, {}, 2).describe("auc") == "trial 1: auc 0.5000 as found; 2 without a score"
    assert Spread(1, 0.5, {2: 0.4}, 0).describe("auc") == "trial 1: auc 0.5000 as found; on 1 new seed 0.4000"


def test_reruns_join_the_ensemble_and_status_reports_their_spread(tmp_path):
    store = write_store(tmp_path / "store", ToyWindows(subjects=12, each=5))
    windows = WindowStore(store)
    run = make_run(tmp_path / "run", windows, n_folds=2)
    queue = study_queue(run, windows, 1)
    assert run_trial(run, windows, queue.next()).state == "complete"
    queue.close(0, "complete", "")
    queue.enqueue_reruns(1, 2)
    while (number := queue.next()) is not None:
        run_trial(run, windows, number)
        queue.close(number, "complete", "")
    starts = [run.result(number).initial for number in (0, 1, 2)]
    assert len({tuple(each) for each in starts}) == 3  # other seeds, other weights
    assert [t.state for t in queue.study.trials[:3]] == [TrialState.COMPLETE] * 3
    fitted = fit_ensemble(run, windows=windows, method="equal")
    assert sorted(fitted.trials) == [0, 1, 2]
    fitted.save()
    assert "mean on new seeds" in write_report(run).read_text()
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    show_status(console, read_status(run))
    assert "on 2 new seeds" in console.export_text()


POINTS = """
START = [{"optim/lr": 0.001 * k} for k in range(1, 6)]


def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    return {"epochs": 4}
"""


def test_only_the_reruns_are_trained_where_points_of_the_search_wait(tmp_path, windows):
    run = make_run(tmp_path / "run", windows, space=POINTS)
    scored(run, windows, study_queue(run, windows, 2), [0.5, 0.4])
    queue = study_queue(run, windows, None)
    assert queue.not_drawn(5) == 3
    assert queue.enqueue_reruns(1, 2) == 4
    queue = StudyQueue(run, windows, open_study(run, SweepCallback()), trials=4)
    assert queue.not_drawn(4) == 0 and queue.next() == 5
    said = Recorder()
    queue = StudyQueue(run, windows, open_study(run, said), trials=4)  # the driver was killed, then resumed
    assert [queue.next() for _ in range(3)] == [5, 6, None]
    assert [run.rerun_of(number) for number in (5, 6)] == [1, 1]
    queue = StudyQueue(run, windows, open_study(run, said), trials=7)
    assert [queue.next() for _ in range(6)] == [5, 6, 2, 3, 4, None], "the search continues where it was"
    assert [run.config(number).optim.lr for number in (2, 3, 4)] == pytest.approx([0.003, 0.004, 0.005])
    assert [name for name, _ in said.events if name == "on_study_rebuilt"] == []


def test_the_command_adds_trials_to_the_run_and_again_does_nothing(tmp_path, windows, monkeypatch):
    store = write_store(tmp_path / "store", ToyWindows(subjects=8, each=4))
    windows = WindowStore(store)
    run = make_run(tmp_path / "run", windows, n_folds=2)
    edit_record(run.folder, "run.json", {"data": str(store)})
    with pytest.raises(UserError, match="no sweep was started"):
        sweep.rerun(run.where, top=1, seeds=2)
    spent = {"folds": 2, "trials": 20, "time_budget": 0.001, "held_out": "auto"}
    write_options(run.folder, spent, run.run_id)
    run = RunStore.open(run.where)
    scored(run, windows, study_queue(run, windows, 2), [0.5, 0.4])
    trained = []

    def in_process(execute, queue, *rest):  # what Ray would do
        scores = [0.6] * (queue.trials - queue.asked)
        trained.append(len(scores))
        scored(run, windows, queue, scores)

    monkeypatch.setattr(sweep, "supervise", in_process)
    said = Recorder()
    sweep.rerun(run.where, top=1, seeds=2, callback=said)
    sweep.rerun(run.where, top=1, seeds=2, callback=said)
    (line,) = [given.line for name, given in said.events if name == "on_warning" and "not drawn" in given.line]
    assert "has not drawn 18 of its 20 trials" in line and line.endswith(
        f"raypipe resume {run.where} --trials 22 --time-budget 0.001"
    )
    assert trained == [2] and [run.rerun_of(number) for number in run.numbers()] == [None, None, 1, 1]
    options = read_options(run.folder, run.run_id)
    assert options["trials"] == 4 and options["time_budget"] is None
    sweep.resume(run.where, trials=5)
    assert trained == [2, 1] and run.rerun_of(4) is None
