"""How a search went, for the report: which parameters mattered, what halving saved, when trials ran, how to redo it."""

from __future__ import annotations

import math
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raypipe import page
from raypipe.config import TrialConfig, flat
from raypipe.files import read_json
from raypipe.logs import read_log
from raypipe.pictures import BLUE, GREY, INK, ORANGE, STYLE, figure
from raypipe.space import quiet_optuna
from raypipe.store import RunStore, TrialResult
from raypipe.trials import searched, trials_table
from raypipe.verdict import spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 8
"""Fewer trials with a score say nothing of what mattered."""
SHOWN = 8
"""Parameters that are drawn at most."""
STATES = {"complete": BLUE, "stopped": "#56B4E9", "pruned": GREY, "failed": ORANGE}


def course(run: RunStore, results: Sequence[TrialResult]) -> list[str]:
    """Sections of the report: parameters, halving, timeline. Those without anything to say are left out."""
    parts = [_parameters(run), _halving(run, results), _timeline(run, results)]
    return [part for part in parts if part]


def importances(table: pd.DataFrame, direction: str) -> dict[str, float]:
    """Shares of the scores' variance that parameters explain, largest first, by functional ANOVA on a random forest.

    Parameters
    ----------
    table
        Rows of `trials_table` with a score.
    direction
        ``minimize`` or ``maximize``.

    Notes
    -----
    Hutter et al. 2014, as Optuna computes it, with a fixed seed.
    """
    import optuna

    made = _study(table, direction)
    if made is None:
        return {}
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(made, evaluator=judge)
    return {str(name): float(share) for name, share in found.items()}


def _study(table: pd.DataFrame, direction: str) -> Any:
    """The trials as a study of Optuna's, over the ranges that were seen; None where there is nothing to compare."""
    import optuna

    names = searched(table)
    if not names or table["score"].nunique() < 2:
        return None
    domains = {name: _domain(table[name]) for name in names}
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=direction)
        for _, row in table.iterrows():
            params = {name: _plain(row[name], domains[name]) for name in names}
            made.add_trial(optuna.trial.create_trial(params=params, distributions=domains, value=float(row["score"])))
    return made


def _domain(values: pd.Series[Any]) -> Any:
    from optuna import distributions

    if not _numeric(values):
        return distributions.CategoricalDistribution(sorted(set(map(str, values))))
    low, high = float(values.min()), float(values.max())
    return distributions.FloatDistribution(low, high, log=_wide(values))


def _plain(value: Any, domain: Any) -> Any:
    return str(value) if hasattr(domain, "choices") else float(value)


def _numeric(values: pd.Series[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values)


def _wide(values: pd.Series[Any]) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() >= 10)


def _parameters(run: RunStore) -> str:
    table = trials_table(run)
    table = table[table["state"].isin(["complete", "stopped"]) & table["score"].notna()]
    title = "Which parameters mattered"
    if not len(table):
        return ""
    if len(table) < ENOUGH:
        return page.section(
            title, f"<p>{len(table)} trial(s) trained to the end say too little; {ENOUGH} would do.</p>"
        )
    shares = importances(table, run.info.direction)
    if not shares:
        return ""
    names = list(shares)[:SHOWN]
    note = (
        "Share of the differences between scores that a parameter explains (functional ANOVA on a random forest, of "
        f"{len(table)} trials trained to the end). With few trials it is rough; a parameter that another one switches "
        "off is there with its default."
    )
    said = ", ".join(f"{name} {shares[name]:.0%}" for name in names[:3])
    blocks = [
        page.picture(lambda: _bars(names, shares), f"Importance of parameters: {said}", note),
        page.picture(
            lambda: parallel(table, names, spoken(run.info.metric), run.info.direction),
            "Parallel coordinates: the parameters and score of every trial",
            "A line a trial, from parameter to parameter; the best in orange, darker is better.",
        ),
    ]
    if len(names) > 1:
        first, second = names[:2]
        caption = (
            f"The score over {first} and {second}, the two that mattered most, interpolated between trials (the "
            "dots): away from them it is a guess."
        )
        blocks.append(
            page.picture(
                lambda: contour(table, [first, second], spoken(run.info.metric), run.info.direction),
                f"Contour plot of the score over {first} and {second}",
                caption,
            )
        )
    return page.section(title, *blocks)


