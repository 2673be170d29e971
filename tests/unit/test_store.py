from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import checkpoint
from raypipe.errors import CheckpointError, UserError
from raypipe.results import Run
from raypipe.store import Epoch, OutOfFold, RunStore, TrialResult
from tests.toys import ToyWindows, make_run, tiny


@pytest.fixture(params=["path", "uri"])
def run(request, tmp_path):
    return make_run(tmp_path / "run" if request.param == "path" else f"file://{tmp_path}/run", ToyWindows())


def result(number=0, **changes):
    fields = {"state": "complete", "score": 0.5, "best_epoch": 1, "epochs": 2, "seconds": 3.0, "reason": "end"}
    return TrialResult(number=number, finished=0.0, **(fields | changes))


def test_everything_comes_back(run):
    run.add_trial(3, tiny(sam__name="sam"))
    history = [Epoch(epoch=1, passes=2, score=0.5, fold_scores=[0.4, None], losses=[1.0, 2.0], seconds=1.0)]
    oof = OutOfFold(np.arange(3), np.array([0, 1, 0]), np.ones((3, 1), np.float32))
    run.write_history(3, history)
    run.write_result(result(3))
    run.write_oof(3, oof)
    run.write_weights(3, 1, {"model.a": torch.arange(3.0)})
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


def test_later_checkpoints_can_be_left_alone(run):
    for epoch in range(1, 7):
        run.write_checkpoint(0, 1, epoch, b"state")
    run.drop_checkpoints(0, 1, keep=(2,), before=5)
    assert run.checkpoints(0, 1) == [2, 5, 6]
    run.drop_checkpoints(0, 1)
    assert run.checkpoints(0, 1) == []


def test_checkpoints_that_outlived_their_trial_are_tidied_away(run):
    for number in (0, 1):
        run.add_trial(number, tiny())
        run.write_checkpoint(number, 2, 5, b"late")
    run.write_result(result(0))
    run.tidy()
    assert (run.checkpoints(0, 2), run.checkpoints(1, 2)) == ([], [5])


def test_ranking_leaves_out_what_left_no_weights(run):
    for number, changes in enumerate(
        [{"score": 0.9}, {"score": 0.3}, {"score": 0.1, "state": "failed"}, {"score": 0.2, "state": "pruned"}]
    ):
        run.add_trial(number, tiny())
        run.write_result(result(number, **changes))
    assert [r.number for r in run.ranked()] == [1, 0]


def test_trials_as_a_table(run):
    run.add_trial(0, tiny())
    run.add_trial(1, tiny(sam__name="sam"))
    run.write_result(result(0))
    table = Run(run.where).trials
    assert table.state.tolist() == ["complete", "running"]
    assert table["sam/name"].tolist() == ["none", "sam"]
    assert table["trained"].tolist() == [0, 0]
    assert table["epochs"].tolist() == [4, 4]  # the parameter


def test_no_run_there(tmp_path):
    with pytest.raises(UserError, match="no raypipe run there"):
        RunStore.open(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not a raypipe run, and not empty \(thesis.tex\)"):
        make_run(tmp_path, ToyWindows())


def test_a_creation_that_was_killed_is_made_again(tmp_path):
    run = make_run(tmp_path, ToyWindows())
    run.folder.remove("run.json")
    assert make_run(tmp_path, ToyWindows()).folds == run.folds


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("folds.json", lambda t: t.replace(": 0", ": 1", 1), "fold map is frozen"),
        ("space.py", lambda t: t + "#", "another space needs another run"),
        ("run.json", lambda t: t[:40], "damaged"),
        ("run.json", lambda t: json.dumps(json.loads(t) | {"kind": "x"}), "run.json: kind"),
    ],
)
def test_changed_records_are_noticed(tmp_path, name, change, message):
    make_run(tmp_path, ToyWindows())
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        RunStore.open(tmp_path)


def test_a_trial_that_is_not_there(run):
    with pytest.raises(UserError, match="no trial 5"):
        run.config(5)
    with pytest.raises(UserError, match="trial 5 has no out-of-fold"):
        run.oof(5)


def test_checkpoints_hold_what_they_were_given():
    state = {"a": torch.randn(3), "b": {"c": [1, 2.5, None, "x"]}}
    again = checkpoint.loads(checkpoint.dumps(state))
    assert again["a"].equal(state["a"])
    assert again["b"] == state["b"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_checkpoint_that_is_cut_or_flipped_anywhere_is_noticed(data):
    whole = checkpoint.dumps({"a": torch.arange(4)})
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    with pytest.raises(CheckpointError):
        checkpoint.loads(damaged)


def test_a_checkpoint_never_runs_code(tmp_path):
    import hashlib
    import io

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    payload = buffer.getvalue()
    forged = b"raypipe-checkpoint-1\n" + hashlib.sha256(payload).digest() + payload
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.loads(forged)
    assert not (tmp_path / "owned").exists()
