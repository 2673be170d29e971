"""The challenge scorer's own loop, run on an unpacked submission in a process that has torch and NumPy only.

`check` runs this file by its path, so it must import nothing of raypipe: ``python -I scorer.py SUBMISSION REQUEST
ANSWER``. REQUEST and ANSWER are JSON files.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

N_WINDOWS = 8
BATCH = 64
TIMED = 8
HIDDEN = 100_000
"""Windows of a hidden release of some 300 people, both challenges, roughly."""
SLOWEST = 0.5
MOST_MEMORY = 18.0
SEED = 20251115
TOLERANCE = 1e-5  # of the largest answer: float32 rounding differs with the batch size

_TORCH = {"torch", "torchgen", "functorch", "numpy", "nvidia", "cuda", "triton"}
_TORCH_NEEDS = {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}


class Fence(importlib.abc.MetaPathFinder):
    """Lets nothing be imported but the standard library, torch with what torch needs, NumPy, and `own` modules."""

    def __init__(self, own: Iterable[str]) -> None:
        self.allowed = set(sys.stdlib_module_names) | _TORCH | _TORCH_NEEDS | set(own)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.allowed:
            return None
        raise ModuleNotFoundError(f"No module named '{fullname}' where submissions are scored", name=fullname)


def reference_windows(n_channels: int, n_times: int, n: int = N_WINDOWS, seed: int = SEED) -> NDArray[np.float32]:
    """Make windows of noise in volts (n, n_channels, n_times), about 10 microvolts, the last channel flat at zero.

    From NumPy's legacy generator, whose stream is frozen (NEP 19): the same numbers with every version.
    """
    draw = np.random.RandomState(seed)
    x_NCT = np.cumsum(draw.standard_normal((n, n_channels, n_times)), axis=2) * 2e-6
    x_NCT += draw.standard_normal((n, n_channels, n_times)) * 1e-5
    x_NCT -= x_NCT.mean(axis=2, keepdims=True)
    x_NCT[:, -1] = 0.0
    return x_NCT.astype(np.float32)


def ask(model: Any, x_NCT: NDArray[np.float32], device: str) -> list[float]:
    """Score windows as the challenge does: one at a time, in order, one number each."""
    answers = []
    with torch.inference_mode():
        for x_CT in x_NCT:
            x_BCT = torch.from_numpy(x_CT[None]).to(device)
            answers.append(float(model(x_BCT).detach().cpu().numpy()[0][0]))
    return answers


def close(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Largest difference between answers if it is more than rounding, else None."""
    if len(a) != len(b) or not all(map(math.isfinite, [*a, *b])):
        return math.inf
    worst = max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
    largest = max(map(abs, b), default=0.0)
    return None if worst <= TOLERANCE * largest else worst


