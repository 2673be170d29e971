"""Users' networks are tried on random windows before anything is started; each mistake is one line."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.search_space import load_space
from raypipe.search.preflight import check_space
from raypipe.search.sweep import sweep
from raypipe.trial.callback import SweepCallback
from tests.support.own import NET, SPACE, write_space
from tests.support.toys import ToyWindows, write_store


def check(folder, net=NET, space=SPACE, windows=None):
    windows = windows or ToyWindows()
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=3, seed=0)
    return check_space(load_space(write_space(folder, net, space)), windows, folds)


@pytest.mark.parametrize("classes", [False, True])
def test_a_good_network_passes(tmp_path, classes):
    assert check(tmp_path, windows=ToyWindows(classes=classes)) == []


HEAD = "self.head = nn.Linear(2 * width, n_outputs)"
RETURN = "return self.head("
MISTAKES = {
    "wrong shape": (
        (HEAD, HEAD.replace("n_outputs", "7")),
        r"ValueError: windows .* gave a tensor \(8, 7\), not .*\(8, 1\)",
    ),
    "squeezed": ((RETURN, "return self.head.forward("), None),
    "no tensor": ((RETURN, "return None, self.head("), r"gave a tuple, not a tensor"),
    "no parameters": (
        (NET[NET.index("        self.conv") : NET.index("    def forward")], "\n"),
        r"no parameters to train",
    ),
    "import error": (("import torch\n", "import torch\nimport no_such\n"), r"my_nets.py: line 3: ModuleNotFoundError"),
    "exit": (("import torch\n", "import torch, os\nos._exit(0)\n"), r"my_nets.py: line 3: SystemExit: calls os._exit"),
    "missing class": (("class Net", "class Nett"), r"no 'Net' there; did you mean 'Nett'\?"),
    "no module": (("(nn.Module)", ""), r"no class of torch.nn.Module, but the class Net"),
    "a function": (("class Net(nn.Module):", "def Net():\n  pass\nclass Other(nn.Module):"), r"but a function"),
    "missing argument": (("width=4", "width=4, *, depth"), r"needs the argument 'depth'; set model/args/depth"),
    "unknown argument": (("width=4", "wide=4"), r"model/args/width: .* no argument 'width'; did you mean 'wide'\?"),
    "raises": (
        ("super().__init__()", "super().__init__()\n        1 / 0"),
        r"line 9: ZeroDivisionError: division by zero",
    ),
    "not finite": ((RETURN, "return 0 / (0 * self.head.weight.sum()) * self.head("), r"outputs .* are not finite"),
    "detached": ((RETURN, "return self.head.requires_grad_(False)("), r"no gradient reaches any|not trained"),
    "float64": ((HEAD, HEAD + ".double()"), r"parameters must be torch.float32, and head.weight is torch.float64"),
    "drawn": ((HEAD, HEAD + "\n        self.extra = torch.randn(1)"), None),
    "noisy": (
        (RETURN, "return torch.rand(1) + self.head("),
        r"in evaluation mode its outputs differ from call to call",
    ),
    "slightly noisy": (
        (RETURN, "return 1e-6 * torch.rand(1) + self.head("),
        r"in evaluation mode its outputs differ from call to call",
    ),
    "extra state": (
        ("    def forward", "    def get_extra_state(self):\n        return {'k': 1}\n    def forward"),
        r"its state has '_extra_state', a dict; get_extra_state must give a tensor",
    ),
    "bfloat16": (
        (HEAD, HEAD + "\n        self.register_buffer('scale', torch.ones(1, dtype=torch.bfloat16))"),
        r"its state has 'scale', which is torch.bfloat16: NumPy has no such type; use torch.float32",
    ),
    "sparse": (
        (HEAD, HEAD + "\n        self.register_buffer('graph', torch.eye(3).to_sparse())"),
        r"its state has 'graph', which is sparse",
    ),
    "mixes windows": (
        ("y = self", "x = x - x.mean(0)\n        y = self"),
        r"output depends on the others of its batch",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, mistake):
    (old, new), message = MISTAKES[mistake]
    assert NET.count(old) >= 1
    net = NET.replace(old, new)
    if message is None:
        assert check(tmp_path, net) == []
        return
    if mistake == "detached":
        net = net.replace("self.norm(self.conv(x))", "self.norm(self.conv(x)).detach()")
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, net)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("/")
    assert "my_nets.py" in str(caught.value)


CONFIGURED = """
from pydantic import BaseModel, Field
from torch import nn


class Config(BaseModel, frozen=True, extra="forbid"):
    width: int = Field(4, gt=0, le=8)


