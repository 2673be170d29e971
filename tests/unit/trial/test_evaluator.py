"""The score by which a trial's epochs are ranked."""

import numpy as np
import pytest

from raypipe.core.metrics import score
from raypipe.training.result import FoldEpoch
from raypipe.trial.evaluator import TrialEvaluator, constant_baseline
from tests.support.toys import ToyWindows, make_run, tiny


def _add_epoch(run, windows, predict):
    run.add_trial(0, tiny())
    evaluator = TrialEvaluator(run, windows, 0)
    outcomes = {
        fold: FoldEpoch(1.0, predict(index, fold).astype(np.float32), 1.0)
        for fold, index in enumerate(evaluator.validation)
    }
    return evaluator.add_epoch(1, outcomes)


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_offset_of_a_fold_does_not_change_the_rank_of_a_trial(tmp_path, repeats):
    windows = ToyWindows(subjects=12, classes=True)
    run = make_run(tmp_path / "run", windows, repeats=repeats)

    def predict(index, fold):
        logits = 2.0 * windows.targets[index] + 1.5 * fold
        p = 1 / (1 + np.exp(-logits))
        return np.stack([1 - p, p], axis=1)

    assert _add_epoch(run, windows, predict).score == 1.0
    assert '"scored":"all windows, within each fold' in run.folder.read("trials/0000/history.json").decode().replace(
        '": "', '":"'
    )


def test_a_trial_on_targets_of_people_is_ranked_by_people(tmp_path):
    windows = ToyWindows(subjects=12)
    _, index_N = np.unique(windows.subjects, return_inverse=True)
    windows.targets = np.arange(12.0, dtype=np.float32)[index_N]
    run = make_run(tmp_path / "run", windows)
    assert run.info.level == "person"
    noise = np.random.default_rng(0).normal(size=(12, 8)) * 5
    noise -= noise.mean(1, keepdims=True)  # averages out over a person's windows
    pred = windows.targets + noise.reshape(-1)
    epoch = _add_epoch(run, windows, lambda index, fold: pred[index][:, None])
    assert epoch.score == pytest.approx(0.0, abs=1e-5)
    search = run.folds.search_index(windows.subjects)
    assert score("nrmse", windows.targets[search], pred[search]) > 0.5
    assert constant_baseline(run, windows) > 1.0