class Examination:
    """The checks of one challenge; each adds a line ``(name, ok, detail)``."""

    def __init__(self, submission: ModuleType, challenge: str, request: dict[str, Any]) -> None:
        self.getter = f"get_model_challenge_{challenge}"
        self.submission, self.request = submission, request
        self.device: str = request["device"]
        self.lines: list[tuple[str, bool, str]] = []
        self.x_NCT = reference_windows(request["n_channels"], request["n_times"])

    def check(self, name: str, look: Callable[[], str]) -> bool:
        """Run one check; it passes with the text it returns, and fails with what it raises."""
        try:
            self.lines.append((name, True, look()))
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            text = " ".join(str(error).split())
            self.lines.append((name, False, f"{kind}{text}"[:400]))
        return self.lines[-1][1]

    def make(self) -> Any:
        """A model, made as the scorer makes it."""
        return getattr(self.submission.Submission(self.request["sfreq"], self.device), self.getter)()

    def run(self) -> None:
        """Do all checks; the later ones only if there is a model that answers."""
        if not self.check("loads", self._loads):
            return
        self.check("evaluation mode", self._evaluation)
        if not self.check("one number a window", self._shape):
            return
        self.answers = ask(self.model, self.x_NCT, self.device)
        self.check("reference answers", self._reference)
        self.check("keeps no memory", self._order)
        self.check("any batch size", self._batch)
        self.check("same answers twice", self._twice)
        self.check("flat channels", self._flat)
        self.check("volts and microvolts", self._units)
        self.check("time", self._time)
        self.check("memory", self._memory)

    def _loads(self) -> str:
        found = getattr(self.submission, "Submission", None)
        assert found is not None, "submission.py defines no class Submission; the scorer calls Submission"
        if not hasattr(found, self.getter):
            others = [name for name in dir(found) if name.startswith("get_")]
            have = f"; it has {', '.join(others)}" if others else ""
            raise AssertionError(f"class Submission has no {self.getter}, which the scorer calls{have}; rename it")
        self.model = self.make()
        assert isinstance(self.model, torch.nn.Module), (
            f"{self.getter}() returns a {type(self.model).__name__}, not a torch.nn.Module"
        )
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{self.getter}() gives a module of {count:,} parameters"

    def _evaluation(self) -> str:
        training = [name or "the model" for name, module in self.model.named_modules() if module.training]
        mend = "call .eval() before returning the model"
        assert not training, f"{len(training)} module(s) are in training mode: {training[0]}; {mend}"
        return "no dropout, no batch statistics"

    def _shape(self) -> str:
        with torch.inference_mode():
            for batch in (1, 3):
                y = self.model(torch.from_numpy(self.x_NCT[:batch]).to(self.device))
                assert isinstance(y, torch.Tensor), f"the model returns a {type(y).__name__}, not a tensor"
                assert tuple(y.shape) == (batch, 1), f"{batch} window(s) give shape {tuple(y.shape)}, not ({batch}, 1)"
                assert y.is_floating_point(), f"answers are {y.dtype}, not floating point"
                assert bool(torch.isfinite(y).all()), "answers are not finite"
        return "shape (B, 1), finite"

    def _reference(self) -> str:
        wanted = self.request["reference"]
        assert wanted is not None, "the zip carries no reference answers (manifest.json), so nothing vouches for it"
        worst = close(self.answers, wanted)
        source = self.request["source"]
        assert worst is None, f"answers differ from {source} by up to {worst:.3g}: the weights or the code are others"
        return f"{len(wanted)} answers equal {source}"

    def _order(self) -> str:
        order = np.random.RandomState(1).permutation(len(self.x_NCT))
        shuffled = dict(zip(order.tolist(), ask(self.model, self.x_NCT[order], self.device), strict=True))
        worst = close([shuffled[i] for i in range(len(order))], self.answers)
        assert worst is None, (
            f"in another order, answers change by up to {worst:.3g}: the model remembers windows; keep no state "
            "between calls of forward"
        )
        return "another order gives the same answers"

    def _batch(self) -> str:
        with torch.inference_mode():
            # As many as 64, each beside others than when asked alone.
            order = np.arange(BATCH) % len(self.x_NCT)
            together = self.model(torch.from_numpy(self.x_NCT[order]).to(self.device)).cpu().numpy()[:, 0].tolist()
        worst = close(together, [self.answers[i] for i in order])
        assert worst is None, (
            f"in one batch, answers change by up to {worst:.3g}: windows influence each other; take nothing (mean, "
            "rank, BatchNorm in training mode) over the batch"
        )
        return f"1 and {BATCH} at a time give the same answers"

    def _twice(self) -> str:
        worst = close(ask(self.make(), self.x_NCT, self.device), self.answers)
        assert worst is None, (
            f"a second model's answers differ by up to {worst:.3g}: something is random; load all weights, call .eval()"
        )
        return "a second model gives the same answers"

    def _flat(self) -> str:
        x_NCT = self.x_NCT[:2].copy()
        x_NCT[0, ::2] = 0.0
        x_NCT[1] = 1e-3
        answers = ask(self.model, x_NCT, self.device)
        assert all(map(math.isfinite, answers)), (
            "a flat channel makes answers that are no numbers; Cz is always flat: divide by max(spread, tiny)"
        )
        return "finite with channels, and a whole window, that never move"

    def _units(self) -> str:
        answers = ask(self.model, self.x_NCT * np.float32(1e6), self.device)
        assert all(map(math.isfinite, answers)), (
            "microvolts in place of volts make answers that are no numbers; normalise each window in forward"
        )
        if close(answers, self.answers) is None:
            return "the same answers in either unit"
        return "finite in either unit (the answers differ: give it volts)"

    def _time(self) -> str:
        start = time.perf_counter()
        ask(self.model, self.x_NCT[:TIMED], self.device)
        each = (time.perf_counter() - start) / TIMED
        text = f"{1e3 * each:.1f} ms a window ({self.device}), {each * HIDDEN / 60:.0f} min for {HIDDEN:,} windows"
        assert each < SLOWEST, f"{text}: too slow; take fewer trials (raypipe ensemble --top) or smaller networks"
        return text

    def _memory(self) -> str:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        weights = sum(t.numel() * t.element_size() for t in tensors) / 2**30
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
        if self.device.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated() / 2**30
        text = f"{weights:.2f} GB of weights, {peak:.2f} GB in all"
        assert max(weights, peak) < MOST_MEMORY, (
            f"{text}; the scorer's GPU has 20 GB: take fewer trials (raypipe ensemble --top) or smaller networks"
        )
        return text


