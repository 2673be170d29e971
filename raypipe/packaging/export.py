"""Export a run's ensemble as a bundle for Python, or as a submission zip for the challenge."""

from __future__ import annotations

from pathlib import Path

from raypipe.core.errors import UserError, nearest

FORMATS = ("bundle", "submission")


def export(run: str | Path, out: str | Path, *, format: str | None = None, also: str | Path | None = None) -> Path:
    """Write the saved ensemble of a run; see `raypipe.api.export`."""
    from raypipe.ensembles.fitted import Ensemble
    from raypipe.packaging.bundle import export_bundle
    from raypipe.packaging.submission import challenge_of, export_submission
    from raypipe.storage.run_store import RunStore

    format = format or ("submission" if Path(out).suffix == ".zip" else "bundle")
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; {nearest(format, FORMATS)}")
    ensemble = Ensemble.load(RunStore.open(run))
    if format == "bundle":
        if also:
            raise UserError("a bundle has one run's ensemble; only a submission (.zip) takes two runs")
        return export_bundle(ensemble.run, ensemble, out)
    ensembles = {challenge_of(ensemble.run.info.target): ensemble}
    if also:
        other = Ensemble.load(RunStore.open(also))
        challenge = challenge_of(other.run.info.target)
        if challenge in ensembles:
            raise UserError(f"{also}: both runs answer challenge {challenge} ({other.run.info.target})")
        ensembles[challenge] = other
    return export_submission(ensembles, out)
