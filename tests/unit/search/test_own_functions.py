"""Losses and augmentations of users are tried on random numbers before anything is started; a mistake is one line."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.search_space import load_space
from raypipe.search.preflight import check_space
from tests.support.own import FUNCTIONS, FUNCTIONS_SPACE, write_functions
from tests.support.toys import ToyWindows

OF_CLASSES = FUNCTIONS_SPACE.replace("mine.py:quantile", "mine.py:weighted").replace("loss/args/q", "optim/lr")


def check(folder, functions=FUNCTIONS, space=FUNCTIONS_SPACE, windows=None):
    windows = windows or ToyWindows()
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=3, seed=0)
    return check_space(load_space(write_functions(folder, functions, space)), windows, folds)


def test_good_functions_pass(tmp_path):
    assert check(tmp_path) == []
    assert check(tmp_path / "classes", space=OF_CLASSES, windows=ToyWindows(classes=True)) == []
    mixed = OF_CLASSES.replace('"model/name"', '"mixup/name": "mixup", "model/name"')
    assert check(tmp_path / "mixed", space=mixed, windows=ToyWindows(classes=True)) == []
    packaged = FUNCTIONS_SPACE.replace("mine.py:quantile", "torch.nn:SmoothL1Loss").replace("args/q", "args/beta")
    assert check(tmp_path / "package", space=packaged) == []
    bins = FUNCTIONS_SPACE.replace('"model/name": "tcn", "model/filters": 4, "model/depth": 1', '"model/bins": 8')
    assert check(tmp_path / "bins", space=bins) == []


MISTAKES = {
    "no such function": (("def quantile", "def quantil"), r"no 'quantile' there; did you mean 'quantil'\?"),
    "no function": (("def quantile", "quantile = 3\ndef other"), "mine.py:quantile is no function, but a int"),
    "one tensor": (
        ("(outputs, target, q=0.5)", "(outputs, *, q=0.5)"),
        "takes 1 positional arguments",
    ),
    "unknown argument": (("q=0.5", "p=0.5"), r"loss/args/q: .*quantile takes no argument 'q'; did you mean|available"),
    "missing argument": (("q=0.5", "q, width"), "needs the argument 'width'; set loss/args/width"),
    "not reduced": ((").mean()", ")"), r"gave a tensor \(8,\), and must give one number"),
    "a number": ((").mean()", ").mean().item()"), r"gave a float, and must give one number"),
    "not finite": ((").mean()", ").mean() / 0"), r"gave (nan|inf) on random numbers"),
    "detached": (("target - outputs", "target - outputs.detach()"), "no gradient reaches the network's outputs"),
    "flat": ((").mean()", ").mean().round()"), "no gradient reaches the network's outputs"),
    "infinite slope": (("return torch", "return error.sub(error).sum().sqrt() + torch"), "its gradient is not finite"),
    "stateful": (
        ("def quantile", "calls = []\ndef quantile"),
        "the same outputs and targets give",
    ),
    "raises": (("return torch.maximum", "1 / 0\n    return torch.maximum"), r"line 7: ZeroDivisionError: division by"),
    "own draws": (("rng.random(len(x))", "torch.rand(len(x)).numpy()"), "draw all random numbers from its parameter"),
    "another shape": (("x.flip(2), x)", "x.flip(2), x)[:, :1]"), r"ValueError: mine.py:reverse: windows \(8, 3, 64\)"),
    "another type": (("x.flip(2), x)", "x.flip(2), x).double()"), "gave a tensor .* of torch.float64"),
    "no windows": (("x.flip(2), x)", "x.flip(2), x) / 0"), "the changed windows are not finite"),
    "unknown share": (("share=0.5", "shares=0.5"), r"augment/args/share: .*'shares'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, mistake):
    (old, new), message = MISTAKES[mistake]
    assert old in FUNCTIONS
    functions = FUNCTIONS.replace(old, new, 1)
    if mistake == "stateful":
        functions = functions.replace("error = target", "calls.append(1)\n    error = len(calls) * target")
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, functions)
    assert "\n" not in str(caught.value) and "mine.py" in str(caught.value)


MODULE = """
class quantile(torch.nn.Module):
    def __init__(self, q=0.5):
        super().__init__()
        self.calls, self.scale = 0, {}
        self.register_buffer("n", torch.zeros(()), persistent=False)
    def forward(self, outputs, target):
        {}
        return ((outputs - target) * self.scale).square().mean()
