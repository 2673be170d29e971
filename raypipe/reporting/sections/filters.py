"""Section "Filters": what is shipped, as maps of the scalp: filters of a network, patterns of models in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from raypipe.core.closed_form_config import ClosedFormConfig
from raypipe.core.errors import UserError
from raypipe.core.network_config import Network
from raypipe.core.text import every
from raypipe.data.montage import project_to_scalp
from raypipe.ensembles.fitted import Ensemble
from raypipe.models.from_config import build_model
from raypipe.models.network import normalise
from raypipe.reporting.available_windows import open_run_windows
from raypipe.reporting.closed_form_patterns import Readable, scalp_patterns, unreadable
from raypipe.reporting.filter_patterns import (
    Array,
    Filters,
    activation_patterns,
    amplitude_spectra,
    extract_filters,
    strongest_component,
)
from raypipe.reporting.page import FigureBlock, Panel, draw_figure, render_template
from raypipe.reporting.pattern_figures import draw_patterns
from raypipe.reporting.plotting import BLUE, GREY, draw_legend_above, new_figure
from raypipe.reporting.scalp_maps import MIN_ELECTRODES, map_note, plot_map
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raypipe.data.window_store import WindowStore

MAX_FILTERS = 6
"""Filters that are drawn in detail."""
MAX_WINDOWS = 128
"""Windows from which covariances are estimated."""
_MAX_VALUES = 1 << 23
"""Maximum number of values in these windows, over samples and channels."""
MAX_KINDS = 3
"""Kinds of models of which one is shown: networks, and the models in closed form by name and features."""
_FOLD = 0
"""Fold whose network is shown."""


class _Shipped(NamedTuple):
    """A network that an ensemble consists of."""

    member: Member
    """Has its configuration."""
    name: str
    """In the caption."""
    read: Callable[[], Mapping[str, torch.Tensor]]
    """Returns its weights in `_FOLD`."""


class ScalpMaps(NamedTuple):
    """Activation patterns of filters on the scalp."""

    info: Any
    """`mne.Info` of the electrodes of known position."""
    values: Array
    """(G, electrodes)."""
    share: Array
    """(G,) of the pattern's squares that its strongest component has."""


class _Block(NamedTuple):
    """What is shown of one model: figures, or a note on why there are none."""

    note: str
    detail: FigureBlock | None = None
    overview: FigureBlock | None = None


def filters_section(run: RunStore, ensemble: Ensemble | None = None) -> Markup:
    """Render the section; a line where filters or patterns cannot be shown, empty where nothing was trained.

    Parameters
    ----------
    run
        The run.
    ensemble
        What is shipped: of each kind of model, the one with the largest weight in it that can be shown. None where
        nothing is shipped yet, for the best trials.
    """
    kinds: dict[tuple[str, ...], list[_Shipped]] = {}
    for shipped in _shipped(run, ensemble):
        kinds.setdefault(_kind(run.config(shipped.member.trial).model), []).append(shipped)
    blocks = [
        _show(_show_patterns if kind else _show_filters, run, shipped)
        for kind, shipped in list(kinds.items())[:MAX_KINDS]
    ]
    notes = [block.note for block in blocks]
    blocks = [block._replace(note="") if block.note in notes[:k] else block for k, block in enumerate(blocks)]
    return render_template("filters", blocks=blocks) if blocks else Markup()


def _kind(model: object) -> tuple[str, ...]:
    """Return name and features of a model in closed form; nothing for networks, which are of one kind."""
    if not isinstance(model, ClosedFormConfig):
        return ()
    return model.name, getattr(model, "predictors", "covariances")


def _show(
    show: Callable[[RunStore, Sequence[_Shipped]], _Block | str], run: RunStore, shipped: Sequence[_Shipped]
) -> _Block:
    """Return what is shown of models of one kind, or a line on why it could not be."""
    try:
        shown = show(run, shipped)
    except Exception as error:  # the report is written without it
        shown = f"The filters of {shipped[0].member} could not be shown ({type(error).__name__})."
    return _Block(shown) if isinstance(shown, str) else shown


