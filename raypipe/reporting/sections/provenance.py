"""Section "Provenance": data, versions and settings of a run, and the commands that reproduce it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap
from raypipe.core.options import SweepOptions
from raypipe.core.own_metrics import shown_metric
from raypipe.core.parameters import defaults, flatten
from raypipe.core.store_names import join_stores, parse_stores
from raypipe.data.given_target import python_call
from raypipe.data.manifest import Manifest, Settings, read_manifest
from raypipe.data.named_stores import hash_of_stores
from raypipe.data.preprocessing import flags
from raypipe.ensembles.evaluation_log import DEFAULT_TOP, read_evaluations
from raypipe.ensembles.fitted import read_ensemble_record
from raypipe.reporting.page import Table, render_template
from raypipe.reporting.trial_table import is_unused, varied_parameters
from raypipe.storage.records import TrialResult, read_options
from raypipe.storage.run_store import RunStore

_OTHER_OPTIONS = {"trials", "folds", "repeats", "held_out", "seed", "address", "storage", "track"}
"""Options of a sweep that are taken from the run's own records, or that depend on the machine."""


def provenance_section(run: RunStore, results: Sequence[TrialResult], table: pd.DataFrame, name: str) -> Markup:
    """Render the section; `table` is the `trials_table` of the run, `name` its name in the report."""
    manifests, unknown = read_data_manifests(run)
    ranked = run.ranked(results)
    return render_template(
        "provenance",
        facts=Table(["", ""], _facts(run, results, name), {0, 1}),
        folds=_subjects_by_fold(run.folds),
        best=_configuration(run, ranked[0].number, table) if ranked else None,
        commands=[
            *_prepare_commands(run, manifests),
            shlex.join(sweep_command(run)),
            shlex.join(ensemble_command(run)),
        ],
        unknown=unknown,
        sources={"space.py": run.space.source} | {path: file.text for path, file in run.space.files.items()},
    )


