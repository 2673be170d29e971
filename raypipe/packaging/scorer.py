"""Run the challenge scorer's loop on an unpacked submission, in a process that has torch and NumPy only.

`scorer_process` runs this file by its path, so it must import nothing of raypipe: ``python -I scorer.py SUBMISSION
REQUEST ANSWER``. REQUEST and ANSWER are JSON files. A request with the key ``score`` asks for predictions, any other
for checks.
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

N_REFERENCE_WINDOWS = 8
SEED = 20251115
"""Seed of the reference windows."""
TOLERANCE = 1e-5
"""Tolerated difference relative to the largest prediction: float32 rounding depends on the batch size."""
LARGE_BATCH = 64
N_TIMED_WINDOWS = 8
N_HIDDEN_WINDOWS = 100_000
"""Approximate number of windows of both challenges in a hidden release of 300 subjects."""
MAX_SECONDS_PER_WINDOW = 0.5
MAX_GIGABYTES = 18.0

_TORCH = {"torch", "torchgen", "functorch", "numpy", "nvidia", "cuda", "triton"}
_TORCH_DEPENDENCIES = {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}

MAX_FILE_BYTES = 2**28
"""Size of the largest file that the process may write."""
MAX_MEMORY_BYTES = 20 * 2**30
"""Memory that the process may take on a CPU. Above `MAX_GIGABYTES` a check fails, so that the reason is named."""

Line = tuple[str, bool, str]
"""Name of a check, whether it passed, and a detail."""


class ImportGuard(importlib.abc.MetaPathFinder):
    """Forbid imports of all but the standard library, torch with its dependencies, NumPy and the `own` modules."""

    def __init__(self, own: Iterable[str]) -> None:
        self.allowed = set(sys.stdlib_module_names) | _TORCH | _TORCH_DEPENDENCIES | set(own)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.allowed:
            return None
        raise ModuleNotFoundError(f"No module named '{fullname}' where submissions are scored", name=fullname)


def import_submission(folder: Path) -> ModuleType:
    """Import ``submission.py`` from its folder, with `ImportGuard` in place."""
    sys.meta_path.insert(0, ImportGuard({path.stem for path in folder.glob("*.py")}))
    sys.path.insert(0, str(folder))
    import submission  # type: ignore[import-not-found,unused-ignore]

    module: ModuleType = submission
    return module


# The scorer's loop


def reference_windows(
    n_channels: int, n_times: int, n: int = N_REFERENCE_WINDOWS, seed: int = SEED
) -> NDArray[np.float32]:
    """Make random windows in volts (n, n_channels, n_times), about 10 uV. Of several channels, the last is flat.

    They come from NumPy's legacy generator, whose stream is frozen (NEP 19): every version gives the same numbers.
    """
    draw = np.random.RandomState(seed)
    x_NCT = np.cumsum(draw.standard_normal((n, n_channels, n_times)), axis=2) * 2e-6
    x_NCT += draw.standard_normal((n, n_channels, n_times)) * 1e-5
    x_NCT -= x_NCT.mean(axis=2, keepdims=True)
    if n_channels > 1:
        x_NCT[:, -1] = 0.0
    return x_NCT.astype(np.float32)


def predict_one_by_one(model: Any, x_NCT: NDArray[np.float32], device: str) -> list[float]:
    """Predict windows as the challenge does: one at a time, in order, one number each."""
    predictions = []
    with torch.inference_mode():
        for x_CT in x_NCT:
            x_BCT = torch.from_numpy(x_CT[None]).to(device)
            predictions.append(float(model(x_BCT).detach().cpu().numpy()[0][0]))
    return predictions


def predict_store(model: Any, request: dict[str, Any], device: str) -> list[float]:
    """Predict the windows of a store as the challenge does: one at a time, in the table's order, in volts.

    Parameters
    ----------
    model
        A submission's model.
    request
        ``shards``: files of windows in microvolts (N, C, T); ``windows``: for each its shard, row and offset;
        ``samples``: length of a crop.
    device
        ``cpu`` or ``cuda``.
    """
    predictions: list[float] = []
    open_shard, x_NCT = -1, np.empty(0)
    with torch.inference_mode():
        for shard, row, offset in request["windows"]:
            if shard != open_shard:
                open_shard, x_NCT = shard, np.load(request["shards"][shard], mmap_mode="r", allow_pickle=False)
            x_CT = x_NCT[row, :, offset : offset + request["samples"]].astype(np.float32) * np.float32(1e-6)
            y = model.forward(torch.from_numpy(x_CT[None]).to(dtype=torch.float32, device=device))
            predictions.append(float(y.detach().cpu().numpy()[0][0]))
    return predictions


def predict(folder: Path, request: dict[str, Any]) -> dict[str, list[float]]:
    """Return the predictions of the submission in `folder` by challenge."""
    submission = import_submission(folder)
    instance = submission.Submission(request["sfreq"], request["device"])
    out: dict[str, list[float]] = {}
    for challenge, windows in request["score"].items():
        model = getattr(instance, f"get_model_challenge_{challenge}")()
        model.eval()
        out[challenge] = predict_store(model, windows, request["device"])
    return out


# Checks


def difference_beyond_rounding(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the largest difference between predictions, or None if it is no more than rounding."""
    if len(a) != len(b) or not all(map(math.isfinite, [*a, *b])):
        return math.inf
    difference = max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
    return None if difference <= TOLERANCE * max(map(abs, b), default=0.0) else difference


