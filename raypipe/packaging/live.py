"""Predict the windows of a stream while it is recorded: those that `predict` cuts from a file, with the same answers.

The filters of `prepare` are linear-phase FIR filters centred on a sample. Delayed by half their length they are causal,
so an answer waits for as many samples after its window as they reach, and is then that of the whole recording.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.data.kept_windows import Losses, kept_of
from raypipe.data.live_reader import LiveReader
from raypipe.data.piece_reader import PieceReader, filter_length
from raypipe.data.windower import ACROSS_A_GAP, MISSING_SAMPLES, SHORT_PART, cut_windows
from raypipe.packaging.bundle import LoadedEnsemble
from raypipe.packaging.live_checks import check_bundle, check_rate, live_channels
from raypipe.packaging.scale_check import has_other_scale
from raypipe.recordings.live import JITTER, LiveSignal, SampleSource, StampCheck, split_at
from raypipe.recordings.recording import Recording

OTHER_SCALE = "windows of another scale than the bundle's data"
FLAGS = {ACROSS_A_GAP: "gap", SHORT_PART: "short", MISSING_SAMPLES: "missing", OTHER_SCALE: "scale"}
"""Flags of windows without a prediction, by reason."""
AMPLITUDE = "amplitude"
"""Flag of windows outside of `reject` or `flat`."""
_ROUNDING = 1e-6
"""As in `raypipe.data.windower`."""


@dataclass(frozen=True)
class LiveWindow:
    """A window of a stream, with its prediction or the reason for which it has none."""

    start: float
    """Stamp of its first sample (s)."""
    prediction: NDArray[np.float32] | None
    """(outputs,) as in `LoadedEnsemble.predict`: class probabilities, or the value in target units."""
    label: str = ""
    """Predicted class; empty for regression."""
    flag: str = ""
    """Empty for a prediction; else ``gap``, ``short``, ``missing``, ``amplitude`` or ``scale``."""
    delay: float = 0.0
    """Seconds from the arrival of the last sample that it depends on."""


@dataclass
class _Stretch:
    """Samples without a loss between them."""

    signal: LiveSignal
    reader: LiveReader
    next: int = 0
    """Number of the next window."""


class LivePredictor:
    """The windows of a stream, as an iterator that waits for samples and ends with the stream.

    Windows start at the first sample and follow each other as `every` says, after a gap anew.

    Parameters
    ----------
    ensemble
        The bundle.
    source
        The stream.
    every
        Seconds from one window to the next; None for the stride of the bundle's data.
    jitter
        Seconds by which stamps may be off their regular places; see `StampCheck`.
    say
        Called with sentences that a user should read.

    Attributes
    ----------
    behind
        Seconds of samples after a window that its prediction waits for.
    n_predicted, gaps
        Number of predictions and of gaps so far.

    Raises
    ------
    UserError
        The bundle's windows cannot be cut from samples alone, a channel or its unit is missing, or the sampling rate
        does not fit.
    """

    def __init__(
        self,
        ensemble: LoadedEnsemble,
        source: SampleSource,
        *,
        every: float | None = None,
        jitter: float = JITTER,
        say: Callable[[str], object] = print,
    ) -> None:
        self.ensemble, self.source, self.plan = ensemble, source, ensemble.info.prepare
        self.every = self.plan.stride if every is None else every
        self._say = say
        for note in check_bundle(ensemble, every, jitter):
            say(note)
        self._channels = live_channels(source, self.plan)
        self._used = tuple(source.channels[place] for place in self._channels.picks)
        self._rate = self._used[0].rate
        check_rate(source.name, self._rate, self.plan)
        self._recording = Recording(Path(source.name), Path(), subject="")
        self._filter_samples = round(filter_length(self._recording, self._rate, self.plan.preprocessing) * self._rate)
        self._stretch = self._new_stretch()
        length = self.plan.window_samples
        reader = self._piece_reader(self._stretch.signal)
        self.behind = reader.needed(0, length)[1] - length / self.plan.sfreq
        self.n_predicted = self.gaps = 0
        self._unfinished: list[float] = []
        self._has_ended = False
        """The last stretch has ended, and no sample has followed yet."""
        self._stamps = StampCheck(self._rate, jitter)
        self._losses = Losses(Counter())
        self._delays = array("d")

    @property
    def left_out(self) -> Counter[str]:
        """Return the number of windows without a prediction so far, by reason."""
        return +self._losses.counts

    @property
    def delays(self) -> NDArray[np.float64]:
        """Return the delays of the predictions so far (s), without those that a gap or the end brought about."""
        return np.array(self._delays)

    def __iter__(self) -> Iterator[LiveWindow]:
        """Yield windows until the stream ends.

        Raises
        ------
        UserError
            The stream cannot be read any more; after the windows that are left.
        """
        failure = yield from self._read()
        yield from self._end_stretch()
        if failure is not None:
            raise failure

    def _read(self) -> Generator[LiveWindow, None, UserError | None]:
        """Yield windows up to the stream's end; return the error that was the end of it, if any."""
        while True:
            try:
                chunk = self.source.pull()
            except UserError as error:
                return error
            if chunk is None:
                return None
            arrived = time.perf_counter()
            if chunk.follows_loss:
                self._stamps.restart()
            used = chunk._replace(samples=chunk.samples[list(self._channels.picks)])
            for part in split_at(used, self._stamps.losses(chunk.stamps)):
                if part.follows_loss:
                    yield from self._end_stretch()
                if len(part.stamps):
                    yield from self._after_gap()
                    self._stretch.signal.add(part)
                    yield from self._predict_ready(arrived)

    def _new_stretch(self) -> _Stretch:
        signal = LiveSignal(self.source.name, self._used)
        return _Stretch(signal, LiveReader(signal, self._piece_reader(signal), self.plan))

    def _piece_reader(self, signal: LiveSignal) -> PieceReader:
        places = list(range(len(self._used)))
        return PieceReader(self._recording, signal, replace(self._channels, picks=tuple(places)), places, self.plan)

    def _predict_ready(self, arrived: float) -> Iterator[LiveWindow]:
        """Predict the windows whose samples have come, with those that the filters reach."""
        stretch, length = self._stretch, self.plan.window_samples
        while (
            stretch.reader.advance(self._start_of(stretch.next) + length)
            and stretch.signal.n_times >= self._filter_samples
            and self._fits(stretch.next)
        ):
            window = self._predict(stretch.next)
            stretch.next += 1
            if window.prediction is not None:
                window = replace(window, delay=time.perf_counter() - arrived)
                self._delays.append(window.delay)
            yield window
        stretch.reader.forget(self._start_of(stretch.next))

    def _end_stretch(self) -> Iterator[LiveWindow]:
        """Predict the windows that are left before a loss or the end, as at the end of a file, and begin anew."""
        signal = self._stretch.signal
        if not signal.n_times:
            return
        is_short = signal.n_times < self._filter_samples
        if not is_short and self._fits(self._stretch.next):
            self._stretch.reader.finish(self._n_out())
        while self._place_of(number := self._stretch.next) < signal.n_times:
            self._stretch.next += 1
            if self._fits(number):
                yield self._lost(number, SHORT_PART) if is_short else self._predict(number)
            else:
                self._unfinished.append(self._stamp_of(number))
        self._stretch = self._new_stretch()
        self._has_ended = True

    def _after_gap(self) -> Iterator[LiveWindow]:
        """Flag the windows that had begun before a gap, now that samples follow: at the end there is no gap."""
        if self._has_ended:
            self.gaps += 1
            self._losses.counts[ACROSS_A_GAP] += len(self._unfinished)
            yield from [LiveWindow(start, None, flag=FLAGS[ACROSS_A_GAP]) for start in self._unfinished]
        self._unfinished, self._has_ended = [], False

    def _start_of(self, number: int) -> int:
        """Return the first sample of a window at the windows' rate, from the start of the stretch."""
        return round(number * self.every * self.plan.sfreq)

    def _place_of(self, number: int) -> float:
        """Return the same at the rate of the stream, where it may lie between two samples."""
        return self._start_of(number) * self._rate / self.plan.sfreq

    def _n_out(self) -> int:
        """Return the number of samples of the stretch at the windows' rate."""
        return int(self._stretch.signal.spans[0].duration * self.plan.sfreq + _ROUNDING)

    def _fits(self, number: int) -> bool:
        """Return whether a window lies within the stretch, by the rules for a file."""
        seconds = self._stretch.signal.spans[0].duration
        is_inside = self._start_of(number) + self.plan.window_samples <= self._n_out()
        return is_inside and number * self.every + self.plan.window <= seconds + _ROUNDING

    def _lost(self, number: int, reason: str) -> LiveWindow:
        self._losses.counts[reason] += 1
        return LiveWindow(self._stamp_of(number), None, flag=FLAGS[reason])

    def _stamp_of(self, number: int) -> float:
        return self._stretch.signal.stamp(self._place_of(number))

    def _predict(self, number: int) -> LiveWindow:
        """Return a window that lies within the stretch."""
        start, plan = self._start_of(number), self.plan
        x_CT = self._stretch.reader.read(start, start + plan.window_samples)
        x_NCT = cut_windows(x_CT, [0], plan)
        missing = self._losses.counts[MISSING_SAMPLES]
        if not kept_of(x_NCT, plan, self._losses)[0]:
            is_missing = self._losses.counts[MISSING_SAMPLES] > missing
            return LiveWindow(self._stamp_of(number), None, flag=FLAGS[MISSING_SAMPLES] if is_missing else AMPLITUDE)
        offset = (plan.window_samples - plan.crop_samples) // 2
        crop_NCT = x_NCT[:, :, offset : offset + plan.crop_samples]
        if self._has_other_scale(crop_NCT):
            return self._lost(number, OTHER_SCALE)
        predictions = self.ensemble.predict(crop_NCT)
        label = self.ensemble.decide(predictions.astype(float))[0] if self.ensemble.classes else ""
        self.n_predicted += 1
        return LiveWindow(self._stamp_of(number), predictions[0], label)

    def _has_other_scale(self, crop_NCT: NDArray[np.float32]) -> bool:
        """Return whether the samples of a window are of another scale than the bundle's data, and say so once."""
        usual, own = self.ensemble.info.scale, float(np.median(crop_NCT.std(axis=2)))
        is_other = has_other_scale(usual, own)
        if is_other and not self._losses.counts[OTHER_SCALE]:
            self._say(
                f"A window's samples spread over {own:.3g} uV, those of the bundle's data over {usual:.3g} uV: such "
                f"windows have no prediction; check the {'unit' if own else 'electrodes'} of stream {self.source.name}."
            )
        return is_other

    def description(self) -> str:
        """Return the stream and its windows, in one line."""
        return (
            f"{self.source.name}: {len(self.source.channels)} channels at {self._rate:g} Hz, {len(self._used)} used; "
            f"windows of {self.plan.window:g} s every {self.every:g} s; predictions lie {self.behind:.3g} s behind the "
            "signal" + "; the filters reach that far" * (self.behind > 0)
        )

    def summary(self) -> str:
        """Return what has been predicted so far, in one line."""
        parts = [f"{self.n_predicted} windows predicted"]
        parts += [f"not predicted: {n} {what}" for what, n in self.left_out.items()]
        parts.append(f"{self.gaps} gap{'s' * (self.gaps != 1)}")
        if self._delays:
            late = 1e3 * np.percentile(self.delays, 99)
            parts.append(f"99 % of the predictions within {late:.1f} ms of the last sample that they need")
        return "; ".join(parts)
