"""What a bundle is made of, as its JSON says it and as its model card tells it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raypipe.core.config import ModelConfig
from raypipe.core.folds import FoldMap
from raypipe.data.manifest import Plan
from raypipe.ensembles.labels import class_frequency_note, describe_target

FORMAT: Literal["raypipe-bundle/1"] = "raypipe-bundle/1"


class Member(BaseModel):
    """One fold model of one trial, or of a snapshot of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: int
    epoch: int = 0
    """Of a snapshot; 0 for the trial's best epoch."""
    fold: int
    weight: float = Field(ge=0.0, le=1.0)
    """Its share of the ensemble; the shares sum to one."""
    centre: float
    scale: float
    model: ModelConfig


class BundleInfo(BaseModel):
    """What a bundle is made of (``bundle.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["raypipe-bundle/1"]
    created: float
    run: str
    """Name of the run's folder."""
    task: str
    kind: Literal["regression", "classification"]
    classes: list[str]
    metric: str
    channels: list[str]
    sfreq: float = Field(gt=0.0)
    window_samples: int = Field(ge=1)
    n_times: int = Field(ge=1)
    """Samples of a window that the model sees."""
    n_outputs: int = Field(ge=1)
    prepare: Plan
    """How recordings were cut into windows."""
    method: str
    rule: dict[str, Any] | None = None
    """How members are combined (`raypipe.models.combine`); None for their weighted mean."""
    soup: list[int] = []
    """Trials whose weights each member is the mean of, where they were averaged."""
    student: bool = False
    """There is one network, trained to answer as the ensemble does."""
    soup_epochs: list[int] = []
    """For each of them the epoch, 0 for the best."""
    members: list[Member] = Field(min_length=1)
    configs: dict[int, dict[str, Any]]
    """Each trial's whole configuration."""
    config_hashes: dict[int, str]
    fold_map: FoldMap
    table: dict[str, dict[str, float | None]]
    verdict: str
    notes: list[str]
    looks: int
    seed: int
    data_hash: str
    versions: dict[str, str]
    sha256: dict[str, str] = {}
    """Checksums of the other files; empty in bundles of raypipe 0.1."""

    def spec(self) -> dict[str, Any]:
        """What `EnsembleModule` is built from."""
        spec: dict[str, Any] = self.model_dump(
            mode="json", include={"kind", "n_times", "n_outputs", "sfreq", "members"}
        )
        return spec | {"n_channels": len(self.channels)} | ({"rule": self.rule} if self.rule else {})


def model_card(info: BundleInfo) -> str:
    """The bundle's README: what it predicts, how well, from whom, and what it must not be used for."""
    if info.soup:
        epochs = info.soup_epochs or [0] * len(info.soup)
        parts = {pair: 1 / len(info.soup) for pair in zip(info.soup, epochs, strict=True)}
    else:
        parts = {}
        for member in info.members:
            pair = member.trial, member.epoch
            parts[pair] = parts.get(pair, 0.0) + member.weight
    kinds = f"{len({trial for trial, _ in parts})} trial(s)"
    if snapshots := sum(epoch > 0 for _, epoch in parts):
        kinds += f", {snapshots} of their snapshots,"
    held_out = info.fold_map.held_out
    learned = len(info.fold_map.fold_of) - len(held_out)
    if info.kind == "classification":
        answer = f"probabilities of {', '.join(f'`{name}`' for name in info.classes)}"
    else:
        answer = "one value a window, in the unit of the target"
    lines = [
        f"# Ensemble for {describe_target(info.task)}",
        "",
        info.verdict,
        "",
        "## Scores",
        "",
        f"Metric: {info.metric}. Out-of-fold scores are optimistic: trials and epochs were chosen on them. Held-out "
        f"subjects were seen by no choice (looked at {info.looks} time(s)).",
        "",
        "| predictor | out of fold | held out | 95 % interval over subjects |",
        "|---|---|---|---|",
        *(
            f"| {name} | {_number(row['oof'])} | {_number(row['held_out'])} | {_number(row['low'])} to "
            f"{_number(row['high'])} |"
            for name, row in info.table.items()
        ),
        *(f"\n{note}" for note in info.notes),
        *(f"\n{note}" for note in class_frequency_note(info.metric, list(info.table.values())[-1]["oof"] or 0.5)),
        "",
        "## Use",
        "",
        "```python",
        "from raypipe.packaging.bundle import load_ensemble",
        "",
        'ensemble = load_ensemble("this/folder")',
        f"ensemble.predict(x)  # x: (N, {len(info.channels)}, {info.n_times}) in microvolts at {info.sfreq:g} Hz",
        "```",
        "",
        f"or `raypipe predict this/folder RECORDINGS --out predictions.csv`. Output: {answer}.",
        "",
        f"Channels, in order: {', '.join(info.channels)}.",
        "",
        "## Members",
        "",
        f"One network, which has the configuration of trial {info.soup[0]} and was trained on all subjects learned "
        f"from to answer as the ensemble (`{info.method}`) does."
        if info.student
        else f"{len(info.members)} networks, one a fold, each the mean of the weights of {kinds} (`{info.method}`)."
        if info.soup
        else f"{len(info.members)} networks: {kinds} with {info.fold_map.n_folds} fold models each, "
        f"weighted by `{info.method}` on out-of-fold predictions.",
        "",
        "| trial | epoch | weight | configuration |",
        "|---|---|---|---|",
        *(f"| {n} | {e or 'best'} | {weight:.3f} | `{info.config_hashes[n]}` |" for (n, e), weight in parts.items()),
        "",
        "## Data",
        "",
        f"Task `{info.task}`; learned from {learned} subjects, scored on {len(held_out)} others. "
        f"Windows: {info.window_samples / info.sfreq:g} s, data hash `{info.data_hash[:12]}`, seed {info.seed}.",
        "",
        "```json",
        info.prepare.model_dump_json(indent=1),
        "```",
        "",
        "## Limits",
        "",
        "A research model of one data set. It has not been tested on other devices, ages or clinics than those of the "
        "subjects above, and is no basis for a diagnosis.",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in info.versions.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
