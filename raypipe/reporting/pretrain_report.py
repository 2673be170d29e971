"""A pretrained run, told: in a few lines, and as a page with its curves and what it rebuilds."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.folds import Index
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.reporting import html as page
from raypipe.reporting.figures import BLUE, CHANCE, GREY, ORANGE, figure
from raypipe.storage.files import open_folder
from raypipe.storage.lease import read_lease
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
"""Channels that a picture of a rebuilt window shows."""


def status_lines(where: str | Path) -> list[str]:
    """A pretrained run in a few lines: what it is, where each encoder stands, what to do next."""
    run = PretrainedRun(where)
    config, driver = run.info.config, read_lease(run.folder)
    seen = sum(fold >= 0 for fold in run.folds.fold_of.values())
    lines = [
        f"{run.where}: {config.pretrain.name} on {seen} subjects ({len(run.folds.held_out)} held out, not seen)"
        f"{', an encoder a fold' if run.info.fold_wise else ''}"
    ]
    for part in run.parts:
        history = run.history(part)
        probes = [epoch for epoch in history if epoch.probe is not None]
        text = f"  {part}: {len(history)} of {config.epochs} epochs"
        if history:
            text += f", loss {history[-1].loss:.4f}, {sum(epoch.seconds for epoch in history):.0f} s"
        if probes:
            text += f"; linear probe {run.info.metric} {probes[-1].probe:.3f} (epoch {probes[-1].epoch})"
            if probes[-1].tuned is not None:
                text += f", trained on {probes[-1].tuned:.3f}"
        lines.append(text)
    if run.over:
        space = "finetune" if config.model.name == "vit" else f"finetune_{config.model.name}"
        lines.append(
            f"  finished; go on with: raypipe sweep search_spaces/{space}.py --data DATA --run RUN --init {where}"
        )
    elif driver and driver.alive:
        lines.append(f"  running (process {driver.pid} on {driver.host})")
    else:
        lines.append(f"  interrupted; go on with: raypipe resume {shell_quoted(where)}")
    return lines


def write_pretrain_report(where: str | Path, out: str | Path | None = None) -> str:
    """Write a pretrained run's page, one HTML file; where it lies."""
    run = PretrainedRun(where)
    blocks = [page.section("Curves", page.picture(lambda: curves(run), "loss and probe by epoch", _caption(run)))]
    state = run.latest(run.parts[0])
    if run.info.config.pretrain.name == "mae" and state is not None:
        words = "Held-out windows: grey, the signal; blue, the patches that the encoder saw; orange, those it rebuilt."
        words += " A rebuilt patch is shown at the mean and scale of the true one, which the network does not predict."
        blocks.append(page.section("Rebuilt", page.picture(partial(rebuilt, run, state), "rebuilt windows", words)))
    rows = [(name, str(value)) for name, value in run.info.config.pretrain.model_dump().items()]
    blocks.append(page.section("Settings", page.table(("setting", "value"), rows, words=(0, 1))))
    heading = f"Pretraining: {run.info.config.pretrain.name}"
    about = page.text(" ".join(line.strip() for line in status_lines(where)[:-1]))
    html = page.PAGE.substitute(title=heading, heading=heading, about=about, body="".join(blocks))
    if out is None:
        run.folder.write("report.html", html.encode())
        return f"{run.where}/report.html"
    target = Path(out).absolute()
    open_folder(target.parent).write(target.name, html.encode())
    return str(target)


def _caption(run: PretrainedRun) -> str:
    return (
        f"Left: mean loss of an epoch. Right: {run.info.metric} of linear probes on frozen features, each fitted "
        "without the subjects that it predicts; the encoder has seen their recordings, but not their targets"
        + (", nor the recordings of its own fold." if run.info.fold_wise else ".")
        + (
            f" Trained on: copies of the encoder, after {run.info.tuned_probe} epoch(s) of training by those targets."
            if run.info.tuned_probe
            else ""
        )
    )