"""
FORGETFUL = {
    "counter": (
        ("    error =", "    CALLS[0] += 1\n    error ="),
        r"mine.py:quantile: 'CALLS\[0\]' changes from batch",
    ),
    "of the function": (
        ("    error =", "    quantile.calls += 1\n    error ="),
        "quantile: 'calls' changes from batch",
    ),
    "drawn by the file": (("target - outputs", "DRAWN * target - outputs"), "quantile: after some batches it gives"),
    "attribute": (("def quantile", MODULE.format(1.0, "self.calls += 1") + "def other"), "'calls' changes from batch"),
    "buffer": (("def quantile", MODULE.format(1.0, "self.n += 1") + "def other"), "'n' changes from batch"),
    "drawn by the loss": (
        ("def quantile", MODULE.format("torch.rand(())", "pass") + "def other"),
        "quantile: after some batches it gives .*, and a new one .*; it must keep nothing",
    ),
    "counting augmentation": (
        ("    reversed_B", "    CALLS[0] += 1\n    reversed_B"),
        r"reverse: 'CALLS\[0\]' changes from",
    ),
}


@pytest.mark.parametrize("what", FORGETFUL)
def test_what_a_resumed_training_would_not_know_is_one_line(tmp_path, what):
    (old, new), message = FORGETFUL[what]
    assert old in FUNCTIONS
    functions = FUNCTIONS.replace(old, new, 1).replace(
        "import torch\n", "import random, torch\nCALLS, DRAWN = [0], random.SystemRandom().random()\n"
    )
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, functions + "\n\nquantile.calls = 0\n")
    assert "\n" not in str(caught.value)


def test_a_loss_may_have_constants_and_write_on_what_it_gets(tmp_path):
    constant = MODULE.format("torch.ones(2).sum()", "target -= 1.0; outputs = outputs.sub_(self.n)")
    assert check(tmp_path, FUNCTIONS.replace("def quantile", constant + "def other", 1)) == []


def test_a_file_that_can_be_run_once_only_is_checked_as_it_is(tmp_path):
    once = "LIBRARY = torch.library.Library('raypipe_test_loss', 'DEF')\nLIBRARY.define('f(int x) -> int')\n"
    assert check(tmp_path, FUNCTIONS.replace("import torch\n", "import torch\n" + once, 1)) == []


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (FUNCTIONS_SPACE.replace("loss/args/q", "loss/gamma"), r"'loss/gamma' is for others, .*loss/args/gamma"),
        (FUNCTIONS_SPACE.replace("loss/args/q", "loss/q"), "unknown parameter 'loss/q'; .* of the loss is loss/args/q"),
        (FUNCTIONS_SPACE.replace("mine.py:quantile", "huber"), "'loss/args' is for loss/name=file.py:Name, not for"),
        (FUNCTIONS_SPACE.replace("mine.py:quantile", "mine.py"), "'loss/name': Input should be 'plain'"),
        (FUNCTIONS_SPACE.replace("mine.py:quantile", "yours.py:quantile"), "there is no file"),
        (FUNCTIONS_SPACE.replace('"tcn"', '"linear"'), "has no effect with model/name=linear|unknown|is for"),
    ],
)
def test_what_does_not_fit_together_is_one_line(tmp_path, space, message):
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, space=space)
    assert "\n" not in str(caught.value)
