from __future__ import annotations

import pickle
from pathlib import Path

import optuna
import pytest

from raypipe.core.errors import UserError
from raypipe.core.search_space import SearchSpace, load_space

SHIPPED = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_spaces_draw_valid_configurations_and_known_good_points(path):
    space = load_space(path)
    assert len(space.draw(200)) == 200
    assert space.start
    assert len(space.description.splitlines()) >= 3


def test_conditional_parameters_are_drawn_only_where_they_have_an_effect():
    space = load_space(next(p for p in SHIPPED if p.stem == "focal_mixup_sam"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        space(trial)
        params = trial.params
        assert ("loss/gamma" in params) == (params["loss/name"] == "focal")
        assert ("mixup/alpha" in params) == (params["mixup/name"] != "none")
        assert ("sam/rho" in params) == (params["sam/name"] != "none")
        seen.add((params["loss/name"], params["sam/name"]))
    assert len(seen) == 6


def write(tmp_path, text):
    path = tmp_path / "space.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def space(trial:\n", r"space\.py: line 1: SyntaxError"),
        ("import nothing_there\n", r"line 1: ModuleNotFoundError"),
        ("x = 1\n", r"no function space\(trial\)"),
        ("START = 3\ndef space(trial): return {}\n", "START must be a list"),
        ("def space(trial): return 3\n", "must return a dict"),
        ("def space(trial):\n    return {'loss/gama': 1}\n", "did you mean 'loss/gamma'"),
        ("def space(trial):\n    trial.suggest_float('optim/lrr', 0.1, 1)\n", "did you mean 'optim/lr'"),
        ("def space(trial):\n    x = 1\n    return x.nothing\n", r"space\.py: line 3: AttributeError"),
        ("START = [{}]\ndef space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n", r"START\[0\]"),
        (
            "START = [{'optim/lr': 5}]\ndef space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n",
            r"START\[0\].*out of",
        ),
        (
            "START = [{'optim/lr': 0.5, 'epochs': 3}]\ndef space(t):\n    t.suggest_float('optim/lr', 0.1, 1)\n",
            r"START\[0\] sets 'epochs', which",
        ),
    ],
)
def test_a_bad_space_gives_one_line_with_the_position(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_space(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such search space"):
        load_space(tmp_path / "none.py")


def test_a_space_can_be_pickled_after_it_has_run(tmp_path):
    space = load_space(write(tmp_path, "def space(trial):\n    return {'epochs': 3}\n"))
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again(optuna.trial.FixedTrial({})).epochs == 3
    assert isinstance(again, SearchSpace)
