"""From a run to what is shipped: a bundle for Python, or a submission zip for the challenge."""

from __future__ import annotations

from pathlib import Path

from raypipe.core.errors import UserError, nearest

FORMATS = ("bundle", "submission")


def export(run: str | Path, out: str | Path, *, format: str | None = None, also: str | Path | None = None) -> Path:
    """Write a run's saved ensemble.

    Parameters
    ----------
    run
        Folder or URI of the run.
    out
        Folder of the bundle, or the submission's zip file.
    format
        ``bundle`` or ``submission``; None goes by the name of `out`: ``.zip`` is a submission.
    also
        A second run for a submission, which answers the challenge's other half.

    Raises
    ------
    UserError
        The run has no ensemble, the format is unknown, or both runs answer the same half.
    """
    from raypipe.ensembles.fitted import Ensemble
    from raypipe.packaging.bundle import export_bundle
    from raypipe.packaging.submission import challenge_of, export_submission
    from raypipe.storage.run_store import RunStore

    chosen = format or ("submission" if Path(out).suffix == ".zip" else "bundle")
    if chosen not in FORMATS:
        raise UserError(f"--format {chosen}: no such format; {nearest(chosen, FORMATS)}")
    ensemble = Ensemble.load(RunStore.open(run))
    if chosen == "bundle":
        if also:
            raise UserError("a bundle holds one run's ensemble; only a submission (.zip) takes two runs")
        return export_bundle(ensemble.run, ensemble, out)
    ensembles = {challenge_of(ensemble.run.info.task): ensemble}
    if also:
        other = Ensemble.load(RunStore.open(also))
        half = challenge_of(other.run.info.task)
        if half in ensembles:
            raise UserError(f"{also}: both runs answer challenge {half} ({other.run.info.task})")
        ensembles[half] = other
    return export_submission(ensembles, out)
