"""Section "Parameter importance": share of the scores that each parameter explains, and parameters of all trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from raypipe.core.search_space import silence_optuna
from raypipe.ensembles.labels import metric_label
from raypipe.reporting.page import FigureBlock, Panel, draw_figure, render_template
from raypipe.reporting.plotting import BLUE, DARK, GREY, LIGHT, MUTED, ORANGE, PAPER, STYLE, new_figure
from raypipe.reporting.trial_table import is_unused, varied_parameters
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_TRIALS = 10
"""Minimum number of fully trained trials for importances; those of fewer are noise."""
MIN_VALUES = 5
"""Values of a parameter that contours are drawn over."""
MAX_PARAMETERS = 8
"""Parameters that are drawn."""
MAX_TRIALS = 400
"""Trials that importances are computed from, and that have a line: more take long and show no more."""
MIN_TREES, MAX_TREES = 16, 64
"""Trees of the forest that importances are computed from, of 400 trials and of at most 100."""
NOT_USED = -0.16
"""Height of a line where the trial does not use the parameter; axes are from 0 to 1."""
_LABEL_BACKGROUND = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


def importance_section(run: RunStore, table: pd.DataFrame) -> Markup:
    """Render the section; empty where no trial has a score. `table` is the `trials_table` of the run."""
    table = table[table["state"].isin(["complete", "stopped", "pruned"]) & table["score"].notna()]
    if not len(table):
        return Markup()
    trained = table[table["state"] != "pruned"]
    values: dict[str, Any] = {
        "scored": len(table),
        "trained": len(trained),
        "min": MIN_TRIALS,
    }
    if not varied_parameters(table) or len(table) < 2:
        return render_template("importance", **values, comparable=False, shares={}, importance=None, parallel=None)
    some = spread_over(trained, MAX_TRIALS)
    shares = importances(some, run.info.direction) if len(trained) >= MIN_TRIALS else {}
    names = (list(shares) or varied_parameters(table))[:MAX_PARAMETERS]
    return render_template(
        "importance",
        **values,
        comparable=True,
        shares=shares,
        importance=_importance_figure(run, trained, some, names, shares) if shares else None,
        parallel=_parallel_figure(run, table, names),
    )


def _importance_figure(
    run: RunStore, trained: pd.DataFrame, some: pd.DataFrame, names: Sequence[str], shares: dict[str, float]
) -> FigureBlock:
    """Draw the importances, which are computed from some of the trained trials."""
    largest = ", ".join(f"{name} {shares[name]:.0%}" for name in names[:3])
    spaced = ", evenly spaced in the search" if len(some) < len(trained) else ""
    panels = [Panel(partial(importance_bars, names, shares), f"Importance of parameters: {largest}")]
    caption = (
        "Share of the scores' variance that each parameter explains (functional ANOVA on a random forest of "
        f"{_share_of(some, trained)} fully trained trials{spaced}). "
        "It is rough with few trials. A parameter that another one switches "
        "off counts with its default; one that the trial's model does not have, with the median of the others."
    )
    numeric = [name for name in shares if _is_on_an_axis(some, name)][:2]
    if len(numeric) > 1:
        draw = partial(contour_plot, some, numeric, metric_label(run.info.metric), run.info.direction)
        panels.append(Panel(draw, f"Contour plot of the score over {numeric[0]} and {numeric[1]}"))
        caption += (
            f" Contours: score over {numeric[0]} and {numeric[1]}, the most important numbers, interpolated between "
            "the trials (dots); it is unreliable far from them."
        )
    return draw_figure(panels, caption)


def _parallel_figure(run: RunStore, table: pd.DataFrame, names: Sequence[str]) -> FigureBlock:
    shown = lines_shown(table, run.info.direction)
    caption = "Parallel coordinates: one line per trial. The best trial is orange; better trials have a stronger blue."
    if len(shown) < len(table):
        caption += f" Drawn are {_share_of(shown, table)} trials: the best, and others evenly spaced in the search."
    table = shown
    if (table["state"] == "pruned").any():
        caption += " Grey, dashed: pruned trials, with their score at that time."
    rows = table.to_dict("records")
    if any(is_unused(row, name) for row in rows for name in names):
        caption += " Where a trial does not use a parameter, its line is below that parameter's axis and has no dot."
    draw = partial(parallel_coordinates, table, names, metric_label(run.info.metric), run.info.direction)
    return draw_figure([Panel(draw, "Parallel coordinates: parameters and score of each trial")], caption)


def _is_on_an_axis(table: pd.DataFrame, name: str) -> bool:
    """Return whether all trials use a parameter, and its values are numbers between which one can interpolate."""
    numeric = _is_numeric(table[name]) and table[name].nunique() >= MIN_VALUES
    return numeric and not any(is_unused(row, name) for row in table.to_dict("records"))


def spread_over(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return at most `limit` rows of a table, evenly spaced, with the first and the last."""
    if len(table) <= limit:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, limit).round().astype(int))]


