"""Section "Filters": scalp maps, kernels and spectra of the first layers of the best trial's network."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from raypipe.core.errors import UserError
from raypipe.core.network_config import Network
from raypipe.data.montage import project_to_scalp
from raypipe.data.window_cache import open_windows
from raypipe.models.network import normalise
from raypipe.reporting.filter_patterns import (
    Array,
    activation_patterns,
    amplitude_spectra,
    extract_filters,
    strongest_component,
)
from raypipe.reporting.page import FigureBlock, Panel, draw_figure, render_template
from raypipe.reporting.plotting import BLUE, DARK, GREY, new_figure
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from raypipe.data.window_store import WindowStore

MAX_FILTERS = 6
"""Filters that are drawn in detail."""
MAX_WINDOWS = 128
"""Windows from which covariances are estimated."""
_MAX_VALUES = 1 << 23
"""Maximum number of values in these windows, over samples and channels."""
MIN_ELECTRODES = 8
"""Minimum number of electrodes with known positions for a scalp map."""
_FOLD = 0
"""Fold whose network is shown."""


class ScalpMaps(NamedTuple):
    """Activation patterns of filters on the scalp."""

    info: Any
    """`mne.Info` of the electrodes of known position."""
    values: Array
    """(G, electrodes)."""
    share: Array
    """(G,) of the pattern's squares that its strongest component has."""


def filters_section(run: RunStore) -> Markup:
    """Render the section; a line where filters cannot be shown, empty for a run without a trained network."""
    ranked = [result for result in run.ranked() if not run.config(result.number).model.closed_form]
    if not ranked:
        return Markup()
    number = ranked[0].number
    try:
        shown = _show_filters(run, number)
    except Exception as error:  # the report is written without this section
        shown = f"The filters of trial {number} could not be shown ({type(error).__name__})."
    if isinstance(shown, str):
        return render_template("filters", detail=None, overview=None, notes=[shown])
    detail, overview, note = shown
    return render_template("filters", detail=detail, overview=overview, notes=[note] if note else [])


