"""The record in an exported graph, an ONNX file or a program of `torch.export`: what goes in, and what comes out."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.core.record import Record
from raypipe.core.shipped import install_command
from raypipe.data.manifest import Plan
from raypipe.ensembles.people import People
from raypipe.ensembles.rules import DecisionWeights, Finite
from raypipe.packaging.archive import DAMAGE
from raypipe.packaging.network_spec import Positive
from raypipe.storage.regular_files import open_regular

RECORD = "raypipe.json"
"""Name of the record in the metadata of ONNX, and among the extra files of a program."""
KINDS = {".onnx": "onnx", ".pt2": "pt2"}
"""Formats by the ending of a file."""
MAX_WINDOW = 2**23
"""Largest number of samples in a window, over all channels."""


class GraphInfo(Record):
    """The content of a graph. Fields of the same name are those of `raypipe.packaging.bundle_info.BundleInfo`."""

    max_bytes: ClassVar[int] = 16 * 2**20
    max_values: ClassVar[int] = 400_000
    from_elsewhere: ClassVar[bool] = True

    format: Literal["raypipe-graph/5"] = "raypipe-graph/5"
    run: str
    target: str
    kind: Kind
    classes: list[str]
    decision_weights: DecisionWeights | None
    """Are applied in the graph, to each window. Where `people` is there, they were chosen on means of people."""
    people: People | None
    """How mean predictions of people are read, which the graph does not do; None where the target is no person's."""
    channels: list[str]
    """In the order of the windows' second axis."""
    sfreq: float = Field(gt=0.0)
    """Hz."""
    unit: Literal["uV", "1"]
    """Of the windows; aligned ones (``prepare.preprocessing.align``) have none, "1"."""
    n_times: int = Field(ge=1)
    n_outputs: int = Field(ge=1)
    outputs: list[str] = Field(default_factory=list)
    """Names of the values, where the target has several."""
    scale: float = Field(ge=0.0)
    """Usual spread of a window's samples before alignment (uV); 0 where it is unknown."""
    prepare: Plan
    """How recordings become windows, which the graph does not do."""
    method: str
    n_networks: int = Field(ge=1)
    opset: int | None
    """Of ONNX."""
    difference: Annotated[float, Field(ge=0.0)]
    """Largest one from torch at export, relative to `graph_difference.output_units`."""
    scales: Annotated[list[Positive], Field(min_length=1, max_length=1000)]
    """Spread of the targets of each output; of probabilities 1."""
    data_hash: str
    versions: dict[str, str]
    reference: Annotated[list[list[Finite]], Field(min_length=1, max_length=1000)]
    """Predictions of `raypipe.packaging.scorer.reference_windows`, as microvolts."""

    @model_validator(mode="after")
    def _check(self) -> GraphInfo:
        if not 0 < len(self.channels) * self.n_times <= MAX_WINDOW:
            raise ValueError(f"n_times: a window must have 1 to {MAX_WINDOW} samples over all channels")
        if len(self.classes) != (self.n_outputs if self.kind == "classification" else 0):
            raise ValueError(f"classes: {len(self.classes)} names for {self.kind} with {self.n_outputs} outputs")
        several = self.n_outputs if self.kind == "regression" and self.n_outputs > 1 else 0
        if len(self.outputs) != several:
            raise ValueError(f"outputs: {len(self.outputs)} names for {self.kind} with {self.n_outputs} outputs")
        if self.unit != self.prepare.preprocessing.unit:
            raise ValueError(f"unit: {self.unit}, but by prepare, windows are {self.prepare.preprocessing.samples}")
        if len(self.decision_weights or []) != len(self.classes):
            raise ValueError(f"decision_weights: there must be one for each of {len(self.classes)} classes")
        if self.people is not None:
            self.people.check(self.kind, self.n_outputs)
        if len(self.scales) != self.n_outputs:
            raise ValueError(f"scales: {len(self.scales)} numbers for {self.n_outputs} outputs")
        if any(len(row) != self.n_outputs for row in self.reference):
            raise ValueError(f"reference: a row has other than {self.n_outputs} numbers")
        return self


def kind_of(path: Path) -> str:
    """Return the format of a graph.

    Raises
    ------
    UserError
        The file is missing, or its ending is of no format.
    """
    if path.suffix not in KINDS:
        raise UserError(f"{path}: neither {' nor '.join(KINDS)}, the endings of exported graphs")
    if not path.is_file():
        raise UserError(f"{path}: no such file; make one with: raypipe export RUN {path.name}")
    return KINDS[path.suffix]


def read_graph_info(path: Path) -> GraphInfo:
    """Read the record in a graph; no code in the file is run.

    Raises
    ------
    UserError
        It is no graph of raypipe, or it is damaged; or ONNX is not installed.
    """
    kind = kind_of(path)
    text = _onnx_record(path) if kind == "onnx" else _program_record(path)
    if text is None:
        raise UserError(f"{path}: not exported by raypipe ({RECORD} is missing in it)")
    return GraphInfo.parse(text, f"{path}: {RECORD}")


def _onnx_record(path: Path) -> bytes | None:
    try:
        import onnx
    except ModuleNotFoundError:
        raise UserError(f"reading ONNX needs the package onnx; install: {install_command('onnx')}") from None
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class
        raise UserError(f"{path}: no ONNX file, or a damaged one ({type(error).__name__})") from None
    found = {entry.key: entry.value for entry in model.metadata_props}
    return found[RECORD].encode() if RECORD in found else None


def _program_record(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(f"/extra/{RECORD}")]
            if not names:
                return None
            with archive.open(names[0]) as record:
                return record.read(GraphInfo.max_bytes + 1)
    except (*DAMAGE, OSError) as error:
        raise UserError(f"{path}: no program of torch.export, or a damaged one ({type(error).__name__})") from None
