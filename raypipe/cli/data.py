"""Recordings: simulated, or cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.common import app, console, example
from raypipe.core.errors import UserError

PANEL = "Recordings"
"""Under which `raypipe --help` lists these verbs."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe simulate demo/bids --subjects 24"))
def simulate(
    out: Annotated[
        list[str], typer.Argument(metavar="[hbn] OUT", help="Folder for the BIDS tree; hbn: releases R1 and R5 in it.")
    ],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects.")] = 24,
    channels: Annotated[int, typer.Option(min=2, help="Channels; the last is the flat reference.")] = 129,
    trials: Annotated[int, typer.Option(min=1, help="Contrast-change trials a run.")] = 24,
    runs: Annotated[int, typer.Option(min=1, help="Runs a subject.")] = 1,
    sfreq: Annotated[float, typer.Option(min=50, help="Sampling rate in Hz.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    null: Annotated[bool, typer.Option("--null", help="Sever the link: nothing can be predicted.")] = False,
    events: Annotated[Path | None, typer.Option(help="hbn: a folder of real event files to take events from.")] = None,
) -> None:
    """Make a BIDS tree of simulated EEG (BDF, HBN-like) with a known answer."""
    from raypipe.cli.console import Counter
    from raypipe.simulation.contrast_change import simulate as make
    from raypipe.simulation.hbn_release import simulate_release

    release, folder = (out[0] == "hbn", out[-1]) if len(out) == 2 else (False, out[0])
    if len(out) > 2 or (len(out) == 2 and not release):
        raise UserError(f"simulate takes one folder, or hbn and a folder (given {' '.join(out)})")
    if events is not None and not release:
        raise UserError("--events: goes with simulate hbn OUT")
    if release:
        with Counter(console, "simulating") as counter:
            simulate_release(
                folder, events=events, subjects=subjects, channels=channels, trials=trials, seed=seed, null=null,
                progress=counter,
            )  # fmt: skip
        console.print(f"{folder}: R1 and R5 with {subjects} subjects each, {channels} channels", highlight=False)
        return
    with Counter(console, "simulating") as counter:
        path = make(
            folder,
            subjects=subjects,
            channels=channels,
            trials=trials,
            runs=runs,
            sfreq=sfreq,
            seed=seed,
            null=null,
            progress=counter,
        )
    console.print(
        f"{path}: {subjects} subjects, {channels} channels, {runs} run(s) of {trials} trials", highlight=False
    )


@app.command(rich_help_panel=PANEL, epilog=example("raypipe prepare demo/bids --task challenge1 --out demo/store"))
def prepare(
    bids: Annotated[
        list[str],
        typer.Argument(
            metavar="BIDS", help="BIDS folders, or a folder of them, here or s3://: sub-*/\\[ses-*/]eeg/*_eeg.*."
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="Predicted: challenge1, challenge2, participants:COLUMN, events:A,B, bids-task:A,B or latency:A; with "
            "@TASK behind it from recordings of that BIDS task only; challenge1:OPTION,... See docs/tasks.md."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the windows.")],
    sfreq: Annotated[float | None, typer.Option(help="Resample to this rate in Hz.")] = None,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Band-pass: two numbers in Hz, such as --band 0.5 40."),
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Names, by commas. Default: those common to all.")] = None,
    window: Annotated[float | None, typer.Option(help="Window length in seconds. Default: the task's.")] = None,
    crop: Annotated[float | None, typer.Option(help="Seconds of a window that the model sees.")] = None,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows. Default: no overlap.")] = None,
    tmin: Annotated[float | None, typer.Option(help="Start of a window after its event, in seconds.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the space.")] = "float32",
    jobs: Annotated[int | None, typer.Option(min=1, help="Recordings read at a time. Default: one a core.")] = None,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out damaged recordings instead of stopping.")] = False,
    mini: Annotated[bool, typer.Option("--mini", help="Of hbn:R1 to hbn:R11: the small version.")] = False,
    cache: Annotated[Path, typer.Option(help="Where hbn:R1 to hbn:R11 are downloaded to.")] = Path("hbn"),
) -> None:
    """Turn recordings into cached windows with targets. A second time it does only what has changed."""
    from raypipe.cli.console import Counter
    from raypipe.data.hbn import SCHEME, fetch
    from raypipe.data.prepare import prepare as make

    folders: list[str | Path] = []
    for name in bids:
        folders += fetch(name, cache, mini=mini) if name.startswith(SCHEME) else [name]
    with Counter(console, "preparing") as counter:
        store = make(
            folders,
            task,
            out,
            sfreq=sfreq,
            band=band,
            channels=[name.strip() for name in channels.split(",")] if channels else None,
            window=window,
            crop=crop,
            stride=stride,
            tmin=tmin,
            dtype=dtype,
            jobs=jobs,
            skip_unreadable=skip_unreadable,
            progress=counter,
        )
    console.print(f"{out}: {store.describe()}", highlight=False, soft_wrap=True)
