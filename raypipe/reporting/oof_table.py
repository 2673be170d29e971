"""The out-of-fold predictions of a trial as a table, with subjects and targets."""

from __future__ import annotations

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.storage.run_store import RunStore


def oof_table(run: RunStore, number: int | None) -> pd.DataFrame:
    """Return the table that `raypipe.Run.oof` describes.

    Raises
    ------
    UserError
        The trial, or where none is named any trial, has no predictions; they are damaged; or the windows are missing.
    """
    if number is None:
        ranked = run.ranked()
        if not ranked:
            raise UserError(f"{run.where}: no trial is complete yet; name one: oof(NUMBER)")
        number = ranked[0].number
    oof, windows, classes = run.oof(number), windows_of_run(run), run.info.classes
    targets = windows.targets[oof.windows]
    names = np.array(classes, dtype=object)
    known = {"target": names[targets.astype(np.int64)] if classes else targets}
    if run.info.outputs:
        known = {f"target_{name}": targets[:, k] for k, name in enumerate(run.info.outputs)}
    place = windows.table.iloc[oof.windows]
    which = {
        "window": oof.windows,
        "recording": place["recording"].to_numpy(),
        "onset": place["onset"].to_numpy(dtype=float),
        "subject": np.asarray(windows.subjects)[oof.windows],
    }
    table = pd.DataFrame(which | known | {"fold": oof.folds})
    if classes:
        table[[f"probability_{name}" for name in classes]] = oof.predictions
        table["prediction"] = names[oof.predictions.argmax(axis=1)]
    else:
        table[[f"prediction_{name}" for name in run.info.outputs] or ["prediction"]] = oof.predictions
    return table
