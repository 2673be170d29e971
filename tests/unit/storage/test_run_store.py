from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.api import Run
from raypipe.core.errors import UserError
from raypipe.storage.checkpoint_file import RawTensor
from raypipe.storage.files import LocalFolder
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import Epoch, History, TrialRecord, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from tests.support.faults import FailingFolder, Killed
from tests.support.records import digested
from tests.support.storage import dying_at
from tests.support.toys import ToyWindows, make_run, tiny, write_checkpoints


@pytest.fixture(params=["path", "uri"])
def run(request, tmp_path):
    return make_run(tmp_path / "run" if request.param == "path" else f"file://{tmp_path}/run", ToyWindows())


def result(number=0, **changes):
    fields = {"state": "complete", "score": 0.5, "best_epoch": 1, "epochs": 2, "seconds": 3.0, "reason": "end"}
    return TrialResult(run="toy", number=number, finished=0.0, **(fields | changes))


def test_what_is_written_is_read_back(run):
    run.add_trial(3, tiny(sam__name="sam"))
    history = [
        Epoch(epoch=1, passes=2, score=0.5, fold_scores=[0.4, None], losses=[1.0, 2.0], seconds=1.0, finished=0.0)
    ]
    oof = OutOfFold(np.arange(3), np.array([0, 1, 0]), np.ones((3, 1), np.float32))
    run.write_history(3, history)
    run.write_result(result(3))
    run.write_oof(3, oof)
    run.write_weights(3, 1, {"model.a": RawTensor("F32", (3,), np.arange(3, dtype=np.float32).tobytes())})
    for epoch in (1, 2, 3):
        run.write_checkpoint(3, 0, epoch, b"%d" % epoch)
    run.drop_checkpoints(3, 0, keep=(2, 3))

    again = pickle.loads(pickle.dumps(RunStore.open(run.where)))
    assert again.numbers() == [3]
    assert again.config(3) == tiny(sam__name="sam")
    assert again.history(3) == history
    assert again.results() == [result(3)]
    np.testing.assert_array_equal(again.oof(3).predictions, oof.predictions)
    assert again.weights(3, 1)["model.a"].tolist() == [0, 1, 2]
    assert again.checkpoints(3, 0) == [2, 3]
    assert again.read_checkpoint(3, 0, 2) == b"2"
    assert again.folds == run.folds
    assert (again.history(9), again.result(9), again.checkpoints(9, 0)) == ([], None, [])


def test_later_checkpoints_can_be_kept(run):
    for epoch in range(1, 7):
        run.write_checkpoint(0, 1, epoch, b"state")
    run.drop_checkpoints(0, 1, keep=(2,), before=5)
    assert run.checkpoints(0, 1) == [2, 5, 6]
    run.drop_checkpoints(0, 1)
    assert run.checkpoints(0, 1) == []


def test_checkpoints_of_ended_trials_are_removed(run):
    for number in (0, 1):
        run.add_trial(number, tiny())
        run.write_checkpoint(number, 2, 5, b"late")
    run.write_result(result(0))
    run.remove_leftovers()
    assert (run.checkpoints(0, 2), run.checkpoints(1, 2)) == ([], [5])


def test_partial_files_of_killed_processes_are_removed(run):
    ours = ["trials/0000/fold-1/.epoch-0002.ckpt.0a1b2c3d.part", "compute/.key.json.0a1b2c3d.part"]
    ours += [".driver.json.0a1b2c3d.part"]
    others = [".report.html.0a1b2c3d.part", "ensemble/.ensemble.json.0a1b2c3d.part"]
    for name in ours + others:
        run.folder.write(name, b"half")
    assert run.folder.partial_files() == sorted(ours + others)
    run.remove_leftovers()
    assert run.folder.partial_files() == others


def test_ranking_leaves_out_trials_without_weights(run):
    for number, changes in enumerate(
        [{"score": 0.9}, {"score": 0.3}, {"score": 0.1, "state": "failed"}, {"score": 0.2, "state": "pruned"}]
    ):
        run.add_trial(number, tiny())
        run.write_result(result(number, **changes))
    assert [r.number for r in run.ranked()] == [1, 0]