class Net(nn.Module):
    def __init__(self, n_channels, n_times, n_outputs, **args):
        super().__init__()
        config = Config(**args)
        self.conv = nn.Conv1d(n_channels, config.width, 9)
        self.head = nn.Linear(config.width, n_outputs)

    def forward(self, x):
        return self.head(self.conv(x).square().mean(-1))
"""


def test_a_network_may_check_its_arguments_with_pydantic(tmp_path):
    assert check(tmp_path, CONFIGURED) == []
    with pytest.raises(UserError, match=r"line 13: ValidationError: width: Input should be less than or equal to 6$"):
        check(tmp_path, CONFIGURED.replace("le=8", "le=6"))
    with pytest.raises(UserError, match=r"line 13: ValidationError: wide: Extra inputs are not permitted$"):
        check(tmp_path, CONFIGURED, SPACE.replace("args/width", "args/wide"))


def test_what_is_drawn_at_first_must_be_kept(tmp_path):
    net = NET.replace(HEAD, HEAD + "\n        self.extra = torch.randn(1)").replace(
        RETURN, "return self.extra + self.head("
    )
    with pytest.raises(
        UserError, match="a new one with the same weights gives other outputs; what it draws when it is made"
    ):
        check(tmp_path, net)
    check(tmp_path, net.replace("self.extra = torch.randn(1)", "self.register_buffer('extra', torch.randn(1))"))


AT_FIRST = {
    "a count": ("import sys\nFIRST = sys.raypipe_test = getattr(sys, 'raypipe_test', 0.0) + 1.0", True),
    "a generator": ("import numpy as np\nFIRST = float(10 ** (15 * np.random.default_rng().random()))", True),
    "a seeded generator": ("import numpy as np\nFIRST = float(np.random.default_rng(3).random())", False),
    "global generators": (
        "import random\nimport numpy as np\nFIRST = float(torch.rand(1)) + random.random() + float(np.random.rand())",
        False,
    ),
    "an operator": ("LIBRARY = torch.library.Library('raypipe_test', 'DEF')\nLIBRARY.define('f(int x) -> int')", False),
}


@pytest.mark.parametrize("drawn", AT_FIRST)
def test_what_a_file_draws_when_it_is_read_must_be_the_same_in_every_process(tmp_path, drawn):
    line, refused = AT_FIRST[drawn]
    net = NET.replace("class Net", f"FIRST = 0.0\n{line}\n\n\nclass Net").replace(RETURN, "return FIRST + self.head(")
    if not refused:
        assert check(tmp_path, net) == []
        return
    with pytest.raises(UserError, match="what it draws when it is made, or its file when it is read, must be a param"):
        check(tmp_path, net)


COUNTS = "would not know; keep it in a buffer"
LOST = "after 3 steps of training, a new one with the same weights gives other outputs in training mode"
MASKED = "y = y * ({} > 0.3)"
FORGOTTEN = {
    "counter": (
        "self.calls = 0",
        "self.calls += 1",
        f"'calls' goes from 2 to 3 in a step of training, which .* {COUNTS}",
    ),
    "counter in a list": ("self.calls = [0]", "self.calls[0] += 1", f"'calls\\[0\\]' goes from 2 to 3 .* {COUNTS}"),
    "counter in a layer": ("self.drop.calls = 0", "self.drop.calls += 1", f"'drop.calls' goes from 2 to 3 .* {COUNTS}"),
    "counter of the file": ("", "CALLS['n'] += 1", rf"CALLS\['n'\]' goes from 2 to 3 .* {COUNTS}"),
    "counter of the class": ("", "Net.count += 1", f"'Net.count' goes from 2 to 3 .* {COUNTS}"),
    "counter in an object": ("self.plan = Plan()", "self.plan.step += 1", f"'plan.step' goes from 2 to 3 .* {COUNTS}"),
    "tensor": ("self.calls = torch.tensor(0)", "self.calls += 1", f"'calls' goes from 2 to 3 .* {COUNTS}"),
    "unsaved": (
        "self.register_buffer('calls', torch.tensor(0), persistent=False)",
        "self.calls += 1",
        f"'calls' goes from 2 to 3 .* {COUNTS}",
    ),
    "temperature": ("self.heat = 1.0", "self.heat *= 0.9; y = y * self.heat", LOST),
    "moving mean": ("self.mean = 0.0", "self.mean = 0.9 * self.mean + y.detach().mean(0); y = y - self.mean", LOST),
    "first batch": (
        "self.mean = None",
        "self.mean = y.detach().mean(0) if self.mean is None else self.mean; y = y - self.mean",
        LOST,
    ),
    "generator": (
        "self.g = torch.Generator().manual_seed(0)",
        MASKED.format("torch.rand(y.shape, generator=self.g)"),
        LOST,
    ),
    "NumPy's generator": (
        "self.rng = np.random.default_rng(0)",
        MASKED.format("torch.from_numpy(self.rng.random(y.shape))"),
        LOST,
    ),
    "new generator": ("", MASKED.format("torch.from_numpy(np.random.default_rng().random(y.shape))"), LOST),
    "drawn once": ("", "y = y * CALLS.setdefault('scale', torch.rand(1))", LOST),
}
"""What a network keeps outside of its state: made, used in training, and the message."""


def forgetful(made, used):
    """Return a network with a line in `__init__` and one for training."""
    globals_ = "import numpy as np\nCALLS = {'n': 0}\nclass Plan:\n    step = 0\n"
    net = NET.replace("from torch import nn\n", "from torch import nn\n" + globals_).replace(
        HEAD, f"{HEAD}\n        {made}"
    )
    net = net.replace("    def __init__", "    count = 0\n    def __init__").replace(
        "        parts =", f"        if self.training:\n            {used}\n        parts ="
    )
    assert used in net and made in net
    return net


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_a_resumed_training_would_not_know_is_one_line(tmp_path, what):
    made, used, message = FORGOTTEN[what]
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, forgetful(made, used))
    assert "\n" not in str(caught.value) and "my_nets.py:Net" in str(caught.value)


KNOWN = {
    "buffer": ("self.register_buffer('calls', torch.tensor(0))", "self.calls += 1; y = y * self.calls"),
    "statistics": (
        "self.register_buffer('mean', torch.zeros(1))",
        "self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(); y = y - self.mean",
    ),
    "cache": (
        "self.times = None",
        "self.times = torch.arange(y.shape[2]) if self.times is None else self.times; y = y * self.times",
    ),
    "kept outputs": ("", "self.last, self.size = y, len(y)"),
    "global generators": ("", "y = y * torch.rand(1) * np.random.rand()"),
    "spectral norm": ("self.head = nn.utils.parametrizations.spectral_norm(self.head)", ""),
    "weight norm": ("self.head = nn.utils.parametrizations.weight_norm(self.head)", ""),
    "instance norm": ("self.norm = nn.InstanceNorm1d(width, track_running_stats=True)", ""),
    "lazy": ("self.head = nn.LazyLinear(n_outputs)", ""),
}
"""What a network may keep: made, and used in training."""


@pytest.mark.parametrize("what", KNOWN)
def test_what_is_kept_in_buffers_or_made_again_passes(tmp_path, what):
    made, used = KNOWN[what]
    assert check(tmp_path, forgetful(made, used or "pass")) == []


def test_parameters_without_a_gradient_are_named(tmp_path):
    net = NET.replace(HEAD, HEAD + "\n        self.spare = nn.Linear(2, 3)")
    lines = check(tmp_path, net)
    assert lines == ["my_nets.py:Net: no gradient reaches spare.weight, spare.bias: not trained"]


def test_sam_of_normalisation_layers_needs_one(tmp_path):
    """It would move nothing, and take two passes."""
    only = SPACE.replace('"patience": 4}', '"patience": 4, "sam/only": "norm"}')
    without = NET.replace("        self.norm = nn.BatchNorm1d(width)\n", "").replace(
        "self.norm(self.conv(x))", "self.conv(x)"
    )
    with pytest.raises(UserError, match=r"my_nets.py:Net: it has no normalisation layer of torch to train: leave sam/"):
        check(tmp_path, without, only)
    assert check(tmp_path, without) == [] and check(tmp_path, NET, only) == []


def test_batch_norm_needs_more_than_one_value_in_the_smallest_batch(tmp_path):
    """An epoch's smallest batch has two windows, so only a layer that sees one value of them fails."""
    one = NET.replace("self.norm(self.conv(x))", "self.norm(self.conv(x)[:1, :, :1])")
    with pytest.raises(UserError, match="its BatchNorm cannot train on a batch of 8 windows"):
        check(tmp_path, one)


class NotStarted(SweepCallback):
    def on_ray_start(self, address):
        raise AssertionError("Ray was started")


def test_a_sweep_with_a_wrong_network_starts_nothing(tmp_path):
    store = write_store(tmp_path / "store", ToyWindows())
    space = write_space(tmp_path, NET.replace("n_outputs)", "3)"))
    with pytest.raises(UserError, match=r"space.py: my_nets.py:Net: ValueError: windows \(8, 3, 64\)"):
        sweep(space, store, tmp_path / "run", folds=3, callback=NotStarted())
    assert not (tmp_path / "run").exists()
