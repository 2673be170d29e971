"""Free the disk of a run: the weights of trials that neither its ensemble nor its report needs."""

from __future__ import annotations

import re
from typing import NamedTuple

from raypipe.core.errors import UserError
from raypipe.ensembles.candidates import best_trials
from raypipe.ensembles.fitted import Ensemble
from raypipe.storage.files import LocalFolder
from raypipe.storage.lease import in_use_error, read_lease
from raypipe.storage.records import KEPT_TRIALS, TrialResult, trial_file
from raypipe.storage.run_store import RunStore

_WEIGHTS = re.compile(r"fold-\d+(-epoch-\d+)?\.safetensors")
_CHECKPOINT = re.compile(r"fold-\d+/epoch-\d+\.ckpt")


class Tidied(NamedTuple):
    """What was removed from a run, or would be."""

    kept: int
    """Trials that keep their weights."""
    trials: int
    """Trials of which something was removed."""
    files: int
    size: int | None
    """Bytes of these files; None behind a URI."""


def tidy(run: RunStore, keep: int = KEPT_TRIALS, *, dry_run: bool = False) -> Tidied:
    """Remove the weights of ended trials, except the best ones, the best of each family and the ensemble's.

    All scores, predictions and logs stay. So the ensemble of the best `keep` trials, its nested scores and the report
    are the same before and after. Checkpoints that a killed driver left of ended trials are removed too.

    Parameters
    ----------
    run
        A run that no driver works on.
    keep
        Number of best trials whose weights are kept.
    dry_run
        Remove nothing, but say what would be removed.

    Raises
    ------
    UserError
        `keep` is below 1, the run has a driver, or a record is damaged.
    """
    if keep < 1:
        raise UserError(f"--keep best:{keep}: must be 1 or more")
    driver = read_lease(run.folder)
    if driver is not None and driver.alive:
        raise in_use_error(run.folder, driver)
    results = run.results()
    kept = {result.number for result in best_trials(run, results, keep)}
    if Ensemble.exists(run):
        kept |= set(Ensemble.load(run).trials)
    found = [(result, _removable(run, result, result.number in kept)) for result in results]
    found = [(result, names) for result, names in found if names]
    paths = [trial_file(result.number, name) for result, names in found for name in names]
    size = None
    if isinstance(run.folder, LocalFolder):
        size = sum((run.folder.path / path).stat().st_size for path in paths)
    if not dry_run:
        for result, names in found:
            _remove(run, result, names)
    return Tidied(len(kept), len(found), len(paths), size)


def _removable(run: RunStore, result: TrialResult, needed: bool) -> list[str]:
    """Return the names of the files in a trial's folder that may be removed."""
    top = trial_file(result.number)
    names = [name.removeprefix(top) for name in run.folder.names(top.rstrip("/"))]
    return [name for name in names if _CHECKPOINT.fullmatch(name) or (not needed and _WEIGHTS.fullmatch(name))]


def _remove(run: RunStore, result: TrialResult, names: list[str]) -> None:
    """Record that a trial has no weights any more, and remove them; after a kill in between, the next call does."""
    if any(_WEIGHTS.fullmatch(name) for name in names):
        files = {name: checksum for name, checksum in result.files.items() if not _WEIGHTS.fullmatch(name)}
        run.write_result(result.model_copy(update={"files": files, "tidied": True}))
    for name in names:
        run.folder.remove(trial_file(result.number, name))