def test_the_table_of_trials_has_states_and_parameters(run):
    run.add_trial(0, tiny())
    run.add_trial(1, tiny(sam__name="sam"))
    run.write_result(result(0))
    table = Run(run.where).trials
    assert table.state.tolist() == ["complete", "interrupted"]
    assert table["sam/name"].tolist() == ["none", "sam"]
    assert table["trained"].tolist() == [0, 0]
    assert table["epochs"].tolist() == [4, 4]  # the parameter


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no raypipe run there"):
        RunStore.open(tmp_path)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not a raypipe run, and not empty \(thesis.tex\)"):
        make_run(tmp_path, ToyWindows())


def test_an_interrupted_creation_is_repeated(tmp_path):
    run = make_run(tmp_path, ToyWindows())
    run.folder.remove("run.json")
    assert make_run(tmp_path, ToyWindows()).folds == run.folds


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("folds.json", lambda t: t.replace(": 0", ": 1", 1), "fold map is frozen"),
        ("space.py", lambda t: t + "#", "restore it, or start a new run"),
        ("run.json", lambda t: t[:40], "damaged"),
        ("run.json", lambda t: digested(json.loads(t) | {"kind": "x"}), "run.json: kind"),
    ],
)
def test_changed_records_are_noticed(tmp_path, name, change, message):
    make_run(tmp_path, ToyWindows())
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        RunStore.open(tmp_path)


def test_a_missing_trial_is_named(run):
    with pytest.raises(UserError, match="no trial 5"):
        run.config(5)
    with pytest.raises(UserError, match="trial 5 has no out-of-fold"):
        run.oof(5)


# Damage


def end_trial(run, number=0, **changes):
    """End a trial with invented predictions and weights, and change its result."""
    drive(run, ToyWindows(), [number], [])
    if changes:
        run.write_result(run.result(number).model_copy(update=changes))
    return run


def drive(run, windows, numbers, ended):
    """Write to a run's folder as a sweep does, from any state: two epochs a trial, of which the second is best."""
    for number in numbers:
        if not run.has_trial(number):
            run.add_trial(number, tiny())
        history = run.history(number)
        for epoch in range(len(history) + 1, 3):
            write_checkpoints(run, windows, number, epoch)
            scores = {"score": 1.0 / epoch, "fold_scores": [None] * 3, "losses": [1.0] * 3, "seconds": 1.0}
            history.append(Epoch(epoch=epoch, passes=epoch, **scores, finished=0.0))
            run.write_history(number, history)
            for fold in range(3):
                run.drop_checkpoints(number, fold, keep=(epoch - 1,), before=epoch)
        ended.append(finish_trial(run, windows, number, "complete", "trained to the end"))


FILES = ["fold-0.safetensors", "fold-1.safetensors", "fold-2.safetensors", "history.json", "oof.npz", "trial.json"]


def test_a_result_has_checksums_of_all_files_of_its_trial(run):
    end_trial(run)
    assert sorted(run.result(0).files) == FILES
    assert run.verify() == {}
    run.require_whole([0])


@pytest.mark.parametrize("name", [*FILES, "result.json"])
def test_a_truncated_or_missing_file_is_named(tmp_path, name):
    run = end_trial(make_run(tmp_path, ToyWindows()))
    path = tmp_path / "trials/0000" / name
    path.write_bytes(path.read_bytes()[:-20])
    damaged = run.verify()
    assert list(damaged) == [f"trials/0000/{name}"]
    for line in (damaged[f"trials/0000/{name}"], *refusals(lambda: run.require_whole([0]))):
        assert line.startswith(f"{path}: damaged (") and "\n" not in line
    path.unlink()
    assert name == "result.json" or run.verify() == {f"trials/0000/{name}": f"{path}: missing; restore it from a copy"}


def refusals(call):
    with pytest.raises(UserError) as caught:
        call()
    yield str(caught.value)


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_in_any_file_of_a_trial_is_noticed(tmp_path_factory, data):
    run = end_trial(make_run(tmp_path_factory.mktemp("run"), ToyWindows()))
    name = data.draw(st.sampled_from(FILES))
    path = run.local / "trials/0000" / name
    whole = path.read_bytes()
    # Drawn from a fixed range, since the length of a record differs from run to run: it contains times.
    place = data.draw(st.integers(0, 2**31)) % len(whole)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    assert list(run.verify([0])) == [f"trials/0000/{name}"]
    if not name.endswith(".json"):
        with pytest.raises(UserError, match=rf"{name}: damaged \(its checksum is not the one that the trial record"):
            run.oof(0) if name == "oof.npz" else run.weights(0, int(name[5]))


