from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.storage.files import open_folder, read_record
from raypipe.storage.records import Epoch, TrialResult, best_epoch, read_options, write_options


def epoch(number: int, score: float, **changes) -> Epoch:
    fields = {"passes": number, "fold_scores": [score], "losses": [1.0], "seconds": 1.0}
    return Epoch(epoch=number, score=score, **(fields | changes), finished=0.0)


def test_the_best_epoch_is_the_first_of_equal_scores_and_the_latest_where_folds_choose():
    history = [epoch(1, 0.5), epoch(2, 0.25), epoch(3, 0.25), epoch(4, 0.75)]
    assert best_epoch([], "minimize") is None
    assert best_epoch(history, "minimize").epoch == 2
    assert best_epoch(history, "maximize").epoch == 4
    assert best_epoch([*history, epoch(5, 0.5, by_fold=True)], "minimize").epoch == 5


def test_a_record_that_does_not_fit_its_schema_is_one_line(tmp_path):
    folder = open_folder(tmp_path)
    folder.write("result.json", b'{"format": "raypipe-result/3", "number": 0, "state": "fine"}')
    with pytest.raises(UserError, match=r"result\.json: state: Input should be 'complete'") as caught:
        read_record(TrialResult, folder, "result.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_record(TrialResult, folder, "other.json")


def test_options_are_read_back_and_are_empty_before_a_run_is_driven(tmp_path):
    folder = open_folder(tmp_path)
    assert read_options(folder) == {}
    write_options(folder, {"trials": 3, "held_out": "auto"})
    assert read_options(folder) == {"trials": 3, "held_out": "auto"}


def test_options_of_another_run_are_refused(tmp_path):
    folder = open_folder(tmp_path)
    write_options(folder, {"trials": 3}, "one")
    with pytest.raises(UserError, match=r"options\.json: the record of another run; restore it from a copy"):
        read_options(folder, "two")
