"""Write submissions: ensembles in one flat zip that the challenge's scorer runs with torch and NumPy only."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch

from raypipe import models
from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT
from raypipe.core.model_config import OwnConfig
from raypipe.core.own_code import known_source
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import build_module
from raypipe.packaging.challenge_windows import BAND, challenge_of, other_steps, scorer_misfit, shown_from
from raypipe.packaging.contents import read_networks, shipped_windows
from raypipe.packaging.manifest import (
    MANIFEST,
    ChallengeEntry,
    ReferencePredictions,
    SubmissionManifest,
    subject_hash,
)
from raypipe.packaging.network_spec import make_spec
from raypipe.packaging.readback import require_small
from raypipe.packaging.scorer import SEED, reference_windows
from raypipe.storage.files import write_atomic
from raypipe.storage.local_path import local_path
from raypipe.storage.run_store import RunStore

CODE = (
    "submission.py",
    "ensemble.py",
    "bands.py",
    "builders.py",
    "closed_form.py",
    "combine.py",
    "conformer.py",
    "eegnet.py",
    "covariance.py",
    "linear.py",
    "network.py",
    "program.py",
    "readout.py",
    "shallow.py",
    "sizes.py",
    "stacked.py",
    "stem.py",
    "tcn.py",
    "transformer.py",
    "vit.py",
)
"""Files of `raypipe.models` that a submission contains, unchanged."""

INPUT_SCALE = 1e6
"""Microvolts, on which the networks were trained, per volt, the unit of the scorer's windows."""


def require_challenge(ensemble: Ensemble) -> int:
    """Return the challenge that an ensemble answers.

    Raises
    ------
    UserError
        It answers none, or takes other windows than the scorer shows.
    """
    run = ensemble.run
    challenge = challenge_of(run.info.target)
    misfit = f"its target is '{run.info.target}', that of neither challenge"
    if challenge is not None:
        windows = shipped_windows(ensemble, None, "a submission")
        misfit = scorer_misfit(
            challenge,
            run.info.target,
            channels=windows.channels,
            n_times=windows.crop_samples,
            sfreq=windows.sfreq,
            tmin=shown_from(windows.manifest.plan),
        )
    if challenge is None or misfit:
        raise UserError(
            f"{run.where}: {misfit}; a submission is for the EEG Foundation Challenge only; export a bundle, "
            "or a .onnx or .pt2 file"
        )
    return challenge


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
        By challenge (1 or 2) the ensemble that answers it, or the run whose saved ensemble does. For a single one,
        its target gives the challenge (`require_challenge`).
    out_zip
        The zip file; an existing one is replaced.
    windows
        The runs' windows by challenge; None opens the stores that the runs were made from.

    Returns
    -------
    Path
        The zip file.

    Raises
    ------
    UserError
        A run has no ensemble or a damaged one, its prediction is not one number, its windows are not the scorer's,
        its programs are too large, or there is no such challenge.
    """
    path = local_path(out_zip, "a submission is written", "name a file here, and copy it")
    if path.is_dir():
        raise UserError(f"{path}: a folder; a submission is a zip file")
    entries: dict[Literal["1", "2"], ChallengeEntry] = {}
    code = Path(str(models.__file__)).parent
    files = {name: (code / name).read_bytes() for name in CODE}
    for challenge, ensemble in _by_challenge(ensembles).items():
        name = f"model_challenge_{challenge}.pt"
        entries["1" if challenge == 1 else "2"], files[name] = _entry(ensemble, name, (windows or {}).get(challenge))
        files |= _sources(ensemble)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    manifest = SubmissionManifest(challenges=entries, sha256=hashes)
    require_small(manifest, str(path))
    files[MANIFEST] = manifest.to_json()
    write_atomic(path, lambda file: _write_zip(file, files))
    return path


def _by_challenge(ensembles: Mapping[int, Ensemble | RunStore] | Ensemble | RunStore) -> dict[int, Ensemble]:
    """Return the ensembles by challenge, loaded."""
    if not isinstance(ensembles, Mapping):
        single = Ensemble.load(ensembles) if isinstance(ensembles, RunStore) else ensembles
        ensembles = {require_challenge(single): single}
    wrong = [challenge for challenge in ensembles if challenge not in (1, 2)]
    if wrong or not ensembles:
        raise UserError(f"challenge {wrong[0] if wrong else 'none'}: a submission answers challenge 1, 2 or both")
    return {
        challenge: Ensemble.load(source) if isinstance(source, RunStore) else source
        for challenge, source in sorted(ensembles.items())
    }


def _write_zip(file: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Write files in sorted order, with a fixed date."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def _sources(ensemble: Ensemble) -> dict[str, bytes]:
    """Return the files of users' networks, for who reads the submission; it runs their programs."""
    models = [ensemble.run.config(trial).model for trial in ensemble.trials]
    found = [source for model in models if isinstance(model, OwnConfig) and (source := known_source(model.code))]
    return {f"source_{source.code}_{source.name}": source.text.encode() for source in found}


def _check_windows(windows: WindowStore, where: str) -> None:
    """Check that windows are what the scorer shows: it has its own band-pass, and no place for other steps.

    Raises
    ------
    UserError
        They are not.
    """
    if changed := other_steps(windows.manifest.plan):
        raise UserError(
            f"{where}: its windows were made with {' '.join(changed)}; the scorer shows a model one window at a time, "
            f"from {BAND[0]:g} to {BAND[1]:g} Hz, without these steps; export a bundle instead"
        )


def _entry(ensemble: Ensemble, weights_name: str, windows: WindowStore | None) -> tuple[ChallengeEntry, bytes]:
    """Return the manifest's entry of an ensemble, and the content of its file of weights."""
    run = ensemble.run
    if len(run.info.classes) > 2:
        raise UserError(
            f"{run.where}: it predicts {len(run.info.classes)} classes, but the scorer reads one number per window; "
            "export a bundle instead"
        )
    windows = shipped_windows(ensemble, windows, "a submission")
    _check_windows(windows, run.where)
    networks = read_networks(run, ensemble, windows)
    networks.require_programs()
    spec, state = networks.spec, networks.state
    try:
        checked = make_spec(spec)
    except ValueError as error:
        raise UserError(f"{run.where}: cannot be exported: {error}") from None
    x_NCT = reference_windows(windows.n_channels, windows.crop_samples)
    with torch.no_grad():
        microvolts = torch.from_numpy(x_NCT * np.float32(INPUT_SCALE))
        reference = build_module(spec, state)(microvolts)[:, -1]
    buffer = io.BytesIO()
    torch.save(dict(sorted(state.items())), buffer)
    entry = ChallengeEntry(
        weights=weights_name,
        input_scale=INPUT_SCALE,
        spec=checked,
        target=run.info.target,
        classes=run.info.classes,
        threshold=ensemble.threshold,
        channels=list(windows.channels),
        tmin=shown_from(windows.manifest.plan),
        data_hash=run.info.data_hash,
        method=ensemble.method,
        learned_from=sorted(subject_hash(s) for s, fold in run.folds.fold_of.items() if fold != HELD_OUT),
        reference=ReferencePredictions(seed=SEED, answers=reference.tolist()),
    )
    return entry, buffer.getvalue()