def test_several_damaged_files_are_all_named(run):
    end_trial(run)
    end_trial(run, 1)
    run.folder.write("trials/0000/oof.npz", b"PK")
    run.folder.remove("trials/0001/fold-2.safetensors")
    with pytest.raises(UserError, match=r"2 files .*: trials/0000/oof.npz, trials/0001/fold-2.safetensors; restore"):
        run.require_whole([0, 1])
    run.require_whole([])


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("trial.json", {"number": 0, "started": 1.0, "config": {"epochs": -3}}, r"trial.json: config/epochs: "),
        ("history.json", {"scored": "windows", "epochs": [{"epoch": "one"}]}, r"history.json: epochs/0/epoch: "),
        ("result.json", {"number": 0, "state": "fine"}, r"result.json: state: "),
    ],
)
def test_records_are_checked_against_their_schema(run, name, record, message):
    end_trial(run)
    kind = {"trial.json": TrialRecord, "history.json": History, "result.json": TrialResult}[name]
    form = {"format": kind.model_fields["format"].default}
    run.folder.write(f"trials/0000/{name}", json.dumps(form | record).encode())
    with pytest.raises(UserError, match=message) as caught:
        (run.config(0), run.history(0), run.result(0))
    assert "\n" not in str(caught.value)


# Processes that die at any step

NEVER = 1 << 30


def contents(run):
    """Return the content of all files of a run but logs, without times of day."""
    found = {name: run.folder.read(name) for name in run.folder.names() if "/log/" not in name}
    for name in [name for name in found if name.rpartition("/")[2] in ("trial.json", "result.json")]:
        files = {"files": {k: v for k, v in json.loads(found[name]).get("files", {}).items() if k != "trial.json"}}
        found[name] = json.loads(found[name]) | {"started": 0, "finished": 0, "digest": ""} | files
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "run", ToyWindows())
    drive(run, ToyWindows(), [0, 1], [])
    return contents(run)


def check_nothing_is_lost(where, ended, seen):
    """Check that every result and every epoch that was written is still there."""
    if not RunStore.exists(where):
        assert not ended and not seen
        return
    run = RunStore.open(where)
    assert [run.result(each.number) for each in ended] == ended
    for number, epochs in seen.items():
        assert len(run.history(number)) >= epochs


@settings(max_examples=60)
@given(deaths=st.lists(st.integers(0, 330), min_size=1, max_size=4))
def test_a_run_killed_at_any_step_on_the_disk_continues_with_nothing_lost(tmp_path_factory, undisturbed, deaths):
    where, windows, ended, seen = tmp_path_factory.mktemp("runs") / "run", ToyWindows(), [], {}
    write = RunStore.write_history

    def write_and_see(run, number, history):
        write(run, number, history)
        seen[number] = len(history)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "write_history", write_and_see)
        for step in [*deaths, NEVER]:
            try:
                with dying_at(step):
                    run = RunStore.open(where) if RunStore.exists(where) else make_run(where, windows)
                    drive(run, windows, [number for number in (0, 1) if run.result(number) is None], ended)
            except Killed:
                assert step != NEVER
            check_nothing_is_lost(where, ended, seen)
    run = RunStore.open(where)
    for number in (0, 1):
        finish_trial(run, windows, number, "complete", "again")  # removes checkpoints, as the next driver does
    assert contents(run) == undisturbed
    assert run.verify() == {}


@settings(max_examples=40)
@given(at=st.integers(0, 45), when=st.sampled_from(["before", "after"]))
def test_a_run_killed_at_any_write_of_any_storage_continues(tmp_path_factory, undisturbed, at, when):
    where, windows, ended = tmp_path_factory.mktemp("runs") / "run", ToyWindows(), []
    run = make_run(where, windows)
    dying = FailingFolder(LocalFolder(where), at, when=when, calls=("write", "remove"))
    try:
        drive(RunStore(dying, run.info, run.folds, run.space), windows, [0, 1], ended)
    except Killed:
        check_nothing_is_lost(where, ended, {})
    run = RunStore.open(where)
    drive(run, windows, [number for number in (0, 1) if run.result(number) is None], ended)
    for number in (0, 1):
        finish_trial(run, windows, number, "complete", "again")
    assert contents(run) == undisturbed
