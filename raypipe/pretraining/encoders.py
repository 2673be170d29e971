"""A pretrained run's folder: what it was made of, its epochs, and the encoders that it leaves.

====================================  ==================================================================
``folds.json``                        the subject-to-fold map; held-out subjects were not learnt from
``pretrain.json``                     what the run is made of; written last, makes it a pretrained run
``all/history.json``                  loss and probe scores after every epoch (``fold-2/``: fold-wise)
``all/epoch-0005.ckpt``               the whole state; the newest two are kept
``encoder.safetensors``               the encoder (``encoder-fold-2.safetensors``: fold-wise)
``card.json``                         what it is; written last, says that the run is over
====================================  ==================================================================
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raypipe.core.config import TrialConfig
from raypipe.core.errors import CheckpointError, UserError
from raypipe.core.folds import FoldMap
from raypipe.core.record import Record
from raypipe.models.registry import build_model
from raypipe.storage.files import Folder, open_folder, read_json, read_record, write_json, write_record
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import PRETRAIN_FILE, digest
from raypipe.storage.remote import shell_quoted
from raypipe.training import checkpoint

INFO, CARD = PRETRAIN_FILE, "card.json"


class PretrainInfo(Record):
    """What a pretrained run is made of (``pretrain.json``)."""

    format: Literal["raypipe-pretrain/1"] = "raypipe-pretrain/1"
    created: float
    data: str
    data_hash: str
    task: str
    metric: str
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
    versions: dict[str, str]


class PretrainEpoch(BaseModel):
    """One epoch of pretraining."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    probe: float | None
    """Score of a linear probe over subject folds; None where it was not asked for or has none."""
    tuned: float | None = None
    """The same of copies of the encoder that were trained on themselves."""
    seconds: float


class PretrainHistory(Record):
    """A part's epochs (``history.json``)."""

    format: Literal["raypipe-pretrain-history/1"] = "raypipe-pretrain-history/1"
    epochs: list[PretrainEpoch]


class PretrainedRun:
    """A pretrained run, open."""

    def __init__(self, where: str | Path) -> None:
        self.folder: Folder = open_folder(where)
        self.where = self.folder.where
        if not self.folder.exists(INFO):
            raise UserError(
                f"{where}: no pretrained run there; make one with: raypipe pretrain mae --data STORE --run RUN"
            )
        self.info = read_record(PretrainInfo, self.folder, INFO)
        text = self.folder.read("folds.json")
        if digest(text) != self.info.folds_hash:
            raise UserError(f"{where}/folds.json: changed since the run was made; restore it from a copy")
        self.folds = FoldMap.parse(text, f"{where}/folds.json")

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Whether there is a pretrained run at `where`."""
        return open_folder(where).exists(INFO)

    @classmethod
    def create(cls, where: str | Path, info: PretrainInfo, folds: FoldMap) -> PretrainedRun:
        """Make a pretrained run.

        Raises
        ------
        UserError
            Something else lies there.
        """
        folder = open_folder(where)
        if foreign := [name for name in folder.names() if name != "folds.json"]:
            raise UserError(f"{where}: not a pretrained run, and not empty ({foreign[0]}); name a new folder")
        text = folds.to_json()
        folder.write("folds.json", text)
        made = info.model_copy(update={"folds_hash": digest(text)})
        write_record(folder, INFO, made)
        return cls(where)

    @property
    def parts(self) -> list[str]:
        """Names of the encoders that are trained, one after the other."""
        return [f"fold-{k}" for k in range(self.folds.n_folds)] if self.info.fold_wise else ["all"]

    @property
    def over(self) -> bool:
        """Whether all encoders are there."""
        return self.folder.exists(CARD)

    def history(self, part: str) -> list[PretrainEpoch]:
        """Epochs of a part."""
        name = f"{part}/history.json"
        return read_record(PretrainHistory, self.folder, name).epochs if self.folder.exists(name) else []

    def write_history(self, part: str, history: list[PretrainEpoch]) -> None:
        """Record a part's epochs."""
        write_record(self.folder, f"{part}/history.json", PretrainHistory(epochs=history))

    def checkpoints(self, part: str) -> list[int]:
        """Epochs of a part's checkpoints, ascending."""
        return sorted(int(n[-9:-5]) for n in self.folder.names(part) if n.endswith(".ckpt"))

    def write_checkpoint(self, part: str, epoch: int, state: dict[str, Any]) -> None:
        """Keep a part's state; the newest two stay."""
        self.folder.write(f"{part}/epoch-{epoch:04d}.ckpt", checkpoint.dumps(state))
        for older in self.checkpoints(part):
            if older < epoch - 1:
                self.folder.remove(f"{part}/epoch-{older:04d}.ckpt")

    def latest(self, part: str, before: float = math.inf) -> dict[str, Any] | None:
        """A part's newest whole checkpoint, None where there is none; a damaged one is passed over."""
        for epoch in reversed(self.checkpoints(part)):
            if epoch > before:
                continue
            name = f"{part}/epoch-{epoch:04d}.ckpt"
            try:
                return checkpoint.loads(self.folder.read(name), f"{self.where}/{name}")
            except (CheckpointError, FileNotFoundError):
                continue
        return None

    @staticmethod
    def encoder_name(part: str) -> str:
        """File of a part's encoder."""
        return "encoder.safetensors" if part == "all" else f"encoder-{part}.safetensors"

    def write_encoder(self, part: str, tensors: dict[str, Tensor]) -> None:
        """Keep a part's encoder."""
        from safetensors.torch import save

        self.folder.write(self.encoder_name(part), save(tensors))

    def finish(self) -> None:
        """Write the card: what the encoders are, what they have seen, and their checksums."""
        info = self.info
        files = {self.encoder_name(part): digest(self.folder.read(self.encoder_name(part))) for part in self.parts}
        last = {part: history[-1].model_dump() for part in self.parts if (history := self.history(part))}
        card = {
            "format": "raypipe-encoder/1",
            "objective": info.config.pretrain.model_dump(mode="json"),
            "model": info.config.model.model_dump(mode="json"),
            "n_channels": len(info.channels),
            "channels": info.channels,
            "n_times": info.n_times,
            "sfreq": info.sfreq,
            "epochs": info.config.epochs,
            "data_hash": info.data_hash,
            "subjects_seen": sorted(s for s, fold in self.folds.fold_of.items() if fold >= 0),
            "subjects_held_out": self.folds.held_out,
            "n_folds": self.folds.n_folds,
            "fold_of": self.folds.fold_of,
            "last": last,
            "files": files,
            "versions": info.versions,
        }
        write_json(self.folder, CARD, card)


