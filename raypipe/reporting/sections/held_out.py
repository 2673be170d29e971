"""Section "Held-out subjects": plots of the ensemble's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raypipe.core.metrics import score
from raypipe.core.outputs import as_columns, spread_of
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import target_unit
from raypipe.ensembles.reliability import Bin, frequencies
from raypipe.reporting.page import Panel, draw_figure, render_template
from raypipe.reporting.plotting import (
    BLUE,
    COLOUR_CYCLE,
    GREY,
    LIGHT,
    ON_DARK,
    ON_LIGHT,
    ORANGE,
    PAPER,
    draw_legend_above,
    new_figure,
)
from raypipe.reporting.sections.reliability import MIN_CALIBRATED, event_name, plot_frequencies
from raypipe.storage.records import RunInfo
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_VECTOR_POINTS = 400
"""Number of points above which a scatter plot is stored as pixels."""
_MAX_NAMED_SUBJECTS = 40
_MIN_CLASSES_OF_LARGE_MATRIX = 6
"""Minimum number of classes for which the confusion matrix is larger and shows no percentages."""
_MAX_NAMED_CLASSES = 20
"""Classes up to which cells have counts, and curves names."""


class SubjectScores(NamedTuple):
    """A score for each held-out subject."""

    names: list[str]
    ensemble: NDArray[np.float64]
    constant: NDArray[np.float64]
    """Of the prediction without EEG."""
    label: str
    highest: float | None = None
    """Highest value that there can be; None for an error."""


class Shown(NamedTuple):
    """Targets and predictions at the primary level: of people where the target is a person's, else of windows."""

    targets: NDArray[Any]
    predictions: NDArray[Any]
    """(N, outputs)."""
    units: NDArray[Any]
    """(N,) what intervals resample: people, or the groups that they share."""
    of_people: bool

    @property
    def what(self) -> str:
        """Return what one data point is."""
        return "people" if self.of_people else "windows"


def primary_level(ensemble: Ensemble) -> Shown:
    """Return the held-out predictions at the level of the primary score."""
    held = ensemble.held_out
    rows, predictions = held.evaluation_set, held.predictions
    of_people = ensemble.by_subject
    if of_people:
        predictions, rows = rows.mean_per_subject(predictions), rows.per_subject()
    return Shown(rows.targets, predictions, rows.units, of_people)


def held_out_section(run: RunStore, ensemble: Ensemble) -> Markup:
    """Render the section."""
    shown, scores = primary_level(ensemble), subject_scores(run, ensemble)
    draw = _regression_panels if run.info.kind == "regression" else _classification_panels
    panels = draw(run, ensemble, shown)
    panels.append(Panel(partial(scores_by_subject, scores), f"Held-out subjects: {scores.label}"))
    return render_template("held_out", figure=draw_figure(panels, _caption(run, shown, scores)))


def _caption(run: RunStore, shown: Shown, scores: SubjectScores) -> str:
    n = len(scores.names)
    level = (
        f"one mean prediction for each of {n} people"
        if shown.of_people
        else f"{len(shown.targets)} windows of {n} people"
    )
    text = f"Primary level: {level}. "
    if run.info.kind == "classification":
        few = len(shown.targets) < MIN_CALIBRATED
        bars = "95 % intervals over people, or over the groups that they share"
        none = f"No reliability curve of the held-out {shown.what}: {len(shown.targets)} are too few. "
        text += none if few else f"Bars: {bars}. "
    if run.info.outputs:
        text += f"Predicted against true values of {', '.join(run.info.outputs)}, in this order. "
    return f"{text}Last plot: {scores.label}, for each subject."


def _regression_panels(run: RunStore, ensemble: Ensemble, shown: Shown) -> list[Panel]:
    targets_NK = as_columns(shown.targets)
    return value_panels(run.info, targets_NK, shown.predictions, ensemble.held_out.constant, shown.of_people)


def value_panels(
    info: RunInfo, y_NK: NDArray[Any], predicted_NK: NDArray[Any], constant_K: NDArray[Any], by_subject: bool
) -> list[Panel]:
    """Return a plot of predicted against true values for each value of a target."""
    unit, panels = target_unit(info.target), []
    for k, name in enumerate(info.outputs or [""]):
        constant = float(constant_K[k])
        draw = partial(predicted_against_true, y_NK[:, k], predicted_NK[:, k], constant, by_subject, name or unit)
        panels.append(Panel(draw, f"Predicted against true values{f' of {name}' if name else ''}"))
    return panels


def _classification_panels(run: RunStore, ensemble: Ensemble, shown: Shown) -> list[Panel]:
    classes = run.info.classes
    panels = [Panel(partial(roc_curves, shown.targets, shown.predictions, classes), f"ROC curve of {shown.what}")]
    if len(shown.targets) >= MIN_CALIBRATED:
        bins = frequencies(shown.targets, shown.predictions, shown.units)
        panels.append(Panel(partial(calibration, bins, event_name(classes)), f"Calibration of {shown.what}"))
    draw = partial(confusion_matrix, shown.targets, shown.predictions, classes, ensemble.decision_weights, shown.what)
    return [*panels, Panel(draw, f"Confusion matrix of {shown.what}")]


