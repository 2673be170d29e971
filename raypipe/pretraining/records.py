"""The JSON records of a pretrained run."""

from __future__ import annotations

from typing import Literal

from raypipe.core.config import PretrainConfig, TrialConfig
from raypipe.core.model_config import ModelConfig
from raypipe.core.record import FrozenModel, Record
from raypipe.storage.records import OwnedRecord, WindowsInfo


class PretrainInfo(WindowsInfo):
    """Data and settings of a pretrained run (``pretrain.json``)."""

    format: Literal["raypipe-pretrain/3"] = "raypipe-pretrain/3"
    id: str = ""
    """Random, set when the run is made. Its records and checkpoints have it, so that one of another run is noticed."""
    channels: list[str]
    n_times: int
    sfreq: float
    config: TrialConfig
    folds_hash: str
    fold_wise: bool
    probe_every: int
    tuned_probe: int = 0
    """Epochs of the fine-tuned probe; 0 for none."""
    micro_batch: int | None


class PretrainEpoch(FrozenModel):
    """One epoch of pretraining."""

    epoch: int
    loss: float
    probe: float | None
    """Score of a linear probe over subject folds; None where it was not requested or is undefined."""
    tuned: float | None = None
    """The same for fine-tuned copies of the encoder."""
    seconds: float


class PretrainHistory(OwnedRecord):
    """The epochs of a part (``history.json``)."""

    format: Literal["raypipe-pretrain-history/2"] = "raypipe-pretrain-history/2"
    part: str
    epochs: list[PretrainEpoch]
    encoder: str = ""
    """SHA-256 of the part's encoder, recorded before that is written; empty while the part is trained."""


class EncoderCard(Record):
    """Description of the encoders of a finished pretrained run, also when exported (``card.json``)."""

    format: Literal["raypipe-encoder/1"] = "raypipe-encoder/1"
    objective: PretrainConfig
    model: ModelConfig
    n_channels: int
    channels: list[str]
    n_times: int
    """Samples of a window."""
    sfreq: float
    """Hz."""
    epochs: int
    data_hash: str
    subjects_seen: list[str]
    """Subjects that an encoder was trained on."""
    subjects_held_out: list[str]
    n_folds: int
    fold_of: dict[str, int]
    last: dict[str, PretrainEpoch]
    """Last epoch of each encoder, by its part."""
    files: dict[str, str]
    """Checksums of the encoders by file name."""
    versions: dict[str, str]
