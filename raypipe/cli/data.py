"""Verbs on the way to windows: simulate, inspect, prepare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raypipe.cli.common import app, console, example, refuse_given, write
from raypipe.cli.epochs import prepare_epochs
from raypipe.core.errors import UserError

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

PANEL = "Data"
"""Heading of these verbs in `raypipe --help`."""

BIDS_HELP = (
    "BIDS folders, or a folder of BIDS folders, here or behind s3://. Recordings are "
    "sub-*/\\[ses-*/]eeg/*_eeg.* in BDF, EDF, SET, BrainVision or FIF."
)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe simulate demo/bids --subjects 24"))
def simulate(
    out: Annotated[
        list[str],
        typer.Argument(metavar="[hbn] OUT", help="Folder for the recordings. With hbn: for releases R1 and R5."),
    ],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects.")] = 24,
    channels: Annotated[int, typer.Option(min=2, help="Channels. The last one is the flat reference.")] = 129,
    trials: Annotated[int, typer.Option(min=1, help="Contrast-change trials per recording.")] = 24,
    runs: Annotated[int, typer.Option(min=1, help="Recordings per subject.")] = 1,
    sfreq: Annotated[float, typer.Option(min=50, help="Sampling rate in Hz.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    null: Annotated[bool, typer.Option("--null", help="Simulate response times that the EEG cannot predict.")] = False,
    events: Annotated[
        Path | None, typer.Option(help="With hbn: folder of real event files to take events from.")
    ] = None,
) -> None:
    """Simulate EEG recordings with response times to predict.

    The recordings are a BIDS folder like those of HBN-EEG.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.simulation.contrast_change import simulate as simulate_recordings
    from raypipe.simulation.hbn_release import simulate_release

    release, folder = (out[0] == "hbn", out[-1]) if len(out) == 2 else (False, out[0])
    if len(out) > 2 or (len(out) == 2 and not release):
        raise UserError(f"simulate takes one folder, or hbn and a folder (given {' '.join(out)})")
    if events is not None and not release:
        raise UserError("--events: only for simulate hbn OUT")
    common: dict[str, Any] = {"subjects": subjects, "channels": channels, "trials": trials, "seed": seed, "null": null}
    with ProgressCounter(console, "simulating") as counter:
        if release:
            simulate_release(folder, events=events, progress=counter, **common)
        else:
            simulate_recordings(folder, runs=runs, sfreq=sfreq, progress=counter, **common)
    if release:
        write(f"{folder}: R1 and R5 with {subjects} subjects each, {channels} channels")
    else:
        write(f"{folder}: {subjects} subjects, {channels} channels, {runs} run(s) of {trials} trials")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe inspect demo/bids"))
