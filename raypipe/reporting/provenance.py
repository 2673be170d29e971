"""What a run was made of, and the command lines that make it again: the last section of its report."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raypipe.core.config import TrialConfig, flat
from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap
from raypipe.data.window_store import Settings, read_manifest
from raypipe.ensembles.fit import LOOKS
from raypipe.ensembles.fitted import RECORD
from raypipe.reporting import html as page
from raypipe.reporting.importance import off
from raypipe.reporting.trial_table import searched, trials_table
from raypipe.storage.files import read_json
from raypipe.storage.run_store import RunStore, TrialResult

TOP = 10
"""Trials that `raypipe ensemble` combines at most, unless it is told otherwise."""
_LAYOUT = {
    "workers": None,
    "cpus_per_worker": 1,
    "gpus_per_worker": 0,
    "concurrent": None,
    "stem": "auto",
    "stack": "auto",
}
"""Options of a sweep that lay out its computing, with their defaults."""


def asked_settings(run: RunStore) -> tuple[Settings | None, str]:
    """What was asked of `prepare` for the run's windows; or None, and why that cannot be told."""
    where = run.info.data
    if "://" in where:
        return None, "the windows lie behind a URI, and a report fetches nothing"
    try:
        manifest = read_manifest(Path(where))
    except (UserError, OSError):
        return None, "the windows that the run was made from cannot be opened any more"
    if manifest.data_hash != run.info.data_hash:
        return None, "the windows have changed since the run was made"
    return manifest.settings, ""


def prepare_words(asked: Settings) -> list[str]:
    """The words of a ``raypipe prepare`` that asks for the same; names of folders are placeholders."""
    words = ["raypipe", "prepare", "RECORDINGS", "--task", asked.task, "--out", "STORE"]
    if asked.band is not None:
        words += ["--band", *(f"{edge:g}" for edge in asked.band)]
    if asked.channels is not None:
        words += ["--channels", ",".join(asked.channels)]
    for name in ("sfreq", "window", "crop", "stride", "tmin"):
        if (value := getattr(asked, name)) is not None:
            words += [f"--{name}", f"{value:.15g}"]
    return words + (["--dtype", asked.dtype] if asked.dtype != "float32" else [])


def sweep_words(run: RunStore) -> list[str]:
    """The words of the sweep, as it was last gone on with."""
    options = dict(read_json(run.folder, "options.json")) if run.folder.exists("options.json") else {}
    words = ["raypipe", "sweep", "space.py", "--data", "STORE", "--run", "RUN"]
    words += ["--trials", str(options.get("trials", len(run.numbers()))), "--folds", str(run.folds.n_folds)]
    words += ["--held-out", ",".join(run.folds.held_out), "--seed", str(run.info.seed)]
    if options.get("grace"):
        words += ["--grace", str(options["grace"])]
    if options.get("prune") is False:
        words += ["--no-prune"]
    if options.get("time_budget") and math.isfinite(options["time_budget"]):
        words += ["--time-budget", f"{options['time_budget']:g}s"]
    if options.get("gpu_hours"):
        words += ["--gpu-hours", f"{options['gpu_hours']:g}"]
    for name, default in _LAYOUT.items():
        if (value := options.get(name, default)) != default:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--init", "PRETRAINED"] if run.info.init else []
    return words + (["--warm-start", "EARLIER"] if run.info.warm else [])


def ensemble_words(run: RunStore) -> list[str]:
    """The words of the last look at the held-out subjects, as far as it was written down."""
    words = ["raypipe", "ensemble", "RUN"]
    last = list(read_json(run.folder, LOOKS))[-1:] if run.folder.exists(LOOKS) else []
    for look in last:
        method, trials = look.get("method", "auto"), len(look.get("trials", []))
        words += ["--method", method] if method != "auto" else []
        if trials > TOP or (trials and trials < min(TOP, len(run.ranked()))):
            words += ["--top", str(trials)]
    record = dict(read_json(run.folder, RECORD)) if run.folder.exists(RECORD) else {}
    return words + (["--distill"] if (record.get("soup") or {}).get("student") else [])


