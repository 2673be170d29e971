"""Search spaces that are functions or dictionaries: what a run keeps of them draws the same."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.core.parameters import flatten
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.core.space_source import source_of
from raypipe.data.window_store import WindowStore
from raypipe.search.run_setup import open_run
from raypipe.storage.run_store import RunStore
from tests.support.own import NET
from tests.support.toys import ToyWindows, write_store

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypes

RATES = (1e-4, 1e-2)
EPOCHS = {"tcn": 4, "vit": 6}


def suggest_rate(trial):
    return trial.suggest_float("optim/lr", *RATES, log=True)


def around(trial: optuna.Trial):
    """Draw from what is around it."""
    rate = suggest_rate(trial)
    name = trial.suggest_categorical("model/name", sorted(EPOCHS))
    return {"epochs": EPOCHS[name], "optim/ema": 0.9 if math.log10(rate) < -3 else 0.99}


around.START = [{"optim/lr": 1e-3, "model/name": "tcn"}]


def for_types(trial: optuna.Trial, factor: OnlyForTypes = 2.0) -> dict[str, OnlyForTypes]:
    return {"optim/weight_decay": factor * 1e-3}


def test_a_function_within_another_may_have_texts_that_are_not_indented():
    def inner(trial):
        """A space
        whose docstring is not indented."""
        return {"epochs": 3}

    space = load_space(inner)
    assert space.draw(1)[0].epochs == 3 and "whose docstring is not indented." in space.description


@pytest.mark.parametrize("other", [1e-3, {"low": 1e-4, "high": 1e-2}])
def test_a_parameter_that_is_given_twice_is_one_line(other):
    with pytest.raises(
        UserError, match=r"^optim/lr: it is there twice, under 'optim/lr' and in 'optim' as 'lr'; leave"
    ):
        load_space({"optim/lr": 1e-4, "optim": {"lr": other}})


def test_names_that_are_there_for_types_only_are_not_looked_up():
    """The module here leaves annotations as text, and what it imports for types only is not there when it runs."""
    space = load_space(for_types)
    assert SearchSpace(space.source, "space.py").draw(1)[0].optim.weight_decay == 2e-3


def test_a_function_is_kept_with_what_it_uses():
    space = load_space(around)
    assert space.name == "around(trial)" and space.description == "Draw from what is around it."
    assert space.start == around.START
    assert "import math\n" in space.source and "RATES = (0.0001, 0.01)\n" in space.source
    again = SearchSpace(space.source, "space.py")
    assert [flatten(config) for config in again.draw(9)] == [flatten(config) for config in space.draw(9)]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for config in space.draw(9):
        trial = study.ask()
        given = around(trial)
        assert config.optim.ema == given["optim/ema"] and config.optim.lr == trial.params["optim/lr"]
    assert load_space(around).hash == space.hash


def test_a_function_may_use_what_surrounds_its_definition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    width = 8

    def space(trial):
        trial.suggest_int("model/filters", 3, width - 1)
        return {"model/name": "tcn"}

    assert "width = 8\n" in load_space(space).source


def make(source, **scope):
    exec(source, scope)
    return scope["space"]


COMMON = """import math
LOW, HIGH, SAME = 1e-5, 1e-4, [1, "a"]
def draw_lr(trial):
    return trial.suggest_float("optim/lr", LOW, HIGH, log=True)
def helper(trial):
    return SAME
def uses_helper(trial):
    return helper(trial)
def alias(trial):
    return m.ceil(1.5)
import math as m
def shadow(trial):
    return round
round = 3
def own_space(trial):
    return space
space = 5
def points(trial):
    return START
START = []
def factory(low):
    def draw_low(trial):
        return low
    return draw_low