def _shipped(run: RunStore, ensemble: Ensemble | None) -> list[_Shipped]:
    """Return the networks of an ensemble, the one with the largest weight first; the trials where there is none."""
    if ensemble is None:
        return [
            _Shipped(
                Member(each.number, 0), f"trial {each.number}, the best so far", partial(_read, run, each.number, 0)
            )
            for each in run.ranked()
        ]
    if ensemble.merged is not None:
        name = "the distilled network" if ensemble.distilled else "the network of mean weights"
        return [_Shipped(ensemble.merged.members[0], name, partial(ensemble.merged.folds.__getitem__, _FOLD))]
    order = np.argsort(-np.asarray(ensemble.weights), kind="stable")
    return [
        _Shipped(
            member := ensemble.members[k],
            f"{member}, a member of the ensemble with weight {ensemble.weights[k]:.2f}",
            partial(_read, run, *member),
        )
        for k in order
        if ensemble.weights[k] > 0
    ]


def _read(run: RunStore, number: int, epoch: int) -> Mapping[str, torch.Tensor]:
    return run.weights(number, _FOLD, epoch)


def _show_filters(run: RunStore, networks: Sequence[_Shipped]) -> _Block | str:
    """Return the figures of the first network with filters, or one sentence on why there is none."""
    found = _first_with_filters(run, networks)
    if isinstance(found, str):
        return found
    shown, model, filters = found
    windows = open_run_windows(run)
    if isinstance(windows, str):
        return f"Filters are not shown: {windows}"
    windows = windows.of(run.config(shown.member.trial).data.store)
    x_BCT = _sample_windows(run, windows, model.norm)
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
    detail = draw_figure([Panel(draw, alt)], _detail_caption(shown.name, len(chosen), len(x_BCT) if maps else 0))
    return _Block(map_note(len(known), windows.n_channels), detail, _overview(filters.temporal, windows.sfreq))


def _show_patterns(run: RunStore, shipped: Sequence[_Shipped]) -> _Block | str:
    """Return the figure of the first model in closed form that has a pattern, or why there is none."""
    windows = open_run_windows(run)
    if isinstance(windows, str):
        return f"Activation patterns are not shown: {windows}"
    notes: list[str] = []
    for each in shipped:
        of_member = windows.of(run.config(each.member.trial).data.store)
        shown = _show_pattern(run, each, of_member)
        if not isinstance(shown, str):
            return shown._replace(note=" ".join([*notes[:1], shown.note]).strip())
        notes.append(shown)
    return notes[0]


def _show_pattern(run: RunStore, shipped: _Shipped, windows: WindowStore) -> _Block | str:
    """Return the figure of a model's activation patterns, or why there is none."""
    known = len(project_to_scalp(windows.channels)[1])
    if known < MIN_ELECTRODES:
        return map_note(known, windows.n_channels)
    config = run.config(shipped.member.trial).model
    assert isinstance(config, ClosedFormConfig)
    sizes = {"n_channels": windows.n_channels, "n_times": windows.crop_samples, "n_outputs": windows.n_outputs}
    model = build_model(config, **sizes, sfreq=windows.sfreq).eval()
    assert isinstance(model, Readable)
    none = f"No activation patterns of {shipped.name}"
    if reason := unreadable(model):
        return f"{none}: {reason}"
    try:
        tensors = shipped.read()
    except (FileNotFoundError, UserError):
        return f"{none}: its weights are missing or damaged."
    own = {name.removeprefix("model."): each for name, each in tensors.items() if name.startswith("model.")}
    model.load_state_dict(own)
    x_BCT = torch.from_numpy(_sample_windows(run, windows, model.norm))
    with torch.no_grad():
        found = scalp_patterns(model, x_BCT, len(windows.classes))
    if found is None:
        return f"{none}: it predicts the same for all windows."
    figure = draw_patterns(shipped.name, config, model, found, windows, len(x_BCT))
    return _Block(map_note(known, windows.n_channels), figure)


