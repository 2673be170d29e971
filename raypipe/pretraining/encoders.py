"""The folder of a pretrained run: its settings, its epochs, and the encoders that it produces.

====================================  ==================================================================
``folds.json``                        the subject-to-fold map; held-out subjects are not trained on
``pretrain.json``                     data and settings; its presence makes the folder a pretrained run
``all/history.json``                  loss and probe scores after every epoch (``fold-2/``: fold-wise)
``all/epoch-0005.ckpt``               the whole state; the newest two are kept
``encoder.safetensors``               the encoder (``encoder-fold-2.safetensors``: fold-wise)
``card.json``                         description of the encoders; written last, when the run is finished
====================================  ==================================================================
"""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raypipe.core.errors import CheckpointError, DamagedFileError, UserError
from raypipe.core.folds import FoldMap
from raypipe.models.from_config import build_model
from raypipe.pretraining.records import EncoderCard, PretrainEpoch, PretrainHistory, PretrainInfo
from raypipe.storage.creation import CLAIMS
from raypipe.storage.files import Folder, open_folder, read_record, read_required, write_record
from raypipe.storage.lease import LOCK_FILE
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import HISTORY_FILE, PRETRAIN_FILE, digest
from raypipe.storage.remote import shell_quoted
from raypipe.training import checkpoint

CARD_FILE = "card.json"
_CHECKPOINT = re.compile(r"/epoch-(\d{4,})\.ckpt\Z")


