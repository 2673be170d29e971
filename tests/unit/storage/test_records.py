from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.storage.files import open_folder, read_record
from raypipe.storage.records import Epoch, OutOfFold, TrialResult, best_epoch, pack_oof, unpack

OOF = OutOfFold(np.arange(3), np.array([0, 1, 0]), np.arange(3, dtype=np.float32)[:, None])


def epoch(number: int, score: float, **changes) -> Epoch:
    fields = {"passes": number, "fold_scores": [score], "losses": [1.0], "seconds": 1.0}
    return Epoch(epoch=number, score=score, **(fields | changes))


def test_the_best_epoch_is_the_first_of_equals_and_the_latest_where_folds_choose():
    history = [epoch(1, 0.5), epoch(2, 0.25), epoch(3, 0.25), epoch(4, 0.75)]
    assert best_epoch([], "minimize") is None
    assert best_epoch(history, "minimize").epoch == 2
    assert best_epoch(history, "maximize").epoch == 4
    assert best_epoch([*history, epoch(5, 0.5, by_fold=True)], "minimize").epoch == 5


def test_out_of_fold_predictions_come_back():
    again = unpack("oof.npz", pack_oof(OOF))
    for name in ("windows", "folds", "predictions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(OOF, name))
        assert getattr(again, name).dtype == getattr(OOF, name).dtype


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(["oof.npz", "fold-1.safetensors", "history.json", "trial.json"]))
def test_anything_else_is_a_value_error(data, name):
    with pytest.raises(ValueError):
        unpack(name, data.draw(st.binary(max_size=60)) + b"\x00")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_out_of_fold_predictions_that_are_cut_are_noticed(data):
    whole = pack_oof(OOF)
    with pytest.raises(ValueError):
        unpack("oof.npz", whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_record_that_does_not_fit_its_schema_is_one_line(tmp_path):
    folder = open_folder(tmp_path)
    folder.write("result.json", b'{"format": "raypipe-result/1", "number": 0, "state": "fine"}')
    with pytest.raises(UserError, match=r"result\.json: state: Input should be 'complete'") as caught:
        read_record(TrialResult, folder, "result.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_record(TrialResult, folder, "other.json")
