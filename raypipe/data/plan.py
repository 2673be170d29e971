"""Check the settings of `prepare`, and fill in the defaults from the target and the recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from raypipe.core.errors import UserError, nearest
from raypipe.data.manifest import Plan, Settings
from raypipe.data.preprocessing import check_baseline, check_values, misfit, shown
from raypipe.data.spatial import check_montage
from raypipe.data.target_base import Target
from raypipe.data.unfit import refuses_data
from raypipe.data.window_limits import check_limits
from raypipe.recordings.channels import find_name
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import list_some

RATE_TOLERANCE = 1e-7
"""Relative difference of two sampling rates that are taken for one: a tenth of a sample in an hour at 250 Hz."""
MAX_UPSAMPLING = 10
"""Largest rate of a store, over the highest one of its recordings: ten thousand times would fill the disk."""

NOT_COMMON = "not in every recording"
NOT_ASKED = "not among --channels"
BAD = "marked bad in channels.tsv"
REFERENCE = "the reference"
"""Reasons for leaving channels out."""


@dataclass(frozen=True)
class Header:
    """What the header of a recording says about its EEG."""

    channels: tuple[str, ...]
    rates: tuple[float, ...]
    """Sampling rate of each channel (Hz)."""
    left_out: dict[str, str]
    """Other channels, with their type or the reason for leaving them out."""
    notes: tuple[str, ...] = ()
    """`EegChannels.notes`"""
    bads: tuple[str, ...] = ()
    """`EegChannels.bads`"""

    def rate_of(self, channel: str) -> float:
        """Return the sampling rate of a channel that the recording has."""
        place = find_name(channel, self.channels)
        return self.rates[0 if place is None else place]


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
        if problem["loc"] == ("channels",):
            raise UserError(f"channels {shown(problem['input'])}: needs names of channels") from None
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise UserError(f"{problem['loc'][0]} {shown(problem['input'])}: {message}") from None


def check_settings(target: Target, asked: Settings) -> None:
    """Check that the values of settings are in range, and fit each other and the target.

    Raises
    ------
    UserError
        Names the setting that is out of range or does not fit the target.
    """
    for name in ("sfreq", "window", "crop", "stride"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} {value:g}: must be greater than 0")
    check_values(asked.preprocessing, asked.sfreq)
    if asked.preprocessing.montage is not None:
        check_montage(asked.preprocessing.montage)
    _check_channel_names(asked)
    check_limits(asked)
    _check_timing(target, asked)


def _check_channel_names(asked: Settings) -> None:
    if asked.channels is not None and not all(asked.channels):
        raise UserError("channels: a name is empty")
    if asked.channels is not None and len(set(asked.channels)) != len(asked.channels):
        raise UserError("channels: a name is given twice")
    if asked.channels == ():
        raise UserError("channels: the list is empty")


def _check_timing(target: Target, asked: Settings) -> None:
    if target.event_locked and asked.stride is not None:
        raise UserError(f"target '{target.spec}': its windows are placed at events; leave out stride")
    if not target.event_locked and asked.tmin is not None:
        raise UserError(
            f"target '{target.spec}': its windows are consecutive, from the start of a recording on; leave out tmin"
        )
    window = asked.window or target.default_window
    check_baseline(asked.preprocessing, target.default_tmin if asked.tmin is None else asked.tmin, window)
    if asked.crop is not None and asked.crop > window:
        raise UserError(f"crop {asked.crop:g}: longer than the window ({window:g} s)")
    if target.target_is_offset and asked.crop == window:
        raise UserError(f"target '{target.spec}': the crop must be shorter than the window, or its offset is always 0")


def make_plan(target: Target, asked: Settings, recordings: Sequence[Recording], headers: Sequence[Header]) -> Plan:
    """Fill in the settings that were left to the target and the recordings.

    Raises
    ------
    UserError
        Recordings differ in sampling rate or have no common channel; or a window, crop or stride is shorter than a
        sample.
    """
    channels, sources = _plan_channels(asked, recordings, headers)
    sfreq = asked.sfreq or _common_rate(recordings, headers, sources)
    _check_upsampling(sfreq, headers)
    window = asked.window or target.default_window
    stride = asked.stride or target.default_stride or window
    crop = asked.crop or target.default_crop(window) or window
    window_samples, crop_samples = round(window * sfreq), round(crop * sfreq)
    if min(crop_samples, round(stride * sfreq)) < 1:
        raise UserError(f"a window, crop or stride is shorter than a sample at {sfreq:g} Hz")
    plan = Plan(
        target=target.spec,
        bids_task=asked.bids_task,
        events_from=asked.events_from,
        select=asked.select,
        joined_on=target.joined_on,
        channels=channels,
        sources=sources,
        sfreq=sfreq,
        window=window,
        stride=stride,
        tmin=target.default_tmin if asked.tmin is None else asked.tmin,
        window_samples=window_samples,
        crop_samples=crop_samples,
        target_is_offset=target.target_is_offset,
        dtype=asked.dtype,
        crops="scorer" if target.scorer_crops else "own",
        preprocessing=asked.preprocessing,
    )
    check_baseline_samples(plan)
    return plan


def _check_upsampling(sfreq: float, headers: Sequence[Header]) -> None:
    """Refuse a rate far above that of every recording: it adds no signal, and can fill the disk."""
    highest = max((rate for header in headers for rate in header.rates), default=sfreq)
    if sfreq > MAX_UPSAMPLING * highest:
        raise UserError(
            f"sfreq {sfreq:g}: more than {MAX_UPSAMPLING} times the rate of all recordings (at most {highest:g} Hz), "
            "which adds no signal"
        )


def check_baseline_samples(plan: Plan) -> None:
    """Check that there is a sample in the baseline.

    Raises
    ------
    UserError
        There is none.
    """
    if plan.preprocessing.baseline is None:
        return
    first, last = plan.preprocessing.baseline
    if not ((plan.times >= first) & (plan.times <= last)).any():
        raise UserError(f"baseline {first:g} {last:g}: holds no sample of a window at {plan.sfreq:g} Hz")


def _plan_channels(
    asked: Settings, recordings: Sequence[Recording], headers: Sequence[Header]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the channels of the store, and those that are read."""
    steps = asked.preprocessing
    common = () if asked.channels and not steps.needs_common_channels else _common_channels(recordings, headers)
    reference = steps.named_reference
    channels = asked.channels or tuple(name for name in common if find_name(name, reference) is None)
    if not channels:
        raise UserError(f"reference {','.join(reference)}: no other channel is left")
    sources = list(channels)
    for name in (*(common if steps.needs_common_channels else ()), *reference):
        if find_name(name, sources) is None:
            sources.append(name)
    return channels, tuple(sources)