def curves(run: PretrainedRun) -> Figure:
    """Loss and probe scores by epoch."""
    from matplotlib.ticker import MaxNLocator

    made, (left, right) = figure(8.0, 3.0, 2)
    for part in run.parts:
        history = run.history(part)
        left.plot([e.epoch for e in history], [e.loss for e in history], color=BLUE, lw=1.4)
        probes = [(e.epoch, e.probe) for e in history if e.probe is not None]
        label = "linear" if run.info.tuned_probe and part == run.parts[0] else None
        right.plot([e for e, _ in probes], [p for _, p in probes], color=ORANGE, marker="o", ms=4, lw=1.4, label=label)
        tuned = [(e.epoch, e.tuned) for e in history if e.tuned is not None]
        if tuned:
            label = "trained on" if part == run.parts[0] else None
            right.plot([e for e, _ in tuned], [p for _, p in tuned], color=BLUE, marker="s", ms=4, lw=1.4, label=label)
    chance, words = CHANCE.get(run.info.metric, (math.nan, ""))
    if math.isfinite(chance):
        right.axhline(chance, color=GREY, lw=1, ls="--", label=words)
    if right.get_legend_handles_labels()[1]:
        right.legend(frameon=False)
    epochs = run.info.config.epochs
    for axis, label in ((left, "loss"), (right, f"probe, {run.info.metric}")):
        axis.set(xlabel="epoch", ylabel=label, xlim=(0, epochs + 1))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return made


def _spread(subjects_N: NDArray[np.str_], index: Index, count: int = 3) -> Index:
    """Windows of as many subjects as there are, the middle one of each first."""
    rows = [index[subjects_N[index] == subject] for subject in np.unique(subjects_N[index])]
    turns = [own[len(own) // 2 - turn] for turn in range(count) for own in rows if turn <= len(own) // 2]
    return np.array(turns[:count])


def rebuilt(run: PretrainedRun, state: dict[str, Any]) -> Figure:
    """Held-out windows, three if there are: signal, what was seen, what was rebuilt."""
    import torch

    from raypipe.data.window_cache import open_windows
    from raypipe.models.vit import ViT
    from raypipe.pretraining.mae import draw_masks, pick
    from raypipe.pretraining.trainer import Pretrainer
    from raypipe.training.loader import WindowLoader

    feed = WindowLoader(open_windows(run.info.data))
    out = run.folds.held_out_index(feed.windows.subjects)
    one = Pretrainer(run.info.config, feed, np.arange(max(2, len(feed.windows))), part=state["part"])
    one.load_state_dict(state)
    encoder, module = one.encoder, one.module.eval()
    assert isinstance(encoder, ViT)
    index = _spread(feed.windows.subjects, out)
    visible, masked = draw_masks(
        len(index), encoder.n_tokens, run.info.config.pretrain.mask, torch.Generator().manual_seed(0)
    )
    patches_BNS = encoder.cut(feed.gather(index))
    with torch.no_grad():
        guess_BMS = module.rebuild(patches_BNS, visible, masked)  # type: ignore[operator]
    true_BMS = pick(patches_BNS, masked)
    guess_BMS = guess_BMS * true_BMS.std(2, keepdim=True, correction=0) + true_BMS.mean(2, keepdim=True)
    made, axes = figure(10.0, 4.2, len(index))
    per = encoder.n_patches
    for b, axis in enumerate(axes):
        shown = min(SHOWN, encoder.n_channels)
        signal_CT = patches_BNS[b].reshape(encoder.n_channels, -1).numpy()[:shown]
        step = 5 * float(np.median(signal_CT.std(1))) or 1.0
        time = np.arange(signal_CT.shape[1]) / run.info.sfreq
        mean = signal_CT.mean(1)
        for c in range(shown):
            axis.plot(time, signal_CT[c] - mean[c] - c * step, color=GREY, lw=0.7, alpha=0.8)
        for numbers, values, colour in ((visible[b], None, BLUE), (masked[b], guess_BMS[b], ORANGE)):
            for k, number in enumerate(numbers.tolist()):
                c, p = divmod(number, per)
                if c >= shown:
                    continue
                here = slice(p * encoder.patch, (p + 1) * encoder.patch)
                y = signal_CT[c, here] if values is None else values[k].numpy()
                axis.plot(time[here], y - mean[c] - c * step, color=colour, lw=1.0)
        axis.set(xlabel="s", title=f"sub-{feed.windows.subjects[index[b]]}")
        axis.set_yticks([-c * step for c in range(shown)], feed.windows.channels[:shown])
        axis.grid(False)
    return made