def lines_shown(table: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Return the trials that have a line: all of few; of many, some evenly spaced ones and the best."""
    some = spread_over(table, MAX_TRIALS)
    scores = table["score"].where(table["state"] != "pruned").dropna()
    if len(some) == len(table) or not len(scores):
        return some
    best = scores.idxmin() if direction == "minimize" else scores.idxmax()
    return table.loc[sorted({*some.index, best})]


def _share_of(some: pd.DataFrame, table: pd.DataFrame) -> str:
    """Return how many trials of a table are used, in words."""
    if len(some) == len(table):
        return str(len(table))
    return f"{len(some)} of the {len(table)}"


def importances(table: pd.DataFrame, direction: str) -> dict[str, float]:
    """Return the share of the scores' variance that each parameter explains, largest first.

    Parameters
    ----------
    table
        Rows of `trials_table` with a score.
    direction
        ``minimize`` or ``maximize``.

    Notes
    -----
    Functional ANOVA on a random forest (Hutter et al. 2014), as Optuna computes it, with a fixed seed.
    """
    import optuna

    study = _optuna_study(table, direction)
    if study is None:
        return {}
    with silence_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_trees(len(table)), seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {str(name): float(share) for name, share in found.items()}


def _trees(trials: int) -> int:
    """Return the trees of the forest: of many trials fewer, since each takes as long as they are, and is as sure."""
    return min(MAX_TREES, max(MIN_TREES, MAX_TREES * 100 // trials))


def _optuna_study(table: pd.DataFrame, direction: str) -> Any:
    """Return the trials as an Optuna study over the observed ranges; None where all parameters or scores are equal."""
    import optuna

    names = varied_parameters(table)
    if not names or table["score"].nunique() < 2:
        return None
    columns = {name: _filled(table[name]) for name in names}
    ranges = {name: _observed_range(column) for name, column in columns.items()}
    with silence_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=direction)
        for place, score in enumerate(table["score"]):
            params = {name: _as_drawn(columns[name].iloc[place], ranges[name]) for name in names}
            trial = optuna.trial.create_trial(params=params, distributions=ranges, value=float(score))
            study.add_trial(trial)
    return study


def _filled(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return values where trials whose model does not have the parameter get the median of the others, or a name."""
    known = values.dropna()
    return values.fillna(known.astype(float).median() if _is_numeric(known) else "no parameter of the model")


def _observed_range(values: pd.Series[Any]) -> Any:
    from optuna import distributions

    if not _is_numeric(values):
        return distributions.CategoricalDistribution(sorted(set(map(str, values))))
    low, high = float(values.min()), float(values.max())
    return distributions.FloatDistribution(low, high, log=_is_logarithmic(values))


def _as_drawn(value: Any, distribution: Any) -> Any:
    return str(value) if hasattr(distribution, "choices") else float(value)


def _is_numeric(values: pd.Series[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values)


def _is_logarithmic(values: pd.Series[Any]) -> bool:
    """Return whether positive values extend over a factor of ten or more."""
    return bool(values.min() > 0 and values.max() / values.min() >= 10)


def importance_bars(names: Sequence[str], shares: dict[str, float]) -> Figure:
    """Plot the importance of each parameter as a bar."""
    figure, (axes,) = new_figure(4.1, max(1.3, 0.7 + 0.28 * len(names)))
    places = np.arange(len(names))[::-1]
    axes.barh(places, [shares[name] for name in names], height=0.6, color=BLUE)
    axes.set_yticks(places, list(names))
    axes.set_xlabel("share of variance explained")
    axes.grid(False)
    return figure


def contour_plot(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Return Optuna's contour plot of the score over two parameters, in the report's style."""
    import matplotlib
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_contour

    with (
        silence_optuna(),
        warnings.catch_warnings(),
        matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": True}),
    ):
        warnings.simplefilter("ignore")
        # Optuna sets a global style and leaves the figure open in pyplot: the context and `close` undo both.
        axes = plot_contour(_optuna_study(table, direction), params=list(names), target_name=f"out-of-fold {metric}")
        figure: Figure = axes.get_figure()
        plt.close(figure)
        figure.set_size_inches(4.1, 3.4)
        figure.set_facecolor("none")
        axes.set_title("")
        axes.grid(False)
        for text in (axes.xaxis.label, axes.yaxis.label, figure.axes[-1].yaxis.label):
            text.set(color=DARK, fontsize=9.5)
        for each in figure.axes:
            each.tick_params(which="both", colors=MUTED, labelsize=8.5)
    return figure


def parallel_coordinates(table: pd.DataFrame, names: Sequence[str], metric: str, direction: str) -> Figure:
    """Plot each trial as a line over its parameters and its score, on one axis each; pruned trials are grey."""
    from matplotlib.colors import to_rgba

    columns = [*names, "score"]
    figure, (axes,) = new_figure(max(4.1, min(8.4, 1.0 + 0.85 * len(columns))), 3.6)
    heights, rows = np.full((len(table), len(columns)), np.nan), table.to_dict("records")
    for place, name in enumerate(columns):
        axes.plot([place, place], [0.0, 1.0], color=LIGHT, lw=1, zorder=1)
        with_it = np.array([name == "score" or not is_unused(row, name) for row in rows])
        if with_it.any():
            heights[with_it, place], ticks = _axis_heights(table[name][with_it], name != "score")
            for height, label in ticks:
                beside: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
                axes.annotate(label, (place, height), fontsize=7.5, zorder=5, bbox=_LABEL_BACKGROUND, **beside)
    done = (table["state"] != "pruned").to_numpy()
    rank = table["score"].where(done).rank(ascending=direction == "maximize").to_numpy(dtype=float)
    rank = np.nan_to_num(rank) / max(1, done.sum())
    colours = [to_rgba(BLUE, 0.2 + 0.8 * share) for share in rank.tolist()]
    best = int(np.argmax(rank)) if done.any() else -1
    for line in np.argsort(rank):
        style: dict[str, Any] = {"color": colours[line], "lw": 1.1, "ms": 2.5}
        if not done[line]:
            style |= {"color": GREY, "lw": 0.9, "ls": "--"}
        if line == best:
            style = {"color": ORANGE, "lw": 2.2, "zorder": 4, "ms": 4.0}
        used = np.isfinite(heights[line])
        dots = np.flatnonzero(used).tolist()
        axes.plot(np.where(used, heights[line], NOT_USED), marker="o", markevery=dots, **style)
    all_used = np.isfinite(heights).all()
    axes.set_xticks(range(len(columns)), [*names, metric], rotation=20, ha="right")
    axes.set_yticks([] if all_used else [NOT_USED], [] if all_used else ["not used"])
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.set_ylim(-0.08 if all_used else NOT_USED - 0.06, 1.08)
    axes.spines["left"].set_visible(False)
    return figure


def _axis_heights(values: pd.Series[Any], logarithmic: bool) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Return the heights of values on their axis, 0 to 1, and the ticks: heights with labels."""
    if not _is_numeric(values):
        names = sorted(set(map(str, values)))
        places = {name: k / (len(names) - 1) if len(names) > 1 else 0.5 for k, name in enumerate(names)}
        return np.array([places[str(value)] for value in values]), [(at, name) for name, at in places.items()]
    numbers = values.to_numpy(dtype=float)
    numbers = np.log10(numbers) if logarithmic and _is_logarithmic(values) else numbers
    low, high = float(numbers.min()), float(numbers.max())
    if high > low:
        return (numbers - low) / (high - low), [(0.0, f"{values.min():.3g}"), (1.0, f"{values.max():.3g}")]
    return np.full(len(values), 0.5, dtype=np.float64), [(0.5, f"{values.iloc[0]:.3g}")]
