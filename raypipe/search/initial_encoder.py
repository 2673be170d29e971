"""Pretrained encoder that a sweep's trials start from: checked against the fold map and copied into the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap, LeakError, name_some
from raypipe.core.search_space import SearchSpace
from raypipe.search.example_configs import example_configs
from raypipe.storage.files import open_folder
from raypipe.storage.records import digest

if TYPE_CHECKING:
    from raypipe.pretraining.records import EncoderCard


def needs_encoder(space: SearchSpace) -> bool:
    """Return whether trials of a space start from a pretrained encoder."""
    return any(config.init.name == "pretrained" for config in example_configs(space))


def copy_encoder(init: str | Path, where: str | Path, folds: FoldMap, space: SearchSpace) -> dict[str, Any]:
    """Copy a pretrained encoder into a new run; return the record of it (`RunInfo.init`).

    Raises
    ------
    UserError
        There is no encoder, it is damaged, or no trial of the space would start from it.
    LeakError
        It has seen a subject that the sweep holds out or, pretrained fold-wise, one that a fold predicts.
    """
    from raypipe.pretraining.encoders import encoder_files, read_card  # torch takes seconds to import

    card, files = read_card(init), encoder_files(init)
    if not needs_encoder(space):
        raise UserError(f"{space.name}: no trial starts from --init; a space for it sets init/name=pretrained")
    check_seen_subjects(init, card, folds)
    folder = open_folder(where)
    for name, data in files.items():
        folder.write(f"init/{name}", data)
    return {
        "run": str(init),
        "objective": card.objective.name,
        "subjects_seen": card.subjects_seen,
        "fold_wise": "encoder.safetensors" not in files,
        "files": {name: digest(data) for name, data in files.items()},
    }


def check_seen_subjects(init: str | Path, card: EncoderCard, folds: FoldMap) -> None:
    """Check that an encoder has not seen subjects that the sweep holds out or, fold-wise, predicts.

    Raises
    ------
    LeakError
        The encoder has seen some; the message names them.
    """
    both = folds.held_out_among(card.subjects_seen)
    if both:
        raise LeakError(
            f"--init {init}: the encoder was pretrained on {len(both)} subject(s) that this run holds out "
            f"({name_some(both)}); pretrain with the sweep's --held-out, --folds and --seed, or with --serves"
        )
    if "encoder.safetensors" in card.files:
        return
    own = card.fold_of
    moved = sorted(s for s, fold in folds.fold_of.items() if fold >= 0 and s in own and own[s] != fold)
    if moved or card.n_folds != folds.n_folds:
        raise LeakError(
            f"--init {init}: it was pretrained fold-wise with other folds ({len(moved)} subject(s) differ, "
            f"{card.n_folds} and {folds.n_folds} folds); pretrain with the sweep's --held-out, --folds and --seed, or "
            "with --serves, and sweep without --repeats"
        )
