"""Check an exported graph, in a process that has onnxruntime or torch only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raypipe.core.record import FrozenModel
from raypipe.ensembles.decisions import decide
from raypipe.packaging import graph_runner
from raypipe.packaging.bundle import load_ensemble
from raypipe.packaging.check import CheckReport
from raypipe.packaging.graph_difference import (
    TOLERANCE,
    difference_text,
    output_scales,
    output_units,
    relative_difference,
)
from raypipe.packaging.graph_info import GraphInfo, kind_of, read_graph_info
from raypipe.packaging.scorer import LARGE_BATCH, reference_windows
from raypipe.packaging.scorer_process import ScorerProcessError, run_script
from raypipe.packaging.submission import INPUT_SCALE
from raypipe.storage.local_path import local_path
from raypipe.storage.scratch import scratch_folder


class Answers(FrozenModel):
    """What `graph_runner` answers; see `graph_runner.predict`."""

    what: str
    load_s: float
    load_mb: float
    peak_mb: float
    alone: list[list[float]]
    together: list[list[float]]
    copies: list[list[float]]
    classes: list[int] | None


_ANSWERS = TypeAdapter(Answers)


def check_graph(path: str | Path, *, bundle: str | Path | None = None, timeout: float = 900.0) -> CheckReport:
    """Run a graph on the reference windows, and compare with the predictions at export.

    A file of `torch.export` may run code when it is read, in a separate process but with your permissions: check only
    what you have made.

    Parameters
    ----------
    path
        The file.
    bundle
        A bundle whose predictions it must equal, too.
    timeout
        Seconds that the process may take.

    Raises
    ------
    UserError
        It is no graph of raypipe, or it is damaged.
    """
    path = local_path(path, "a graph is checked", "copy it here")
    info, report = read_graph_info(path), CheckReport(path)
    report.add("record", True, graph_text(path, info))
    x_NCT = reference_windows(len(info.channels), info.n_times) * np.float32(INPUT_SCALE)
    with scratch_folder() as scratch:
        np.save(scratch / "windows.npy", x_NCT)
        request = {
            "file": str(path.resolve()),
            "kind": kind_of(path),
            "shape": [len(info.channels), info.n_times],
            "windows": str(scratch / "windows.npy"),
            "batch": LARGE_BATCH,
            "threads": None,
            "seconds": None,
        }
        try:
            found = run_script(
                graph_runner.__file__, [], Path(scratch), request, _ANSWERS, what="the graph", timeout=timeout
            )
        except ScorerProcessError as error:
            report.add("runs", False, str(error))
            return report
    report.add("runs", True, f"with {found.what}")
    wrong = {len(row) for rows in (found.alone, found.together, found.copies) for row in rows} - {info.n_outputs}
    if wrong:
        report.add("outputs", False, f"a window gives {min(wrong)} numbers; expected {info.n_outputs}")
        return report
    _compare(report, info, found)
    if bundle is not None:
        _compare_with_bundle(report, info, found, bundle, x_NCT)
    return report


def graph_text(path: Path, info: GraphInfo) -> str:
    """Return what a graph is, in a line."""
    kind = f"ONNX, opset {info.opset}" if info.opset else "a program of torch.export"
    return (
        f"{kind}, {path.stat().st_size / 1e6:.1f} MB, {info.n_networks} networks; takes windows (batch, "
        f"{len(info.channels)} channels, {info.n_times} samples) at {info.sfreq:g} Hz, "
        f"{info.prepare.preprocessing.samples}, prepared as by raypipe"
    )


def level_text(info: GraphInfo) -> str:
    """Return what to do with a graph's answers where the target is the person's; empty where it is not."""
    if info.people is None:
        return ""
    return (
        f"its answers are per window, and target '{info.target}' is the person's: average the predictions of a "
        "person's windows, and read the mean by `people` of the graph's record (docs/deployment.md says how)"
    )


def _compare(report: CheckReport, info: GraphInfo, found: Answers) -> None:
    """Add lines on predictions one by one, together and in a large batch."""
    reference_NO = np.array(info.reference)
    units_O = output_units(info.scales, reference_NO)
    for name, answers, wanted_NO in (
        ("one by one", found.alone, reference_NO),
        (f"batch of {len(reference_NO)}", found.together, reference_NO),
        (f"batch of {LARGE_BATCH}", found.copies, np.repeat(reference_NO[:1], LARGE_BATCH, axis=0)),
    ):
        _add_comparison(report, name, answers, wanted_NO, info, units_O)
    if info.classes:
        wanted_N = decide(np.array(found.together), np.array(info.decision_weights)).argmax(1)
        report.add("classes", found.classes == wanted_N.tolist(), "those of the probabilities and their weights")


def _add_comparison(
    report: CheckReport,
    name: str,
    answers: list[list[float]],
    wanted_NO: NDArray[np.float64],
    info: GraphInfo,
    units_O: NDArray[np.float64],
    of: str = "those at export",
) -> None:
    """Add a line on predictions; a difference of each output is relative to its unit (O,)."""
    found_NO = np.array(answers)
    if found_NO.shape != wanted_NO.shape or not np.isfinite(found_NO).all():
        report.add(name, False, f"gives {found_NO.shape}, or numbers that are not finite; expected {wanted_NO.shape}")
        return
    difference = relative_difference(found_NO, wanted_NO, units_O)
    detail = f"predictions differ from {of} by {difference_text(difference, info.kind)}"
    report.add(name, difference <= TOLERANCE, detail)


def _compare_with_bundle(
    report: CheckReport, info: GraphInfo, found: Answers, bundle: str | Path, x_NCT: NDArray[np.float32]
) -> None:
    loaded = load_ensemble(bundle)
    theirs = {"channels": loaded.channels, "sfreq": loaded.sfreq, "n_times": loaded.info.n_times}
    wrong = [name for name, value in theirs.items() if getattr(info, name) != value]
    if wrong:
        report.add("bundle", False, f"the bundle has other windows ({wrong[0]})")
        return
    read_by = ("classes", "outputs", "decision_weights", "people")
    wrong = [name for name in read_by if getattr(info, name) != getattr(loaded.info, name)]
    if wrong:
        report.add("bundle", False, f"the bundle's record has another {wrong[0]}")
        return
    wanted_NO = loaded.predict(x_NCT).astype(float)
    units_O = output_units(output_scales(loaded.info.members, loaded.info.n_outputs), wanted_NO)
    _add_comparison(report, "bundle", found.together, wanted_NO, info, units_O, "those of the bundle")
