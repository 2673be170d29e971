"""The report's pictures: matplotlib figures as SVG text, legible in print and without colour vision."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.metrics import get_metric
from raypipe.ensembles.verdict import spoken
from raypipe.storage.run_store import Epoch, RunStore, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK, SOFT = "#0072B2", "#D55E00", "#009E73", "#8a8f98", "#1f2430", "#4a505c"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
CHANCE = {"nrmse": (1.0, "constant (1)"), "auc": (0.5, "chance (0.5)")}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#9aa0aa",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "axes.axisbelow": True,
    "svg.hashsalt": "raypipe",
    "svg.fonttype": "path",
}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
MANY = 400  # from so many points on, a scatter is kept as pixels


def figure(
    width: float, height: float, columns: int = 1, *, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with rows of axes, listed row by row, in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        axes = np.atleast_1d(made.subplots(rows, columns, **options)).ravel().tolist()
    return made, axes


def svg_uri(made: Figure) -> str:
    """The figure as a data URI; the same figure gives the same text."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(made)).decode()


def svg(made: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        made.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def trials_in_order(run: RunStore, results: Sequence[TrialResult]) -> Figure:
    """Score of every trial in order, the best so far, and what needs no EEG."""
    made, (axes,) = figure(4.2, 3.3)
    scored = _scored(results)
    _dots(axes, run, scored, [float(r.number) for r in scored])
    done = [r for r in scored if r.state in ("complete", "stopped")]
    if done:
        so_far = [*_best_so_far(run, done), 0.0]
        so_far[-1] = so_far[-2]
        end = max(r.number for r in results)  # trials without a better score count as well
        axes.step([*(r.number for r in done), end], so_far, where="post", color=INK, lw=1.2, label="best so far")
    axes.set_xlabel("trial")
    axes.locator_params(axis="x", integer=True)
    legend_above(axes)
    return made


def trials_in_time(
    run: RunStore,
    results: Sequence[TrialResult],
    begun: float,
    finished: dict[int, float],
    pauses: Sequence[tuple[float, float]],
) -> Figure:
    """The same over the clock: each score where its trial ended, the best so far, and when nobody was at work.

    `begun`, `finished` (by trial) and `pauses` are Unix times.
    """
    made, (axes,) = figure(4.2, 3.3)
    scored = sorted((r for r in _scored(results) if r.number in finished), key=lambda r: finished[r.number])
    last = max(finished.values())
    unit, name = unit_of(last - begun)
    x = [(finished[r.number] - begun) / unit for r in scored]
    _dots(axes, run, scored, x)
    done = [r for r in scored if r.state in ("complete", "stopped")]
    if done:
        so_far = [*_best_so_far(run, done), 0.0]
        so_far[-1] = so_far[-2]
        ends = [(finished[r.number] - begun) / unit for r in done]
        axes.step([*ends, (last - begun) / unit], so_far, where="post", color=INK, lw=1.2, label="best so far")
    shade(axes, pauses, begun, unit)
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"{name} since the first trial was asked for")
    legend_above(axes)
    return made


def _scored(results: Sequence[TrialResult]) -> list[TrialResult]:
    return [r for r in results if r.score is not None and r.state != "failed"]


def _best_so_far(run: RunStore, done: Sequence[TrialResult]) -> list[float]:
    sign = get_metric(run.info.metric).sign
    return [float(best) for best in sign * np.minimum.accumulate([sign * (r.score or 0.0) for r in done])]