class PretrainedRun:
    """A pretrained run.

    Raises
    ------
    UserError
        There is none, or its fold map was changed or is missing.
    """

    def __init__(self, where: str | Path) -> None:
        self.folder: Folder = open_folder(where)
        self.where = self.folder.where
        if not self.folder.exists(PRETRAIN_FILE):
            raise UserError(
                f"{where}: no pretrained run there; make one with: raypipe pretrain mae --data STORE --run RUN"
            )
        self.info = read_record(PretrainInfo, self.folder, PRETRAIN_FILE)
        text = read_required(self.folder, "folds.json")
        if digest(text) != self.info.folds_hash:
            raise UserError(f"{where}/folds.json: changed since the run was made; restore it from a copy")
        self.folds = FoldMap.parse(text, f"{where}/folds.json")

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Return whether there is a pretrained run at `where`."""
        return open_folder(where).exists(PRETRAIN_FILE)

    @classmethod
    def create(cls, where: str | Path, info: PretrainInfo, folds: FoldMap) -> PretrainedRun:
        """Create a pretrained run.

        Raises
        ------
        UserError
            The folder contains something else.
        """
        folder = open_folder(where)
        if foreign := [n for n in folder.names() if n not in ("folds.json", LOCK_FILE) and not n.startswith(CLAIMS)]:
            raise UserError(f"{where}: not a pretrained run, and not empty ({foreign[0]}); name a new folder")
        text = folds.to_json()
        folder.write("folds.json", text)
        made = info.model_copy(update={"folds_hash": digest(text), "id": uuid.uuid4().hex})
        write_record(folder, PRETRAIN_FILE, made)
        return cls(where)

    @property
    def parts(self) -> list[str]:
        """Return the names of the encoders, which are trained one after the other."""
        return [f"fold-{k}" for k in range(self.folds.n_folds)] if self.info.fold_wise else ["all"]

    @property
    def over(self) -> bool:
        """Return whether all encoders are finished."""
        return self.folder.exists(CARD_FILE)

    def history(self, part: str) -> list[PretrainEpoch]:
        """Return the epochs of a part; raises as `history_record`."""
        record = self.history_record(part)
        return record.epochs if record else []

    def history_record(self, part: str) -> PretrainHistory | None:
        """Return the record of a part's epochs, or None.

        Raises
        ------
        DamagedFileError
            It is damaged, or is that of another run or part.
        """
        name = self.history_name(part)
        if not self.folder.exists(name):
            return None
        return self.parse_history(part, self.folder.read(name))

    def parse_history(self, part: str, data: bytes) -> PretrainHistory:
        """Read the content of a part's ``history.json``; raises as `history_record`."""
        path = f"{self.where}/{self.history_name(part)}"
        record = PretrainHistory.parse(data, path)
        record.check_owner(path, self.info.id, None)
        if record.part != part:
            raise DamagedFileError(f"{path}: the record of {record.part}; restore it from a copy")
        return record

    def write_history(self, part: str, history: list[PretrainEpoch], encoder: str = "") -> None:
        """Write the epochs of a part, and the checksum of its encoder once it has one."""
        record = PretrainHistory(run=self.info.id, part=part, epochs=history, encoder=encoder)
        write_record(self.folder, self.history_name(part), record)

    def checkpoints(self, part: str) -> list[int]:
        """Return the epochs of a part's checkpoints, ascending."""
        return sorted(int(match[1]) for name in self.folder.names(part) if (match := _CHECKPOINT.search(name)))

    def write_checkpoint(self, part: str, history: list[PretrainEpoch], state: dict[str, Any]) -> None:
        """Write a part's state and history after its last epoch, and remove all checkpoints but the newest two."""
        epoch = history[-1].epoch
        state = state | {"run": self.info.id, "history": [each.model_dump() for each in history]}
        self.folder.write(f"{part}/epoch-{epoch:04d}.ckpt", checkpoint.dumps(state))
        for older in self.checkpoints(part):
            if older < epoch - 1:
                self.folder.remove(f"{part}/epoch-{older:04d}.ckpt")

    def latest(self, part: str, up_to: float = math.inf) -> dict[str, Any] | None:
        """Return a part's newest undamaged checkpoint, of epoch `up_to` at most; None if there is none."""
        for epoch in reversed(self.checkpoints(part)):
            if epoch > up_to:
                continue
            with contextlib.suppress(CheckpointError, FileNotFoundError):
                return self.checkpoint(part, epoch)
        return None

    def checkpoint(self, part: str, epoch: int) -> dict[str, Any]:
        """Read a part's checkpoint.

        Raises
        ------
        FileNotFoundError
            There is none.
        CheckpointError
            It is damaged, or is that of another run, part, epoch or configuration.
        """
        name = f"{part}/epoch-{epoch:04d}.ckpt"
        state = checkpoint.loads(self.folder.read(name), f"{self.where}/{name}")
        identity = {"run": self.info.id, "config": self.info.config.hash(), "part": part, "epoch": epoch}
        if {key: state.get(key) for key in identity} != identity:
            raise CheckpointError(f"{self.where}/{name}: the checkpoint of another run, part, epoch or configuration")
        return state

    def restore_history(self, part: str, state: Mapping[str, Any]) -> None:
        """Write the epochs that a checkpoint has, if the history has others: a kill came between the two."""
        epochs = epochs_of(state)
        if self.history(part)[: len(epochs)] != epochs:
            self.write_history(part, epochs)

    def remove_leftovers(self) -> None:
        """Remove partial files of processes that were killed."""
        for name in self.folder.partial_files():
            self.folder.remove(name)

    @staticmethod
    def history_name(part: str) -> str:
        """Return the file name of a part's history."""
        return f"{part}/{HISTORY_FILE}"

    @staticmethod
    def encoder_name(part: str) -> str:
        """Return the file name of a part's encoder."""
        return "encoder.safetensors" if part == "all" else f"encoder-{part}.safetensors"

    def write_encoder(self, part: str, tensors: dict[str, Tensor]) -> None:
        """Write a part's encoder, its checksum first: an encoder without one is not raypipe's."""
        from safetensors.torch import save

        data = save(tensors)
        self.write_history(part, self.history(part), digest(data))
        self.folder.write(self.encoder_name(part), data)

    def finish(self) -> None:
        """Write the card, which marks the run as finished.

        Raises
        ------
        DamagedFileError
            An encoder is missing, or is not the one that was written.
        """
        info = self.info
        files = {
            self.encoder_name(part): digest(read_required(self.folder, self.encoder_name(part))) for part in self.parts
        }
        for part in self.parts:
            record, name = self.history_record(part), self.encoder_name(part)
            if record is None or record.encoder != files[name]:
                raise DamagedFileError(
                    f"{self.where}/{name}: changed since it was written; raypipe resume makes it again"
                )
        card = EncoderCard(
            objective=info.config.pretrain,
            model=info.config.model,
            n_channels=len(info.channels),
            channels=info.channels,
            n_times=info.n_times,
            sfreq=info.sfreq,
            epochs=info.config.epochs,
            data_hash=info.data_hash,
            subjects_seen=sorted(s for s, fold in self.folds.fold_of.items() if fold >= 0),
            subjects_held_out=self.folds.held_out,
            n_folds=self.folds.n_folds,
            fold_of=self.folds.fold_of,
            last={part: history[-1] for part in self.parts if (history := self.history(part))},
            files=files,
            versions=info.versions,
        )
        write_record(self.folder, CARD_FILE, card)


