"""Check the settings of `prepare`, and fill in the defaults from the task and the recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from raypipe.core.errors import UserError, nearest
from raypipe.data.bids import Recording
from raypipe.data.manifest import Plan, Settings
from raypipe.data.task_base import Task

Header = tuple[float, tuple[str, ...]]
"""Sampling rate (Hz) and EEG channels of a recording."""


def parse_settings(**asked: Any) -> Settings:
    """Validate the types of the settings of `prepare`.

    Raises
    ------
    UserError
        Names the setting that has the wrong type.
    """
    try:
        return Settings(**asked)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{problem['loc'][0]} {problem['input']!r}: {problem['msg']}") from None


def check_settings(task: Task, asked: Settings) -> None:
    """Check that the values of settings are in range, and fit each other and the task.

    Raises
    ------
    UserError
        Names the setting that is out of range or does not fit the task.
    """
    for name in ("sfreq", "window", "crop", "stride"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} {value:g}: must be greater than 0")
    _check_band(asked)
    _check_channel_names(asked)
    _check_timing(task, asked)


def _check_band(asked: Settings) -> None:
    if not asked.band:
        return
    low, high = asked.band
    if not 0 <= low < high:
        raise UserError(f"band {low:g} {high:g}: needs a lower and a higher edge in Hz, such as 0.5 40")
    if asked.sfreq and high > asked.sfreq / 2:
        raise UserError(f"band: windows at {asked.sfreq:g} Hz have no frequencies above {asked.sfreq / 2:g} Hz")


def _check_channel_names(asked: Settings) -> None:
    if asked.channels is not None and len(set(asked.channels)) != len(asked.channels):
        raise UserError("channels: a name is given twice")
    if asked.channels == ():
        raise UserError("channels: the list is empty")


def _check_timing(task: Task, asked: Settings) -> None:
    if task.event_locked and asked.stride is not None:
        raise UserError(f"task '{task.spec}': its windows are placed at events; leave out stride")
    if not task.event_locked and asked.tmin is not None:
        raise UserError(f"task '{task.spec}': its windows are placed side by side; leave out tmin")
    window = asked.window or task.default_window
    if asked.crop is not None and asked.crop > window:
        raise UserError(f"crop {asked.crop:g}: longer than the window ({window:g} s)")
    if task.target_is_offset and asked.crop == window:
        raise UserError(f"task '{task.spec}': the crop must be shorter than the window, or its offset is always 0")


def make_plan(
    task: Task, asked: Settings, recordings: Sequence[Recording], headers: Sequence[Header]
) -> tuple[Plan, Counter[str]]:
    """Fill in the settings that were left to the task and the recordings.

    Returns
    -------
    plan, left_out
        The plan, and the number of EEG channels that it leaves out.

    Raises
    ------
    UserError
        Recordings differ in sampling rate, have no common channel, or lack a channel of the settings; or a window, crop
        or stride is shorter than a sample.
    """
    rates, names = zip(*headers, strict=True)
    sfreq = asked.sfreq or _common_rate(recordings, rates)
    channels, left_out = _choose_channels(recordings, names, asked.channels)
    window = asked.window or task.default_window
    stride = asked.stride or task.default_stride or window
    crop = asked.crop or task.default_crop(window) or window
    window_samples, crop_samples = round(window * sfreq), round(crop * sfreq)
    if min(crop_samples, round(stride * sfreq)) < 1:
        raise UserError(f"a window, crop or stride is shorter than a sample at {sfreq:g} Hz")
    plan = Plan(
        task=task.spec,
        channels=channels,
        sfreq=sfreq,
        band=asked.band,
        window=window,
        stride=stride,
        tmin=task.default_tmin if asked.tmin is None else asked.tmin,
        window_samples=window_samples,
        crop_samples=crop_samples,
        target_is_offset=task.target_is_offset,
        dtype=asked.dtype,
        crops="scorer" if task.scorer_crops else "own",
    )
    return plan, left_out


def _common_rate(recordings: Sequence[Recording], rates: Sequence[float]) -> float:
    first = dict(zip(reversed(rates), reversed(recordings), strict=True))
    if len(first) > 1:
        shown = ", ".join(f"{rate:g} Hz ({first[rate].path.name})" for rate in sorted(first))
        raise UserError(f"recordings differ in sampling rate: {shown}; choose one with --sfreq")
    return rates[0]


def _choose_channels(
    recordings: Sequence[Recording], names: Sequence[tuple[str, ...]], asked: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Counter[str]]:
    """Return the channels in the settings, or those that all recordings have and the number of the others."""
    if not asked:
        common = _common_channels(recordings, names)
        others = len({name for present in names for name in present}) - len(common)
        return common, Counter({"EEG channels that not every recording has": others})
    for recording, present in zip(recordings, names, strict=True):
        for channel in asked:
            if channel not in present:
                raise UserError(f"{recording.path}: no EEG channel '{channel}'; {nearest(channel, present)}")
    return asked, Counter()


def _common_channels(recordings: Sequence[Recording], names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the channels that all recordings have, in the order of the first recording."""
    common = list(names[0])
    for recording, present in zip(recordings, names, strict=True):
        rest = [name for name in common if name in present]
        if not rest:
            raise UserError(
                f"no EEG channel is common to all recordings: {recording.path.name} ({', '.join(present[:3])}, ...) "
                f"has none of those before it ({', '.join(common[:3])}, ...; {recordings[0].path.name})"
            )
        common = rest
    return tuple(common)