def _dots(axes: Axes, run: RunStore, scored: Sequence[TrialResult], x: Sequence[float]) -> None:
    """A mark a trial, by how it ended, on an axis that fits the good ones."""
    looks = {"complete": ("o", BLUE, BLUE), "stopped": ("s", "white", BLUE), "pruned": ("v", "white", GREY)}
    for state, (marker, face, edge) in looks.items():
        these = [(at, r.score or 0.0) for at, r in zip(x, scored, strict=True) if r.state == state]
        if these:
            axes.plot(*zip(*these, strict=True), marker, mfc=face, mec=edge, ms=5.5, ls="none", label=state, zorder=3)
    _chance(axes, run.info.metric)
    axes.set_ylabel(f"out-of-fold {spoken(run.info.metric)}")
    # A trial that went astray must not flatten the others.
    sign = get_metric(run.info.metric).sign
    values = np.array([r.score for r in scored], dtype=float)
    if len(values) > 4:
        low, high = np.quantile(sign * values, [0.0, 0.9])
        shown = np.sort(sign * np.array([low, high + 0.5 * (high - low) + 1e-6]))
        bottom, top = shown.tolist()
        reference = CHANCE.get(run.info.metric, (values[0], ""))[0]
        margin = 0.06 * max(max(top, reference) - min(bottom, reference), 1e-6)
        axes.set_ylim(min(bottom, reference) - margin, max(top, reference) + margin)
        outside = int(np.sum((values < axes.get_ylim()[0]) | (values > axes.get_ylim()[1])))
        if outside:
            note = f"{outside} trial(s) beyond the axis"
            axes.text(0.99, 0.98, note, fontsize=8, color=SOFT, ha="right", va="top", transform=axes.transAxes)


def unit_of(seconds: float) -> tuple[float, str]:
    """Seconds in a unit that suits so long a time, and its name."""
    return (3600.0, "hours") if seconds > 2 * 3600 else (60.0, "minutes")