def answers_of(model: Any, job: dict[str, Any], device: str) -> list[float]:
    """Score the windows of a store as the challenge does: one at a time, in the table's order, in volts.

    Parameters
    ----------
    job
        ``shards``: files of windows in microvolts (N, C, T); ``windows``: for each its shard, row and offset;
        ``samples``: length of a crop.
    """
    answers: list[float] = []
    open_shard, x_NCT = -1, np.empty(0)
    with torch.inference_mode():
        for shard, row, offset in job["windows"]:
            if shard != open_shard:
                open_shard, x_NCT = shard, np.load(job["shards"][shard], mmap_mode="r", allow_pickle=False)
            x_CT = x_NCT[row, :, offset : offset + job["samples"]].astype(np.float32) * np.float32(1e-6)
            y = model.forward(torch.from_numpy(x_CT[None]).to(dtype=torch.float32, device=device))
            answers.append(float(y.detach().cpu().numpy()[0][0]))
    return answers


def score(folder: Path, request: dict[str, Any]) -> dict[str, list[float]]:
    """Answers of the submission in `folder` by challenge."""
    sys.meta_path.insert(0, Fence({path.stem for path in folder.glob("*.py")}))
    sys.path.insert(0, str(folder))
    import submission  # type: ignore[import-not-found,unused-ignore]

    made = submission.Submission(request["sfreq"], request["device"])
    out: dict[str, list[float]] = {}
    for challenge, job in request["score"].items():
        model = getattr(made, f"get_model_challenge_{challenge}")()
        model.eval()
        out[challenge] = answers_of(model, job, request["device"])
    return out


def main(folder: Path, request: dict[str, Any]) -> dict[str, list[tuple[str, bool, str]]]:
    """Examine the submission in `folder`: the lines of each challenge, and of the import itself under ``import``."""
    own = {path.stem for path in folder.glob("*.py")}
    sys.meta_path.insert(0, Fence(own))
    sys.path.insert(0, str(folder))
    try:
        import submission  # type: ignore[import-not-found,unused-ignore]
    except BaseException as error:
        inside = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == folder]
        at = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
        return {"import": [("imports", False, f"{type(error).__name__}: {error}{at}")]}
    out: dict[str, list[tuple[str, bool, str]]] = {"import": [("imports", True, "needs torch and NumPy at most")]}
    for challenge, each in request["challenges"].items():
        examination = Examination(submission, challenge, request | each)
        examination.run()
        out[challenge] = examination.lines
    return out


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    found: Any = (score if "score" in asked else main)(Path(sys.argv[1]), asked)
    Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
