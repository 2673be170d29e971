"""What a driver decides before and after Ray runs its trials: what it refuses, and how a used budget ends them."""

from __future__ import annotations

from functools import partial

import pytest

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.search.outer import resume_outer, sweep_outer
from raypipe.search.study import StudyQueue
from raypipe.search.sweep import resume, sweep
from raypipe.storage.budget import Budget
from raypipe.storage.journal import open_journal
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from tests.support.callbacks import Recorder
from tests.support.plain import plain_cross_validation
from tests.support.records import edit_record
from tests.support.toys import SPACE, ToyWindows, make_run, write_checkpoints, write_store
from tests.unit.search.test_study import record

SECRET_URI = "s3://key:geheim@bucket/tune"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("windows") / "store", ToyWindows(subjects=8, each=4))


@pytest.fixture
def begun(tmp_path, store) -> RunStore:
    """A run of two trials that was driven before, with no trial yet."""
    run = make_run(tmp_path / "run", WindowStore(store), n_folds=2)
    edit_record(run.folder, "run.json", {"data": str(store)})
    options = {"folds": 2, "trials": 2, "held_out": "auto"}
    write_options(run.folder, options, run.run_id)
    return RunStore.open(run.where)


def files_with_secret(folder):
    return [path for path in folder.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]


@pytest.mark.parametrize("call", [sweep, lambda *places, **options: sweep_outer(*places, outer=2, **options)])
def test_a_storage_with_keys_is_refused_by_a_new_search(tmp_path, store, call):
    (tmp_path / "space.py").write_text(SPACE)
    with pytest.raises(UserError, match="leave the keys out of the URI") as caught:
        call(tmp_path / "space.py", store, tmp_path / "run", storage=SECRET_URI)
    assert "geheim" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_storage_with_keys_is_refused_by_a_search_that_continues(tmp_path, begun, store):
    (tmp_path / "space.py").write_text(SPACE)
    options = {"outer": 2, "trials": 1, "folds": 2}
    outer = plain_cross_validation(tmp_path / "space.py", store, tmp_path / "outer", **options)
    for call, where in ((resume, begun.where), (resume_outer, outer.where)):
        with pytest.raises(UserError, match="leave the keys out of the URI"):
            call(where, storage=SECRET_URI)
    assert not files_with_secret(tmp_path)


def leave_open(run, windows, epochs):
    """Leave trials under way, as a killed driver does, with so many epochs each; the last has lost a checkpoint."""
    queue = StudyQueue(run, windows, open_journal(run), trials=len(epochs))
    for n in epochs:
        number = queue.next()
        for epoch in range(1, n + 1):
            record(run, number, [0.9, 0.5, 0.4][:epoch])
            write_checkpoints(run, windows, number, epoch)
            queue.observe(number)
    run.drop_checkpoints(number, 0)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_trials_under_way_end_with_their_epochs_where_the_budget_is_used_up(begun, store, monkeypatch, when):
    windows, begins = WindowStore(store), []
    leave = partial(leave_open, begun, windows, [3, 0, 2])
    answers = {"before": ["used"], "meanwhile": ["", "used"]}[when]
    monkeypatch.setattr(Budget, "used_up", lambda self: answers.pop(0))
    monkeypatch.setattr("raypipe.search.sweep.supervise", lambda *rest: begins.append(when) or leave())
    if when == "before":
        leave()
    said = Recorder()
    resume(begun.where, trials=3, callback=said)
    assert begins == ([] if when == "before" else ["meanwhile"])
    run = RunStore.open(begun.where)
    ended = run.results()
    assert [(one.number, one.state, one.reason, one.epochs) for one in ended] == [(0, "stopped", "used", 3)]
    assert [one.number for one in run.ranked()] == [0], "it has weights"
    assert len([event for event in said.events if event[0] == "on_trial_end"]) == 1