def _first_with_filters(run: RunStore, networks: Sequence[_Shipped]) -> tuple[_Shipped, Network, Filters] | str:
    """Return the first network that starts with filters over the channels, or why there is none."""
    kinds = []
    for shown in networks:
        model = run.config(shown.member.trial).model
        assert isinstance(model, Network)
        try:
            tensors = shown.read()
        except (FileNotFoundError, UserError):
            return f"The weights of {shown.member} are missing or damaged: its filters cannot be shown."
        filters = extract_filters(model.name, {name.removeprefix("model."): each for name, each in tensors.items()})
        if filters is not None:
            return shown, model, filters
        kinds.append(model.name)
    names = dict.fromkeys(kinds)
    return f"No filters over the channels: {every(names)} {'do' if len(names) > 1 else 'does'} not start with any."


def _detail_caption(name: str, filters: int, windows: int) -> str:
    """Return the caption; `windows` is the number of windows that the scalp maps were computed from, 0 without maps."""
    caption = (
        f"The {filters} filters of {name} (network of fold {_FOLD}) that the next layer weights most. "
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
    frequencies, gain_FN = amplitude_spectra(kernels_FK, sfreq)
    n = len(gain_FN)
    low, high = np.quantile(frequencies[gain_FN.argmax(1)], [0.25, 0.75]).tolist()
    caption = (
        f"Gain of the {n} temporal filters, the highest of each filter taken as 1: median and quartiles. Half of the "
        f"filters have their highest gain between {low:.0f} and {high:.0f} Hz."
    )
    draw = partial(_plot_gains, frequencies, gain_FN)
    return draw_figure([Panel(draw, f"Gain of {n} temporal filters by frequency")], caption)


def _sample_windows(run: RunStore, windows: WindowStore, norm: str) -> Array:
    """Return windows of subjects that are not held out, drawn by seed, normalised as the model does it.

    Evenly spaced ones could be of one class, where classes follow each other in a fixed order.
    """
    index = np.flatnonzero(~np.isin(windows.subjects, list(run.folds.held_out)))
    most = max(1, min(MAX_WINDOWS, _MAX_VALUES // (windows.n_channels * windows.crop_samples), len(index)))
    taken = windows.gather(np.sort(np.random.default_rng(0).permutation(index)[:most]))
    return np.asarray(normalise(torch.from_numpy(taken), norm).numpy())


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
            plot_map(top[0], maps.info, maps.values[place])
            title += f"\n{100 * maps.share[place]:.0f} %"
        table[0, place].set_title(title, fontsize=8.5)
        middle.axhline(0, color=GREY, lw=0.8)
        middle.plot(time, kernel_GK[place], color=BLUE, lw=1.4)
        limit = 1.1 * float(np.abs(kernel_GK).max())
        middle.set(ylim=(-limit, limit), yticks=[], xlabel="time (ms)")
        bottom.plot(frequencies, gain_GN[place], color=BLUE, lw=1.4)
        bottom.set(ylim=(0, 1.08), xlim=(0, sfreq / 2), yticks=[0, 1] if place == 0 else [], xlabel="frequency (Hz)")
        for axes in (middle, bottom):
            axes.locator_params(axis="x", nbins=3)
            axes.tick_params(labelsize=8)
            axes.xaxis.label.set_fontsize(8)
    table[-2, 0].set_ylabel("kernel")
    table[-1, 0].set_ylabel("gain")
    return figure


def _plot_gains(frequencies: Array, gain_FN: Array) -> Figure:
    """Plot the median and the quartiles of the gains (F, N) of all temporal filters by frequency (Hz)."""
    figure, (axes,) = new_figure(4.2, 2.4)
    low, middle, high = np.quantile(gain_FN, [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(frequencies, low, high, color=BLUE, alpha=0.2, lw=0, label="quartiles")
    axes.plot(frequencies, middle, color=BLUE, lw=1.5, label="median")
    axes.set(xlabel="frequency (Hz)", ylabel="gain", xlim=(0, frequencies[-1]), ylim=(0, 1.03))
    draw_legend_above(axes)
    return figure
