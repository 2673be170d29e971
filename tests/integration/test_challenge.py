"""Both halves of the challenge, from a simulated release to a scored zip; with an answer in the data, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

import raypipe
from raypipe.check import check_submission
from raypipe.export import export
from raypipe.preparation import prepare
from raypipe.scoring import score_submission
from raypipe.simulate_release import simulate_release

pytestmark = pytest.mark.ray

EVENTS = Path(__file__).parents[2].parent / "shared" / "data" / "hbn_text"

ANSWER = '''"""Response times that drive an evoked response."""
START = [{"optim/lr": 2e-3}, {"optim/lr": 1e-3}]
def space(trial):
    trial.suggest_float("optim/lr", 5e-4, 5e-3, log=True)
    return {"epochs": 10, "patience": 10, "batch_size": 16, "model/name": "tcn", "model/bins": 32, "loss/name": "kl",
            "model/filters": 24, "model/depth": 3, "loss/width": 0.4}
'''
NOISE = '''"""Labels that nothing in the EEG tells: what is left to find is how far to trust it."""
START = [{"shrink": 0.95}, {"shrink": 0.5}]
def space(trial):
    trial.suggest_float("shrink", 0.0, 0.95)
    return {"epochs": 2, "patience": 2, "batch_size": 32, "sampling": "subject", "sam/name": "sam",
            "model/filters": 16, "model/heads": 2, "model/depth": 1, "model/hidden": 16, "model/features": "log-power"}
'''


def run(space, text, store, where):
    space.write_text(text)
    found = raypipe.sweep(space, store.path, where, trials=2, folds=3, prune=False)
    found.ensemble(top=1 if "shrink" in text else 2).save()
    return found


@pytest.mark.timeout(1200)
def test_both_halves_end_to_end(tmp_path):
    events = EVENTS if EVENTS.is_dir() else None
    bids = simulate_release(tmp_path / "hbn", events=events, subjects=14, trials=14)
    null = simulate_release(tmp_path / "null", events=events, subjects=14, trials=14, null=True)
    one = prepare(bids, "challenge1", tmp_path / "c1", jobs=2)
    two = prepare(null, "challenge2", tmp_path / "c2", jobs=2)
    assert one.n_channels == two.n_channels == 129
    first = run(tmp_path / "answer.py", ANSWER, one, tmp_path / "run1")
    second = run(tmp_path / "noise.py", NOISE, two, tmp_path / "run2")
    held = raypipe.Run(tmp_path / "run1").store.folds.held_out
    assert held and all(subject.startswith("R5") for subject in held)
    path = export(tmp_path / "run1", tmp_path / "submission.zip", also=tmp_path / "run2")
    report = check_submission(path)
    assert report.ok, str(report)
    scores = score_submission(path, {"challenge1": one.path, "challenge2": two.path}, release="R5")
    print(scores)
    mean = {n: r.ensemble(top=1).table["held_out"].iloc[-1] for n, r in ((1, first), (2, second))}
    assert scores.scores[1].nrmse < 0.9 < mean[1]
    # People are few: the training mean itself does not score 1 on them, and nothing may beat or miss it by more.
    assert abs(scores.scores[2].nrmse / mean[2] - 1.0) < 0.02
    assert scores.overall == pytest.approx(0.3 * scores.scores[1].nrmse + 0.7 * scores.scores[2].nrmse)