class ChallengeChecks:
    """The checks of one challenge's model.

    Parameters
    ----------
    submission
        The imported ``submission.py``.
    challenge
        ``1`` or ``2``.
    request
        ``device``, ``sfreq`` in Hz, ``n_channels``, ``n_times``; ``reference``: predictions of the reference windows
        or None, and ``source``: where they come from.

    Attributes
    ----------
    lines
        One line per check that was run.
    """

    def __init__(self, submission: ModuleType, challenge: str, request: dict[str, Any]) -> None:
        self.getter = f"get_model_challenge_{challenge}"
        self.submission, self.request = submission, request
        self.device: str = request["device"]
        self.lines: list[Line] = []
        self.x_NCT = reference_windows(request["n_channels"], request["n_times"])

    def run(self) -> None:
        """Run all checks; most of them only if there is a model that predicts."""
        if not self._check("loads", self._loads):
            return
        self._check("evaluation mode", self._evaluation_mode)
        if not self._check("one number per window", self._shape):
            return
        self.predictions = predict_one_by_one(self.model, self.x_NCT, self.device)
        self._check("reference predictions", self._reference)
        self._check("no memory of windows", self._order)
        self._check("any batch size", self._batch_size)
        self._check("reproducible", self._second_model)
        self._check("flat channels", self._flat_channels)
        self._check("volts and microvolts", self._units)
        self._check("time", self._time)
        self._check("memory", self._memory)

    def _check(self, name: str, check: Callable[[], str]) -> bool:
        """Run one check: it passes with the detail that it returns, and fails with what it raises."""
        try:
            self.lines.append((name, True, check()))
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            text = " ".join(str(error).split())
            self.lines.append((name, False, f"{kind}{text}"[:400]))
        return self.lines[-1][1]

    def _compare(self, found: Sequence[float], wanted: Sequence[float], what: str, why: str) -> None:
        difference = difference_beyond_rounding(found, wanted)
        assert difference is None, f"{what} by up to {difference:.3g}: {why}"

    def _new_model(self) -> Any:
        """Make a model as the scorer does."""
        return getattr(self.submission.Submission(self.request["sfreq"], self.device), self.getter)()

    def _loads(self) -> str:
        found = getattr(self.submission, "Submission", None)
        assert found is not None, "submission.py defines no class Submission, which the scorer calls"
        if not hasattr(found, self.getter):
            others = [name for name in dir(found) if name.startswith("get_")]
            have = f"; it has {', '.join(others)}" if others else ""
            raise AssertionError(f"class Submission has no {self.getter}, which the scorer calls{have}; rename it")
        self.model = self._new_model()
        assert isinstance(self.model, torch.nn.Module), (
            f"{self.getter}() returns a {type(self.model).__name__}, not a torch.nn.Module"
        )
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{self.getter}() returns a module of {count:,} parameters"

    def _evaluation_mode(self) -> str:
        training = [name or "the model" for name, module in self.model.named_modules() if module.training]
        fix = "call .eval() before returning the model"
        assert not training, f"{len(training)} module(s) are in training mode: {training[0]}; {fix}"
        return "no dropout, no batch statistics"

    def _shape(self) -> str:
        with torch.inference_mode():
            for batch in (1, 3):
                y = self.model(torch.from_numpy(self.x_NCT[:batch]).to(self.device))
                assert isinstance(y, torch.Tensor), f"the model returns a {type(y).__name__}, not a tensor"
                assert tuple(y.shape) == (batch, 1), f"{batch} window(s) give shape {tuple(y.shape)}, not ({batch}, 1)"
                assert y.is_floating_point(), f"predictions are {y.dtype}, not floating point"
                assert bool(torch.isfinite(y).all()), "predictions are not finite"
        return "shape (B, 1), finite"

    def _reference(self) -> str:
        wanted = self.request["reference"]
        assert wanted is not None, "the zip has no reference predictions (manifest.json) to compare with"
        source = self.request["source"]
        self._compare(self.predictions, wanted, f"predictions differ from {source}", "weights or code were changed")
        return f"{len(wanted)} predictions equal {source}"

    def _order(self) -> str:
        order = np.random.RandomState(1).permutation(len(self.x_NCT))
        shuffled = predict_one_by_one(self.model, self.x_NCT[order], self.device)
        by_window = dict(zip(order.tolist(), shuffled, strict=True))
        what, why = "in another order, predictions change", "the model remembers windows; keep no state between calls"
        self._compare([by_window[i] for i in range(len(order))], self.predictions, what, f"{why} of forward")
        return "another order gives the same predictions"

    def _batch_size(self) -> str:
        # Each window is repeated, so that it has other neighbours than in the batches of 1.
        order = np.arange(LARGE_BATCH) % len(self.x_NCT)
        with torch.inference_mode():
            together = self.model(torch.from_numpy(self.x_NCT[order]).to(self.device)).cpu().numpy()[:, 0].tolist()
        why = "windows influence each other; compute nothing (mean, rank, BatchNorm in training mode) over the batch"
        self._compare(together, [self.predictions[i] for i in order], "in one batch, predictions change", why)
        return f"batches of 1 and {LARGE_BATCH} give the same predictions"

    def _second_model(self) -> str:
        second = predict_one_by_one(self._new_model(), self.x_NCT, self.device)
        what, why = "a second model's predictions differ", "something is random; load all weights, call .eval()"
        self._compare(second, self.predictions, what, why)
        return "a second model gives the same predictions"

    def _flat_channels(self) -> str:
        x_NCT = self.x_NCT[:2].copy()
        x_NCT[0, ::2] = 0.0
        x_NCT[1] = 1e-3
        predictions = predict_one_by_one(self.model, x_NCT, self.device)
        assert all(map(math.isfinite, predictions)), (
            "predictions for a flat channel are not finite; Cz is always flat: divide by max(spread, tiny)"
        )
        return "finite for flat channels, and for a window of flat channels only"

    def _units(self) -> str:
        predictions = predict_one_by_one(self.model, self.x_NCT * np.float32(1e6), self.device)
        assert all(map(math.isfinite, predictions)), (
            "predictions for microvolts in place of volts are not finite; normalise each window in forward"
        )
        if difference_beyond_rounding(predictions, self.predictions) is None:
            return "the same predictions in either unit"
        return "finite in either unit (the predictions differ: pass volts)"

    def _time(self) -> str:
        # The fastest, since other programs only add to the time
        seconds = min(self._seconds(x_CT[None]) for x_CT in self.x_NCT[:N_TIMED_WINDOWS])
        minutes = seconds * N_HIDDEN_WINDOWS / 60
        text = f"{1e3 * seconds:.1f} ms per window ({self.device}), {minutes:.0f} min for {N_HIDDEN_WINDOWS:,} windows"
        assert seconds < MAX_SECONDS_PER_WINDOW, (
            f"{text}: too slow; use fewer trials (raypipe ensemble --top) or smaller networks"
        )
        return text

    def _seconds(self, x_1CT: NDArray[np.float32]) -> float:
        start = time.perf_counter()
        predict_one_by_one(self.model, x_1CT, self.device)
        return time.perf_counter() - start

    def _memory(self) -> str:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        weights = sum(t.numel() * t.element_size() for t in tensors) / 2**30
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
        if self.device.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated() / 2**30
        text = f"{weights:.2f} GB of weights, {peak:.2f} GB in all"
        assert max(weights, peak) < MAX_GIGABYTES, (
            f"{text}; the scorer's GPU has 20 GB: use fewer trials (raypipe ensemble --top) or smaller networks"
        )
        return text


def check(folder: Path, request: dict[str, Any]) -> dict[str, list[Line]]:
    """Check the submission in `folder`; return the lines of each challenge, and of the import under ``import``."""
    try:
        submission = import_submission(folder)
    except BaseException as error:
        inside = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == folder]
        place = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
        return {"import": [("imports", False, f"{type(error).__name__}: {error}{place}")]}
    out: dict[str, list[Line]] = {"import": [("imports", True, "needs torch and NumPy at most")]}
    for challenge, each in request["challenges"].items():
        checks = ChallengeChecks(submission, challenge, request | each)
        checks.run()
        out[challenge] = checks.lines
    return out


def limit_resources(device: str) -> None:
    """Limit what a submission can take of the machine: the size of files, and on a CPU the memory.

    Not so on a GPU: CUDA reserves far more addresses than it uses.
    """
    limits = {resource.RLIMIT_FSIZE: MAX_FILE_BYTES, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux" and not device.startswith("cuda"):
        limits[resource.RLIMIT_DATA] = MAX_MEMORY_BYTES
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    limit_resources(request["device"])
    answer: Any = (predict if "score" in request else check)(Path(sys.argv[1]), request)
    Path(sys.argv[3]).write_text(json.dumps(answer), encoding="utf-8")
