"""Read a stream of LabStreamingLayer (https://labstreaminglayer.org); needs the extra `stream`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.core.shipped import install_command
from raypipe.recordings.live import Chunk
from raypipe.recordings.signal import Channel

WAIT = 10.0
"""Seconds for which a stream is looked for."""
PULL_SECONDS = 0.2
"""Wait for samples at most, so that Ctrl-C is heard."""
SECOND_SECONDS = 1.0
"""How long a second stream of the name is looked for; LSL asks again after 0.5 s."""
MAX_SAMPLES = 4096
"""Samples that are read at a time."""
OPEN_SECONDS = 5.0
"""Time that a stream has to describe itself."""


class LslSource:
    """A stream of LabStreamingLayer, whose stamps are those of this machine's LSL clock.

    A stream that is lost is looked for again, by its name.

    Parameters
    ----------
    name
        Name of the stream.
    unit
        Unit of channels whose description has none.
    wait
        Seconds to wait for the stream, and after a loss or the last sample for its return.
    say
        Called with a sentence when the stream is lost, returns or has ended.

    Attributes
    ----------
    name, channels
        See `SampleSource`.

    Raises
    ------
    UserError
        pylsl is missing, there is no such stream or more than one, or its description lacks rate or labels.
    """

    def __init__(self, name: str, *, unit: str = "", wait: float = WAIT, say: Callable[[str], object] = print) -> None:
        if not wait >= 0:
            raise UserError(f"wait {wait:g}: must be 0 or more seconds")
        self.name, self._unit, self._wait, self._say = name, unit, wait, say
        self._lsl = _import_pylsl()
        self._quiet_since: float | None = None
        found = self._find(wait)
        if found is None:
            others = sorted({each.name() for each in self._lsl.resolve_streams(PULL_SECONDS)})
            if name in others:
                raise UserError(f"stream {name}: has not described itself within {wait:g} s; start it again, or wait")
            raise UserError(f"stream {name}: none of this name within {wait:g} s; {nearest(name, others)}")
        self._inlet: Any = found[0]
        self.channels = self._described(found[1])

    def pull(self) -> Chunk | None:
        """Return samples; see `SampleSource`."""
        if self._inlet is None:
            return self._await_return()
        try:
            x_TC, stamps_T = self._inlet.pull_chunk(PULL_SECONDS, MAX_SAMPLES, min_samples=1)
        except self._lsl.util.LostError:
            self._inlet.close_stream()
            self._inlet = None
            self._say(f"Stream {self.name} is lost; waiting {self._wait:g} s for its return.")
            self._quiet_since = time.monotonic()
            return _nothing(self.channels, follows_loss=True)
        if len(stamps_T):
            self._quiet_since = None
            return Chunk(x_TC.T, stamps_T)
        self._quiet_since = self._quiet_since or time.monotonic()
        return self._nothing_yet()

    def _nothing_yet(self) -> Chunk | None:
        """Return no samples, or None after a wait that was too long."""
        if self._quiet_since is not None and time.monotonic() - self._quiet_since > self._wait:
            self._say(f"Stream {self.name} has ended: no sample for {self._wait:g} s.")
            return None
        return _nothing(self.channels)

    def _await_return(self) -> Chunk | None:
        found = self._find(PULL_SECONDS)
        if found is None:
            return self._nothing_yet()
        self._inlet = found[0]
        if self._described(found[1]) != self.channels:
            self._say(f"Stream {self.name} has returned with other channels, units or another rate: this is the end.")
            return None
        self._say(f"Stream {self.name} has returned.")
        return _nothing(self.channels, follows_loss=True)

    def _find(self, seconds: float) -> tuple[Any, Any] | None:
        """Return an open inlet of the stream and its description; None if they are not found in time.

        Raises
        ------
        UserError
            Several streams have its name.
        """
        end = time.monotonic() + seconds
        while True:
            left = min(PULL_SECONDS, max(0.0, end - time.monotonic()))
            found = self._lsl.resolve_byprop("name", self.name, 1, left)
            if found and (opened := self._open(found)):
                return opened
            if time.monotonic() >= end:
                return None

    def _open(self, found: list[Any]) -> tuple[Any, Any] | None:
        """Return an inlet and a description of the stream that was found; None if it is lost, or gives none in time."""
        lsl = self._lsl
        found = lsl.resolve_byprop("name", self.name, 2, SECOND_SECONDS) or found  # the search ends with the first
        if len(found) > 1:
            where = ", ".join(sorted(f"{each.hostname()} ({each.source_id() or each.uid()})" for each in found))
            raise UserError(f"stream {self.name}: {len(found)} streams have this name: {where}; stop the others")
        inlet = lsl.StreamInlet(found[0], recover=False, processing_flags=lsl.proc_clocksync, as_numpy=True)
        try:
            inlet.open_stream(OPEN_SECONDS)
            inlet.time_correction(OPEN_SECONDS)  # else the first samples wait for it
            return inlet, inlet.info(OPEN_SECONDS)
        except (lsl.util.LostError, lsl.util.TimeoutError):
            inlet.close_stream()
            return None

    def _described(self, info: Any) -> tuple[Channel, ...]:
        """Return the channels of a stream, from the description that XDF's conventions lay down.

        Raises
        ------
        UserError
            It has no fixed rate, holds text, or does not name every channel.
        """
        rate, n_channels = info.nominal_srate(), info.channel_count()
        if not 0 < rate < math.inf:
            raise UserError(f"stream {self.name}: its samples have no fixed rate, as those of markers")
        if info.channel_format() == self._lsl.cf_string:
            raise UserError(f"stream {self.name}: holds text, not samples")
        named = list(_labels(info))
        if len(named) != n_channels or not all(label for label, _ in named):
            n_named = sum(bool(label) for label, _ in named)
            raise UserError(
                f"stream {self.name}: {n_channels} channels, of which its description names {n_named} "
                "(desc/channels/channel/label); channels are found by name"
            )
        return tuple(Channel(label, rate, unit or self._unit) for label, unit in named)


def _labels(info: Any) -> Iterator[tuple[str, str]]:
    channel = info.desc().child("channels").child("channel")
    while not channel.empty():
        yield channel.child_value("label").strip(), channel.child_value("unit").strip()
        channel = channel.next_sibling("channel")


def _nothing(channels: tuple[Channel, ...], *, follows_loss: bool = False) -> Chunk:
    return Chunk(np.empty((len(channels), 0)), np.empty(0), follows_loss)


def _import_pylsl() -> Any:
    try:
        import pylsl
    except ModuleNotFoundError:
        raise UserError(f"streams need pylsl; {install_command('stream')}") from None
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"pylsl finds no liblsl ({str(error).splitlines()[0][:200]}); {install_command('stream')}"
        ) from None
    return pylsl