def without_bads(header: Header) -> Header:
    """Return the header of a recording without the channels that its channels.tsv marks as bad."""
    kept = [place for place, name in enumerate(header.channels) if name not in header.bads]
    return replace(
        header,
        channels=tuple(header.channels[place] for place in kept),
        rates=tuple(header.rates[place] for place in kept),
        left_out=header.left_out | dict.fromkeys(header.bads, BAD),
        bads=(),
    )


def notes_on_bads(headers: Sequence[Header], plan: Plan) -> list[str]:
    """Return a sentence on channels that channels.tsv marks as bad and the store uses, or on `bads` without effect."""
    marked = Counter(name for header in headers for name in header.bads if find_name(name, plan.sources) is not None)
    if not marked:
        unused = plan.preprocessing.bads is not None and not any(BAD in header.left_out.values() for header in headers)
        return ["No channel that is used is marked as bad in a channels.tsv: --bads has no effect."] * unused
    shown = list_some(f"{name} {n}" for name, n in marked.most_common())
    if plan.preprocessing.bads == "interpolate":
        return [f"Interpolated channels, with the number of recordings ({shown})."]
    return [
        f"Channels used though channels.tsv marks them as bad, with the number of recordings ({shown}); see --bads."
    ]


def check_has_channels(recording: Recording, header: Header, asked: Settings) -> None:
    """Check that a recording has the channels of the settings: those of the store, and those of the reference.

    Raises
    ------
    UnreadableRecordingError
        It lacks one.
    """
    for channels in (asked.channels or (), asked.preprocessing.named_reference):
        _check_has(recording, header, channels)