def _prepare_commands(run: RunStore, manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the calls that make the run's stores; unknown options are an ellipsis."""
    first = next(iter(manifests.values()), None)
    if first is not None and (first.settings.subject or not python_call(run.info.target)):
        return [shlex.join(prepare_command(each.settings, _place(name))) for name, each in manifests.items()]
    if call := python_call(run.info.target):
        return [call]
    return [shlex.join(["raypipe", "prepare", "RECORDINGS", "--target", run.info.target, "--out", "STORE"]) + " ..."]


def _place(name: str) -> str:
    """Return the placeholder of a store's folder; `name` is empty for a single store."""
    return f"STORE-{name}" if name else "STORE"


def read_data_manifest(run: RunStore) -> tuple[Manifest | None, str]:
    """Return the manifest of the run's windows, of several stores the first, or None and why it is unknown."""
    manifests, unknown = read_data_manifests(run)
    return next(iter(manifests.values()), None), unknown


def read_data_manifests(run: RunStore) -> tuple[dict[str, Manifest], str]:
    """Return the manifests of the run's stores by name (empty for a single one); or none, and why they are unknown."""
    where = run.info.data
    if "://" in where:
        return {}, "the windows are behind a URI, and a report downloads nothing"
    names = parse_stores(where)
    try:
        manifests = {name: read_manifest(Path(place)) for name, place in (names or {"": where}).items()}
    except (UserError, OSError):
        return {}, "the windows of this run cannot be opened any more"
    hashes = {name: manifest.data_hash for name, manifest in manifests.items()}
    if (hash_of_stores(hashes) if names else hashes[""]) != run.info.data_hash:
        return {}, "the windows have changed since the run was made"
    return manifests, ""


def prepare_command(settings: Settings, out: str = "STORE") -> list[str]:
    """Return the words of a ``raypipe prepare`` with these settings; names of folders are placeholders."""
    words = ["raypipe", "prepare", "RECORDINGS", "--target", settings.target, "--out", out]
    if settings.subject:  # of epochs; the target's name says so too
        words[2:5] = ["--epochs", "FILES", "--subject", settings.subject, "--target", settings.target.partition(":")[2]]
    words += ["--bids-task", ",".join(settings.bids_task)] if settings.bids_task else []
    words += ["--events-from", settings.events_from] if settings.events_from is not None else []
    words += ["--select", settings.select] if settings.select is not None else []
    words += flags(settings.preprocessing)
    if settings.channels is not None:
        words += ["--channels", ",".join(settings.channels)]
    for name in ("sfreq", "window", "crop", "stride", "tmin"):
        if (value := getattr(settings, name)) is not None:
            words += [f"--{name}", f"{value:.15g}"]
    for name in ("max_windows", "min_windows", "seed"):
        if value := getattr(settings, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--metric", settings.metric] if settings.metric is not None else []
    words += ["--groups", settings.groups] if settings.groups is not None else []
    return words + (["--dtype", settings.dtype] if settings.dtype != "float32" else [])


def sweep_command(run: RunStore) -> list[str]:
    """Return the words of the sweep with the options of its last call; names of folders are placeholders."""
    recorded = read_options(run.folder, run.run_id)
    options = SweepOptions.model_validate(recorded)
    trials = options.trials if recorded else len(run.numbers())
    data = join_stores({name: _place(name) for name in parse_stores(run.info.data)}) or "STORE"
    words = ["raypipe", "sweep", "space.py", "--data", data, "--run", "RUN"]
    words += ["--trials", str(trials), "--folds", str(run.folds.folds_per_repeat)]
    words += ["--repeats", str(run.folds.repeats)] if run.folds.repeats > 1 else []
    words += ["--held-out", ",".join(run.folds.held_out), "--seed", str(run.info.seed)]
    for name, field in SweepOptions.model_fields.items():
        value = getattr(options, name)
        if name not in _OTHER_OPTIONS and value != field.default:
            words += _flag_words(name, shown_metric(value) if name == "metric" else value)
    words += ["--init", "PRETRAINED"] if run.info.init else []
    return words + (["--warm-start", "EARLIER"] if run.info.warm else [])


def _flag_words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]


def ensemble_command(run: RunStore) -> list[str]:
    """Return the words of the last ``raypipe ensemble``."""
    words = ["raypipe", "ensemble", "RUN"]
    for evaluation in read_evaluations(run)[-1:]:
        words += ["--method", evaluation.method] if evaluation.method != "auto" else []
        words += ["--top", str(evaluation.top)] if evaluation.top != DEFAULT_TOP else []
        limits = {"--max-members": evaluation.max_members, "--max-mb": evaluation.max_mb}
        words += [word for flag, limit in limits.items() if limit is not None for word in (flag, f"{limit:g}")]
    record = read_ensemble_record(run)
    return words + (["--distill"] if record and record.soup and record.soup.student else [])


def _facts(run: RunStore, results: Sequence[TrialResult], name: str) -> list[list[str]]:
    info, folds = run.info, run.folds
    sizes = Counter(fold for each in (folds.fold_of, *folds.repeated) for fold in each.values())
    seeds = {result.number: run.config(result.number).seed for result in results}
    own = "their numbers" if len(seeds) > 1 and all(seed == number for number, seed in seeds.items()) else ""
    by_fold = ", ".join(f"fold {fold}: {sizes[fold]} subjects" for fold in range(folds.n_folds))
    return [
        ["run", name],
        ["target", info.target],
        ["metric", f"{info.metric} ({info.direction})"],
        ["search space", Path(info.space).name],
        ["data hash", info.data_hash],
        ["fold map", f"{by_fold}; {f'{folds.repeats} repeats; ' if folds.repeats > 1 else ''}seed {folds.seed}"],
        ["fold map's hash", f"{info.folds_hash} (SHA-256 of folds.json)"],
        ["held out", f"{len(folds.held_out)} subjects: {', '.join(folds.held_out)}"],
        ["seeds", f"run {info.seed}; trials {own or ', '.join(map(str, sorted(set(seeds.values())))) or 'none yet'}"],
        ["versions", ", ".join(f"{package} {version}" for package, version in info.versions.items())],
    ]


def _subjects_by_fold(folds: FoldMap) -> list[tuple[str, str | None]]:
    """Return every subject with its fold in each repeat, None for those held out, which are last."""
    ordered = sorted(folds.fold_of.items(), key=lambda pair: (pair[1] == HELD_OUT, pair[1], pair[0]))
    maps = (folds.fold_of, *folds.repeated)
    return [
        (subject, None if fold == HELD_OUT else ", ".join(str(each[subject]) for each in maps))
        for subject, fold in ordered
    ]


def _configuration(run: RunStore, number: int, table: pd.DataFrame) -> dict[str, Any]:
    """Return a trial's parameters: those that differ from the default or between trials, and the others."""
    varied, rows = varied_parameters(table), table.to_dict("records")
    default, config = defaults(run.config(number)), flatten(run.config(number))
    changed, unchanged = [], []
    for name, value in config.items():
        usual = _short(default[name]) if name in default else ""  # of a user's network, raypipe knows no defaults
        row = [name, "not used" if is_unused(config, name) else _short(value), usual]
        if name in varied:
            changed.append([*row, _used_values(table[name], rows)])
        elif name not in default or value != default[name]:
            changed.append([*row, ""])
        else:
            unchanged.append([name, _short(value)])
    return {
        "number": number,
        "hash": run.config(number).hash(),
        "changed": Table(["parameter", "value", "default", "over the trials"], changed, range(4), as_cards=True),
        "unchanged": Table(["parameter", "value"], unchanged, range(2)),
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _used_values(column: pd.Series[Any], rows: Sequence[Mapping[Any, Any]]) -> str:
    """Return the range of a parameter over the trials that use it, or its different values."""
    used = ~np.array([is_unused(row, str(column.name)) for row in rows])
    values = column[used].dropna()
    if not len(values):
        return "used by none"
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return f"{_short(values.min())} to {_short(values.max())}"
    return ", ".join(sorted(set(map(str, values))))
