"""Train the start points of the challenge's two search spaces, and draws that cover every choice."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import optuna
import pytest

from raypipe.core.search_space import SearchSpace, load_space, silence_optuna
from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore
from raypipe.simulation.hbn_release import simulate_release
from raypipe.trial.local import run_trial
from tests.support.toys import make_run

SPACES = Path(__file__).parents[3] / "search_spaces"
FILES = {"challenge1": "challenge1_conformer.py", "challenge2": "challenge2_sam.py"}
WANTED = {
    "challenge1": {
        "model/name": {"conformer", "tcn"},
        "model/kernels": {"rate", "paper", "short"},
        "model/norm": {"channel", "window", "robust"},
        "loss/name": {"plain", "huber", "focal", "kl", "nll"},
        "mixup/name": {"none", "mixup", "cmixup"},
        "sam/name": {"none", "sam", "asam", "looksam", "msam"},
        "target_scale": {"standard", "robust"},
        "sampling": {"window", "subject"},
    },
    "challenge2": {
        "model/kernels": {"rate", "paper"},
        "model/features": {"mean", "log-power"},
        "model/norm": {"channel", "window", "robust"},
        "loss/name": {"plain", "huber"},
        "mixup/name": {"none", "mixup", "cmixup"},
        "sam/name": {"sam", "asam"},
    },
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> Path:
    return simulate_release(tmp_path_factory.mktemp("hbn"), subjects=3, channels=5, trials=5)


@pytest.fixture(scope="module")
def stores(releases) -> dict[str, WindowStore]:
    return {target: prepare(releases, target, releases.with_name(target), jobs=1) for target in FILES}


def points(space: SearchSpace, wanted: dict[str, set[str]]) -> tuple[list[dict], dict[str, set[str]]]:
    """Return the start points and the draws that have a new choice, and all choices in them."""
    covered: dict[str, set[str]] = defaultdict(set)
    found = []

    def add(point: dict, always: bool = False) -> None:
        new = [name for name in wanted if name in point and point[name] not in covered[name]]
        if new or always:
            found.append(point)
        for name in new:
            covered[name].add(point[name])

    for point in space.start:
        add(point, always=True)
    with silence_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(60):
            trial = study.ask()
            space(trial)
            add(dict(trial.params))
    return found, dict(covered)


@pytest.mark.parametrize("target", FILES)
def test_every_choice_trains(target, stores, tmp_path):
    windows, space = stores[target], load_space(SPACES / FILES[target])
    found, covered = points(space, WANTED[target])
    assert covered == WANTED[target]
    run = make_run(tmp_path, windows)
    for number, point in enumerate(found):
        config = space(optuna.trial.FixedTrial(point)).model_copy(update={"epochs": 1, "patience": 1, "batch_size": 8})
        run.add_trial(number, config)
        result = run_trial(run, windows, number)
        assert result.state == "complete", (point, result.reason)
        predictions = run.oof(number).predictions
        assert np.isfinite(predictions).all() and np.ptp(predictions) > 0, point
        assert all(np.isfinite(loss) for loss in run.history(number)[0].losses), point


def test_challenge2_samples_subjects_evenly_and_mixes_with_other_subjects():
    for config in load_space(SPACES / FILES["challenge2"]).draw(20):
        assert config.sampling == "subject" and config.mixup.other_subject
        assert config.sam.name != "none" and config.shrink <= 0.95