def epochs_of(state: Mapping[str, Any]) -> list[PretrainEpoch]:
    """Return the epochs in a checkpoint."""
    return [PretrainEpoch.model_validate(epoch) for epoch in state["history"]]


def read_card(where: str | Path) -> EncoderCard:
    """Read the card of a pretrained run or an exported encoder.

    Raises
    ------
    UserError
        There is no encoder, its pretraining is not finished, or the card is damaged or has another format.
    """
    folder = open_folder(where)
    if folder.exists(CARD_FILE):
        return read_record(EncoderCard, folder, CARD_FILE)
    if folder.exists(PRETRAIN_FILE):
        command = f"raypipe resume {shell_quoted(where)}"
        raise UserError(f"{where}: its pretraining is not finished; continue it with: {command}")
    raise UserError(f"{where}: no pretrained encoder there (no {CARD_FILE}); make one with: raypipe pretrain")


def encoder_files(where: str | Path) -> dict[str, bytes]:
    """Read an encoder's safetensors files and check them.

    Raises
    ------
    UserError
        One is missing or damaged.
    """
    folder, found = open_folder(where), {}
    for name, checksum in read_card(where).files.items():
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
    card, files = read_card(where), encoder_files(where)
    name = PretrainedRun.encoder_name("all" if fold is None else f"fold-{fold}")
    if name not in files:
        raise UserError(f"{where}: no {name}; there is {', '.join(sorted(files))}")
    tensors = unpack_tensors(files[name])
    # A head that predicts a distribution or a variance has several outputs for one value.
    last = max((n for n in tensors if n.startswith("head.") and n.endswith("bias")), key=lambda n: (len(n), n))
    model = build_model(
        card.model,
        n_channels=card.n_channels,
        n_times=card.n_times,
        n_outputs=1 if card.model.uncertainty else len(tensors[last]),
        sfreq=card.sfreq,
    )
    model.load_state_dict(tensors)
    return model.eval()


def export_encoder(where: str | Path, out: str | Path) -> str:
    """Copy a pretrained run's encoders and card into a folder that `load_encoder` and ``--init`` read.

    Returns
    -------
    str
        A line that says what was written.

    Raises
    ------
    UserError
        There is no encoder, a file is damaged, or the folder is not empty.
    """
    files = encoder_files(where)
    folder = open_folder(out)
    if folder.names() and not folder.exists(CARD_FILE):
        raise UserError(f"{out}: not empty; name a new folder")
    for name, data in files.items():
        folder.write(name, data)
    write_record(folder, CARD_FILE, read_card(where))
    return f"{folder.where}: {', '.join(sorted(files))} and {CARD_FILE}"
