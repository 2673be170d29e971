"""Run an exported graph or a bundle in a process of its own: its predictions, or how fast it is.

`check_graph` and `bench` run this file by its path, so it must import nothing of raypipe: a graph runs with NumPy and
onnxruntime, or with torch alone. Only a bundle needs raypipe, whose folder is then in the request. ``python -I
graph_runner.py REQUEST ANSWER``. REQUEST and ANSWER are JSON files.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], list[NDArray[Any]]]
"""Maps prepared windows (B, C, T) to the predictions (B, outputs), and what else there is."""

WARM_UP = 5
"""Runs before those that are timed."""
MAX_RUNS = 1000


def load_onnx(request: dict[str, Any]) -> tuple[Run, str]:
    """Return how to run an ONNX file, and with what."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"] or 0
    session = onnxruntime.InferenceSession(request["file"], options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    if given.shape[1:] != request["shape"] or isinstance(given.shape[0], int):
        raise ValueError(f"it takes {given.shape}, not batches of any size of windows {request['shape']}")
    return lambda x_BCT: session.run(None, {given.name: x_BCT}), f"onnxruntime {onnxruntime.__version__}"


def load_program(request: dict[str, Any]) -> tuple[Run, str]:
    """Return how to run a program of `torch.export`, and with what."""
    import torch

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    module = torch.export.load(request["file"]).module()

    def run(x_BCT: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [each.numpy() for each in module(torch.from_numpy(x_BCT))]

    return run, f"torch {torch.__version__} alone"


def load_bundle(request: dict[str, Any]) -> tuple[Run, str]:
    """Return how to run a bundle, and with what."""
    sys.path.insert(0, request["raypipe"])
    import torch

    from raypipe.packaging.bundle import load_ensemble

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    ensemble = load_ensemble(request["file"], trust_code=request["trust_code"])
    return (
        lambda x_BCT: [ensemble.predict(x_BCT, batch_size=len(x_BCT))],
        f"raypipe with torch {torch.__version__}",
    )


LOADERS = {"onnx": load_onnx, "pt2": load_program, "bundle": load_bundle}


def predict(run: Run, x_NCT: NDArray[np.float32], batch: int) -> dict[str, Any]:
    """Return the predictions of windows: one by one, together, and of the first one in a batch of copies."""
    alone = [run(x_NCT[row : row + 1]) for row in range(len(x_NCT))]
    together = run(x_NCT)
    (first, *_) = run(np.repeat(x_NCT[:1], batch, axis=0))
    return {
        "alone": [outputs[0][0].tolist() for outputs in alone],
        "together": together[0].tolist(),
        "copies": first.tolist(),
        "classes": together[1].tolist() if len(together) > 1 else None,
    }


def measure(run: Run, x_NCT: NDArray[np.float32], batch: int, seconds: float) -> dict[str, Any]:
    """Return the time in seconds that one window takes, and windows per second in batches."""
    one_s = timed(run, np.ascontiguousarray(x_NCT[:1]), seconds)
    many_NCT = np.ascontiguousarray(np.resize(x_NCT, (batch, *x_NCT.shape[1:])))
    many_s = timed(run, many_NCT, seconds)
    return {"one_s": one_s, "windows_per_s": batch / statistics.median(many_s), "batches": len(many_s)}


def timed(run: Run, x_BCT: NDArray[np.float32], seconds: float) -> list[float]:
    """Return how long each run took, of those in the given time and at least three."""
    for _ in range(WARM_UP if len(x_BCT) == 1 else 1):
        run(x_BCT)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < MAX_RUNS):
        start = time.perf_counter()
        run(x_BCT)
        times.append(time.perf_counter() - start)
    return times


def peak_megabytes() -> float:
    """Return the most memory that the process has taken so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the process that has started this one
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main(request_file: str, answer_file: str) -> None:
    """Answer a request."""
    request = json.loads(Path(request_file).read_text())
    if request["kind"] != "bundle":
        sys.modules["raypipe"] = None  # type: ignore[assignment]
    x_NCT = np.load(request["windows"], allow_pickle=False)
    start = time.perf_counter()
    run, what = LOADERS[request["kind"]](request)
    run(x_NCT[:1])
    answer: dict[str, Any] = {"what": what, "load_s": time.perf_counter() - start, "load_mb": peak_megabytes()}
    if request["seconds"] is not None:
        answer |= measure(run, x_NCT, request["batch"], request["seconds"])
    else:
        answer |= predict(run, x_NCT, request["batch"])
    answer["peak_mb"] = peak_megabytes()
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