def contour(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Optuna's contour plot of the score over two parameters, in the report's style."""
    import matplotlib
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_contour

    with (
        quiet_optuna(),
        warnings.catch_warnings(),
        matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": True}),
    ):
        warnings.simplefilter("ignore")
        # It sets a style for good, and its figure is pyplot's to keep: both end here.
        axes = plot_contour(_study(table, direction), params=list(names), target_name=f"out-of-fold {metric}")
        made: Figure = axes.get_figure()
        plt.close(made)
        made.set_size_inches(7.0, 4.2)
        made.set_facecolor("white")
        axes.set_title("")
        axes.grid(False)
        for text in (axes.xaxis.label, axes.yaxis.label, made.axes[-1].yaxis.label):
            text.set(color=INK, fontsize=9.5)
        for each in made.axes:
            each.tick_params(which="both", colors="#4a505c", labelsize=8.5)
    return made


def _bars(names: Sequence[str], shares: dict[str, float]) -> Figure:
    made, (axes,) = figure(8.4, 0.7 + 0.28 * len(names))
    places = np.arange(len(names))[::-1]
    axes.barh(places, [shares[name] for name in names], height=0.6, color=BLUE)
    axes.set_yticks(places, list(names))
    axes.set_xlabel("share of the differences explained")
    axes.grid(False)
    return made


def parallel(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Every trial as a line over its parameters and its score, each on an axis of its own."""
    import matplotlib

    made, (axes,) = figure(8.4, 3.4)
    columns = [*names, "score"]
    heights = np.empty((len(table), len(columns)))
    for place, name in enumerate(columns):
        values = table[name]
        if _numeric(values):
            numbers = np.log10(values.astype(float)) if name != "score" and _wide(values) else values.astype(float)
            low, high = float(numbers.min()), float(numbers.max())
            heights[:, place] = (numbers - low) / (high - low) if high > low else 0.5
            ends = [(0.0, f"{values.min():.3g}"), (1.0, f"{values.max():.3g}")]
        else:
            kinds = sorted(set(map(str, values)))
            spots = {kind: k / max(1, len(kinds) - 1) for k, kind in enumerate(kinds)}
            heights[:, place] = [spots[str(value)] for value in values]
            ends = [(spots[kind], kind) for kind in kinds]
        axes.axvline(place, color="#c4c9d2", lw=1, zorder=1)
        for height, label in ends:
            axes.text(place, height, label, fontsize=7.5, ha="center", va="center", zorder=5, bbox=_PAPER)
    rank = table["score"].rank(ascending=direction == "maximize").to_numpy(dtype=float) / len(table)
    colours = matplotlib.colormaps["Blues"](0.25 + 0.7 * rank)
    best = int(np.argmax(rank))
    for line in np.argsort(rank):
        look = {"color": ORANGE, "lw": 2.2, "zorder": 4} if line == best else {"color": colours[line], "lw": 1.1}
        axes.plot(range(len(columns)), heights[line], **look)
    axes.set_xticks(range(len(columns)), [*names, metric], rotation=20, ha="right")
    axes.set_yticks([])
    axes.grid(False)
    axes.set_ylim(-0.08, 1.08)
    axes.spines["left"].set_visible(False)
    return made


_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


def saved(run: RunStore, results: Sequence[TrialResult]) -> tuple[int, int, float]:
    """What halving left out: epochs that its trials trained, epochs they were planned for beyond, and seconds of those.

    An epoch that was not trained is reckoned at the mean of its own trial's.
    """
    trained = left = 0
    seconds = 0.0
    for result in results:
        if result.state == "pruned" and result.epochs:
            more = max(0, run.config(result.number).epochs - result.epochs)
            trained, left = trained + result.epochs, left + more
            seconds += more * result.seconds / result.epochs
    return trained, left, seconds


def _halving(run: RunStore, results: Sequence[TrialResult]) -> str:
    stopped = [result for result in results if result.state == "pruned"]
    if not stopped:
        return ""
    trained, left, seconds = saved(run, results)
    spent = sum(result.seconds for result in results)
    words = (
        f"Successive halving stopped {len(stopped)} of {len(results)} trials early, after {trained} epochs of the "
        f"{trained + left} that they were planned for. At their own pace the rest would have taken up to "
        f"{page.duration(seconds)} of a worker ({seconds / (spent + seconds):.0%} of a search without halving); less, "
        "where a trial would have stopped by itself."
    )
    return page.section("What halving saved", f"<p>{page.text(words)}</p>")


def _timeline(run: RunStore, results: Sequence[TrialResult]) -> str:
    recorded = set(run.numbers())
    rows = [(result, run.started(result.number)) for result in results if result.number in recorded]
    if not rows:
        return ""
    again = {result.number: sum(" goes on after epoch " in line for line in read_log(run.folder, result.number))
             for result, _ in rows}  # fmt: skip
    gone_on = [number for number, times in again.items() if times]
    failed = sum(result.state == "failed" for result, _ in rows)
    said = f"{failed} failed; {len(gone_on)} were interrupted and went on from a checkpoint"
    drawn = page.picture(
        lambda: _spans(rows, gone_on),
        f"Timeline of {len(rows)} trials: {said}",
        f"From when a trial was asked for to its end. {said}.",
    )
    return page.section("When the trials ran", drawn)


def _spans(rows: Sequence[tuple[TrialResult, float]], gone_on: Sequence[int]) -> Figure:
    first = min(started for _, started in rows)
    made, (axes,) = figure(8.4, min(7.0, 0.9 + 0.16 * len(rows)))
    longest = max(result.finished for result, _ in rows) - first
    unit, name = (3600.0, "hours") if longest > 2 * 3600 else (60.0, "minutes")
    for state, colour in STATES.items():
        these = [(result, started) for result, started in rows if result.state == state]
        if these:
            starts = [(started - first) / unit for _, started in these]
            widths = [max(0.0, result.finished - started) / unit for result, started in these]
            axes.barh([r.number for r, _ in these], widths, left=starts, height=0.7, color=colour, label=state)
    if gone_on:
        x = [(result.finished - first) / unit for result, _ in rows if result.number in gone_on]
        axes.plot(x, gone_on, "D", color=INK, ms=4, ls="none", label="was interrupted, went on")
    axes.invert_yaxis()
    axes.locator_params(axis="y", integer=True)
    axes.set(xlabel=f"{name} since the first trial was asked for", ylabel="trial")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
    return made


def commands(run: RunStore) -> str:
    """The command lines that make the run again, and its search space, as HTML; names of folders are placeholders."""
    options = dict(read_json(run.folder, "options.json")) if run.folder.exists("options.json") else {}
    held_out = ",".join(run.folds.held_out)
    words = ["raypipe", "sweep", "space.py", "--data", "STORE", "--run", "RUN"]
    words += ["--trials", str(options.get("trials", len(run.numbers()))), "--folds", str(run.folds.n_folds)]
    words += ["--held-out", held_out, "--seed", str(run.info.seed)]
    if options.get("grace"):
        words += ["--grace", str(options["grace"])]
    if options.get("prune") is False:
        words += ["--no-prune"]
    if options.get("time_budget") and math.isfinite(options["time_budget"]):
        words += ["--time-budget", f"{options['time_budget']:g}s"]
    lines = [
        f"raypipe prepare RECORDINGS --task {shlex.quote(run.info.task)} --out STORE",
        shlex.join(words),
        "raypipe ensemble RUN",
    ]
    note = (
        "With the versions above and windows of the same data hash (the options of prepare are in the store's "
        "manifest), this makes the same trials again; space.py is below."
    )
    listing = "".join(f"<code>{page.text(line)}</code><br>" for line in lines)
    source = f"<details><summary>space.py</summary><pre>{page.text(run.space.source)}</pre></details>"
    return f"<h3>To run it again</h3><p class='note'>{page.text(note)}</p><p>{listing}</p>{source}"


def recipe(run: RunStore, results: Sequence[TrialResult], name: str) -> str:
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
        ["held out", f"{len(folds.held_out)} subjects: " + ", ".join(folds.held_out)],
        ["seeds", f"run {info.seed}; trials {', '.join(map(str, seeds)) or 'none yet'}"],
        ["versions", ", ".join(f"{package} {version}" for package, version in info.versions.items())],
    ]
    blocks = [page.table(["", ""], facts, words={0, 1})]
    ranked = run.ranked()
    if ranked:
        config, default = flat(run.config(ranked[0].number)), flat(TrialConfig())
        rows = [[key, str(value), "" if value == default[key] else str(default[key])] for key, value in config.items()]
        summary = f"Configuration of the best trial ({ranked[0].number}, hash {run.config(ranked[0].number).hash()})"
        inner = page.table(["parameter", "value", "default, where it differs"], rows, words={0, 1, 2})
        blocks.append(f"<h3>{page.text(summary)}</h3>{inner}")
    return page.section("The recipe", *blocks, commands(run))
