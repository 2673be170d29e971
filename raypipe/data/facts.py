"""Read what `inspect` shows of one recording: its header and its events, never its signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from raypipe.core.errors import UserError, first_line
from raypipe.data.plan import Header
from raypipe.recordings.channels import eeg_channels
from raypipe.recordings.events import VALUE_COLUMNS, values_and_measurements
from raypipe.recordings.formats import open_signal
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Signal, Span, UnreadableRecordingError

NO_EVENTS = "no events.tsv"
"""Problem of a recording that has no table of events, which most tasks do without."""


@dataclass(frozen=True)
class RecordingFacts:
    """What the header of a recording and the tables beside it say."""

    header: Header | None = None
    """The EEG channels and their rates; None if the recording cannot be read."""
    problem: str = ""
    """Message of the error that keeps the recording from being read."""
    units: tuple[str, ...] = ()
    """Unit of each EEG channel, spelt as in the file; empty where the file leaves it blank."""
    spans: tuple[Span, ...] = ()
    """Stretches without a gap; empty where they are not known before the whole file is fetched."""
    types_from: str = ""
    """Place from which the types of channels are known: ``channels.tsv``, or ``file``."""
    events: Mapping[str, Counter[str]] = field(default_factory=dict)
    """Numbers of events by column of events.tsv and by value."""
    measurements: tuple[str, ...] = ()
    """Columns of events.tsv that measure something in each event, such as the response time."""
    events_problem: str = ""
    """Reason for which there are no events."""

    @property
    def duration(self) -> float:
        """Return the seconds of signal; NaN where they are not known."""
        return sum(span.duration for span in self.spans) if self.spans else float("nan")


def read_facts(recording: Recording) -> RecordingFacts:
    """Read the header and the events of a recording. Errors are stored in the result, not raised."""
    events, measured, events_problem = _read_events(recording)
    try:
        with recording.fetched(header=True):
            signal = open_signal(recording.path)
            found = eeg_channels(recording, signal)
            spans = _read_spans(recording, signal)
    except (UserError, OSError) as error:
        return RecordingFacts(
            problem=first_line(error), events=events, measurements=measured, events_problem=events_problem
        )
    return RecordingFacts(
        header=Header(found.names, found.rates, found.left_out, found.notes, found.bads),
        units=tuple(signal.channels[place].unit for place in found.picks),
        spans=spans,
        types_from="channels.tsv" if recording.sidecar("channels.tsv").is_file() else "file",
        events=events,
        measurements=measured,
        events_problem=events_problem,
    )


def _read_events(recording: Recording) -> tuple[dict[str, Counter[str]], tuple[str, ...], str]:
    try:
        path = recording.sidecar("events.tsv")
        if not path.is_file():
            return {}, (), NO_EVENTS
        found, measured = values_and_measurements(path)
        return found, measured, "" if found else f"{path}: no column '{VALUE_COLUMNS[0]}' or '{VALUE_COLUMNS[1]}'"
    except (UserError, OSError) as error:
        return {}, (), first_line(error)


def _read_spans(recording: Recording, signal: Signal) -> tuple[Span, ...]:
    """Return the stretches without a gap; none where they cannot be found in the header that was fetched."""
    try:
        return tuple(signal.spans)
    except UnreadableRecordingError:
        if recording.mirror is None:
            raise
        return ()
