"""Submissions: ensembles as one flat zip that the challenge's scorer can run with torch alone."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypipe import models
from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import build_module, read_members
from raypipe.packaging.scorer import SEED, reference_windows
from raypipe.storage.files import write_atomic
from raypipe.storage.run_store import RunStore

FORMAT = "raypipe-submission/1"
MANIFEST = "manifest.json"
CODE = (
    "submission.py",
    "ensemble.py",
    "builders.py",
    "combine.py",
    "conformer.py",
    "network.py",
    "readout.py",
    "stacked.py",
    "stem.py",
    "tcn.py",
    "vit.py",
)
"""Files of `raypipe.models` that a submission holds, word for word."""

INPUT_SCALE = 1e6
"""The scorer gives volts (MNE's unit); windows are learned from in microvolts."""


def challenge_of(task: str) -> int:
    """Which challenge a task answers: 2 (what kind of person) for ``participants:`` too, else 1 (response times)."""
    return 2 if task.startswith(("challenge2", "participants:")) else 1


def subject_mark(subject: str) -> str:
    """What a submission says of a subject that it was learned from: enough to be recognised by, not the label."""
    return hashlib.sha256(subject.encode()).hexdigest()[:16]


def export_submission(
    ensembles: Mapping[int, Ensemble | RunStore] | Ensemble | RunStore,
    out_zip: str | Path,
    *,
    windows: Mapping[int, WindowStore] | None = None,
) -> Path:
    """Write a submission. The same ensembles give the same bytes.

    Parameters
    ----------
    ensembles
        Challenge (1 or 2) to the ensemble, or the run whose saved ensemble, answers it. A single one goes where
        `challenge_of` its task says.
    out_zip
        The zip file; one that is there is replaced.
    windows
        The runs' windows by challenge; left out, the stores that the runs were made from are opened.

    Raises
    ------
    UserError
        A run has no ensemble or a damaged one, its answer is not one number, or there is no such challenge.
    """
    if not isinstance(ensembles, Mapping):
        store = ensembles if isinstance(ensembles, RunStore) else ensembles.run
        ensembles = {challenge_of(store.info.task): ensembles}
    wrong = [challenge for challenge in ensembles if challenge not in (1, 2)]
    if wrong or not ensembles:
        raise UserError(f"challenge {wrong[0] if wrong else 'none'}: a submission answers challenge 1, 2 or both")
    entries: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for challenge, source in sorted(ensembles.items()):
        ensemble = Ensemble.load(source) if isinstance(source, RunStore) else source
        name = f"model_challenge_{challenge}.pt"
        entries[str(challenge)], files[name] = _entry(ensemble, name, (windows or {}).get(challenge))
    code = Path(str(models.__file__)).parent
    files |= {name: (code / name).read_bytes() for name in CODE}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    manifest = {"format": FORMAT, "challenges": entries, "sha256": hashes}
    files[MANIFEST] = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, data in sorted(files.items()):
                about = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                about.compress_type = zipfile.ZIP_DEFLATED
                about.external_attr = 0o644 << 16
                archive.writestr(about, data)

    path = Path(out_zip)
    if path.is_dir():
        raise UserError(f"{path}: a folder; a submission is a zip file")
    write_atomic(path, write)
    return path


def _entry(ensemble: Ensemble, weights_name: str, windows: WindowStore | None) -> tuple[dict[str, Any], bytes]:
    run = ensemble.run
    if len(run.info.classes) > 2:
        raise UserError(
            f"{run.where}: it predicts {len(run.info.classes)} classes, but the scorer reads one number a window; "
            "export a bundle instead"
        )
    windows = open_windows(run.info.data) if windows is None else windows
    run.require_whole(ensemble.trials)
    spec, state = read_members(
        run, windows, ensemble.members, ensemble.weights.tolist(), ensemble.rule, ensemble.merged
    )
    x_NCT = reference_windows(windows.n_channels, windows.crop_samples)
    with torch.no_grad():
        microvolts = torch.from_numpy(x_NCT * np.float32(INPUT_SCALE))
        reference = build_module(spec, state)(microvolts)[:, -1]
    buffer = io.BytesIO()
    torch.save(dict(sorted(state.items())), buffer)
    entry = {
        "weights": weights_name,
        "input_scale": INPUT_SCALE,
        "spec": spec,
        "task": run.info.task,
        "classes": run.info.classes,
        "channels": list(windows.channels),
        "data_hash": run.info.data_hash,
        "method": ensemble.method,
        "learned_from": sorted(subject_mark(s) for s, fold in run.folds.fold_of.items() if fold != HELD_OUT),
        "reference": {"seed": SEED, "answers": reference.tolist()},
    }
    return entry, buffer.getvalue()
