"""Verbs that predict with a bundle: predict, stream."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from raypipe.cli.common import DeviceOption, app, console, example, write
from raypipe.cli.export import PANEL

if TYPE_CHECKING:
    from raypipe.packaging.predict import PredictionLevel

ROLES = {
    "training": "of training subjects",
    "held out": "of held-out subjects",
    "new": "of unknown subjects",
    "unknown": "of subjects that were not named",
}
"""Words for the roles of subjects in `predict`'s table."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe predict demo/bundle demo/bids --out predictions.csv"))
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle made by export.")],
    recordings: Annotated[
        str,
        typer.Argument(
            metavar="RECORDING|BIDS|EPOCHS",
            help="A recording, a BIDS folder, or files of MNE epochs ('sub-*_epo.fif').",
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV file of the predictions.")],
    level: Annotated[
        str,
        typer.Option(
            metavar="window|recording|subject",
            help="What a row is of. subject: a person, where the target is the person's.",
        ),
    ] = "window",
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="metadata:COLUMN|filename:sub",
            help="Where epochs name their subject.",
            show_default="whichever there is",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the code of networks in the bundle.")] = False,
) -> None:
    """Predict recordings, also of subjects the ensemble has not seen."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.packaging.bundle import load_ensemble
    from raypipe.packaging.predict import predict as run_bundle

    with ProgressCounter(console, "predicting") as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it says is printed below
        ensemble = load_ensemble(bundle, device=device, trust_code=trust_code)
        table = run_bundle(
            ensemble, recordings, out, level=cast("PredictionLevel", level), subject=subject, progress=counter
        )
    counts = {role: int((table["role"] == role).sum()) for role in ROLES}
    roles = [f"{n} {ROLES[role]}" for role, n in counts.items() if n or role != "unknown"]
    rows = "people" if level == "subject" else f"{level}s"
    write(f"{out}: {len(table)} {rows}: {', '.join(roles)}")
    if "not_applied" in table.attrs:
        write(table.attrs["not_applied"])
    for key, reasons in table.attrs["left_out"].items():
        write(f"left out: {key}: {reasons}")


@app.command(
    rich_help_panel=PANEL, epilog=example("raypipe stream demo/bundle --lsl EEG --every 0.5 --out answers.tsv")
)
def stream(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle made by export.")],
    lsl: Annotated[str, typer.Option(metavar="NAME", help="Name of a stream of LabStreamingLayer.")],
    every: Annotated[
        float | None,
        typer.Option(help="Seconds from one window to the next.", show_default="as in the bundle's data"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New TSV file of predictions.", show_default="standard output")
    ] = None,
    unit: Annotated[
        str, typer.Option(help="Unit of channels whose description has none, such as uV.", show_default="none")
    ] = "",
    jitter: Annotated[float, typer.Option(help="Seconds by which stamps of samples may be off without a gap.")] = 0.05,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the stream, and for its return.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; more may be late where cores are busy.")] = 1,
    device: DeviceOption = "cpu",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the code of networks in the bundle.")] = False,
) -> None:
    """Predict a live stream, window by window, as predict does its recording.

    A line has the window's start on the LSL clock, what predict has, and a flag where there is no prediction: a gap,
    missing samples. Ctrl-C ends it.
    """
    import torch

    from raypipe.cli.live import write_windows
    from raypipe.packaging.bundle import load_ensemble
    from raypipe.packaging.stream import stream as run_bundle

    ensemble = load_ensemble(bundle, device=device, trust_code=trust_code)
    torch.set_num_threads(threads)
    write_windows(run_bundle(ensemble, lsl, every=every, unit=unit, jitter=jitter, wait=wait), out)