def _check_has(recording: Recording, header: Header, channels: Sequence[str]) -> None:
    places = [find_name(channel, header.channels) for channel in channels]
    if len(set(places) - {None}) < len([place for place in places if place is not None]):
        raise UserError(f"channels: two names are those of one channel ({', '.join(channels)})")
    for channel, place in zip(channels, places, strict=True):
        if place is None:
            left_out = f" (left out: {header.left_out[channel]})" if channel in header.left_out else ""
            raise UnreadableRecordingError(
                f"{recording.path}: no EEG channel '{channel}'{left_out}; {nearest(channel, header.channels)}"
            )


def check_rates(recording: Recording, header: Header, plan: Plan) -> None:
    """Check that the filters can be made for the sampling rates of a recording.

    Raises
    ------
    UnreadableRecordingError
        A rate is too low.
    """
    for rate in dict.fromkeys(header.rate_of(channel) for channel in plan.sources):
        if problem := misfit(plan.preprocessing, rate):
            raise UnreadableRecordingError(f"{recording.path}: sampled at {rate:g} Hz, so {problem}")


def left_out_channels(header: Header, plan: Plan, asked: Settings) -> dict[str, str]:
    """Return the channels of a recording that the plan leaves out, by name with the reason."""
    used = {find_name(channel, header.channels) for channel in plan.channels}
    reason = NOT_ASKED if asked.channels else NOT_COMMON
    reference = {find_name(name, header.channels) for name in asked.preprocessing.named_reference}
    others = {
        name: REFERENCE if place in reference else reason
        for place, name in enumerate(header.channels)
        if place not in used
    }
    return header.left_out | others


@refuses_data
def _common_rate(recordings: Sequence[Recording], headers: Sequence[Header], channels: Sequence[str]) -> float:
    """Return the sampling rate of all channels of all recordings.

    Raises
    ------
    UserError
        They differ.
    """
    first: dict[float, str] = {}
    for recording, header in zip(recordings, headers, strict=True):
        for channel in channels:
            rate = header.rate_of(channel)
            if not any(abs(rate - other) <= RATE_TOLERANCE * other for other in first):
                first[rate] = f"{recording.path.name}, {channel}"
    if len(first) > 1:
        shown = ", ".join(f"{_shown_rate(rate)} Hz ({where})" for rate, where in sorted(first.items()))
        raise UserError(f"recordings differ in sampling rate: {shown}; choose one with --sfreq")
    return next(iter(first))


def _shown_rate(rate: float) -> str:
    return f"{rate:.12g}"


@refuses_data
def _common_channels(recordings: Sequence[Recording], headers: Sequence[Header]) -> tuple[str, ...]:
    """Return the channels that all recordings have, in the order of the first recording."""
    common = list(headers[0].channels)
    for recording, header in zip(recordings, headers, strict=True):
        present = header.channels
        rest = common if present == tuple(common) else [n for n in common if find_name(n, present) is not None]
        if not rest:
            raise UserError(
                f"no EEG channel is common to all recordings: {recording.path.name} ({', '.join(present[:3])}, ...) "
                f"has none of those before it ({', '.join(common[:3])}, ...; {recordings[0].path.name}); name "
                "some with --channels (--skip-unreadable then leaves out recordings that lack them)"
            )
        common = rest
    return tuple(common)
