"""Show a pretraining run: its status as lines, and its report as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.folds import Index
from raypipe.core.text import format_duration
from raypipe.ensembles.labels import metric_label
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.pretraining.records import PretrainEpoch
from raypipe.reporting.page import FigureBlock, Panel, Table, draw_figure, render_template, save_page
from raypipe.reporting.plotting import BLUE, CHANCE, GREY, ORANGE, new_figure
from raypipe.storage.lease import read_lease
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MAX_CHANNELS = 6
"""Channels in the plot of a reconstructed window."""


def status_lines(where: str | Path) -> list[str]:
    """Return the status of a pretraining run as lines: its objective, the progress of each encoder, the next step."""
    run = PretrainedRun(where)
    return [_summary(run), *(f"  {line}" for line in _part_lines(run)), f"  {_next_step(run, where)}"]


def _summary(run: PretrainedRun) -> str:
    subjects = sum(fold >= 0 for fold in run.folds.fold_of.values())
    return (
        f"{run.where}: {run.info.config.pretrain.name} on {subjects} subjects ({len(run.folds.held_out)} held out)"
        f"{', one encoder for each fold' if run.info.fold_wise else ''}"
    )


def _part_lines(run: PretrainedRun) -> list[str]:
    """Return a line for each encoder: epochs, loss and the last probe scores."""
    lines = []
    for part in run.parts:
        history = run.history(part)
        line = f"{part}: {len(history)} of {run.info.config.epochs} epochs"
        if history:
            seconds = sum(epoch.seconds for epoch in history)
            line += f", loss {history[-1].loss:.4f}, {format_duration(seconds)}"
        if probes := [epoch for epoch in history if epoch.probe is not None]:
            line += f"; linear probe {run.info.metric} {probes[-1].probe:z.3f} (epoch {probes[-1].epoch})"
            if probes[-1].tuned is not None:
                line += f", fine-tuned {probes[-1].tuned:z.3f}"
        lines.append(line)
    return lines


def _next_step(run: PretrainedRun, where: str | Path) -> str:
    name = shell_quoted(where)
    if run.over:
        space = "finetune" if run.info.config.model.name == "vit" else f"finetune_{run.info.config.model.name}"
        return f"finished; continue with: raypipe sweep {space} --data DATA --run RUN --init {name}"
    driver = read_lease(run.folder)
    if driver and driver.alive:
        return f"running (process {driver.pid} on {driver.host})"
    return f"interrupted; continue with: raypipe resume {name}"


def write_pretrain_report(where: str | Path, out: str | Path | None = None) -> str:
    """Write the report of a pretraining run, one HTML file, and return its path or URI.

    Parameters
    ----------
    where
        Folder or URI of the run.
    out
        HTML file; None for ``report.html`` in the run.
    """
    run = PretrainedRun(where)
    return save_page(_render(run), run.folder, out)


def _render(run: PretrainedRun) -> str:
    settings = run.info.config.pretrain
    return render_template(
        "pretraining",
        method=settings.name,
        summary=_summary(run),
        parts=_part_lines(run),
        curves=draw_figure([Panel(partial(plot_curves, run), "Loss and probe score by epoch")], _curves_caption(run)),
        reconstruction=_reconstruction_figure(run),
        settings=Table(["setting", "value"], [[k, str(v)] for k, v in settings.model_dump().items()], {0, 1}),
    )


def _curves_caption(run: PretrainedRun) -> str:
    caption = (
        f"Left: mean loss by epoch. Right: {metric_label(run.info.metric)} of linear probes on frozen features, each "
        "fitted on other subjects than those it predicts. "
    )
    if run.info.fold_wise:
        caption += "Each encoder was trained without targets, and without the recordings of its fold's subjects."
    else:
        caption += "The encoder was trained on the recordings of these subjects, without targets."
    if run.info.tuned_probe:
        caption += f" Fine-tuned: copies of the encoder, trained on targets for {run.info.tuned_probe} epoch(s)."
    return caption


def _reconstruction_figure(run: PretrainedRun) -> FigureBlock | None:
    """Return a figure of reconstructed windows; None before the first epoch, or for other methods than MAE."""
    state = run.latest(run.parts[0])
    if run.info.config.pretrain.name != "mae" or state is None:
        return None
    caption = (
        "Held-out windows. Grey: signal; blue: visible patches; orange: reconstructed patches. A reconstructed patch "
        "is shown at the mean and scale of the true patch, which the network does not predict."
    )
    return draw_figure([Panel(partial(plot_reconstruction, run, state), "Reconstructed windows")], caption)


def plot_curves(run: PretrainedRun) -> Figure:
    """Plot loss (left) and probe scores (right) of each encoder by epoch."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_figure(8.0, 3.0, 2)
    for part in run.parts:
        history = run.history(part)
        left.plot([epoch.epoch for epoch in history], [epoch.loss for epoch in history], color=BLUE, lw=1.4)
        _plot_probes(right, history, labelled=part == run.parts[0], two_probes=run.info.tuned_probe > 0)
    if run.info.metric in CHANCE:
        score, label = CHANCE[run.info.metric]
        right.axhline(score, color=GREY, lw=1, ls="--", label=label)
    if right.get_legend_handles_labels()[1]:
        right.legend(frameon=False)
    for axes, label in ((left, "loss"), (right, f"probe {metric_label(run.info.metric)}")):
        axes.set(xlabel="epoch", ylabel=label, xlim=(0, run.info.config.epochs + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _plot_probes(axes: Axes, history: Sequence[PretrainEpoch], *, labelled: bool, two_probes: bool) -> None:
    """Plot the scores of the linear and the fine-tuned probe, with labels where they are two."""
    linear = {epoch.epoch: epoch.probe for epoch in history if epoch.probe is not None}
    tuned = {epoch.epoch: epoch.tuned for epoch in history if epoch.tuned is not None}
    linear_label, tuned_label = ("linear", "fine-tuned") if labelled and two_probes else (None, None)
    style: dict[str, Any] = {"ms": 4, "lw": 1.4}
    axes.plot(list(linear), list(linear.values()), color=ORANGE, marker="o", label=linear_label, **style)
    axes.plot(list(tuned), list(tuned.values()), color=BLUE, marker="s", label=tuned_label, **style)


def _spread_over_subjects(subjects_N: NDArray[np.str_], index: Index, count: int = 3) -> Index:
    """Return `count` windows of different subjects where there are enough; the middle window of each subject first."""
    rows = [index[subjects_N[index] == subject] for subject in np.unique(subjects_N[index])]
    chosen = [own[len(own) // 2 - turn] for turn in range(count) for own in rows if turn <= len(own) // 2]
    return np.array(chosen[:count])


def plot_reconstruction(run: PretrainedRun, state: dict[str, Any]) -> Figure:
    """Plot held-out windows, up to three: signal, visible patches and reconstructed patches.

    Parameters
    ----------
    run
        A masked-autoencoder run.
    state
        State of its trainer, from a checkpoint.
    """
    import torch

    from raypipe.data.window_cache import open_windows
    from raypipe.models.vit import ViT
    from raypipe.pretraining.mae import draw_masks, pick
    from raypipe.pretraining.trainer import Pretrainer
    from raypipe.training.loader import WindowLoader

    loader = WindowLoader(open_windows(run.info.data))
    trainer = Pretrainer(run.info.config, loader, np.arange(max(2, len(loader.windows))), part=state["part"])
    trainer.load_state_dict(state)
    encoder, module = trainer.encoder, trainer.module.eval()
    assert isinstance(encoder, ViT)
    subjects = loader.windows.subjects
    index = _spread_over_subjects(subjects, run.folds.held_out_index(subjects))
    generator = torch.Generator().manual_seed(0)
    visible, masked = draw_masks(len(index), encoder.n_tokens, run.info.config.pretrain.mask, generator)
    patches_BNS = encoder.cut(loader.gather(index))
    with torch.no_grad():
        guess_BMS = module.rebuild(patches_BNS, visible, masked)  # type: ignore[operator]
    true_BMS = pick(patches_BNS, masked)
    guess_BMS = guess_BMS * true_BMS.std(2, keepdim=True, correction=0) + true_BMS.mean(2, keepdim=True)
    figure, axes_B = new_figure(10.0, 4.2, len(index))
    signal_BCT = patches_BNS.reshape(len(index), encoder.n_channels, -1).numpy()
    for b, axes in enumerate(axes_B):
        patches = {int(k): guess.numpy() for k, guess in zip(masked[b], guess_BMS[b], strict=True)}
        _plot_window(axes, signal_BCT[b], visible[b].tolist(), patches, encoder.patch, run.info.sfreq)
        axes.set(xlabel="s", title=f"sub-{subjects[index[b]]}")
        names = loader.windows.channels[:_MAX_CHANNELS]
        axes.set_yticks(axes.get_yticks()[: len(names)], names)
    return figure


def _plot_window(
    axes: Axes,
    signal_CT: NDArray[Any],
    visible: Sequence[int],
    reconstructed: dict[int, NDArray[Any]],
    patch: int,
    sfreq: float,
) -> None:
    """Plot the first channels of a window below one another.

    Parameters
    ----------
    axes
        To plot on.
    signal_CT
        The window.
    visible
        Numbers of the patches that the encoder was given, counted channel by channel.
    reconstructed
        Patches of `patch` samples by their numbers.
    patch
        Samples.
    sfreq
        Sampling rate, Hz.
    """
    shown = min(_MAX_CHANNELS, len(signal_CT))
    step = 5 * float(np.median(signal_CT[:shown].std(1))) or 1.0
    offsets = [signal_CT[c].mean() + c * step for c in range(shown)]
    time = np.arange(signal_CT.shape[1]) / sfreq
    for c in range(shown):
        axes.plot(time, signal_CT[c] - offsets[c], color=GREY, lw=0.7, alpha=0.8)
    per_channel = signal_CT.shape[1] // patch
    for number in [*visible, *reconstructed]:
        c, place = divmod(number, per_channel)
        if c < shown:
            samples = slice(place * patch, (place + 1) * patch)
            values = reconstructed.get(number, signal_CT[c, samples])
            colour = ORANGE if number in reconstructed else BLUE
            axes.plot(time[samples], values - offsets[c], color=colour, lw=1.0)
    axes.set_yticks([-c * step for c in range(shown)])
    axes.grid(False)