def inspect(
    bids: Annotated[list[str], typer.Argument(metavar="BIDS", help=BIDS_HELP)],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Recordings read at the same time.", show_default="one per core")
    ] = None,
) -> None:
    """Show what is in a BIDS folder, what prepare would use, and which targets could be asked.

    Only headers and tables are read. Run it first.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.core.progress import no_progress
    from raypipe.data.inspection import inspect_bids
    from raypipe.reporting.tables import print_line

    counter = ProgressCounter(console, "reading headers") if console.is_terminal else nullcontext(no_progress)
    with counter as progress:
        found = inspect_bids(bids, jobs=jobs, progress=progress)
    for title, lines in found.sections():
        print_line(console, title, "bold")
        for line in lines:
            write(f"  {line}")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe prepare demo/bids --target challenge1 --out demo/store"))
def prepare(
    context: typer.Context,
    bids: Annotated[
        list[str] | None,
        typer.Argument(metavar="BIDS", help=f"{BIDS_HELP} Or --epochs.", show_default=False),
    ] = None,
    *,
    target: Annotated[
        str,
        typer.Option(
            help="What to predict: challenge1, challenge2, participants:COLUMN, events:A,B, events-column:COLUMN, "
            "table:FILE:COLUMN, bids-task:A,B or latency:A. Options follow a colon, as in challenge1:OPTION,... With "
            "--epochs: event, event:A,B or metadata:COLUMN. See docs/data.md."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the windows.")],
    epochs: Annotated[
        list[str] | None,
        typer.Option(metavar="FILES", help="FIF files of MNE epochs instead of BIDS, such as 'sub-*_epo.fif'."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="metadata:COLUMN|filename:sub",
            help="With --epochs: where the subject is named.",
            show_default="metadata:subject",
        ),
    ] = None,
    bids_task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...", help="BIDS tasks whose recordings are used, such as rest.", show_default="all tasks"
        ),
    ] = None,
    events_from: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of events.tsv that values of events are read from.",
            show_default="value or trial_type",
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Condition on the columns of events.tsv, such as 'trial_type == \"target\" and correct == 1'. Other "
            "events are left out.",
            show_default="all events",
        ),
    ] = None,
    sfreq: Annotated[
        float | None, typer.Option(help="Resample to this rate in Hz.", show_default="as recorded")
    ] = None,
    notch: Annotated[
        str | None,
        typer.Option(metavar="HZ,...", help="Remove these frequencies, such as 50 or 50,100.", show_default="none"),
    ] = None,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Band-pass: two numbers in Hz, such as --band 0.5 40.",
            show_default="no filter",
        ),
    ] = None,
    bads: Annotated[
        Literal["drop", "interpolate"] | None,
        typer.Option(
            help="What to do with channels whose status is bad in channels.tsv.",
            show_default="use them",
        ),
    ] = None,
    montage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Template montage of MNE, such as standard_1005, for --bads interpolate.",
            show_default="none",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="average|CHANNEL,...",
            help="Subtract the mean of all common EEG channels, or of these.",
            show_default="as recorded",
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channel names, separated by commas.", show_default="all common channels")
    ] = None,
    window: Annotated[float | None, typer.Option(help="Window length in seconds.", show_default="the target's")] = None,
    crop: Annotated[
        float | None, typer.Option(help="Seconds of each window that the model sees.", show_default="the target's")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="Seconds from one window to the next.", show_default="the target's")
    ] = None,
    tmin: Annotated[
        float | None, typer.Option(help="Seconds from an event to its window.", show_default="the target's")
    ] = None,
    baseline: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="FIRST LAST",
            help="Subtract the mean between two times (s) from the event, such as --baseline -0.2 0 with --tmin -0.2.",
            show_default="none",
        ),
    ] = None,
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="UV", help="Leave out windows above this peak to peak, in microvolts.", show_default="none"
        ),
    ] = None,
    flat: Annotated[
        float | None,
        typer.Option(
            metavar="UV", help="Leave out windows below this peak to peak, in microvolts.", show_default="none"
        ),
    ] = None,
    align: Annotated[
        Literal["recording", "subject"] | None,
        typer.Option(
            help="Whiten the windows of each recording or subject by their mean covariance (He & Wu 2020).",
            show_default="not aligned",
        ),
    ] = None,
    max_windows: Annotated[
        int | None,
        typer.Option(help="Windows of a person at most; drawn, spread over the recordings.", show_default="all"),
    ] = None,
    min_windows: Annotated[
        int | None,
        typer.Option(help="Leave out people with fewer windows.", show_default="1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of --max-windows.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the disk space.")] = "float32",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of sweeps that name none. Classes: auc, balanced-accuracy, accuracy, f1, kappa, log-loss, "
            "brier. Values: nrmse, rmse, mae, r2, pearson.",
            show_default="auc or nrmse",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of participants.tsv (with --epochs: metadata:COLUMN), such as a family or a site. Subjects "
            "with equal values are on one side of every split.",
            show_default="each subject alone",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Recordings read at the same time.", show_default="one per core")
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Leave out damaged recordings or files of epochs instead of stopping."),
    ] = False,
    mini: Annotated[bool, typer.Option("--mini", help="Download the small version of hbn:R1 to hbn:R11.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder to download hbn:R1 to hbn:R11 to.")] = Path("hbn"),
) -> None:
    """Cut recordings into windows with targets.

    Run again, it processes only what has changed.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.data.hbn import SCHEME, fetch
    from raypipe.data.prepare import prepare as make_windows

    if epochs:
        _describe(out, prepare_epochs(context, _names(channels)))
        return
    if not bids:
        raise UserError("prepare needs a BIDS folder, or files of MNE epochs: --epochs 'sub-*_epo.fif'")
    if subject is not None:
        raise UserError("--subject: only with --epochs; in a BIDS folder names of files say it")
    if not any(name.startswith(SCHEME) for name in bids):
        refuse_given(context, ("mini", "cache"), f"only with {SCHEME}R1 to {SCHEME}R11, which are downloaded")
    folders: list[str | Path] = []
    for name in bids:
        folders += fetch(name, cache, mini=mini) if name.startswith(SCHEME) else [name]
    with ProgressCounter(console, "preparing") as counter, _naming_inspect(folders):
        store = make_windows(
            folders,
            target,
            out,
            bids_task=bids_task.split(",") if bids_task is not None else (),
            events_from=events_from,
            select=select,
            sfreq=sfreq,
            notch=_frequencies(notch) if notch is not None else None,
            band=band,
            bads=bads,
            montage=montage,
            reference="average" if reference == "average" else _names(reference),
            baseline=baseline,
            reject=reject,
            flat=flat,
            align=align,
            max_windows=max_windows,
            min_windows=min_windows,
            seed=seed,
            channels=_names(channels),
            window=window,
            crop=crop,
            stride=stride,
            tmin=tmin,
            dtype=dtype,
            metric=metric,
            groups=groups,
            jobs=jobs,
            skip_unreadable=skip_unreadable,
            progress=counter,
        )
    _describe(out, store)


def _describe(out: Path, store: WindowStore) -> None:
    write(f"{out}: {store.describe()}")
    known = store.manifest.without_eeg
    for line in [*store.manifest.accounting.lines(), *(known.lines() if known else ())]:
        write(line)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _frequencies(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--notch {text}: needs frequencies in Hz, separated by commas, such as 50,100") from None


@contextmanager
def _naming_inspect(folders: Sequence[str | Path]) -> Iterator[None]:
    """Add the command that shows what is in the folders to errors of which the cause is in the data."""
    from raypipe.data.unfit import UnfitDataError
    from raypipe.recordings.layout import dataset_folders
    from raypipe.storage.remote import shell_quoted

    try:
        yield
    except UnfitDataError as error:
        roots = [root for folder in folders if "://" not in str(folder) for root in dataset_folders(Path(folder))]
        if roots and not any(True for root in roots for _ in root.glob("sub-*")):
            raise  # there is nothing to show
        named = " ".join(shell_quoted(folder) for folder in folders)
        raise UserError(f"{error}; raypipe inspect {named} shows what is there") from None