def _show_filters(run: RunStore, number: int) -> tuple[FigureBlock, FigureBlock, str] | str:
    """Return both figures and a note on the scalp maps, or one sentence on why there is no figure."""
    model = run.config(number).model
    assert isinstance(model, Network)
    try:
        tensors = run.weights(number, _FOLD)
    except (FileNotFoundError, UserError):
        return f"The weights of trial {number} are missing or damaged: its filters cannot be shown."
    filters = extract_filters(model.name, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    if filters is None:
        return f"The best network, {model.name}, does not start with filters over the channels."
    windows = _open_windows(run)
    if isinstance(windows, str):
        return windows
    windows = windows.of(run.config(number).data.store)
    x_BCT = _sample_windows(run, windows, model)
    pattern_GCK, sd_G = activation_patterns(x_BCT, filters.combined)
    weight_G = sd_G if filters.weight is None else filters.weight
    chosen = np.argsort(-weight_G, kind="stable")[:MAX_FILTERS]
    info, known = project_to_scalp(windows.channels)
    maps = None
    if len(known) >= MIN_ELECTRODES:
        channels_GC, _, share_G = strongest_component(pattern_GCK[chosen])
        maps = ScalpMaps(info, channels_GC[:, known], share_G)
    draw = partial(_plot_filters, chosen, filters.combined[chosen], windows.sfreq, maps)
    kinds = "scalp maps, kernels and spectra" if maps else "kernels and spectra"
    alt = f"Filters {', '.join(map(str, chosen))}: {kinds}"
    detail = draw_figure([Panel(draw, alt)], _detail_caption(number, len(chosen), len(x_BCT) if maps else 0))
    return detail, _overview(filters.temporal, windows.sfreq), _map_note(len(known), windows.n_channels)


def _detail_caption(number: int, filters: int, windows: int) -> str:
    """Return the caption; `windows` is the number of windows that the scalp maps were computed from, 0 without maps."""
    caption = (
        f"The {filters} filters of trial {number} (network of fold {_FOLD}) that the next layer weights most. "
        "Spatial and temporal layers are combined. "
    )
    if windows:
        caption += (
            "Top: activation pattern of the filter on the scalp (Haufe et al. 2014), the covariance of the normalised "
            f"data, {windows} windows of the search, times the filter. The map is the pattern's strongest component; "
            "its share of the pattern is given above. Each map has its own scale, and its sign is arbitrary. "
        )
    return caption + (
        "The kernel is the strongest time course of a filter's weights; the gain is over all channels. A filter shows "
        "what the network extracts, which is not yet what its prediction depends on."
    )


def _overview(kernels_FK: Array, sfreq: float) -> FigureBlock:
    draw = partial(_plot_temporal_filters, kernels_FK, sfreq)
    caption = (
        f"All {len(kernels_FK)} filters of the temporal layer, a row each, sorted by the frequency of the highest gain."
    )
    return draw_figure([Panel(draw, f"{len(kernels_FK)} temporal filters and their spectra")], caption)


def _map_note(known: int, channels: int) -> str:
    """Return a note if there are no scalp maps or electrodes are missing from them, else an empty text."""
    if known >= MIN_ELECTRODES:
        return f"The maps show the {known} of {channels} channels with known positions." if known < channels else ""
    few = f"the positions of {known} are" if known else "no position is"
    return f"No scalp maps: of {channels} channels, {few} known by name ({MIN_ELECTRODES} are needed)."


def _open_windows(run: RunStore) -> WindowStore | str:
    """Open the run's windows, or return why they cannot be used."""
    if "://" in run.info.data:
        return "Filters are not shown: the windows are behind a URI, and a report downloads nothing."
    try:
        windows = open_windows(run.info.data)
    except (UserError, OSError):
        return "Filters are not shown: the windows of this run cannot be opened here."
    if windows.data_hash != run.info.data_hash:
        return "Filters are not shown: the windows have changed since the run was made."
    return windows


def _sample_windows(run: RunStore, windows: WindowStore, config: Network) -> Array:
    """Return windows of subjects that are not held out, evenly spaced, normalised as the network does it."""
    index = np.flatnonzero(~np.isin(windows.subjects, list(run.folds.held_out)))
    most = max(1, min(MAX_WINDOWS, _MAX_VALUES // (windows.n_channels * windows.crop_samples), len(index)))
    taken = windows.gather(index[np.linspace(0, len(index) - 1, most).astype(np.int64)])
    return np.asarray(normalise(torch.from_numpy(taken), config.norm).numpy())


def _plot_filters(numbers: Any, combined_GCK: Array, sfreq: float, maps: ScalpMaps | None) -> Figure:
    """Plot a column for each filter: scalp map, if there are any, kernel and spectrum."""
    n, rows = len(numbers), 3 if maps else 2
    heights = {"height_ratios": [1.5] * (rows - 2) + [1, 1]}
    figure, axes_list = new_figure(8.4, 4.9 if maps else 2.9, n, rows=rows, gridspec_kw=heights)
    table = np.array(axes_list, dtype=object).reshape(rows, n)
    kernel_GK = strongest_component(combined_GCK)[1]
    frequencies, gain_GN = amplitude_spectra(combined_GCK, sfreq)
    time = 1000 * np.arange(kernel_GK.shape[1]) / sfreq
    for place, number in enumerate(numbers):
        *top, middle, bottom = table[:, place]
        title = f"filter {number}"
        if maps:
            _plot_map(top[0], maps.info, maps.values[place])
            title += f"\n{100 * maps.share[place]:.0f} %"
        table[0, place].set_title(title, fontsize=8.5)
        middle.axhline(0, color=GREY, lw=0.8)
        middle.plot(time, kernel_GK[place], color=BLUE, lw=1.4)
        limit = 1.1 * float(np.abs(kernel_GK).max())
        middle.set(ylim=(-limit, limit), yticks=[], xlabel="ms")
        bottom.plot(frequencies, gain_GN[place], color=BLUE, lw=1.4)
        bottom.set(ylim=(0, 1.08), xlim=(0, sfreq / 2), yticks=[0, 1] if place == 0 else [], xlabel="Hz")
        for axes in (middle, bottom):
            axes.locator_params(axis="x", nbins=3)
            axes.tick_params(labelsize=8)
            axes.xaxis.label.set_fontsize(8)
    table[-2, 0].set_ylabel("kernel")
    table[-1, 0].set_ylabel("gain")
    return figure


def _plot_map(axes: Axes, info: Any, values: Array) -> None:
    import mne

    limit = float(np.abs(values).max()) or 1.0
    options: dict[str, Any] = {"cmap": "RdBu_r", "vlim": (-limit, limit), "contours": 4, "sensors": "k.", "show": False}
    mne.viz.plot_topomap(values, info, axes=axes, **options)
    for line in axes.lines:
        if line.get_marker() == ".":
            line.set(markersize=1.6, color=DARK)


def _plot_temporal_filters(kernel_FK: Array, sfreq: float) -> Figure:
    """Plot kernels and spectra of all temporal filters as two images, sorted by the frequency of the highest gain."""
    frequencies, gain_FN = amplitude_spectra(kernel_FK, sfreq)
    order = np.argsort(frequencies[gain_FN.argmax(1)], kind="stable")
    kernels = kernel_FK[order] / np.maximum(np.abs(kernel_FK[order]).max(1, keepdims=True), np.finfo(np.float32).tiny)
    figure, (left, right) = new_figure(8.4, min(4.6, 1.5 + 0.09 * len(order)), 2)
    half = 500 / sfreq
    times = (-half, 1000 * kernel_FK.shape[1] / sfreq - half, len(order) - 0.5, -0.5)
    style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    first = left.imshow(kernels, cmap="RdBu_r", vmin=-1, vmax=1, extent=times, **style)
    band = (0, sfreq / 2, len(order) - 0.5, -0.5)
    second = right.imshow(gain_FN[order], cmap="viridis", vmin=0, vmax=1, extent=band, **style)
    left.set(xlabel="ms", ylabel="temporal filters", title="kernels")
    right.set(xlabel="Hz", title="spectra")
    for axes, image, label in ((left, first, "weight"), (right, second, "gain")):
        axes.grid(False)
        axes.set_yticks([])
        axes.title.set_fontsize(9.5)
        figure.colorbar(image, ax=axes, label=f"{label} (largest: 1)", shrink=0.9)
    return figure