three, four = factory(3), factory(4)
"""
CLASHES = {
    "values": ("LOW = 1", "[LOW, draw_lr(trial)]", "another LOW than"),
    "functions": ("def helper(trial):\n    return 1", "[helper(trial), uses_helper(trial)]", "another helper than"),
    "imports": ("import numpy as m", "[m.ceil(1.5), alias(trial)]", "another m than"),
    "names of Python": ("", "[round(1.5), shadow(trial)]", "another round than"),
    "nested functions": ("LOW = 1", "[(lambda: LOW)(), draw_lr(trial)]", "another LOW than"),
    "its own name": ("", "own_space(trial)", "another space than|the name space, which means something else"),
    "start points": ("", "points(trial)", "uses the name START, which means something else"),
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Return a function that writes two modules, and imports the space of the second."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(around, returned, name="space"):
        (tmp_path / "raypipe_common.py").write_text(COMMON)
        (tmp_path / "raypipe_main.py").write_text(
            f"from raypipe_common import *\nfrom raypipe_common import helper as _, draw_lr\n{around}\n"
            f"def {name}(trial):\n    found = {returned}\n    return {{'epochs': 3}}\n"
        )
        for module in ("raypipe_common", "raypipe_main"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        return getattr(importlib.import_module("raypipe_main"), name)

    return write


@pytest.mark.parametrize("clash", CLASHES)
@pytest.mark.parametrize("name", ["space", "my_space"])
def test_a_name_that_two_modules_use_for_different_things_is_one_line(modules, clash, name):
    around, returned, message = CLASHES[clash]
    if clash == "names of Python":
        around = "import builtins\nround = builtins.round; del round"
    with pytest.raises(UserError, match=message) as caught:
        load_space(modules(around, returned, name))
    assert "\n" not in str(caught.value)


def test_names_that_two_modules_use_for_the_same_are_kept(modules):
    source = load_space(
        modules("SAME = [1, 'a']", "[SAME, helper(trial), uses_helper(trial), math.pi, draw_lr]")
    ).source
    assert source.count("def helper") == source.count("SAME = [1, 'a']\n") == 1


def test_closures_that_share_a_text_are_not_taken_for_one_another(modules):
    around = "def twice(trial):\n    return four(trial)"
    space = modules(around, "three(trial)")
    with pytest.raises(UserError, match=r"no plain function .def three."):
        load_space(space)
    low = "from raypipe_common import factory\ndraw_low = factory(3)\n"
    one = f"{low}def other(draw_low):\n    def inner(trial):\n        return draw_low(trial)\n    return inner\n"
    with pytest.raises(UserError, match="another low than draw_low"):
        load_space(modules(f"{one}inner = other(factory(4))", "[draw_low(trial), inner(trial)]"))
    assert (
        "low = 3\n" in load_space(modules(f"{one}inner = other(factory(3))", "[draw_low(trial), inner(trial)]")).source
    )


def test_defaults_are_those_of_the_function(modules):
    kept = "BEST = 4\ndef pick(trial, *, best=BEST, more=(1, 'a'), least=2 * BEST):\n    return best\n"
    assert "BEST = 4\n" in load_space(modules(kept, "pick(trial)")).source
    for changed in ("BEST = 5", "pick.__kwdefaults__ = {'best': 5, 'more': (1, 'a'), 'least': 8}", "del BEST"):
        with pytest.raises(UserError, match=r"^pick: the default of best is no longer what its source says"):
            load_space(modules(f"{kept}{changed}", "pick(trial)"))
    around = (
        "def make(low):\n    def inner(trial, low=low):\n        return low\n    return inner\nlow = 3\ninner = make(4)"
    )
    with pytest.raises(UserError, match=r"^inner: the default of low is no longer what its source says"):
        load_space(modules(around, "inner(trial)"))


def test_a_decorated_function_is_no_plain_one(modules):
    twice = "import functools\ndef twice(f):\n    return functools.wraps(f)(lambda trial: 2 * f(trial))\n"
    for decorated in ("@twice\ndef pick(trial):\n    return 1", "def pick(trial):\n    return 1\npick = twice(pick)"):
        with pytest.raises(UserError, match=r"^pick: no plain function .def pick."):
            load_space(modules(twice + decorated, "pick(trial)"))


def test_what_poses_as_of_a_package_is_not_imported_from_it(modules):
    posing = "import math\ndef sqrt(x):\n    return -x\nsqrt.__module__ = 'math'"
    assert "def sqrt(x):" in load_space(modules(posing, "sqrt(1)")).source


def test_what_cannot_be_kept_is_one_line():
    device = SimpleNamespace(rate=1e-3)

    def space(trial):
        return {"optim/lr": device.rate}

    cases = [
        (space, r"space uses device, which: a SimpleNamespace cannot be kept with the run; write the search space to"),
        (lambda trial: None, r"no plain function|cannot be kept"),
        (make("def space(trial): pass"), "space: its source is not known here; write it to a file"),
        (3, "the search space must be a file, a function space"),
        (print, "the search space must be a file, a function space"),
        ({"optim/lr": object()}, "optim/lr: a object cannot be kept with the run"),
        ({"optim/lr": math.inf}, "optim/lr: a float cannot be kept with the run"),
        ({"optim/lr": {"low": 1}}, r"optim/lr: must be a constant, \{'choices': \[...\]\} or \{'low': a, 'high': b\}"),
        ({"optim/lr": {"low": 1.0, "high": 2.0, "choices": [3]}}, "must be a constant"),
        ({"sam/name": {"choices": None}}, "sam/name: choices must be a list .given None."),
        ({"sam/name": {"choices": "sam"}}, "sam/name: choices must be a list .given 'sam'."),
        ({"sam/name": {"choices": {"none", "sam"}}}, "sam/name: choices must be a list"),
        ({"optim/lr": {"low": "a", "high": 1}}, "optim/lr: low must be a number.*given 'a' and 1."),
        ({"optim/lr": {"low": 2, "high": 1}}, "optim/lr: low must be a number.*given 2 and 1."),
        (
            {"model/name": ["linear", "covariance"]},
            r"^model/name: a list is not a choice; .*\{'choices': \['linear', 'covariance'\]\}$",
        ),
        ({"optim": {"lr": (0.1, 0.2)}}, r"^optim/lr: a list is not a choice; .*\{'choices': \[0.1, 0.2\]\}$"),
        ({"epochs": list(range(99))}, r"^epochs: a list is not a choice; .*\.\.\.\}$"),
        ({"data/store": ["low"]}, "^data/store: a list is not a choice"),
        ({"optim/l": 3}, "unknown parameter 'optim/l'; did you mean 'optim/lr'"),
        ({3: 3}, "names of parameters must be text such as 'optim/lr' .given 3."),
        (
            {"optim/lr": 0.1, "START": [{"epochs": 3}]},
            r"START\[0\] sets 'epochs', which space\(trial\) does not ask for",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            load_space(wrong)
        assert "\n" not in str(caught.value)


def test_lists_are_values_of_parameters_that_take_them():
    config = load_space({"optim/betas": [0.8, 0.99]}).draw(1)[0]
    assert config.optim.betas == (0.8, 0.99)
    assert "'model/args/widths': [4, 8]" in source_of({"model/name": "nets.py:Net", "model/args/widths": [4, 8]}).text


def test_a_dictionary_of_distributions_or_of_plain_values():
    of_optuna = {
        "optim/lr": FloatDistribution(1e-4, 1e-2, log=True),
        "model": {"name": "tcn", "filters": IntDistribution(4, 16, step=4)},
        "sam/name": CategoricalDistribution(["none", "sam"]),
        "epochs": 7,
        "START": [{"optim/lr": 1e-3, "model/filters": 8, "sam/name": "sam"}],
    }
    plain = {
        "optim/lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model": {"name": "tcn", "filters": {"low": 4, "high": 16, "step": 4}},
        "sam/name": {"choices": ["none", "sam"]},
        "epochs": 7,
        "START": of_optuna["START"],
    }
    one, other = load_space(of_optuna), load_space(plain)
    assert one == other and one.start == plain["START"]
    drawn = one.draw(40)
    assert {config.model.filters for config in drawn} == {4, 8, 12, 16} and {c.epochs for c in drawn} == {7}
    assert {config.sam.name for config in drawn} == {"none", "sam"}


def test_a_section_or_arguments_may_have_parameters_that_are_called_low_and_high():
    bands = {"name": "covariance", "bands": "even", "n_bands": {"low": 2, "high": 9}}
    ends = {"low": {"low": 2.0, "high": 6.0}, "high": 30.0}
    models = [config.model for config in load_space({"model": bands | ends}).draw(9)]
    assert {model.high for model in models} == {30.0} and len({model.low for model in models}) == 9
    assert {model.n_bands for model in models} <= set(range(2, 10))
    own = {"name": "nets.py:Net", "args": {"low": 4, "high": 30, "choices": [1, 2], "width": {"low": 2, "high": 8}}}
    text = source_of({"model": own}).text
    assert source_of({"model": {"name": "nets.py:Net"}, "model/args": own["args"]}).text == text
    assert [f"'model/args/{name}': {value}" in text for name, value in list(own["args"].items())[:3]] == [True] * 3
    assert text.count("trial.") == 1 and "trial.suggest_int('model/args/width', 2, 8)" in text


@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_the_ends_of_a_range_are_kept_exactly(low, width, log):
    text = source_of({"optim/lr": FloatDistribution(low, low + width, log=log)}).text
    scope = {}
    exec(text, scope)
    trial = optuna.trial.FixedTrial({"optim/lr": low + width})
    scope["space"](trial)
    assert trial.distributions == {"optim/lr": FloatDistribution(low, low + width, log=log)}


def test_a_script_names_a_network_beside_itself_and_is_not_run_again(tmp_path):
    (tmp_path / "my_nets.py").write_text(NET)
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            from raypipe.core.search_space import load_space

            print("begun")
            WIDTH = 4

            def my_space(trial):
                return {"model/name": "my_nets.py:Net", "model/args/width": WIDTH}

            space = load_space(my_space)
            print(space.draw(1)[0].model.code == space.files["my_nets.py"].code)
            """
        )
    )
    run = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, cwd="/", check=True)
    assert run.stdout == "begun\nTrue\n"


def test_a_run_of_a_function_is_continued_from_its_text(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    run = open_run(load_space(around), windows, str(tmp_path / "run"), SweepOptions(folds=3))
    again = RunStore.open(tmp_path / "run")
    assert again.space == run.space and again.space.draw(5) == load_space(around).draw(5)
    open_run(load_space(around), windows, str(tmp_path / "run"), SweepOptions(folds=3))
    with pytest.raises(UserError, match=r"made with another search space \(a copy is its space.py\)"):
        open_run(load_space({"epochs": 3}), windows, str(tmp_path / "run"), SweepOptions(folds=3))
