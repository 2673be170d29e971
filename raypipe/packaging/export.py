"""Export a run's ensemble: as a bundle for Python, as a graph that runs anywhere, or as a submission."""

from __future__ import annotations

from pathlib import Path

from raypipe.core.errors import UserError, nearest

FORMATS = ("bundle", "submission", "onnx", "pt2")
SUFFIXES = {".zip": "submission", ".onnx": "onnx", ".pt2": "pt2"}
"""Formats by the ending of what is written; else it is a bundle."""


def export(run: str | Path, out: str | Path, *, format: str | None = None, also: str | Path | None = None) -> Path:
    """Write the saved ensemble of a run; see `raypipe.api.export`."""
    from raypipe.ensembles.fitted import Ensemble
    from raypipe.packaging.bundle import export_bundle
    from raypipe.packaging.submission import export_submission, require_challenge
    from raypipe.storage.run_store import RunStore

    format = format or SUFFIXES.get(Path(out).suffix.lower(), "bundle")
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; {nearest(format, FORMATS)}")
    if also and format != "submission":
        raise UserError(f"format {format} has one run's ensemble; only a submission (.zip) takes two runs")
    ensemble = Ensemble.load(RunStore.open(run))
    if format == "bundle":
        return export_bundle(ensemble.run, ensemble, out)
    if format != "submission":
        from raypipe.packaging.graphs import export_graph

        return export_graph(ensemble, out, format)[0]
    ensembles = {require_challenge(ensemble): ensemble}
    if also:
        other = Ensemble.load(RunStore.open(also))
        challenge = require_challenge(other)
        if challenge in ensembles:
            raise UserError(f"{also}: both runs answer challenge {challenge} ({other.run.info.target})")
        ensembles[challenge] = other
    return export_submission(ensembles, out)