def read_card(where: str | Path) -> dict[str, Any]:
    """The card of a pretrained run or an exported encoder.

    Raises
    ------
    UserError
        There is none: no encoder, or pretraining is not over.
    """
    folder = open_folder(where)
    if folder.exists(CARD):
        return dict(read_json(folder, CARD))
    if folder.exists(INFO):
        raise UserError(f"{where}: its pretraining is not over; go on with: raypipe resume {shell_quoted(where)}")
    raise UserError(f"{where}: no pretrained encoder there (no {CARD}); make one with: raypipe pretrain")


def encoder_files(where: str | Path) -> dict[str, bytes]:
    """An encoder's safetensors files, checked.

    Raises
    ------
    UserError
        One is missing or damaged.
    """
    folder, found = open_folder(where), {}
    for name, checksum in read_card(where)["files"].items():
        try:
            found[name] = folder.read(name)
        except FileNotFoundError:
            raise UserError(f"{where}/{name}: missing; restore it from a copy") from None
        if digest(found[name]) != checksum:
            raise UserError(f"{where}/{name}: damaged (its checksum differs); restore it from a copy")
    return found


def load_encoder(where: str | Path, *, fold: int | None = None) -> nn.Module:
    """Load a pretrained encoder.

    Parameters
    ----------
    where
        A pretrained run, or a folder that ``raypipe export`` made of it.
    fold
        Number of the fold, of fold-wise pretraining.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. Its ``features`` maps windows (B, channels, samples) to a vector each (B, width).

    Raises
    ------
    UserError
        There is no encoder, no such fold, or the file is damaged.
    """
    from raypipe.core.config import ModelConfig

    card, files = read_card(where), encoder_files(where)
    name = PretrainedRun.encoder_name("all" if fold is None else f"fold-{fold}")
    if name not in files:
        raise UserError(f"{where}: no {name}; there is {', '.join(sorted(files))}")
    tensors, chosen = unpack_tensors(files[name]), ModelConfig.model_validate(card["model"])
    # A head that tells a distribution, or a variance, answers one value by several numbers.
    last = max((n for n in tensors if n.startswith("head.") and n.endswith("bias")), key=lambda n: (len(n), n))
    model = build_model(
        chosen,
        n_channels=card["n_channels"],
        n_times=card["n_times"],
        n_outputs=1 if chosen.bins or chosen.variance else len(tensors[last]),
        sfreq=card["sfreq"],
    )
    model.load_state_dict(tensors)
    return model.eval()


def export_encoder(where: str | Path, out: str | Path) -> str:
    """Copy a pretrained run's encoders and their card into a folder, which `load_encoder` and ``--init`` read."""
    files = encoder_files(where)
    folder = open_folder(out)
    if folder.names() and not folder.exists(CARD):
        raise UserError(f"{out}: not empty; name a new folder")
    for name, data in files.items():
        folder.write(name, data)
    write_json(folder, CARD, read_card(where))
    return f"{folder.where}: {', '.join(sorted(files))} and {CARD}"