def subject_scores(run: RunStore, ensemble: Ensemble) -> SubjectScores:
    """Score the ensemble and the prediction without EEG on each held-out subject.

    Regression: root mean square error in units of the target, or of several values the mean of each one's in standard
    deviations. Classification: AUC where every subject has windows of
    all classes, else the mean probability of the true class.
    """
    held = ensemble.held_out
    names = sorted(set(held.subjects.tolist()))
    windows = [held.subjects == name for name in names]
    n_classes = len(run.info.classes)
    if not n_classes:
        y_NK, several = as_columns(held.targets), held.targets.ndim == 2
        units = spread_of(y_NK) if several else np.ones(1)
        errors, constant = (
            [np.sqrt(np.mean((((pred - y_NK) / units)[i]) ** 2, axis=0)).mean() for i in windows]
            for pred in (held.predictions, held.constant)
        )
        label = f"root mean square error ({target_unit(run.info.target)})"
        label = "RMSE in standard deviations, mean over the values" if several else label
        return SubjectScores(names, np.array(errors), np.array(constant), label)
    if run.info.metric == "auc" and all(len(np.unique(held.targets[i])) == n_classes for i in windows):
        scores = [score("auc", held.targets[i], held.predictions[i]) for i in windows]
        return SubjectScores(names, np.array(scores), np.full(len(names), 0.5), "AUC within the subject", 1.0)
    of_true = held.predictions[np.arange(len(held.targets)), held.targets]
    constant_of_true = held.constant[held.targets]
    return SubjectScores(
        names,
        np.array([of_true[i].mean() for i in windows]),
        np.array([constant_of_true[i].mean() for i in windows]),
        "mean probability of the true class",
        1.0,
    )


def predicted_against_true(
    y: NDArray[Any], predicted: NDArray[Any], mean: float, by_subject: bool, unit: str = "target units"
) -> Figure:
    """Plot predicted against true values, a point for each window or each subject."""
    figure, (axes,) = new_figure(4.2, 4.1)
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    axes.plot(ends, ends, color=GREY, lw=1, label="perfect")
    axes.axhline(mean, color=ORANGE, lw=1.2, ls="--", label="without EEG")
    size, alpha = (28, 0.9) if by_subject else (10, 0.45)
    pixels = len(y) > _MAX_VECTOR_POINTS
    axes.scatter(y, predicted, s=size, color=BLUE, alpha=alpha, lw=0, rasterized=pixels, zorder=3)
    axes.set_xlabel(f"true ({unit}; one point per {'subject' if by_subject else 'window'})")
    axes.set_ylabel(f"predicted ({unit})")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    return figure


def roc_curves(y: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Plot the ROC curve of the second of two classes, or of each of more classes against the rest."""
    from sklearn.metrics import roc_curve

    figure, (axes,) = new_figure(2.75, 2.9)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1)
    many = len(classes) > _MAX_NAMED_CLASSES
    for k in [1] if len(classes) == 2 else range(len(classes)):
        if 0 < np.sum(y == k) < len(y):
            false, true, _ = roc_curve(y == k, probabilities[:, k])
            colour = BLUE if many else COLOUR_CYCLE[(k - 1) % len(COLOUR_CYCLE)]
            axes.plot(false, true, color=colour, lw=0.4 if many else 1.6, label=None if many else classes[k])
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set_title(f"ROC of each of {len(classes)} classes" if many else "ROC", fontsize=9.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


def calibration(bins: Sequence[Bin], event: str) -> Figure:
    """Plot observed frequencies by predicted probability."""
    figure, (axes,) = new_figure(2.75, 2.9)
    plot_frequencies(axes, bins, event)
    axes.set_title("calibration", fontsize=9.5)
    return figure


def confusion_matrix(
    y: NDArray[Any],
    probabilities: NDArray[Any],
    classes: Sequence[str],
    weights: Sequence[float] | None = None,
    what: str = "windows",
) -> Figure:
    """Plot the counts of windows, or people, by their true and their predicted class; see `decisions.decide`."""
    from sklearn import metrics

    few = len(classes) < _MIN_CLASSES_OF_LARGE_MATRIX
    side = 2.75 if few else 4.2
    figure, (axes,) = new_figure(side, side + 0.15)
    predicted = decide(probabilities, None if weights is None else np.array(weights)).argmax(1)
    table = metrics.confusion_matrix(y, predicted, labels=list(range(len(classes))))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    many = len(classes) > _MAX_NAMED_CLASSES
    for (row, column), count in () if many else np.ndenumerate(table):
        colour = ON_DARK if shares[row, column] > 0.55 else ON_LIGHT
        share = f"\n{shares[row, column]:.0%}" if few else ""
        axes.text(column, row, f"{count}{share}", ha="center", va="center", color=colour, fontsize=8.5)
    named = slice(None, None, -(-len(classes) // _MAX_NAMED_CLASSES))
    axes.set_xticks(range(len(classes))[named], list(classes)[named], rotation=90 if many else 30, ha="right")
    axes.set_yticks(range(len(classes))[named], list(classes)[named])
    axes.set(xlabel="predicted", ylabel="true (share of its row)" if many else "true")
    axes.set_title(f"confusion ({what})", fontsize=9.5)
    return figure


def scores_by_subject(scores: SubjectScores) -> Figure:
    """Plot the score of each subject in ascending order, beside that of the prediction without EEG."""
    names, order = scores.names, np.argsort(scores.ensemble)
    figure, (axes,) = new_figure(float(np.clip(0.22 * len(names) + 1.0, 4.2, 8.4)), 3.1)
    x = np.arange(len(names))
    axes.vlines(x, scores.constant[order], scores.ensemble[order], color=LIGHT, lw=1.2)
    axes.plot(x, scores.constant[order], "o", mfc=PAPER, mec=ORANGE, ms=6, label="without EEG")
    axes.plot(x, scores.ensemble[order], "o", color=BLUE, ms=6, label="ensemble")
    if len(names) <= _MAX_NAMED_SUBJECTS:
        axes.set_xticks(x, [names[k] for k in order], rotation=60 if len(names) > 8 else 0, fontsize=8)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(names)} held-out subjects")
    axes.set_ylabel(scores.label)
    axes.set_ylim(0.0, None if scores.highest is None else 1.03 * scores.highest)
    draw_legend_above(axes)
    return figure
