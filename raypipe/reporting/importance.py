"""Which parameters mattered in a search, for its report: shares of the differences, and every trial as a line."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.search_space import silence_optuna
from raypipe.ensembles.verdict import spoken
from raypipe.reporting import html as page
from raypipe.reporting.figures import BLUE, GREY, INK, ORANGE, STYLE, figure
from raypipe.reporting.trial_table import searched, trials_table
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 4
"""Trials trained to the end without which no importance is computed: each would stand for a third of the forest."""
ENOUGH = 8
"""With fewer, the report says how little it rests on, and draws no contour between so few dots."""
SHOWN = 8
"""Parameters that are drawn at most."""
_TITLE = "Which parameters mattered"
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
_LOSSES = {
    "loss/gamma": ("focal",), "loss/beta": ("focal",), "loss/delta": ("huber",), "loss/width": ("kl",),
    "loss/variance_power": ("nll",),
}  # fmt: skip
"""Parameters of the loss that some losses alone have."""


def parameters(run: RunStore) -> str:
    """The section of the report; empty where no trial has a score."""
    table = trials_table(run)
    table = table[table["state"].isin(["complete", "stopped", "pruned"]) & table["score"].notna()]
    done = table[table["state"] != "pruned"]
    if not len(table):
        return ""
    if not searched(table) or len(table) < 2:
        return page.section(_TITLE, f"<p>{len(table)} trial(s) with a score: there is nothing to compare.</p>")
    metric, direction = spoken(run.info.metric), run.info.direction
    shares = importances(done, direction) if len(done) >= FEWEST else {}
    blocks = []
    if len(done) < FEWEST:
        blocks.append(
            f"<p>No importance is computed: {len(done)} trial(s) trained to the end would say nothing "
            f"({FEWEST} are the fewest, {ENOUGH} would do).</p>"
        )
    elif shares and len(done) < ENOUGH:
        blocks.append(
            f"<p>These shares rest on {len(done)} trials trained to the end, in which {len(shares)} parameters differ: "
            "take them for a hint, not for a finding.</p>"
        )
    names = (list(shares) or searched(table))[:SHOWN]
    if shares:
        said = ", ".join(f"{name} {shares[name]:.0%}" for name in names[:3])
        panels = [(lambda: _bars(names, shares), f"Importance of parameters: {said}")]
        note = (
            "Share of the differences between scores that a parameter explains (functional ANOVA on a random forest, "
            f"of {len(done)} trials trained to the end). With few trials it is rough; a parameter that another one "
            "switches off is there with its default."
        )
        if len(names) > 1 and len(done) >= ENOUGH:
            panels.append(
                (
                    lambda: contour(done, names[:2], metric, direction),
                    f"Contour plot of the score over {names[0]} and {names[1]}",
                )
            )
            note += (
                f" Contours: the score over {names[0]} and {names[1]}, the two that mattered most, interpolated "
                "between trials (the dots): away from them it is a guess."
            )
        blocks.append(page.pictures(panels, note))
    caption = "A line a trial, from parameter to parameter; the best in orange, darker is better."
    if len(done) < len(table):
        caption += " Grey, dashed: pruned, with the score they had by then."
    if any(off(row, name) for row in table.to_dict("records") for name in names):
        caption += " A line has a gap where the trial makes no use of the parameter."
    blocks.append(
        page.picture(
            lambda: parallel(table, names, metric, direction),
            "Parallel coordinates: the parameters and score of every trial",
            caption,
        )
    )
    return page.section(_TITLE, *blocks)


def off(row: Mapping[Any, Any], name: str) -> bool:
    """Whether a trial makes no use of a parameter: what it belongs to is switched off (``sam/name=none``)."""
    part, _, own = name.rpartition("/")
    if name in _LOSSES:
        return row.get("loss/name") not in _LOSSES[name]
    return bool(part) and own != "name" and row.get(f"{part}/name") == "none"


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
    with silence_optuna(), warnings.catch_warnings():
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
    with silence_optuna(), warnings.catch_warnings():
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


def contour(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Optuna's contour plot of the score over two parameters, in the report's style."""
    import matplotlib
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_contour

    with (
        silence_optuna(),
        warnings.catch_warnings(),
        matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": True}),
    ):
        warnings.simplefilter("ignore")
        # It sets a style for good, and its figure is pyplot's to keep: both end here.
        axes = plot_contour(_study(table, direction), params=list(names), target_name=f"out-of-fold {metric}")
        made: Figure = axes.get_figure()
        plt.close(made)
        made.set_size_inches(4.1, 3.4)
        made.set_facecolor("white")
        axes.set_title("")
        axes.grid(False)
        for text in (axes.xaxis.label, axes.yaxis.label, made.axes[-1].yaxis.label):
            text.set(color=INK, fontsize=9.5)
        for each in made.axes:
            each.tick_params(which="both", colors="#4a505c", labelsize=8.5)
    return made


