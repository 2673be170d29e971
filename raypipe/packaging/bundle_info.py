"""The record of a bundle (``bundle.json``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raypipe.core.config import ModelConfig
from raypipe.core.folds import FoldMap
from raypipe.core.record import FrozenModel, Record
from raypipe.data.manifest import Plan


class BundleMember(FrozenModel):
    """One fold model of a trial, or of a snapshot."""

    trial: int
    epoch: int = 0
    """Epoch of the snapshot; 0 for the trial's best epoch."""
    fold: int
    weight: float = Field(ge=0.0, le=1.0)
    """Its share of the ensemble; the shares sum to one."""
    centre: float
    """Added to the scaled output, in target units."""
    scale: float
    """Target units per unit of output."""
    model: ModelConfig


class BundleInfo(Record):
    """The content of a bundle, and how it was made."""

    format: Literal["raypipe-bundle/1"] = "raypipe-bundle/1"
    created: float
    """Unix time."""
    run: str
    """Name of the run's folder."""
    task: str
    kind: Literal["regression", "classification"]
    classes: list[str]
    metric: str
    channels: list[str]
    sfreq: float = Field(gt=0.0)
    """Hz."""
    window_samples: int = Field(ge=1)
    n_times: int = Field(ge=1)
    """Samples of a window that the networks see."""
    n_outputs: int = Field(ge=1)
    prepare: Plan
    """Plan by which recordings were cut into windows."""
    scale: float = Field(ge=0.0)
    """Usual spread of a window's samples (uV); 0 where it is unknown."""
    method: str
    rule: dict[str, Any] | None
    """Combines the members (`raypipe.models.combine`); None for their weighted mean."""
    soup: list[int]
    """Trials of averaged weights, or of a distilled network's configuration; empty if there are none."""
    student: bool
    """The only network was distilled."""
    soup_epochs: list[int]
    """Epoch of each in `soup`; 0 for the trial's best."""
    members: list[BundleMember] = Field(min_length=1)
    configs: dict[int, dict[str, Any]]
    """Configuration by trial."""
    config_hashes: dict[int, str]
    fold_map: FoldMap
    table: dict[str, dict[str, float | None]]
    """See `raypipe.ensembles.scores.score_table`."""
    verdict: str
    notes: list[str]
    held_out_evaluations: int
    """Number of times that the run was scored on its held-out subjects."""
    seed: int
    data_hash: str
    versions: dict[str, str]
    sha256: dict[str, str]
    """Checksums of the other files by name."""

    def spec(self) -> dict[str, Any]:
        """Return what `EnsembleModule` is built from."""
        spec: dict[str, Any] = self.model_dump(
            mode="json", include={"kind", "n_times", "n_outputs", "sfreq", "members"}
        )
        return spec | {"n_channels": len(self.channels)} | ({"rule": self.rule} if self.rule else {})
