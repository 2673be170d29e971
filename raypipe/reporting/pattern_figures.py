"""Draw the activation patterns of models that are fitted in closed form, as maps of the scalp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raypipe.core.closed_form_config import ClosedFormConfig
from raypipe.data.montage import project_to_scalp
from raypipe.models.closed_form import split_bank
from raypipe.models.linear import Linear
from raypipe.reporting.closed_form_patterns import Array, Readable, ScalpPatterns
from raypipe.reporting.page import FigureBlock, Panel, draw_figure
from raypipe.reporting.plotting import BLUE, DARK, GREY, new_figure
from raypipe.reporting.scalp_maps import COLOURS, plot_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raypipe.data.window_store import WindowStore

MAX_MAPS = 6
"""Bands, or times, that are drawn."""
MAX_OUTPUTS = 3
"""Values, or classes, that are drawn."""


class _Maps(NamedTuple):
    """What is drawn."""

    info: Any
    """`mne.Info` of the electrodes of known position."""
    values: Array
    """(O, M, electrodes) of each output."""
    columns: Sequence[str]
    """Names of the bands or times."""
    rows: Sequence[str]
    """Names of the outputs; empty for one."""
    unit: str


def draw_patterns(
    name: str, config: ClosedFormConfig, model: Readable, found: ScalpPatterns, windows: WindowStore, n_windows: int
) -> FigureBlock:
    """Draw the patterns of a member; `name` says which it is, `n_windows` what they were computed from."""
    info, known = project_to_scalp(windows.channels)
    several = [] if found.values.shape[0] == 1 else list(windows.classes or windows.outputs)
    values_OMC = found.values[:MAX_OUTPUTS]
    if found.power:
        edges = split_bank(config.model_dump())[0].used_edges(model.n_times, windows.sfreq)
        names = [f"{low:.3g}–{high:.3g} Hz" for low, high in edges]
        chosen, unit = _largest(values_OMC, 1), "dB"
    else:
        centre_M = _centres(model, windows.sfreq)
        names = [f"{1000 * each:.0f} ms" for each in centre_M]
        chosen, unit = _largest(values_OMC, 1 + len(names) // 16), _unit(model, windows)
    columns = [names[each] for each in chosen]
    maps = _Maps(info, values_OMC[:, chosen][..., known], columns, several[:MAX_OUTPUTS], f"{unit} per SD")
    panels = [Panel(partial(_plot_maps, maps), f"Scalp maps at {', '.join(columns)}")]
    if not found.power:
        draw = partial(_plot_course, values_OMC, centre_M, chosen, maps.unit)
        panels.append(Panel(draw, "Root mean square of the pattern over the channels, by time"))
    which = _which(len(chosen), len(names), "bands" if found.power else "times")
    if len(several) > MAX_OUTPUTS:
        which += f" The first {MAX_OUTPUTS} of {len(several)} {'classes' if windows.classes else 'values'} are shown."
    first = _power_caption(model) if found.power else _course_caption(model)
    caption = (
        f"{name} (fit of fold 0): {first} with {_prediction(windows)}, from {n_windows} windows of the search. {which} "
        "All maps have one scale: red is more where the prediction is higher by one of its standard deviations (SD). "
        "This is the activation pattern (Haufe et al. 2014): where the signals are that the prediction follows, not "
        "which channels have large weights."
    )
    return draw_figure(panels, caption[0].upper() + caption[1:])


def _centres(model: Readable, sfreq: float) -> Array:
    """Return the time in the middle of each interval of a time course, seconds."""
    assert isinstance(model, Linear)
    return np.asarray((np.arange(model.n_times // model.step) + 0.5) * model.step / sfreq, dtype=np.float64)


def _unit(model: Readable, windows: WindowStore) -> str:
    if model.scale == "window":
        return "window RMS"
    return "µV" if windows.manifest.unit == "uV" else "units"


def _power_caption(model: Readable) -> str:
    """Return what maps of power show, in words that follow a colon."""
    of = {"none": "", "window": ", relative to the window's power,", "band": ", relative to the band's power,"}
    text = f"how the log power at each channel{of[model.scale]} changes"
    if model.filters_SC is None:
        return text
    if getattr(model, "n_prototypes", 0):
        left_out = "their covariances with mean responses, which the model uses too, are not shown"
        return f"{text} (as {len(model.filters_SC)} xDAWN filters explain it; {left_out})"
    return f"{text} (as {len(model.filters_SC)} spatial components explain it)"


def _course_caption(model: Readable) -> str:
    text = "how the amplitude at each channel changes"
    return text if model.filters_SC is None else f"{text} (as {len(model.filters_SC)} spatial components explain it)"


def _prediction(windows: WindowStore) -> str:
    """Return what patterns are of."""
    if len(windows.classes) == 2:
        return f"the predicted log odds of {windows.classes[1]}"
    if windows.classes:
        return "each class's logit, relative to the mean of all"
    return "each predicted value" if windows.outputs else "the predicted value"


def _which(shown: int, count: int, what: str) -> str:
    return f"Shown are the {shown} of {count} {what} with the largest changes." if shown < count else ""


def _largest(values_OMC: Array, apart: int) -> list[int]:
    """Return the bands or intervals with the largest changes, in order; neighbours closer than `apart` count as one."""
    order_M = np.argsort(-np.square(values_OMC).sum((0, 2)), kind="stable")
    chosen: list[int] = []
    for each in order_M.tolist():
        if all(abs(each - other) >= apart for other in chosen):
            chosen.append(each)
    return sorted(chosen[:MAX_MAPS])


def _plot_maps(maps: _Maps) -> Figure:
    """Plot a row for each output and a column for each band or time, with one scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, columns = maps.values.shape[:2]
    figure, axes_list = new_figure(1.3 * columns + 1.0, 1.5 * rows + 0.4, columns, rows=rows)
    limit = float(np.abs(maps.values).max()) or 1.0
    for axes, values in zip(axes_list, maps.values.reshape(rows * columns, -1), strict=True):
        plot_map(axes, maps.info, values, limit)
    for axes, name in zip(axes_list, maps.columns, strict=False):
        axes.set_title(name, fontsize=8.5)
    for axes, name in zip(axes_list[::columns], maps.rows, strict=False):
        axes.set_ylabel(name, fontsize=8.5)
    colours = ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = figure.colorbar(colours, ax=axes_list, shrink=0.8, pad=0.02, aspect=12)
    bar.set_label(maps.unit, fontsize=8.5, color=DARK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _plot_course(values_OMC: Array, centre_M: Array, chosen: Sequence[int], unit: str) -> Figure:
    """Plot how large the pattern is at each time, and mark the times of the maps."""
    figure, (axes,) = new_figure(4.2, 2.1)
    axes.plot(1000 * centre_M, np.sqrt(np.square(values_OMC).mean((0, 2))), color=BLUE, lw=1.5)
    for each in chosen:
        axes.axvline(1000 * centre_M[each], color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="time from the window's start (ms)")
    axes.set_ylabel(unit, fontsize=8.5)
    axes.set_ylim(bottom=0)
    return figure
