"""The ledger: Optuna's study and the run's store stay one, whatever dies in between."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from raypipe.core.errors import UserError
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import Epoch
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from raypipe.trial.local import run_trial
from tests.support.faults import flip
from tests.support.toys import SPACE, ToyWindows, make_run

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def windows():
    return ToyWindows()


def ledger(run, windows, trials=4, **kwargs):
    return StudyQueue(run, windows, open_journal(run), trials=trials, **kwargs)


def states(run):
    storage = open_journal(run)
    return [t.state for t in storage.get_all_trials(storage.get_all_studies()[0]._study_id)]


def record(run, number, scores, passes=1):
    run.write_history(
        number,
        [
            Epoch(epoch=e, passes=e * passes, score=s, fold_scores=[s], losses=[s], seconds=1, finished=0.0)
            for e, s in enumerate(scores, 1)
        ],
    )


def test_a_sweep_in_a_plain_process(tmp_path, windows):
    run = make_run(tmp_path, windows)
    book = ledger(run, windows, trials=3)
    while (number := book.next()) is not None:
        result = run_trial(run, windows, number)
        book.observe(number)
        assert book.close(number, "complete", "again") == result
    assert book.exhausted
    assert states(run) == [TrialState.COMPLETE] * 3
    assert run.config(0).optim.lr == 0.003  # the start point comes first
    told = book.study.trials[1]
    assert told.value == run.result(1).score
    assert list(told.intermediate_values.values()) == [e.score for e in run.history(1)]


def test_a_killed_driver_leaves_nothing_lost_and_nothing_asked_twice(tmp_path, windows):
    run = make_run(tmp_path, windows)
    book = ledger(run, windows)
    assert [book.next() for _ in range(4)] == [0, 1, 2, 3]
    configs = [run.config(n) for n in range(4)]
    record(run, 0, [0.5])
    finish_trial(run, windows, 2, "pruned", "toy")  # ended, but Optuna was not told
    run.folder.remove("trials/0003/trial.json")  # asked for, but not recorded
    del book

    again = ledger(RunStore.open(tmp_path), windows, trials=5)
    assert [again.next() for _ in range(4)] == [0, 1, 3, 4]
    assert again.next() is None
    assert states(run) == [TrialState.RUNNING] * 2 + [TrialState.PRUNED] + [TrialState.RUNNING] * 2
    assert [run.config(n) for n in range(3)] == configs[:3]
    assert run.config(3) == configs[3]  # drawn again from the stream of its number, or kept as it was drawn
    assert len(again.study.trials) == 5
    assert again.study.trials[0].intermediate_values == {1: 0.5}


def test_a_driver_killed_between_asking_and_recording_draws_the_same(tmp_path, windows, monkeypatch):
    run = make_run(tmp_path / "a", windows)
    book = ledger(run, windows)
    undisturbed = [run.config(book.next()) for _ in range(3)]

    run = make_run(tmp_path / "b", windows)
    book = ledger(run, windows)
    assert [run.config(book.next()) for _ in range(2)] == undisturbed[:2]
    monkeypatch.setattr(type(run.space), "__call__", lambda self, trial: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        book.next()
    monkeypatch.undo()
    again = ledger(RunStore.open(tmp_path / "b"), windows)
    assert [again.next() for _ in range(3)] == [0, 1, 2]
    assert run.config(2) == undisturbed[2]


def test_the_same_history_gives_the_same_suggestions_after_a_restart(tmp_path, windows):
    def numbers(where, restart):
        run = make_run(where, windows)
        book = ledger(run, windows, trials=14)
        while (number := book.next()) is not None:
            record(run, number, [abs(run.config(number).optim.lr - 2e-3) * 100])
            book.observe(number)
            finish_trial(run, windows, number, "failed", "toy") if number == 3 else None
            book.close(number, "failed" if number == 3 else "pruned", "toy")
            if restart:
                book = ledger(RunStore.open(where), windows, trials=14)
        return [run.config(n).optim.lr for n in range(14)]

    undisturbed = numbers(tmp_path / "a", False)
    assert numbers(tmp_path / "b", True) == undisturbed
    assert len(set(undisturbed)) == 14


def test_a_failed_trial_is_told_as_failed(tmp_path, windows):
    run = make_run(tmp_path, windows)
    book = ledger(run, windows)
    book.close(book.next(), "failed", "it broke", "error")
    assert states(run)[0] == TrialState.FAIL
    assert run.ranked() == []


def test_a_journal_cut_short_by_a_kill_is_mended(tmp_path, windows):
    run = make_run(tmp_path, windows)
    book = ledger(run, windows)
    book.next()
    book.next()
    journal = tmp_path / "study.journal"
    data = journal.read_bytes()
    journal.write_bytes(data + b'{"op_code": 5, "worker')
    (tmp_path / "study.journal.lock").symlink_to(journal)
    assert ledger(run, windows).next() == 0
    assert journal.read_bytes().startswith(data)


@pytest.mark.parametrize("where", ["{}/run", "file://{}/run"])
def test_a_damaged_journal_is_one_line(tmp_path, windows, where):
    run = make_run(where.format(tmp_path), windows)
    ledger(run, windows).next()
    journal = max((tmp_path / "run").glob("study*/*.jsonl"), default=tmp_path / "run/study.journal")
    flip(journal, 0.01)
    with pytest.raises(UserError, match=rf"{journal.name}: damaged") as caught:
        ledger(RunStore.open(run.where), windows)
    assert "\n" not in str(caught.value)


def test_an_invalid_draw_fails_that_trial_and_names_the_parameter(tmp_path, windows):
    space = "def space(trial):\n    trial.suggest_int('batch_size', 0, 1)\n"
    run = make_run(tmp_path, windows, space=space)
    book = ledger(run, windows, trials=2)
    with pytest.raises(UserError, match=r"trial 0: toy.py: parameter 'batch_size'"):
        book.next()
    assert states(run) == [TrialState.FAIL]


def test_the_study_lives_behind_a_uri_too(tmp_path, windows):
    run = make_run(f"file://{tmp_path}/run", windows)
    book = ledger(run, windows)
    assert [book.next(), book.next()] == [0, 1]
    book.close(0, "failed", "toy")
    again = ledger(RunStore.open(f"file://{tmp_path}/run"), windows)
    assert [again.next(), again.next(), again.next(), again.next()] == [1, 2, 3, None]


def study_of(curves, direction="minimize"):
    study = optuna.create_study(direction=direction)
    for curve in curves:
        trial = study.ask()
        for step, value in curve.items():
            trial.report(value, step)
    return study


def stops(pruner, *curves):
    """Whether the last of the trials is stopped at its last step."""
    study = study_of(curves)
    return pruner.prune(study, study.trials[-1])


def test_halving_stops_at_a_rung_only_and_keeps_the_best_third():
    pruner = SuccessiveHalving(grace=2, eta=3)
    five = [{1: 0.9, 2: v} for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert not stops(pruner, *five, {1: 0.9, 2: 0.15})
    assert stops(pruner, *five, {1: 0.9, 2: 0.25})
    assert not stops(pruner, *five, {1: 0.99})  # before the rung
    assert not stops(pruner, *five, {1: 0.9, 2: 0.25, 3: 9.0})  # between rungs
    assert not stops(pruner, *five, {1: 0.15, 2: 0.25})  # its best so far counts


def test_halving_lets_the_first_trials_of_a_rung_go_on():
    pruner = SuccessiveHalving(grace=2, eta=3)
    assert not stops(pruner, {2: 0.1})
    assert not stops(pruner, {2: 0.1}, {2: 0.2}, {2: 0.3})
    assert stops(pruner, {2: 0.1}, {2: 0.2}, {2: 0.3}, {2: 0.4})


def test_halving_counts_passes_so_that_sam_pays_for_its_second():
    pruner = SuccessiveHalving(grace=3, eta=2)
    plain = [{1: 0.5, 2: 0.5, 3: 0.5}] * 3
    assert not stops(pruner, *plain, {2: 0.9})
    assert stops(pruner, *plain, {2: 0.9, 4: 0.9})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True), st.integers(2, 4))
def test_the_best_trial_is_never_stopped_and_direction_is_symmetric(scores, eta):
    pruner = SuccessiveHalving(grace=1, eta=eta)
    low = study_of([{1: s} for s in scores])
    high = study_of([{1: -s} for s in scores], "maximize")
    stopped = [pruner.prune(low, t) for t in low.trials]
    assert not stopped[scores.index(min(scores))]
    assert stopped == [pruner.prune(high, t) for t in high.trials]


def test_the_toy_space_is_valid():
    from raypipe.core.search_space import SearchSpace

    SearchSpace(SPACE, "toy.py").check()
