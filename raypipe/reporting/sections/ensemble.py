"""Section "Ensemble": weights of the members, nested scores, and how much the members differ."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raypipe.ensembles.choice import ALL
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.nested_cv import AUTO
from raypipe.ensembles.scores import ENSEMBLE
from raypipe.reporting.page import (
    FigureBlock,
    Panel,
    Table,
    draw_figure,
    format_interval,
    format_score,
    render_template,
    score_with_interval,
)
from raypipe.reporting.plotting import (
    BLUE,
    CORRELATIONS,
    GREEN,
    GREY,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    draw_chance,
    draw_legend_above,
    new_figure,
    widen_score_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_CORRELATED = 4
"""Members from which their correlations are drawn; those of fewer are a sentence."""
MIN_CURVE = 3
"""Members from which the score by their number is drawn."""
_MAX_LABELLED_MEMBERS = 12
"""Members up to which the correlations are written into the plot."""
_LINES = {"by rank": (BLUE, "o", 7.0, "-"), "complementing": (GREEN, "s", 4.0, "--")}
"""Colour, marker, its size and line of each order of members (`Ensemble.diversity`); both are seen if they coincide."""
_ASIDE = 0.08
"""Distance of an interval from its number of members, so that those of two orders are seen side by side."""
_ALIKE = 0.9
"""Correlation of errors from which combining is said not to help much."""


def ensemble_section(ensemble: Ensemble) -> Markup:
    """Render the section."""
    return render_template(
        "ensemble",
        weights=_weights_figure(ensemble),
        caption=_weights_caption(ensemble),
        nested=_nested_table(ensemble),
        families=_families_table(ensemble) if ensemble.families else None,
        diversity=_diversity_figure(ensemble),
        likeness=_describe_errors(ensemble),
        what="Per person" if ensemble.run.info.level == "person" else "Per window",
        single=_is_single(ensemble),
        chosen=_is_chosen(ensemble),
    )


def _is_chosen(ensemble: Ensemble) -> bool:
    """Return whether the method was chosen by nested scores, and not named by the user."""
    asked = [evaluation.method for evaluation in read_evaluations(ensemble.run)]
    return not asked or asked[-1] in (AUTO, ALL)


def _is_single(ensemble: Ensemble) -> bool:
    """Return whether one trial is shipped alone."""
    return len(ensemble.members) == 1 and ensemble.merged is None


def _describe_errors(ensemble: Ensemble) -> str:
    who = "trials" if _is_single(ensemble) else "members"
    return describe_correlations(_with_family(ensemble), ensemble.diversity["correlations"], who)


def _weights_figure(ensemble: Ensemble) -> FigureBlock | None:
    """Draw the weights; None for one member, which has all of it."""
    if len(ensemble.members) < 2:
        return None
    names = [f"{member} ({ensemble.run.config(member.trial).model.name})" for member in ensemble.members]
    draw = partial(member_weights, names, ensemble.weights)
    return draw_figure([Panel(draw, "Weight of each member")], _weights_caption(ensemble))


def _weights_caption(ensemble: Ensemble) -> str:
    if ensemble.distilled:
        return f"Weights by '{ensemble.method}' in the ensemble that was distilled to the one network that is shipped."
    if ensemble.merged is not None:
        return "Each fold's network has the mean weights of these members; predictions are averaged over the folds."
    return (
        f"Weights by '{ensemble.method}', fitted on out-of-fold predictions only. A member's prediction is the mean of "
        f"its {ensemble.run.folds.n_folds} fold models."
    )


def _nested_table(ensemble: Ensemble) -> Table:
    rows = []
    scored: list[tuple[object, Any]] = list(ensemble.table.iterrows())
    # Baselines choose nothing but a calibration and weights of classes, which many metrics do not read.
    unchosen = {*(each.name for each in ensemble.baselines), str(ensemble.table.index[-1])}
    for each in ensemble.outputs:
        cells = {name: _number(cell) for name, cell in each.table[ENSEMBLE].items()}
        scored += [(f"{ENSEMBLE}: {each.name} alone", cells)] if "nested" in cells else []
    for name, row in scored:
        difference, low, high = (row[f"nested_to_best{end}"] for end in ("", "_low", "_high"))
        rows.append(
            [
                str(name),
                format_score(row["nested"]),
                format_interval(row["nested_low"], row["nested_high"]),
                "" if name in unchosen and not abs(row["optimism"]) > 0 else format_score(row["optimism"], sign=True),
                f"{format_score(difference, sign=True)} ({format_interval(low, high, sign=True)})",
            ]
        )
    metric = metric_label(ensemble.run.info.metric)
    return Table(
        ["predictor", f"nested {metric}", "95 % interval", "nested minus naive", "difference from best trial"], rows
    )


def _families_table(ensemble: Ensemble) -> Table:
    """Return what each family of models brings, a row each."""
    rows = [
        [
            family.name,
            str(family.trials),
            score_with_interval(_number(family.score), _number(family.low), _number(family.high)),
            _signed(family.gain, family.gain_low, family.gain_high),
            format_score(_number(family.correlation)),
            f"{family.weight:.2f}",
            _signed(family.loss, family.loss_low, family.loss_high),
        ]
        for family in ensemble.families
    ]
    metric = metric_label(ensemble.run.info.metric)
    alone, better = f"nested {metric} alone", "ensemble better by"
    return Table(["family", "trials", alone, better, "error correlation", "weight", "loss without it"], rows)


def _signed(value: float | None, low: float | None, high: float | None) -> str:
    """Return a difference with its interval."""
    return score_with_interval(_number(value), _number(low), _number(high), sign=True)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _diversity_figure(ensemble: Ensemble) -> FigureBlock | None:
    """Draw what the candidates have in common; None where they are too few for a picture."""
    names, found = _with_family(ensemble), ensemble.diversity
    panels, caption = [], []
    if len(names) >= MIN_CURVE:
        draw = partial(score_by_size, found, ensemble.run.info.metric)
        panels.append(Panel(draw, "Nested score by number of members"))
        caption.append(_curve_caption(found["curve"]))
    if len(names) >= MIN_CORRELATED:
        draw = partial(error_correlations, names, found["correlations"])
        who = "trials" if _is_single(ensemble) else "members"
        panels.append(Panel(draw, f"Correlation of the {who}' errors"))
        caption.append(f"Correlation of the {who}' errors.")
    return draw_figure(panels, " ".join(caption)) if panels else None


def _curve_caption(curve: dict[str, Any]) -> str:
    text = "Nested score by number of members, which were found on other subjects, as was their order."
    bars = any(each[1] is not None and math.isfinite(each[1]) for scores in curve.values() for each in scores)
    return f"{text} Bars: 95 % intervals over people, or over the groups that they share." if bars else text


def _with_family(ensemble: Ensemble) -> list[str]:
    """Return the names of the candidates with their models."""
    numbers = [re.search(r"\d+", name) for name in ensemble.diversity["members"]]
    models = [ensemble.run.config(int(number[0])).model.name if number else "" for number in numbers]
    pairs = zip(ensemble.diversity["members"], models, strict=True)
    return [f"{name} ({model})" if model else name for name, model in pairs]


def describe_correlations(
    names: Sequence[str], correlations: Sequence[Sequence[float | None]], who: str = "members"
) -> str:
    """Return a sentence on the members, or trials (`who`), whose errors are most and least alike; empty for one."""
    r_MM = np.array(correlations, dtype=float)
    pairs = [(r_MM[i, j], f"{names[i]} and {names[j]}") for i in range(len(names)) for j in range(i)]
    pairs = sorted((pair for pair in pairs if np.isfinite(pair[0])), key=lambda pair: pair[0])
    if not pairs:
        return ""
    (low, least), (high, most) = pairs[0], pairs[-1]
    if f"{low:z.2f}" == f"{high:z.2f}":
        of = least if len(pairs) == 1 else f"all {who}"
        effect = "cannot help much" if low >= _ALIKE else "helps more where this is lower"
        return f"Errors of {of} correlate by {low:z.2f}: combining them {effect}."
    rest = f"{who.capitalize()} gain most from one another where their errors correlate least."
    return f"Errors correlate least between {least} ({low:z.2f}), most between {most} ({high:z.2f}). {rest}"


def member_weights(names: Sequence[str], weights: NDArray[Any]) -> Figure:
    """Plot the weight of each member as a bar."""
    figure, (axes,) = new_figure(4.2, max(1.2, 0.65 + 0.27 * len(names)))
    y = np.arange(len(names))[::-1]
    axes.barh(y, weights, height=0.6, color=BLUE)
    axes.axvline(1.0 / len(names), color=GREY, lw=1, ls="--")
    background = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    for place, weight in zip(y, weights, strict=True):
        x = weight + 0.01 * float(np.max(weights))
        axes.text(x, place, f"{weight:.3f}", va="center", fontsize=8.5, bbox=background)
    axes.set_yticks(y, names)
    axes.set_xlim(0, min(1.0, float(np.max(weights))) * 1.15)
    axes.set_xlabel("weight (dashed: equal)")
    axes.grid(False)
    return figure


def score_by_size(diversity: dict[str, Any], metric: str) -> Figure:
    """Plot the nested score by the number of members, with equal weights, and bars for intervals.

    Parameters
    ----------
    diversity
        `Ensemble.diversity`.
    metric
        Of the run.
    """
    figure, (axes,) = new_figure(4.2, 3.1)
    for aside, (name, scores) in zip((-1, 1), diversity["curve"].items(), strict=True):
        colour, marker, size, line = _LINES[name]
        x = np.arange(1, len(scores) + 1)
        value_M, low_M, high_M = np.array(scores, dtype=float).T  # None is NaN: no bar
        axes.plot(x, value_M, color=colour, marker=marker, ms=size, ls=line, lw=1.5, label=name)
        axes.vlines(x + aside * _ASIDE, low_M, high_M, color=colour, lw=1)
    axes.set_xlabel("members, equally weighted")
    axes.set_ylabel(f"nested {metric_label(metric)}")
    axes.locator_params(axis="x", integer=True)
    draw_chance(axes, metric)
    widen_score_axis(axes, metric)
    draw_legend_above(axes)
    return figure


def error_correlations(names: Sequence[str], correlations: Sequence[Sequence[float | None]]) -> Figure:
    """Plot the correlations of the members' errors; a member that correlates with another by 1 adds nothing.

    Parameters
    ----------
    names, correlations
        Of the members, and (M, M); see `Ensemble.diversity`.
    """
    r_MM = np.array(correlations, dtype=float)
    side = 1.9 + 0.34 * len(names)
    figure, (axes,) = new_figure(max(4.2, side + 1.3), max(3.1, side))
    image = axes.imshow(r_MM, **CORRELATIONS)
    axes.grid(False)
    ticks = range(len(names))
    axes.set_xticks(ticks, [name.partition(" (")[0] for name in names], rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    if len(names) <= _MAX_LABELLED_MEMBERS:
        for (row, column), r in np.ndenumerate(r_MM):
            if row == column or np.isnan(r):
                continue
            text, colour = f"{r:z.2f}".replace("0.", ".").replace("-", "−"), ON_DARK if abs(r) > 0.6 else ON_LIGHT
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="correlation of errors", shrink=0.8)
    return figure