def shade(axes: Axes, pauses: Sequence[tuple[float, float]], first: float, unit: float) -> None:
    """Pauses of a run, shaded; the longest says how long it was."""
    for begin, end in pauses:
        axes.axvspan((begin - first) / unit, (end - first) / unit, color="#f0e6d2", lw=0, zorder=0)
    if pauses:
        begin, end = max(pauses, key=lambda pause: pause[1] - pause[0])
        length, name = (end - begin) / unit_of(end - begin)[0], unit_of(end - begin)[1]
        middle = (begin + end) / 2
        axes.text(
            (middle - first) / unit, 0.5, f"nobody at work, {length:.2g} {name}", rotation=90, fontsize=7.5, color=SOFT,
            ha="center", va="center", transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def learning_curve(
    number: int, history: Sequence[Epoch], metric: str, span: tuple[float, float], width: float = 4.2
) -> Figure:
    """Score over all folds after every epoch; the band goes from the worst fold to the best, `span` is the axis."""
    made, (axes,) = figure(width, 2.3)
    epochs = [e.epoch for e in history]
    folds = np.array([[np.nan if s is None else s for s in e.fold_scores] for e in history], dtype=float)
    known = ~np.isnan(folds).all(axis=1)
    if known.any():
        low, high = np.nanmin(folds[known], axis=1), np.nanmax(folds[known], axis=1)
        axes.fill_between(np.array(epochs)[known], low, high, color=BLUE, alpha=0.15, lw=0)
    axes.plot(epochs, [e.score for e in history], color=BLUE, lw=1.6, marker="o" if len(epochs) < 3 else None, ms=4)
    _chance(axes, metric)
    axes.set_title(f"trial {number}", fontsize=9.5)
    axes.set(xlabel="epoch", ylabel=spoken(metric))
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(*span)
    return made


def span_of(histories: Sequence[Sequence[Epoch]], metric: str) -> tuple[float, float]:
    """An axis that all these learning curves share."""
    values = [s for history in histories for e in history for s in (e.score, *e.fold_scores) if s is not None]
    values += [CHANCE[metric][0]] if metric in CHANCE else []
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def truth(y: NDArray[Any], predicted: NDArray[Any], mean: float, own: bool, unit: str = "target units") -> Figure:
    """Predicted against true values."""
    made, (axes,) = figure(4.2, 4.1)
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    axes.plot(ends, ends, color=GREY, lw=1, label="perfect")
    axes.axhline(mean, color=ORANGE, lw=1.2, ls="--", label="training mean")
    size, alpha = (28, 0.9) if own else (10, 0.45)
    axes.scatter(y, predicted, s=size, color=BLUE, alpha=alpha, lw=0, rasterized=len(y) > MANY, zorder=3)
    axes.set_xlabel(f"true ({unit}; one point a {'subject' if own else 'window'})")
    axes.set_ylabel(f"predicted ({unit})")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    return made


def roc(y: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """ROC curves: of the second of two classes, or of each of more against the others."""
    from sklearn.metrics import roc_curve

    made, (axes,) = figure(2.75, 2.9)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1)
    for k in [1] if len(classes) == 2 else range(len(classes)):
        if 0 < np.sum(y == k) < len(y):
            false, true, _ = roc_curve(y == k, probabilities[:, k])
            axes.plot(false, true, color=CYCLE[(k - 1) % len(CYCLE)], lw=1.6, label=classes[k])
    axes.set(xlabel="false positives", ylabel="true positives", aspect="equal")
    axes.set_title("ROC", fontsize=9.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return made


def calibration(y: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """How often the second of two classes was right, by how probable it was said to be."""
    made, (axes,) = figure(2.75, 2.9)
    p = probabilities[:, 1]
    edges = np.unique(np.quantile(p, np.linspace(0, 1, 9)))
    groups = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, max(len(edges) - 2, 0))
    said = [p[groups == g].mean() for g in np.unique(groups)]
    was = [(y[groups == g] == 1).mean() for g in np.unique(groups)]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1)
    axes.plot(said, was, "o-", color=BLUE, lw=1.4, ms=4.5)
    axes.set(xlabel=f"probability of {classes[1]} given", ylabel=f"share that was {classes[1]}")
    axes.set(aspect="equal", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_title("calibration (equal groups)", fontsize=9.5)
    return made


def confusion(y: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Windows by their true class and the one that was the most probable."""
    from sklearn.metrics import confusion_matrix

    side = 2.75 if len(classes) < 6 else 4.2
    made, (axes,) = figure(side, side + 0.15)
    table = confusion_matrix(y, probabilities.argmax(1), labels=list(range(len(classes))))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if shares[row, column] > 0.55 else INK
        share = f"\n{shares[row, column]:.0%}" if len(classes) < 6 else ""
        axes.text(column, row, f"{count}{share}", ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_xticks(range(len(classes)), list(classes), rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), list(classes))
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("confusion (windows)", fontsize=9.5)
    return made


def subjects_in_a_row(names: Sequence[str], own: NDArray[Any], without: NDArray[Any], label: str) -> Figure:
    """One value a subject, ordered, beside that of the predictor without EEG."""
    order = np.argsort(own)
    made, (axes,) = figure(float(np.clip(0.22 * len(names) + 1.0, 4.2, 8.4)), 3.1)
    x = np.arange(len(names))
    axes.vlines(x, without[order], own[order], color="#c4c9d2", lw=1.2)
    axes.plot(x, without[order], "o", mfc="white", mec=ORANGE, ms=6, label="without EEG")
    axes.plot(x, own[order], "o", color=BLUE, ms=6, label="ensemble")
    if len(names) <= 40:
        axes.set_xticks(x, [names[k] for k in order], rotation=60 if len(names) > 8 else 0, fontsize=8)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(names)} held-out subjects")
    axes.set_ylabel(label)
    legend_above(axes)
    return made


def weights_in_a_row(names: Sequence[str], weights: NDArray[Any]) -> Figure:
    """The members' shares."""
    made, (axes,) = figure(4.2, max(1.2, 0.65 + 0.27 * len(names)))
    y = np.arange(len(names))[::-1]
    axes.barh(y, weights, height=0.6, color=BLUE)
    axes.axvline(1.0 / len(names), color=GREY, lw=1, ls="--")
    for place, weight in zip(y, weights, strict=True):
        axes.text(weight + 0.01 * float(np.max(weights)), place, f"{weight:.3f}", va="center", fontsize=8.5, bbox=PAPER)
    axes.set_yticks(y, names)
    axes.set_xlim(0, min(1.0, float(np.max(weights))) * 1.15)
    axes.set_xlabel("weight (dashed: equal)")
    axes.grid(False)
    return made


def _chance(axes: Axes, metric: str) -> None:
    if metric in CHANCE:
        value, label = CHANCE[metric]
        axes.axhline(value, color=ORANGE, lw=1.2, ls="--", label=label)


def legend_above(axes: Axes) -> None:
    """A legend over the left end of the axes: there it is seen first where a picture has to be scrolled."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wide = axes.get_figure().get_size_inches()[0] > 5  # type: ignore[union-attr]
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5 if wide else 2, fontsize=8.5,
            frameon=False, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
