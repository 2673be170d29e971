"""Users' networks compared with the predictions that a run holds of them, before they are shipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raypipe.core.errors import UserError
from raypipe.core.model_config import OwnConfig
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import build_module, fold_tensors, member_windows, merged_spec
from raypipe.packaging.graph_difference import difference_text, output_units, relative_difference
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

WINDOWS = 8
"""Windows of one fold that are compared."""
TOLERANCE = 0.05
"""Largest difference, relative to `output_units`: on a GPU, predictions may have been made in bfloat16."""


def check_stored(run: RunStore, windows: WindowStore, members: Sequence[Member]) -> None:
    """Check that users' networks give here the out-of-fold predictions that the run holds.

    What a file or a package draws or reads when it is loaded is in no weights, and may differ between processes.

    Raises
    ------
    UserError
        One gives others, or weights are damaged or missing.
    """
    for member in members:
        model = run.config(member.trial).model
        if not isinstance(model, OwnConfig):
            continue
        difference = _difference(run, member_windows(run, windows, member), member)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{model.name}: its predictions here differ from those of {member} in the run by "
                f"{difference_text(difference, run.info.kind)}: what it draws or reads when its file is loaded must be "
                "a parameter or a buffer"
            )


@torch.no_grad()
def _difference(run: RunStore, windows: WindowStore, member: Member) -> float:
    oof = run.oof(member.trial, member.epoch)
    fold = int(oof.folds[0])
    rows = np.flatnonzero(oof.folds == fold)[:WINDOWS]
    spec, state = merged_spec(run, windows, member, {fold: fold_tensors(run, member, fold)})
    x_BCT = torch.from_numpy(windows.gather(oof.windows[rows]))
    found_BO = build_module(spec, state).predict_members(x_BCT)[0][0].numpy()
    wanted_BO = oof.predictions[rows]
    scale = spec["members"][0]["scale"]
    units_O = output_units(np.broadcast_to(np.asarray(scale, np.float64), wanted_BO.shape[1]).tolist(), wanted_BO)
    return relative_difference(found_BO, wanted_BO, units_O)
