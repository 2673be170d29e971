"""What must hold before a stream is predicted: windows that samples alone define, channels, units, rate."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from raypipe.core.errors import UserError, nearest
from raypipe.data.given_target import GivenTarget
from raypipe.data.manifest import Plan
from raypipe.data.piece_reader import MAX_RATIO_TERM
from raypipe.data.plan import RATE_TOLERANCE
from raypipe.data.targets import parse_target
from raypipe.packaging.bundle import LoadedEnsemble
from raypipe.recordings.channels import EegChannels, find_name
from raypipe.recordings.live import SampleSource
from raypipe.recordings.units import volts_per


def check_bundle(ensemble: LoadedEnsemble, every: float | None, jitter: float) -> list[str]:
    """Check that a bundle can predict a stream; see `check_plan`.

    Returns
    -------
    list of str
        Sentences on what a stream does not say, and on what its predictions are of.

    Raises
    ------
    UserError
        Its networks take windows of several stores, or `check_plan` raises it.
    """
    ensemble.require_one_store("a stream")
    notes = check_plan(ensemble.info.prepare, every, jitter)
    if ensemble.info.people is not None:
        notes.append(
            f"Target '{ensemble.info.target}' is the person's, and the bundle was scored on the mean prediction of "
            "each person's windows. A stream's predictions are of single windows: the run's scores do not apply."
        )
    return notes


def check_plan(plan: Plan, every: float | None, jitter: float) -> list[str]:
    """Check that the windows of a plan can be cut from a stream as they are from a recording.

    Parameters
    ----------
    every
        Seconds from one window to the next; None for the plan's stride.
    jitter
        Seconds by which stamps may be off.

    Returns
    -------
    list of str
        Sentences on what a stream does not say.

    Raises
    ------
    UserError
        They cannot, or a number is out of range.
    """
    target = parse_target(plan)
    what = f"target '{plan.target}'"
    if isinstance(target, GivenTarget):
        raise UserError(f"{what}: its windows were given, and how they were prepared is unknown; use predict")
    if plan.preprocessing.align:
        raise UserError(
            f"align {plan.preprocessing.align}: needs all windows of a {plan.preprocessing.align} before the first is "
            "predicted; train on windows prepared without --align, or use predict"
        )
    if plan.target_is_offset or plan.crops == "scorer":
        raise UserError(f"{what}: the crops of its windows are drawn, which a stream has no place for; use predict")
    if target.event_locked and every is None:
        raise UserError(
            f"{what}: its windows are at events, which a stream of samples has not; --every SECONDS predicts "
            "consecutive windows nevertheless"
        )
    if every is not None and not 1.0 / plan.sfreq <= every < float("inf"):
        raise UserError(f"every {every:g}: must be at least a sample ({1.0 / plan.sfreq:g} s)")
    if not 0 < jitter < float("inf"):
        raise UserError(f"jitter {jitter:g}: must be seconds, greater than 0")
    return _notes(plan, is_event_locked=target.event_locked)


def _notes(plan: Plan, *, is_event_locked: bool) -> list[str]:
    notes = []
    if is_event_locked:
        notes.append(
            f"The bundle was trained and scored on windows at events (target '{plan.target}'). A stream's windows are "
            "not placed at events, so the run's scores do not apply to their predictions."
        )
    if plan.preprocessing.bads == "interpolate":
        notes.append("No channel is interpolated: a stream marks none as bad.")
    return notes


def live_channels(source: SampleSource, plan: Plan) -> EegChannels:
    """Find the channels that a plan reads in a stream, by name.

    Raises
    ------
    UserError
        One is missing, has a name that is there twice, or no known unit of voltage.
    """
    given = [channel.name for channel in source.channels]
    twice = {name for name, n in Counter(given).items() if n > 1}
    picks, volts = [], []
    for name in plan.sources:
        place = find_name(name, given)
        if place is None or given[place] in twice:
            problem = "no channel" if place is None else "more than one channel"
            raise UserError(f"stream {source.name}: {problem} '{name}'; {nearest(name, given)}")
        factor = volts_per(source.channels[place].unit)
        if factor is None:
            stated = source.channels[place].unit
            says = f"is in '{stated}', no unit of voltage" if stated else "states no unit"
            raise UserError(f"stream {source.name}: channel '{given[place]}' {says}; give it, such as --unit uV")
        picks.append(place)
        volts.append(factor)
    rates = (source.channels[0].rate,) * len(picks)
    return EegChannels(names=plan.sources, picks=tuple(picks), rates=rates, volts=tuple(volts), left_out={})


def check_rate(name: str, rate: float, plan: Plan) -> None:
    """Check that a stream's rate (Hz) can be resampled to that of the windows.

    Raises
    ------
    UserError
        It cannot.
    """
    ratio = float(Fraction(plan.sfreq / rate).limit_denominator(MAX_RATIO_TERM))
    if abs(ratio * rate - plan.sfreq) > RATE_TOLERANCE * plan.sfreq:
        raise UserError(
            f"stream {name}: its rate ({rate:.12g} Hz) cannot be resampled to that of the bundle ({plan.sfreq:.12g} Hz)"
        )
