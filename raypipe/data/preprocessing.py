"""What is done with a signal before a model sees its windows: one recipe for `prepare`, bundle and `predict`.

The order of the steps is fixed:

1. notch, band-pass and resampling of the continuous signal (`raypipe.data.piece_reader`),
2. interpolation of bad channels, then the reference (`raypipe.data.spatial`),
3. cutting of windows, and their baseline (`raypipe.data.windower`),
4. rejection of windows by their amplitude, then alignment (`raypipe.data.kept_windows`).

Steps 1 and 2 are linear, and the filters are those of all channels, so the order of these two does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Literal

from pydantic import ValidationError

from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel, describe_problem, first_problem
from raypipe.core.text import short_line
from raypipe.data.fir_filters import NOTCH_TRANSITION

MAX_NAMES = 4096
"""Names or frequencies that a recipe may hold."""


class Preprocessing(FrozenModel):
    """The steps that were asked for; None for those that were not."""

    notch: tuple[float, ...] | None = None
    """Frequencies that are removed (Hz)."""
    band: tuple[float, float] | None = None
    """Edges of the band-pass (Hz); a lower edge of 0 makes it a low-pass."""
    bads: Literal["drop", "interpolate"] | None = None
    """What is done with channels that channels.tsv marks as bad; None uses them as they are."""
    montage: str | None = None
    """Template of MNE with the positions by which bad channels are interpolated."""
    reference: Literal["average"] | tuple[str, ...] | None = None
    """The mean of all EEG channels that recordings have in common, or of those named, which is subtracted."""

    baseline: tuple[float, float] | None = None
    """First and last time of the samples whose mean is subtracted from a window, by channel (s)."""
    reject: float | None = None
    """Peak-to-peak amplitude above which a window is left out (uV)."""
    flat: float | None = None
    """Peak-to-peak amplitude below which a window is left out (uV)."""
    align: Literal["recording", "subject"] | None = None
    """Windows of a recording, or of all recordings of a subject, are multiplied by the inverse root of their mean
    covariance."""

    @property
    def unit(self) -> Literal["uV", "1"]:
        """Return the unit of the samples of windows; aligned ones have none."""
        return "1" if self.align else "uV"

    @property
    def samples(self) -> str:
        """Return in words what the samples of windows are, for those who give windows."""
        return f"aligned by {self.align} (no unit)" if self.align else "in microvolts"

    @property
    def needs_common_channels(self) -> bool:
        """Return whether every channel depends on all that recordings have in common."""
        return self.bads == "interpolate" or self.reference == "average"

    @property
    def named_reference(self) -> tuple[str, ...]:
        """Return the channels of the reference; none for the average."""
        return () if self.reference is None or isinstance(self.reference, str) else self.reference


def parse_preprocessing(
    *,
    notch: float | Sequence[float] | None,
    band: tuple[float, float] | None,
    bads: str | None,
    montage: str | None,
    reference: str | Sequence[str] | None,
    baseline: tuple[float, float] | None,
    reject: float | None,
    flat: float | None,
    align: str | None,
) -> Preprocessing:
    """Make a recipe from the arguments of `prepare`.

    Raises
    ------
    UserError
        Names the argument that is wrong.
    """
    asked = {
        "notch": (notch,) if isinstance(notch, str | Real) else notch,
        "band": band,
        "bads": bads,
        "montage": montage,
        "reference": (reference,) if isinstance(reference, str) and reference != "average" else reference,
        "baseline": baseline,
        "reject": reject,
        "flat": flat,
        "align": align,
    }
    try:
        steps = Preprocessing.model_validate(asked)
    except ValidationError as error:
        problem = first_problem(error)
        problem["loc"] = problem["loc"][:1]  # without the place in a pair
        name = str(problem["loc"][0])
        text = str(asked[name]) if isinstance(asked[name], dict) else shown(asked[name])
        if name in _WANTED and problem["type"] != "finite_number":
            raise UserError(f"{name} {short_line(text)}: needs {_WANTED[name]}") from None
        raise UserError(describe_problem(problem).replace("Input should be", "must be")) from None
    return steps


def check_values(steps: Preprocessing, sfreq: float | None) -> None:
    """Check that values are in range, and fit each other and the sampling rate of the windows (Hz), where it is known.

    Raises
    ------
    UserError
        Names the step that is wrong.
    """
    if steps.band is not None and not 0 <= steps.band[0] < steps.band[1]:
        raise UserError(f"band {_pair(steps.band)}: needs a lower and a higher edge in Hz, such as 0.5 40")
    if steps.band is not None and sfreq and steps.band[1] > sfreq / 2:
        raise UserError(f"band {_pair(steps.band)}: windows at {sfreq:g} Hz have no frequencies above {sfreq / 2:g} Hz")
    _check_channels(steps)
    _check_amplitudes(steps)
    if steps.notch is not None:
        _check_notch(steps.notch)


def _check_amplitudes(steps: Preprocessing) -> None:
    for name, value in (("reject", steps.reject), ("flat", steps.flat)):
        if value is not None and value <= 0:
            raise UserError(f"{name} {value:g}: must be greater than 0 uV")
    if steps.reject is not None and steps.flat is not None and steps.reject <= steps.flat:
        raise UserError(f"reject {steps.reject:g}: must be above flat ({steps.flat:g} uV), or no window is left")


def check_baseline(steps: Preprocessing, tmin: float, window: float) -> None:
    """Check that the baseline is inside of a window, which starts `tmin` seconds from its event.

    Raises
    ------
    UserError
        It is not.
    """
    if steps.baseline is None:
        return
    first, last = steps.baseline
    if not tmin <= first <= last <= tmin + window:
        raise UserError(
            f"baseline {_pair(steps.baseline)}: needs a first and a last time in seconds from {shown(tmin)} to "
            f"{shown(tmin + window)}, where windows are (tmin and window set that)"
        )


def _check_channels(steps: Preprocessing) -> None:
    if steps.bads == "interpolate" and steps.montage is None:
        raise UserError("bads interpolate: needs the positions of a montage, such as montage standard_1005")
    if steps.montage is not None and steps.bads != "interpolate":
        raise UserError(f"montage {steps.montage}: positions are used by bads interpolate only")
    names = steps.named_reference
    if steps.reference == () or not all(names) or len(set(names)) < len(names) or len(names) > MAX_NAMES:
        raise UserError(f"reference {shown(names)}: needs average, or names of channels, each once")


def _check_notch(centres: tuple[float, ...]) -> None:
    if not 0 < len(centres) <= MAX_NAMES or min(centres) < 1:
        raise UserError(f"notch {shown(centres)}: needs frequencies of 1 Hz and more, such as 50 or 50,100")
    for low, high in pairwise(sorted(centres)):
        if high - low < (low + high) / 400 + 4 * NOTCH_TRANSITION:
            raise UserError(f"notch {shown(centres)}: {low:g} and {high:g} Hz are too close to be separate stop bands")


def misfit(steps: Preprocessing, rate: float) -> str:
    """Return why filters cannot be made for a sampling rate (Hz); an empty text where they can."""
    if steps.band is not None and steps.band[1] >= rate / 2:
        return f"the band's upper edge must be below {rate / 2:g} Hz (given {steps.band[1]:g})"
    if steps.notch is not None and max(steps.notch) * (1 + 1 / 400) + NOTCH_TRANSITION >= rate / 2:
        return f"a notch must be below {rate / 2 - NOTCH_TRANSITION:g} Hz (given {max(steps.notch):g})"
    return ""


def flags(steps: Preprocessing) -> list[str]:
    """Return the steps as words of a ``raypipe prepare``."""
    words: list[str] = []
    for name in Preprocessing.model_fields:
        value = getattr(steps, name)
        if value is None:
            continue
        separate = name in _PAIRS
        parts = [shown((each,)) for each in value] if separate else [shown(value)]
        words += [f"--{name.replace('_', '-')}", *parts]
    return words


_WANTED = {
    "notch": "a frequency in Hz or several, such as 50 or (50, 100)",
    "band": "two numbers in Hz, such as (0.5, 40)",
    "reference": "'average', or names of channels",
    "baseline": "two numbers in seconds, such as (-0.2, 0)",
    "reject": "a number of microvolts, such as 150",
    "flat": "a number of microvolts, such as 0.5",
}
"""What values of a wrong type should be."""

_PAIRS = ("band", "baseline")
"""Options that take two words."""


def _pair(values: tuple[float, float]) -> str:
    return " ".join(shown(each) for each in values)


def shown(value: object) -> str:
    """Return the value of a step as text."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(shown(each) for each in value)
    return f"{value:.15g}" if isinstance(value, int | float) else str(value)
