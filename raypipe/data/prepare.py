"""Cut the recordings of BIDS folders into a store of windows with targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from raypipe.core.errors import UserError
from raypipe.core.metrics import metric_for
from raypipe.core.parallel import usable_cores
from raypipe.core.progress import Progress, no_progress
from raypipe.data.output_folder import claim_output, store_folder
from raypipe.data.plan import (
    check_settings,
    parse_settings,
)
from raypipe.data.preprocessing import parse_preprocessing
from raypipe.data.selection import select_recordings
from raypipe.data.store_build import StoreBuild
from raypipe.data.targets import parse_target
from raypipe.data.window_store import WindowStore
from raypipe.recordings.remote_bids import open_remote_bids


def prepare(
    bids: str | Path | Sequence[str | Path],
    target: str,
    out: str | Path,
    *,
    bids_task: str | Sequence[str] = (),
    events_from: str | None = None,
    select: str | None = None,
    sfreq: float | None = None,
    notch: float | Sequence[float] | None = None,
    band: tuple[float, float] | None = None,
    bads: Literal["drop", "interpolate"] | None = None,
    montage: str | None = None,
    reference: str | Sequence[str] | None = None,
    channels: str | Sequence[str] | None = None,
    window: float | None = None,
    crop: float | None = None,
    stride: float | None = None,
    tmin: float | None = None,
    baseline: tuple[float, float] | None = None,
    reject: float | None = None,
    flat: float | None = None,
    align: Literal["recording", "subject"] | None = None,
    max_windows: int | None = None,
    min_windows: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    metric: str | None = None,
    groups: str | None = None,
    jobs: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress = no_progress,
) -> WindowStore:
    """Cut the recordings of a BIDS folder into windows with targets.

    A later call reads only recordings that are new or changed, and continues a call that was killed.

    Parameters
    ----------
    bids
        BIDS folder, folder of BIDS folders (releases of HBN-EEG side by side), or several of either. Also a pyarrow.fs
        URI (``s3://bucket/folder``): tables are fetched first, and each recording only while it is read.
    target
        Specification of the target; see `raypipe.data.targets`.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    bids_task
        BIDS tasks whose recordings are used: one or several names, as in ``sub-01_task-rest_eeg.edf``. Default: all.
    events_from
        Column of events.tsv that values of events are read from. Default: ``value`` or ``trial_type``.
    select
        Condition on the columns of events.tsv that events must satisfy, such as
        ``'trial_type == "target" and correct == 1'``; see `raypipe.recordings.event_query`.
    sfreq
        Sampling rate of the windows (Hz). Default: that of the recordings, which must then be the same for all.
    notch
        Frequencies (Hz) that `mne.filter.notch_filter` removes, such as those of the mains and their multiples.
    band
        Edges of a zero-phase FIR band-pass (Hz), MNE's default design. A lower edge of 0 makes it a low-pass.
    bads
        ``drop`` or ``interpolate`` channels whose `status` is bad in channels.tsv. A dropped channel is missing in its
        recording; interpolation is by spherical splines. Default: they are used as they are, and named.
    montage
        Template montage of MNE, such as ``standard_1005``, with the positions by which bad channels are interpolated.
    reference
        ``average`` of all EEG channels that recordings have in common, or names of channels, whose mean is subtracted.
        Channels of the reference are in the store only if `channels` names them.
    channels
        Names of channels, or one. Default: the EEG channels that all recordings have, in the first one's order.
    window, stride, tmin
        Seconds: length of a window, time from one window to the next, start of a window after its event. Default: the
        target's. Consecutive windows do not overlap by default.
    crop
        Seconds of a window that a model sees at a time: a random part in training, a fixed part in evaluation. Default:
        the whole window; half of it for ``latency`` and ``challenge2``.
    baseline
        First and last time (s) from the event, or else from the window's start. The mean in between is subtracted.
    reject, flat
        Peak-to-peak amplitudes (uV): windows with a channel above `reject` or below `flat` are left out and counted.
    align
        ``recording`` or ``subject``: the windows of each are whitened by their mean covariance, without labels (He &
        Wu 2020). `predict` does the same, so it needs whole recordings, or all of a subject. Aligned samples have no
        unit.
    max_windows, min_windows
        Windows of a person. Of more than `max_windows`, so many are drawn, spread over the person's recordings. People
        with fewer than `min_windows` are left out. Counted after `reject` and `flat`; `predict` has no such limits.
    seed
        Of the draw.
    dtype
        Type of the stored samples. ``float16`` halves the size of the store and has 11 bits of precision,
        which is refused where an offset leaves the signal too few of them.
    metric
        Metric of sweeps over the windows that name none: auc, balanced-accuracy, accuracy, f1, kappa, log-loss or
        brier for classes; nrmse, rmse, mae, r2 or pearson for values. Default: auc or nrmse.
    groups
        Column of participants.tsv. Subjects with equal values, such as a family, a site or one person under two labels,
        are kept on one side of every split.
    jobs
        Processes. Default: one per core. They do not import the script, so it needs no main guard.
    skip_unreadable
        Leave out and count recordings that cannot be read, instead of stopping at the first.
    progress
        Called with the recordings done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        An argument is wrong, the folder has other content, or a recording cannot be read.
    DiskFullError
        The disk is full; finished shards are kept.
    """
    asked = parse_settings(
        target=target,
        bids_task=(bids_task,) if isinstance(bids_task, str) else bids_task,
        events_from=events_from,
        select=select,
        sfreq=sfreq,
        preprocessing=parse_preprocessing(
            notch=notch,
            band=band,
            bads=bads,
            montage=montage,
            reference=reference,
            baseline=baseline,
            reject=reject,
            flat=flat,
            align=align,
        ),
        channels=(channels,) if isinstance(channels, str) else channels,
        window=window,
        crop=crop,
        stride=stride,
        tmin=tmin,
        max_windows=max_windows,
        min_windows=min_windows,
        seed=seed,
        dtype=dtype,
        metric=metric,
        groups=groups,
    )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs {jobs}: must be at least 1")
    chosen = parse_target(asked)
    check_settings(chosen, asked)
    folder = store_folder(out)
    with open_remote_bids([bids] if isinstance(bids, str | Path) else list(bids), folder) as folders:
        selection = select_recordings(chosen, folders)
        metric_for(selection.labels.kind, metric, chosen.spec)  # fails before anything is written
        if groups is not None:
            selection.groups(groups)  # a wrong column stops before anything is cut
        build = StoreBuild(folder, selection, jobs or usable_cores(), skip_unreadable, progress)
        with claim_output(folder, asked, {r.key for r in selection.recordings}):
            return build.run(asked)