def _bars(names: Sequence[str], shares: dict[str, float]) -> Figure:
    made, (axes,) = figure(4.1, max(1.3, 0.7 + 0.28 * len(names)))
    places = np.arange(len(names))[::-1]
    axes.barh(places, [shares[name] for name in names], height=0.6, color=BLUE)
    axes.set_yticks(places, list(names))
    axes.set_xlabel("share of the differences explained")
    axes.grid(False)
    return made


def parallel(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Every trial as a line over its parameters and its score, each on an axis of its own; pruned ones in grey."""
    import matplotlib

    columns = [*names, "score"]
    made, (axes,) = figure(max(4.1, min(8.4, 1.0 + 0.85 * len(columns))), 3.6)
    unused = np.array([[off(row, name) for name in columns] for row in table.to_dict("records")])
    heights = np.full((len(table), len(columns)), np.nan)
    for place, name in enumerate(columns):
        axes.axvline(place, color="#c4c9d2", lw=1, zorder=1)
        used = ~unused[:, place]
        if used.any():
            heights[used, place], ends = _heights(table[name][used], name != "score")
            for height, label in ends:
                axes.text(place, height, label, fontsize=7.5, ha="center", va="center", zorder=5, bbox=_PAPER)
    done = (table["state"] != "pruned").to_numpy()
    rank = table["score"].where(done).rank(ascending=direction == "maximize").to_numpy(dtype=float)
    rank = np.nan_to_num(rank) / max(1, done.sum())
    colours = matplotlib.colormaps["Blues"](0.25 + 0.7 * rank)
    best = int(np.argmax(rank)) if done.any() else -1
    for line in np.argsort(rank):
        look: dict[str, Any] = {"color": colours[line], "lw": 1.1, "ms": 2.5}
        if not done[line]:
            look |= {"color": GREY, "lw": 0.9, "ls": "--"}
        if line == best:
            look = {"color": ORANGE, "lw": 2.2, "zorder": 4, "ms": 4.0}
        axes.plot(range(len(columns)), heights[line], marker="o", **look)
    axes.set_xticks(range(len(columns)), [*names, metric], rotation=20, ha="right")
    axes.set_yticks([])
    axes.grid(False)
    axes.set_ylim(-0.08, 1.08)
    axes.spines["left"].set_visible(False)
    return made


def _heights(values: pd.Series[Any], logarithmic: bool) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Where values stand on their axis (0 to 1), and what is written on it."""
    if _numeric(values):
        numbers = values.to_numpy(dtype=float)
        numbers = np.log10(numbers) if logarithmic and _wide(values) else numbers
        low, high = float(numbers.min()), float(numbers.max())
        if high > low:
            return (numbers - low) / (high - low), [(0.0, f"{values.min():.3g}"), (1.0, f"{values.max():.3g}")]
        return np.full(len(values), 0.5, dtype=np.float64), [(0.5, f"{values.iloc[0]:.3g}")]
    kinds = sorted(set(map(str, values)))
    spots = {kind: k / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for k, kind in enumerate(kinds)}
    return np.array([spots[str(value)] for value in values]), [(at, kind) for kind, at in spots.items()]
