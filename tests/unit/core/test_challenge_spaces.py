"""The challenge's two search spaces train: their start points, and draws until every choice has been met."""

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
    return {task: prepare(releases, task, releases.with_name(task), jobs=1) for task in FILES}


def points(space: SearchSpace, wanted: dict[str, set[str]]) -> tuple[list[dict], dict[str, set[str]]]:
    """The start points, then draws that bring something new, until nothing is; and the choices that were met."""
    met: dict[str, set[str]] = defaultdict(set)
    found = []

    def meet(point: dict, always: bool = False) -> None:
        new = [name for name in wanted if name in point and point[name] not in met[name]]
        if new or always:
            found.append(point)
        for name in new:
            met[name].add(point[name])

    for point in space.start:
        meet(point, always=True)
    with silence_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(60):
            trial = study.ask()
            space(trial)
            meet(dict(trial.params))
    return found, dict(met)


@pytest.mark.parametrize("task", FILES)
def test_every_choice_trains(task, stores, tmp_path):
    windows, space = stores[task], load_space(SPACES / FILES[task])
    found, met = points(space, WANTED[task])
    assert met == WANTED[task]
    run = make_run(tmp_path, windows)
    for number, point in enumerate(found):
        config = space(optuna.trial.FixedTrial(point)).model_copy(update={"epochs": 1, "patience": 1, "batch_size": 8})
        run.add_trial(number, config)
        result = run_trial(run, windows, number)
        assert result.state == "complete", (point, result.reason)
        answers = run.oof(number).predictions
        assert np.isfinite(answers).all() and np.ptp(answers) > 0, point
        assert all(np.isfinite(loss) for loss in run.history(number)[0].losses), point


def test_people_are_drawn_evenly_and_partners_are_others_in_challenge2():
    for config in load_space(SPACES / FILES["challenge2"]).draw(20):
        assert config.sampling == "subject" and config.mixup.other_subject
        assert config.sam.name != "none" and config.shrink <= 0.95
