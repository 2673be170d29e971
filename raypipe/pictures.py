"""The report's pictures: matplotlib figures as SVG text, legible in print and without colour vision."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.store import Epoch, RunStore, TrialResult
from raypipe.verdict import spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8a8f98", "#1f2430"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
CHANCE = {"nrmse": (1.0, "constant (1)"), "auc": (0.5, "chance (0.5)")}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#9aa0aa",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#4a505c",
    "ytick.color": "#4a505c",
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
    sign = 1.0 if run.info.direction == "minimize" else -1.0
    made, (axes,) = figure(8.4, 3.1)
    scored = [r for r in results if r.score is not None and r.state != "failed"]
    looks = {"complete": ("o", BLUE, BLUE), "stopped": ("s", "white", BLUE), "pruned": ("v", "white", GREY)}
    for state, (marker, face, edge) in looks.items():
        these = [r for r in scored if r.state == state]
        if these:
            x, y = [r.number for r in these], [r.score or 0.0 for r in these]
            axes.plot(x, y, marker, mfc=face, mec=edge, ms=5.5, ls="none", label=state, zorder=3)
    done = [r for r in scored if r.state in ("complete", "stopped")]
    if done:
        so_far = sign * np.minimum.accumulate([sign * (r.score or 0.0) for r in done])
        axes.step([r.number for r in done], so_far, where="post", color=INK, lw=1.2, label="best so far")
    _chance(axes, run.info.metric)
    # A trial that went astray must not flatten the others.
    values = np.array([r.score for r in scored], dtype=float)
    if len(values) > 4:
        low, high = np.quantile(sign * values, [0.0, 0.9])
        shown = np.sort(sign * np.array([low, high + 0.5 * (high - low) + 1e-6]))
        bottom, top = shown.tolist()
        reference = CHANCE.get(run.info.metric, (values[0], ""))[0]
        margin = 0.06 * max(max(top, reference) - min(bottom, reference), 1e-6)
        axes.set_ylim(min(bottom, reference) - margin, max(top, reference) + margin)
        off = int(np.sum((values < axes.get_ylim()[0]) | (values > axes.get_ylim()[1])))
        if off:
            axes.set_title(f"{off} trial(s) beyond the axis", fontsize=8.5, color="#4a505c", loc="right")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"out-of-fold {spoken(run.info.metric)}")
    axes.locator_params(axis="x", integer=True)
    _legend_beside(axes)
    return made


def learning_curves(histories: dict[int, list[Epoch]], metric: str) -> Figure:
    """Score over all folds after every epoch; the band goes from the worst fold to the best."""
    made, all_axes = figure(8.4, 2.6, len(histories), sharey=True, squeeze=True)
    for axes, (number, history) in zip(all_axes, histories.items(), strict=True):
        epochs = [e.epoch for e in history]
        folds = np.array([[np.nan if s is None else s for s in e.fold_scores] for e in history], dtype=float)
        known = ~np.isnan(folds).all(axis=1)
        if known.any():
            low, high = np.nanmin(folds[known], axis=1), np.nanmax(folds[known], axis=1)
            axes.fill_between(np.array(epochs)[known], low, high, color=BLUE, alpha=0.15, lw=0)
        axes.plot(epochs, [e.score for e in history], color=BLUE, lw=1.6, marker="o" if len(epochs) < 3 else None, ms=4)
        _chance(axes, metric)
        axes.set_title(f"trial {number}", fontsize=9.5)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
    all_axes[0].set_ylabel(spoken(metric))
    return made


def truth(y: NDArray[Any], predicted: NDArray[Any], mean: float, own: bool) -> Figure:
    """Predicted against true values."""
    made, (axes,) = figure(4.3, 4.1)
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    axes.plot(ends, ends, color=GREY, lw=1, label="perfect")
    axes.axhline(mean, color=ORANGE, lw=1.2, ls="--", label="training mean")
    size, alpha = (28, 0.9) if own else (10, 0.45)
    axes.scatter(y, predicted, s=size, color=BLUE, alpha=alpha, lw=0, rasterized=len(y) > MANY, zorder=3)
    axes.set_xlabel("true" + (" (one point a subject)" if own else " (one point a window)"))
    axes.set_ylabel("predicted")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    return made


def roc(y: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """ROC curves; beside them calibration for two classes, or a confusion matrix for more."""
    from sklearn.metrics import confusion_matrix, roc_curve

    made, (left, right) = figure(8.4, 3.9, 2)
    left.plot([0, 1], [0, 1], color=GREY, lw=1)
    for k in [1] if len(classes) == 2 else range(len(classes)):
        if 0 < np.sum(y == k) < len(y):
            false, true, _ = roc_curve(y == k, probabilities[:, k])
            left.plot(false, true, color=CYCLE[(k - 1) % len(CYCLE)], lw=1.6, label=classes[k])
    left.set(xlabel="false positives", ylabel="true positives", aspect="equal", title="ROC")
    if left.get_legend_handles_labels()[0]:
        left.legend(loc="lower right", fontsize=8.5, frameon=False)
    if len(classes) == 2:
        p = probabilities[:, 1]
        edges = np.unique(np.quantile(p, np.linspace(0, 1, 9)))
        groups = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, max(len(edges) - 2, 0))
        said = [p[groups == g].mean() for g in np.unique(groups)]
        was = [(y[groups == g] == 1).mean() for g in np.unique(groups)]
        right.plot([0, 1], [0, 1], color=GREY, lw=1)
        right.plot(said, was, "o-", color=BLUE, lw=1.4, ms=4.5)
        right.set(xlabel=f"probability of {classes[1]} given", ylabel=f"share that was {classes[1]}")
        right.set(aspect="equal", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title="calibration (equal groups)")
        return made
    table = confusion_matrix(y, probabilities.argmax(1), labels=list(range(len(classes))))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    right.grid(False)
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if shares[row, column] > 0.55 else INK
        right.text(column, row, str(count), ha="center", va="center", color=colour)
    right.set_xticks(range(len(classes)), list(classes), rotation=30, ha="right")
    right.set_yticks(range(len(classes)), list(classes))
    right.set(xlabel="predicted", ylabel="true", title="confusion (windows)")
    return made


def subjects_in_a_row(names: Sequence[str], own: NDArray[Any], without: NDArray[Any], label: str) -> Figure:
    """One value a subject, ordered, beside that of the predictor without EEG."""
    order = np.argsort(own)
    made, (axes,) = figure(8.4, 2.9)
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
    _legend_beside(axes)
    return made


def weights_in_a_row(names: Sequence[str], weights: NDArray[Any]) -> Figure:
    """The members' shares."""
    made, (axes,) = figure(8.4, 0.65 + 0.27 * len(names))
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


def _legend_beside(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
