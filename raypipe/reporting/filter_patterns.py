"""What the best trial's network looks for: scalp maps of its filters, their kernels and spectra, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from raypipe.core.config import ModelConfig
from raypipe.core.errors import UserError
from raypipe.data.montage import project_to_scalp
from raypipe.data.window_cache import open_windows
from raypipe.models.conformer import normalise
from raypipe.reporting import html as page
from raypipe.reporting.figures import BLUE, GREY, INK, figure
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from raypipe.data.window_store import WindowStore

Array = NDArray[np.float32]

TITLE = "What the network looks for"
SHOWN = 6
"""Filters that are drawn."""
WINDOWS, VALUES = 128, 1 << 23
"""Windows that covariances are taken from at most, and samples of all channels."""
FEWEST = 8
"""Electrodes without which there is no map."""
_FOLD = 0
_BINS = 256


@dataclass(frozen=True)
class Filters:
    """The linear part that a network begins with."""

    temporal: Array
    """(F, K) kernels of the layer that filters in time."""
    whole: Array
    """(G, C, K) all linear layers as one: what filter g takes from channel c at sample k of its kernel."""
    weight: Array | None
    """(G,) how much of each filter is taken up by what follows; None where their outputs say it."""


def filters_of(name: str, tensors: Mapping[str, torch.Tensor]) -> Filters | None:
    """Take the filters from a network's weights.

    Parameters
    ----------
    name
        Of the network, as in `ModelConfig`.
    tensors
        Its state.

    Returns
    -------
    filters
        None for networks that do not begin with filters over the channels.
    """
    if name == "conformer":
        temporal_FK = tensors["stem.temporal.weight"][:, 0, 0].float()
        whole_GCK = torch.einsum("gfc,fk->gck", tensors["stem.spatial.weight"][..., 0].float(), temporal_FK)
        taken_G = tensors["batch_norm.weight"].float().abs() * tensors["pointwise.weight"].float().norm(dim=0)
        return Filters(temporal_FK.numpy(), whole_GCK.numpy(), taken_G.numpy())
    if name == "tcn":
        temporal_FK, spatial_FC = tensors["temporal.weight"][:, 0].float(), tensors["spatial.weight"][..., 0].float()
        return Filters(temporal_FK.numpy(), (spatial_FC[:, :, None] * temporal_FK[:, None]).numpy(), None)
    return None


def patterns(x_BCT: Array, whole_GCK: Array) -> tuple[Array, Array]:
    """Activation patterns of filters over channels and time, and the standard deviations of their outputs.

    Parameters
    ----------
    x_BCT
        Windows, normalised as the network does it.
    whole_GCK
        See `Filters`.

    Returns
    -------
    pattern_GCK, sd_G
        Covariance of the filter's output with channel c at sample k of the kernel: the covariance of the data, channels
        and lags, times the filter (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067, one filter at a time).
    """
    x = torch.from_numpy(np.ascontiguousarray(x_BCT, np.float32))
    w = torch.from_numpy(np.ascontiguousarray(whole_GCK, np.float32))
    x = x - x.mean((0, 2), keepdim=True)
    y_BGT = F.conv1d(x, w)
    y_BGT = y_BGT - y_BGT.mean((0, 2), keepdim=True)
    length, count = y_BGT.shape[-1], len(x) * y_BGT.shape[-1]
    taps = [torch.einsum("bct,bgt->gc", x[..., k : k + length], y_BGT) / count for k in range(w.shape[-1])]
    return torch.stack(taps, -1).numpy(), y_BGT.std((0, 2)).numpy()


def leading(a_GCK: Array) -> tuple[Array, Array, Array]:
    """The strongest component of each matrix over channels and time, with its largest channel positive.

    Returns
    -------
    channels_GC, times_GK, share_G
        Of length one each, and the component's share of the squares.
    """
    u, s, vh = np.linalg.svd(np.asarray(a_GCK, np.float64), full_matrices=False)
    channels_GC, times_GK = u[:, :, 0], vh[:, 0]
    peak_G1 = np.take_along_axis(channels_GC, np.abs(channels_GC).argmax(1)[:, None], 1)
    sign_G1 = np.where(peak_G1 < 0, -1.0, 1.0)
    share_G = s[:, 0] ** 2 / np.maximum((s**2).sum(1), np.finfo(float).tiny)
    return (channels_GC * sign_G1).astype(np.float32), (times_GK * sign_G1).astype(np.float32), share_G


def spectra(kernel_GXK: Array, sfreq: float) -> tuple[Array, Array]:
    """Frequencies (Hz) and each filter's gain there, over its channels if there are any; the largest is 1."""
    gain = np.abs(np.fft.rfft(kernel_GXK, n=max(_BINS, kernel_GXK.shape[-1])))
    if gain.ndim == 3:
        gain = np.sqrt((gain**2).mean(1))
    gain /= np.maximum(gain.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    return np.linspace(0, sfreq / 2, gain.shape[-1], dtype=np.float32), gain.astype(np.float32)


def filters(run: RunStore) -> str:
    """Section of the report; it says what it lacks, and is empty for a run without a trained network."""
    ranked = run.ranked()
    if not ranked:
        return ""
    try:
        return page.section(TITLE, *_blocks(run, ranked[0].number))
    except Exception as error:  # the report does not hang on its pictures
        why = f"The filters of trial {ranked[0].number} could not be shown ({type(error).__name__})."
        return page.section(TITLE, f'<p class="note">{page.text(why)}</p>')


def _blocks(run: RunStore, number: int) -> list[str]:
    config = run.config(number).model
    try:
        tensors = run.weights(number, _FOLD)
    except (FileNotFoundError, UserError):
        return [_note(f"The weights of trial {number} are missing or damaged: its filters cannot be shown.")]
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    found = filters_of(config.name, tensors)
    if found is None:
        return [_note(f"The best trial's network, {config.name}, does not begin with filters over the channels.")]
    windows = _windows(run)
    if isinstance(windows, str):
        return [_note(windows)]
    x_BCT = _some(run, windows, config)
    pattern_GCK, sd_G = patterns(x_BCT, found.whole)
    weight_G = sd_G if found.weight is None else found.weight
    chosen = np.argsort(-weight_G, kind="stable")[:SHOWN]
    info, known = project_to_scalp(windows.channels)
    mapped = len(known) >= FEWEST
    words = (
        f"The {len(chosen)} filters of trial {number} (network of fold {_FOLD}) that count most in what follows them, "
        "layers in space and time taken as one. "
    )
    if mapped:
        words += (
            f"Top: where the signal that a filter takes up shows on the scalp, its activation pattern (Haufe et al. "
            f"2014): covariance of the normalised data, {len(x_BCT)} windows of the search, times the filter; the "
            "strongest component, its share of the whole above it. Each map has its own scale, and its sign no "
            "meaning. "
        )
    words += (
        "The kernel is the strongest course in time of a filter's weights, the gain that of all channels together. "
        "A filter shows what a network takes up, not by itself what its answer rests on."
    )
    maps = leading(pattern_GCK[chosen])
    drawn = partial(
        _grid, chosen, found.whole[chosen], windows.sfreq, (info, maps[0][:, known], maps[2]) if mapped else None
    )
    what = "scalp maps, kernels and spectra" if mapped else "kernels and spectra"
    blocks = [page.picture(drawn, f"Filters {', '.join(map(str, chosen))}: {what}", words)]
    if not mapped:
        few = f"the positions of {len(known)}" if len(known) else "no position"
        lack = f"No scalp maps: of {windows.n_channels} channels, {few} are known by name ({FEWEST} are needed)."
        blocks.append(_note(lack.replace("position are", "position is")))
    elif len(known) < windows.n_channels:
        blocks.append(_note(f"The maps show the {len(known)} of {windows.n_channels} channels with known positions."))
    kernels = found.temporal
    caption = f"All {len(kernels)} filters of the layer in time by itself, a row each, by the frequency they pass most."
    blocks.append(
        page.picture(
            lambda: _rows(kernels, windows.sfreq), f"{len(kernels)} temporal filters and their spectra", caption
        )
    )
    return blocks


def _note(words: str) -> str:
    return f'<p class="note">{page.text(words)}</p>'


def _windows(run: RunStore) -> WindowStore | str:
    """The run's windows, or why there are none."""
    if "://" in run.info.data:
        return "Filters are not shown: the windows lie behind a URI, and a report fetches nothing."
    try:
        windows = open_windows(run.info.data)
    except (UserError, OSError):
        return "Filters are not shown: the windows that the run was made from cannot be opened here."
    if windows.data_hash != run.info.data_hash:
        return "Filters are not shown: the windows have changed since the run was made."
    return windows


def _some(run: RunStore, windows: WindowStore, config: ModelConfig) -> Array:
    """Windows of the search, evenly spread, normalised as the network does it."""
    index = np.flatnonzero(~np.isin(windows.subjects, list(run.folds.held_out)))
    most = max(1, min(WINDOWS, VALUES // (windows.n_channels * windows.crop_samples), len(index)))
    taken = windows.gather(index[np.linspace(0, len(index) - 1, most).astype(np.int64)])
    return np.asarray(normalise(torch.from_numpy(taken), config.norm).numpy())


def _grid(numbers: Any, whole_GCK: Array, sfreq: float, maps: tuple[Any, Array, Any] | None) -> Figure:
    """A column a filter: its map, where there are any, kernel and spectrum."""
    n, rows = len(numbers), 3 if maps else 2
    heights = {"height_ratios": [1.5] * (rows - 2) + [1, 1]}
    made, every = figure(8.4, 4.9 if maps else 2.9, n, rows=rows, gridspec_kw=heights)
    table = np.array(every, dtype=object).reshape(rows, n)
    kernel_GK = leading(whole_GCK)[1]
    frequencies, gain_GN = spectra(whole_GCK, sfreq)
    time = 1000 * np.arange(kernel_GK.shape[1]) / sfreq
    for place, number in enumerate(numbers):
        *top, middle, bottom = table[:, place]
        title = f"filter {number}"
        if maps:
            _map(top[0], maps[0], maps[1][place])
            title += f"\n{100 * maps[2][place]:.0f} %"
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
    return made


def _map(axes: Axes, info: Any, values: Array) -> None:
    import mne

    limit = float(np.abs(values).max()) or 1.0
    options: dict[str, Any] = {"cmap": "RdBu_r", "vlim": (-limit, limit), "contours": 4, "sensors": "k.", "show": False}
    mne.viz.plot_topomap(values, info, axes=axes, **options)
    for line in axes.lines:
        if line.get_marker() == ".":
            line.set(markersize=1.6, color=INK)


def _rows(kernel_FK: Array, sfreq: float) -> Figure:
    """Kernels and spectra of all temporal filters as two pictures, ordered by the frequency of their peak."""
    frequencies, gain_FN = spectra(kernel_FK, sfreq)
    order = np.argsort(frequencies[gain_FN.argmax(1)], kind="stable")
    kernels = kernel_FK[order] / np.maximum(np.abs(kernel_FK[order]).max(1, keepdims=True), np.finfo(np.float32).tiny)
    made, (left, right) = figure(8.4, min(4.6, 1.5 + 0.09 * len(order)), 2)
    half = 500 / sfreq
    extent = (-half, 1000 * kernel_FK.shape[1] / sfreq - half, len(order) - 0.5, -0.5)
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    first = left.imshow(kernels, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent, **look)
    ends = (0, sfreq / 2, len(order) - 0.5, -0.5)
    second = right.imshow(gain_FN[order], cmap="viridis", vmin=0, vmax=1, extent=ends, **look)
    left.set(xlabel="ms", ylabel="temporal filters", title="kernels")
    right.set(xlabel="Hz", title="spectra")
    for axes, drawn, label in ((left, first, "weight"), (right, second, "gain")):
        axes.grid(False)
        axes.set_yticks([])
        axes.title.set_fontsize(9.5)
        made.colorbar(drawn, ax=axes, label=f"{label} (largest: 1)", shrink=0.9)
    return made
