"""Parameters without effect, and spaces that draw them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypipe.core.config import TrialConfig
from raypipe.core.effects import (
    UNUSED_IN_PRETRAINING,
    USED_BY_KIND,
    USED_IN_CLOSED_FORM,
    USED_WITH,
    parameters_without_effect,
    why_unused,
)
from raypipe.core.parameters import flatten, parameter_names
from raypipe.core.search_space import SearchSpace, load_space

SHIPPED = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.py"))
NETWORKS = ("focal_mixup_sam", "latency", "smoke", "snapshots", "finetune", "finetune_conformer")
CLASSES_TOO = ("all_families", *NETWORKS)


def space(body: str) -> SearchSpace:
    return SearchSpace("def space(trial):\n" + "".join(f"    {line}\n" for line in body.splitlines()), "space.py")


def test_every_name_of_the_tables_is_a_parameter():
    named = {
        *USED_WITH,
        *USED_BY_KIND,
        *UNUSED_IN_PRETRAINING,
        *USED_IN_CLOSED_FORM,
        *(name for one in USED_WITH.values() for name in one),
    }
    assert named <= set(parameter_names())


@pytest.mark.parametrize(
    ("changes", "name", "kind", "reason"),
    [
        ({}, "sam/rho", None, "sam/name=none"),
        ({"sam/name": "sam"}, "sam/every", None, "sam/name=sam"),
        ({"sam/name": "looksam"}, "sam/every", None, None),
        ({"mixup/name": "mixup"}, "mixup/bandwidth", None, "mixup/name=mixup"),
        ({}, "optim/cycles", None, "optim/schedule=cosine"),
        ({"init/name": "pretrained", "init/tune": "frozen"}, "init/layer_decay", None, "init/tune=frozen"),
        ({"pretrain/name": "simclr"}, "pretrain/weight", None, "pretrain/negatives=all"),
        ({"pretrain/name": "mae"}, "sampling", None, "pretrain/name=mae"),
        ({}, "shrink", "classification", "a classification target"),
        ({}, "loss/smoothing", "regression", "a regression target"),
        ({}, "optim/lr", "regression", None),
    ],
)
def test_what_switches_a_parameter_off_is_named(changes, name, kind, reason):
    assert why_unused(flatten(TrialConfig()) | changes, name, kind) == reason


def test_a_space_that_draws_what_is_switched_off_is_named_in_one_line():
    line = parameters_without_effect(
        space(
            """trial.suggest_float("optim/lr", 1e-4, 1e-2)
trial.suggest_int("optim/cycles", 2, 5)
trial.suggest_categorical("sam/name", ["none", "sam"])
trial.suggest_float("sam/rho", 0.01, 0.2)
trial.suggest_float("shrink", 0.0, 0.9)
trial.suggest_int("epochs", 2, 9)
return {"epochs": 4}"""
        ),
        "classification",
    )
    assert line is not None and "\n" not in line
    assert "optim/cycles (40 of 40 draws: optim/schedule=cosine)" in line
    assert " of 40 draws: sam/name=none)" in line and "sam/rho (40" not in line
    assert "shrink (40 of 40 draws: a classification target)" in line
    assert "epochs (a constant of the space replaces it)" in line
    assert line.startswith("space.py: drawn without effect: ") and "optim/lr" not in line


def test_a_constant_that_follows_what_is_drawn_is_no_fault():
    body = 'rho = trial.suggest_float("sam/rho", 0.01, 0.2)\nreturn {"sam/name": "asam", "sam/rho": 20 * rho}'
    assert parameters_without_effect(space(body)) is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_draw_nothing_without_effect(path):
    kinds = ["regression", "classification"] if path.stem in CLASSES_TOO else ["regression"]
    for kind in kinds:
        assert parameters_without_effect(load_space(path), kind) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("optim/lr", "model/name=covariance"),
        ("epochs", "model/name=covariance"),
        ("target_scale", "model/name=covariance"),
        ("sampling", None),
        ("model/shrinkage", None),
        ("model/n_bands", "model/bands=rhythms"),
    ],
)
def test_training_by_gradients_has_no_effect_on_a_fit_in_closed_form(name, reason):
    assert why_unused({"model/name": "covariance", "model/bands": "rhythms"}, name) == reason
