"""Export an ensemble as one graph: ONNX, or a program of `torch.export`, which run without raypipe.

The graph has all networks with their weights and normalisation, the rule, the calibration and the weights of
classes. Windows go in as the networks see them: prepared (in microvolts, or aligned), in batches of any size.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypipe.core.errors import UserError, first_line
from raypipe.core.shipped import install_command
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import build_module
from raypipe.models.covariance import Covariance, log_matrix
from raypipe.models.ensemble import EnsembleModule
from raypipe.models.network import Network
from raypipe.packaging.bundle_info import BundleInfo
from raypipe.packaging.contents import describe, read_networks, shipped_windows
from raypipe.packaging.graph_difference import (
    TOLERANCE,
    difference_text,
    output_scales,
    output_units,
    relative_difference,
)
from raypipe.packaging.graph_info import KINDS, RECORD, GraphInfo
from raypipe.packaging.matrix_log import MIN_SHARE, ProductLog, smallest_share
from raypipe.packaging.programs import EXAMPLE_BATCH, MAX_BATCH
from raypipe.packaging.readback import require_small
from raypipe.packaging.scorer import LARGE_BATCH, reference_windows
from raypipe.packaging.submission import INPUT_SCALE
from raypipe.storage.files import write_atomic
from raypipe.storage.local_path import local_path
from raypipe.training.torch_compat import eigh_operator

OPSET = 18
"""Of ONNX; torch's own translations are for this one."""
INPUT = "windows"
OUTPUTS = ("predictions", "classes")
"""Names of the outputs: (B, n_outputs) as of a bundle; for classes, the predicted class's number (B,) too."""