def commands(run: RunStore) -> str:
    """The command lines that make the run again, and its search space, as HTML; names of folders are placeholders."""
    asked, why = asked_settings(run)
    if asked is None:
        first = shlex.join(["raypipe", "prepare", "RECORDINGS", "--task", run.info.task, "--out", "STORE"]) + " ..."
        told = (
            f"The options of prepare are not known here ({why}): they stand in the store's settings.json, and without "
            "them the windows are others."
        )
    else:
        first, told = shlex.join(prepare_words(asked)), ""
    lines = [first, shlex.join(sweep_words(run)), shlex.join(ensemble_words(run))]
    note = "With the versions above and windows of the same data hash, this makes the same trials; space.py is below."
    listing = "".join(f"<code>{page.text(line)}</code><br>" for line in lines)
    return (
        f"<h3>To run it again</h3><p class='note'>{page.text(note)}</p><p>{listing}</p>"
        + (f"<p class='note'>{page.text(told)}</p>" if told else "")
        + page.folded("space.py", f"<pre>{page.text(run.space.source)}</pre>")
    )


def fold_list(folds: FoldMap) -> str:
    """Every subject with its fold, those held out marked, as HTML."""
    by_fold = sorted(folds.fold_of.items(), key=lambda pair: (pair[1] == HELD_OUT, pair[1], pair[0]))
    items = [
        f"<li><b>{page.text(subject)}: held out</b></li>"
        if fold == HELD_OUT
        else f"<li>{page.text(subject)}: {fold}</li>"
        for subject, fold in by_fold
    ]
    return f'<ul class="columns">{"".join(items)}</ul>'


def provenance_section(run: RunStore, results: Sequence[TrialResult], name: str) -> str:
    """What the run was made of, and how to make it again: the last section of the report."""
    info, folds = run.info, run.folds
    sizes = Counter(folds.fold_of.values())
    seeds = sorted({run.config(result.number).seed for result in results})
    facts = [
        ["run", name],
        ["task", info.task],
        ["metric", f"{info.metric} ({info.direction})"],
        ["search space", Path(info.space).name],
        ["data hash", info.data_hash],
        [
            "fold map",
            ", ".join(f"fold {f}: {sizes[f]} subjects" for f in range(folds.n_folds)) + f"; seed {folds.seed}",
        ],
        ["fold map's hash", f"{info.folds_hash} (SHA-256 of folds.json)"],
        ["held out", f"{len(folds.held_out)} subjects: " + ", ".join(folds.held_out)],
        ["seeds", f"run {info.seed}; trials {', '.join(map(str, seeds)) or 'none yet'}"],
        ["versions", ", ".join(f"{package} {version}" for package, version in info.versions.items())],
    ]
    blocks = [page.table(["", ""], facts, words={0, 1})]
    blocks.append(page.folded(f"Who is in which fold ({len(folds.fold_of)} subjects)", fold_list(folds)))
    ranked = run.ranked(results)
    if ranked:
        blocks.append(_configuration(run, ranked[0].number))
    return page.section("The recipe", *blocks, commands(run))


def _configuration(run: RunStore, number: int) -> str:
    """Parameters of a trial: those that differ from the default or between trials, then, folded, the others."""
    table = trials_table(run)
    varied = searched(table)
    default, config = flat(TrialConfig()), flat(run.config(number))
    idle = {name: np.array([off(row, name) for row in table.to_dict("records")]) for name in varied}
    own, rest = [], []
    for name, value in config.items():
        row = [name, "not used" if off(config, name) else _short(value), _short(default[name])]
        if name in varied:
            own.append([*row, _range(table[name][~idle[name]].dropna())])
        elif value != default[name]:
            own.append([*row, ""])
        else:
            rest.append([name, _short(value)])
    title = f"Configuration of the best trial ({number}, hash {run.config(number).hash()})"
    head = ["parameter", "value", "default", "over the trials"]
    more = page.folded(f"{len(rest)} parameters at their defaults", page.table(head[:2], rest, words={0, 1}))
    return f"<h3>{page.text(title)}</h3>{page.table(head, own, words=range(4))}{more if rest else ''}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(values: pd.Series[Any]) -> str:
    """What a parameter was over the trials: from and to, or the different words."""
    if not len(values):
        return "used by none"
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return f"{_short(values.min())} to {_short(values.max())}"
    return ", ".join(sorted(set(map(str, values))))
