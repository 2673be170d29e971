"""The queue of trials: Optuna's study and the run's store agree after every crash."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import optuna
import pytest
from optuna.trial import TrialState

from raypipe.core.errors import StorageError, UserError
from raypipe.ensembles.soup import compatible_members
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.reconcile import open_study
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import Epoch, Member
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from raypipe.trial.local import run_trial
from tests.support.faults import flip
from tests.support.toys import SPACE, ToyWindows, make_run, write_checkpoints

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def windows():
    return ToyWindows()


def study_queue(run, windows, trials=4, **kwargs):
    return StudyQueue(run, windows, open_journal(run), trials=trials, **kwargs)


def states(run):
    storage = open_journal(run)
    return [t.state for t in storage.get_all_trials(storage.get_all_studies()[0]._study_id)]


def record(run, number, scores, passes=1):
    run.write_history(
        number,
        [
            Epoch(epoch=e, passes=e * passes, score=s, fold_scores=[s], losses=[1.0], seconds=1, finished=0.0)
            for e, s in enumerate(scores, 1)
        ],
    )


def test_a_sweep_in_a_plain_process(tmp_path, windows):
    run = make_run(tmp_path, windows)
    queue = study_queue(run, windows, trials=3)
    while (number := queue.next()) is not None:
        result = run_trial(run, windows, number)
        queue.observe(number)
        assert queue.close(number, "complete", "again") == result
    assert queue.exhausted
    assert states(run) == [TrialState.COMPLETE] * 3
    assert run.config(0).optim.lr == 0.003  # the start point comes first
    trial = queue.study.trials[1]
    assert trial.value == run.result(1).score
    assert list(trial.intermediate_values.values()) == [e.score for e in run.history(1)]


@pytest.mark.parametrize(("constants", "seeds"), [("", [0, 1, 2]), ("'seed': 7, ", [7, 7, 7])])
def test_each_trial_has_a_seed_of_its_own_unless_the_space_sets_one(tmp_path, windows, constants, seeds):
    run = make_run(tmp_path, windows, space=SPACE.replace("return {", f"return {{{constants}"))
    queue = study_queue(run, windows, trials=3)
    for number in (queue.next(), queue.next(), queue.next()):
        run_trial(run, windows, number)
    assert [run.config(number).seed for number in range(3)] == seeds
    initial = [run.result(number).initial[0] for number in range(3)]
    assert len(set(initial)) == len(set(seeds))
    members = [Member(number) for number in range(3)]
    if constants:
        assert compatible_members(run, members) == members
    else:
        with pytest.raises(UserError, match=r"initial weights, seeds 0 and 1.* \(a constant 'seed' in the"):
            compatible_members(run, members)


def test_a_killed_driver_leaves_nothing_lost_and_nothing_asked_twice(tmp_path, windows):
    run = make_run(tmp_path, windows)
    queue = study_queue(run, windows)
    assert [queue.next() for _ in range(4)] == [0, 1, 2, 3]
    configs = [run.config(n) for n in range(4)]
    record(run, 0, [0.5])
    finish_trial(run, windows, 2, "pruned", "toy")  # ended, but not reported to Optuna
    run.folder.remove("trials/0003/trial.json")  # asked for, but not recorded
    del queue

    again = study_queue(RunStore.open(tmp_path), windows, trials=5)
    assert [again.next() for _ in range(4)] == [0, 1, 3, 4]
    assert again.next() is None
    assert states(run) == [TrialState.RUNNING] * 2 + [TrialState.PRUNED] + [TrialState.RUNNING] * 2
    assert [run.config(n) for n in range(3)] == configs[:3]
    assert run.config(3) == configs[3]  # drawn again from the stream of its number, or kept as it was drawn
    assert len(again.study.trials) == 5
    assert again.study.trials[0].intermediate_values == {1: 0.5}


def test_a_driver_killed_between_asking_and_recording_draws_the_same(tmp_path, windows, monkeypatch):
    run = make_run(tmp_path / "a", windows)
    queue = study_queue(run, windows)
    undisturbed = [run.config(queue.next()) for _ in range(3)]

    run = make_run(tmp_path / "b", windows)
    queue = study_queue(run, windows)
    assert [run.config(queue.next()) for _ in range(2)] == undisturbed[:2]
    killed = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(type(run.space), "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        queue.next()
    monkeypatch.undo()
    again = study_queue(RunStore.open(tmp_path / "b"), windows)
    assert [again.next() for _ in range(3)] == [0, 1, 2]
    assert run.config(2) == undisturbed[2]


@pytest.mark.parametrize("drawn", [1, 2, 3])
def test_a_driver_killed_between_two_parameters_draws_the_others_as_before(drawn, tmp_path, windows, monkeypatch):
    def configs(where, killed_in=None):
        queue = study_queue(make_run(where, windows), windows)
        for number in range(4):
            if number == killed_in:
                _kill_after_parameter(queue.study._storage, drawn, monkeypatch)
                with pytest.raises(StorageError, match="killed"):
                    queue.next()
                monkeypatch.undo()
                queue = study_queue(RunStore.open(where), windows)
            assert queue.next() == number
            queue.close(number, "failed", "toy")
        return [queue.run.config(number) for number in range(4)]

    undisturbed = configs(tmp_path / "undisturbed")
    assert any(config.sam.name == "sam" for config in undisturbed[1:]), "a trial with three parameters"
    for number in range(4):
        parameters = 3 if undisturbed[number].sam.name == "sam" else 2
        if drawn <= parameters:
            assert configs(tmp_path / f"killed-{number}", number) == undisturbed


def _kill_after_parameter(storage, count, monkeypatch):
    """Raise an error that no trial is blamed for, once so many parameters of the next trial are in the study."""
    keep, seen = storage.set_trial_param, []

    def kill(*given):
        keep(*given)
        seen.append(given)
        if len(seen) == count:
            raise StorageError("killed")

    monkeypatch.setattr(storage, "set_trial_param", kill)


def test_the_same_history_gives_the_same_suggestions_after_a_restart(tmp_path, windows):
    def numbers(where, restart):
        run = make_run(where, windows)
        queue = study_queue(run, windows, trials=14)
        while (number := queue.next()) is not None:
            record(run, number, [abs(run.config(number).optim.lr - 2e-3) * 100])
            write_checkpoints(run, windows, number, 1)
            queue.observe(number)
            finish_trial(run, windows, number, "failed", "toy") if number == 3 else None
            queue.close(number, "failed" if number == 3 else "pruned", "toy")
            if restart:
                queue = study_queue(RunStore.open(where), windows, trials=14)
        return [run.config(n).optim.lr for n in range(14)]

    undisturbed = numbers(tmp_path / "a", False)
    assert numbers(tmp_path / "b", True) == undisturbed
    assert len(set(undisturbed)) == 14


def test_a_failed_trial_is_reported_as_failed(tmp_path, windows):
    run = make_run(tmp_path, windows)
    queue = study_queue(run, windows)
    queue.close(queue.next(), "failed", "it broke", "error")
    assert states(run)[0] == TrialState.FAIL
    assert run.ranked() == []


def test_a_journal_cut_short_by_a_kill_is_repaired(tmp_path, windows):
    run = make_run(tmp_path, windows)
    queue = study_queue(run, windows)
    queue.next()
    queue.next()
    journal = tmp_path / "study.journal"
    data = journal.read_bytes()
    journal.write_bytes(data + b'{"op_code": 5, "worker')
    (tmp_path / "study.journal.lock").symlink_to(journal)
    assert study_queue(run, windows).next() == 0
    assert journal.read_bytes().startswith(data)


@pytest.mark.parametrize("where", ["{}/run", "file://{}/run"])
def test_a_damaged_journal_is_one_line(tmp_path, windows, where):
    run = make_run(where.format(tmp_path), windows)
    study_queue(run, windows).next()
    journal = max((tmp_path / "run").glob("study*/*.jsonl"), default=tmp_path / "run/study.journal")
    flip(journal, 0.01)
    with pytest.raises(UserError, match=rf"{journal.name}: damaged") as caught:
        study_queue(RunStore.open(run.where), windows)
    assert "\n" not in str(caught.value)


def test_an_invalid_draw_fails_that_trial_and_names_the_parameter(tmp_path, windows):
    space = "def space(trial):\n    trial.suggest_int('batch_size', 0, 1)\n"
    run = make_run(tmp_path, windows, space=space)
    queue = study_queue(run, windows, trials=2)
    with pytest.raises(UserError, match=r"trial 0: toy.py: parameter 'batch_size'"):
        queue.next()
    assert states(run) == [TrialState.FAIL]


def test_a_study_can_be_stored_behind_a_uri(tmp_path, windows):
    run = make_run(f"file://{tmp_path}/run", windows)
    queue = study_queue(run, windows)
    assert [queue.next(), queue.next()] == [0, 1]
    queue.close(0, "failed", "toy")
    again = study_queue(RunStore.open(f"file://{tmp_path}/run"), windows)
    assert [again.next(), again.next(), again.next(), again.next()] == [1, 2, 3, None]


def test_the_toy_space_is_valid():
    from raypipe.core.search_space import SearchSpace

    SearchSpace(SPACE, "toy.py").check()


FAMILIES = """'''Two families.'''
def space(trial):
    if trial.suggest_categorical("model/name", ["linear", "conformer"]) == "linear":
        return {"model/predictors": "time-courses"}
    return {"epochs": 2, "batch_size": 8, "model/depth": 0, "model/filters": 4, "model/heads": 2}
START = [{"model/name": name} for name in ("linear", "conformer")]
"""


def test_a_fit_in_closed_form_ends_in_the_study_and_in_no_rung(tmp_path, windows):
    run = make_run(tmp_path, windows, space=FAMILIES)
    queue = study_queue(run, windows, trials=2, pruner=SuccessiveHalving(grace=1, eta=2))
    while (number := queue.next()) is not None:
        result = run_trial(run, windows, number)
        assert queue.observe(number)
        assert queue.close(number, "complete", "again") == result
    fitted, trained = queue.study.trials
    assert fitted.intermediate_values == {} and list(trained.intermediate_values) == [1, 2]
    assert fitted.value == run.result(0).score and run.result(0).epochs == 1
    # A driver that continues finds the study as the records have it.
    rebuilt: list[str] = []
    open_study(run, SimpleNamespace(on_study_rebuilt=rebuilt.append))
    assert not rebuilt