class DecidingModule(nn.Module):
    """An ensemble that also says which class it predicts.

    Parameters
    ----------
    ensemble
        The ensemble.
    decision_weights
        (K,) weights of classes (`raypipe.ensembles.decisions`); None for a regression.
    """

    weights_K: Tensor  # noqa: N815 - axes

    def __init__(self, ensemble: EnsembleModule, decision_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.ensemble = ensemble
        if decision_weights is not None:
            self.register_buffer("weights_K", torch.tensor(decision_weights, dtype=torch.float32))

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        """Map prepared windows (B, C, T) to the `OUTPUTS`."""
        y_BO = self.ensemble(windows)
        if not self.ensemble.classes:
            return (y_BO,)
        return y_BO, (y_BO * self.weights_K).argmax(1)


def export_graph(
    ensemble: Ensemble, out: str | Path, format: str, *, windows: WindowStore | None = None
) -> tuple[Path, GraphInfo]:
    """Write an ensemble as one graph, after a comparison with what torch computes, for one window and for many.

    Parameters
    ----------
    ensemble
        The ensemble of a run.
    out
        A file that ends in ``.onnx`` or ``.pt2``; an existing one is replaced.
    format
        `onnx` or `pt2`.
    windows
        The run's windows; None opens the store that the run was made from.

    Returns
    -------
    path, info
        The file, and its record.

    Raises
    ------
    UserError
        The name has another ending, a package is missing, a network cannot be traced or translated, or the graph gives
        other numbers.
    """
    path = local_path(out, "a graph is written", "name a file here, and copy it")
    if KINDS.get(path.suffix) != format:
        raise UserError(f"{path}: a file of format {format} ends in .{format}")
    if path.is_dir():
        raise UserError(f"{path}: a folder; a graph is a file")
    run = ensemble.run
    windows = shipped_windows(ensemble, windows, "a graph")
    networks = read_networks(run, ensemble, windows)
    networks.require_programs()
    info = describe(run, ensemble, windows, networks)
    module = DecidingModule(build_module(networks.spec, networks.state), info.decision_weights).eval()
    graph = make_graph(module, format)
    real_NCT = windows.gather(np.linspace(0, len(windows) - 1, min(LARGE_BATCH, len(windows))).astype(np.int64))
    difference, reference_NO = _compare(module, graph.run, output_scales(info.members, info.n_outputs), real_NCT)
    if not difference <= TOLERANCE:
        text = difference_text(difference, info.kind)
        raise UserError(f"{path}: the graph's predictions differ from torch's by {text}; not written")
    record = _record(info, difference, reference_NO, OPSET if format == "onnx" else None)
    require_small(record, run.where)
    data = _onnx_bytes(graph.model, record) if format == "onnx" else _program_bytes(graph.model, record)
    write_atomic(path, lambda file: file.write(data))
    return path, record


class Graph(NamedTuple):
    """An ensemble as a graph."""

    model: Any
    """An ``onnx`` program of torch, or a program of `torch.export`."""
    run: Callable[[Tensor], Sequence[Tensor]]
    """Runs it on windows (B, C, T)."""


def make_graph(module: DecidingModule, format: str) -> Graph:
    """Return the graph of a module, which is changed: its stems are computed without Fourier transforms.

    Raises
    ------
    UserError
        A package is missing, or a network cannot be traced or translated.
    """
    for network in module.ensemble.members:
        assert isinstance(network, Network)
        network.use_stem("direct")
    with _quiet():
        if format == "onnx":
            with _without_eigenvalues(module):
                program = trace(module)
        else:
            program = trace(module)
        if format != "onnx":
            return Graph(program, program.module())
        try:
            model = _translate(program)
            return Graph(model, _session(model))
        except ModuleNotFoundError as error:
            raise UserError(f"export to ONNX needs {error.name}; install: {install_command('onnx')}") from None


@contextmanager
def _without_eigenvalues(module: DecidingModule) -> Iterator[None]:
    """Let covariance models take logarithms by products of matrices, where shrinkage bounds their eigenvalues."""
    models = [network for network in module.ensemble.members if isinstance(network, Covariance)]
    try:
        for model in models:
            if (share := smallest_share(model)) >= MIN_SHARE:
                model.logarithm = ProductLog(share)
        yield
    finally:
        for model in models:
            model.logarithm = log_matrix


def trace(module: DecidingModule) -> Any:
    """Return the program of `torch.export` for batches of windows (B, C, T) of any size.

    Raises
    ------
    UserError
        It cannot be traced.
    """
    x_BCT = torch.randn(EXAMPLE_BATCH, *module.ensemble.shape, generator=torch.Generator().manual_seed(0)) * 10.0
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        # With gradients switched on, an ensemble does not stack its networks for small batches only.
        with torch.enable_grad():
            program = torch.export.export(module, (x_BCT,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UserError(f"the ensemble cannot be exported: {type(error).__name__}: {first_line(error)}") from None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of torch's exporters to developers off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _translate(program: Any) -> Any:
    """Return a program as a model of ONNX."""
    from raypipe.packaging.onnx_eigh import eigh

    try:
        return torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            custom_translation_table={eigh_operator: eigh},
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:
        reason = str(error).rpartition("Exception summary")[2].strip().splitlines() or [first_line(error)]
        raise UserError(f"a network cannot be translated to ONNX ({reason[0].strip()[:200]})") from None


def _session(model: Any) -> Any:
    """Return a function that runs a model of ONNX on tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(x_BCT: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {INPUT: x_BCT.numpy()})]

    return run


@torch.no_grad()
def _compare(
    module: DecidingModule,
    run_graph: Callable[[Tensor], Sequence[Tensor]],
    scales: Sequence[float],
    real_NCT: NDArray[np.float32],
) -> tuple[float, NDArray[np.float32]]:
    """Return the largest difference of a graph from the ensemble, and the ensemble's predictions of the reference.

    The difference is relative to `output_units`. Compared are the reference windows one by one, a batch of
    `LARGE_BATCH`, and windows of the store: their channels may depend on each other, as after an average reference.
    """
    shape = module.ensemble.shape
    many_NCT = torch.from_numpy(reference_windows(*shape, n=LARGE_BATCH) * np.float32(INPUT_SCALE))
    first_NCT = torch.from_numpy(reference_windows(*shape) * np.float32(INPUT_SCALE))
    batches = [*torch.split(first_NCT, 1), many_NCT, torch.from_numpy(real_NCT)]
    wanted_NO = torch.cat([module(batch)[0] for batch in batches])
    found_NO = torch.cat([run_graph(batch)[0] for batch in batches])
    reference_NO = module(first_NCT)[0].numpy()
    return relative_difference(found_NO, wanted_NO, output_units(scales, reference_NO)), reference_NO


def _record(info: BundleInfo, difference: float, reference_NO: NDArray[np.float32], opset: int | None) -> GraphInfo:
    shared = (GraphInfo.model_fields.keys() & BundleInfo.model_fields.keys()) - {"format"}
    return GraphInfo(
        **{name: getattr(info, name) for name in shared},
        unit=info.prepare.preprocessing.unit,
        n_networks=len(info.members),
        scales=output_scales(info.members, info.n_outputs),
        opset=opset,
        difference=difference,
        reference=reference_NO.astype(float).tolist(),
    )


def _onnx_bytes(model: Any, record: GraphInfo) -> bytes:
    model.model.metadata_props[RECORD] = record.to_json().decode()
    for values in (*model.model.graph, *model.model.graph.initializers.values(), model.model.graph):
        values.metadata_props.clear()  # paths of the source files that torch traced, and more for developers
    data: bytes = model.model_proto.SerializeToString()
    return data


def _program_bytes(program: Any, record: GraphInfo) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={RECORD: record.to_json().decode()})
    return buffer.getvalue()
