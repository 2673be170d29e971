"""The windows that the challenge's scorer shows, and what is wrong with others."""

from __future__ import annotations

from collections.abc import Sequence

from raypipe.data.manifest import Manifest, Plan
from raypipe.data.preprocessing import flags

CHALLENGE_WINDOWS = {"n_channels": 129, "n_times": 200, "sfreq": 100.0}
"""Windows that the challenge's scorer shows."""
CHALLENGE_OF = {"challenge1": 1, "challenge2": 2, "participants:externalizing": 2}
"""Challenges by target, without its options."""
TMIN = 0.5
"""Seconds from the target to its window, in challenge 1."""
BAND = (0.5, 50.0)
"""Edges of the scorer's band-pass (Hz)."""
CUTS = (4.0, 2.0)
"""Seconds of a window of challenge 2, of which a crop is shown, and from one to the next."""


def challenge_of(target: str) -> int | None:
    """Return the challenge that a target answers; None for what neither asks for."""
    return CHALLENGE_OF.get(target) or CHALLENGE_OF.get(target.partition(":")[0])


def challenge_channels() -> list[str]:
    """Return the names of the scorer's channels in its order: E1 to E128, then Cz."""
    return [*(f"E{number}" for number in range(1, int(CHALLENGE_WINDOWS["n_channels"]))), "Cz"]


def shown_from(plan: Plan) -> float:
    """Return the seconds from an event to what a network sees of its window in evaluation."""
    spare = plan.window_samples - plan.crop_samples if plan.crops == "own" else 0
    return plan.tmin + spare // 2 / plan.sfreq


def scorer_misfit(
    challenge: int, target: str, *, channels: Sequence[str], n_times: int, sfreq: float, tmin: float
) -> str:
    """Return why a model does not answer a challenge, or takes other windows; an empty text if it does.

    Parameters
    ----------
    challenge, target
        Number of the challenge; specification of the model's target.
    channels, n_times, sfreq
        Names of the windows' channels in order, their samples, their rate (Hz).
    tmin
        Seconds from an event to the window (`shown_from`).
    """
    if challenge_of(target) != challenge:
        return f"its target is '{target}', not that of challenge {challenge}"
    windows = {"n_channels": len(channels), "n_times": n_times, "sfreq": sfreq}
    own, shown = (
        f"{w['n_channels']} channels x {w['n_times']} samples at {w['sfreq']:g} Hz"
        for w in (windows, CHALLENGE_WINDOWS)
    )
    if windows != CHALLENGE_WINDOWS:
        return f"its windows are {own}, those of the scorer {shown}"
    for number, (name, wanted) in enumerate(zip(channels, challenge_channels(), strict=True), start=1):
        if name != wanted:
            return f"channel {number} of its windows is {name}, the scorer's is {wanted} (E1 to E128, then Cz)"
    if challenge == 1 and round((tmin - TMIN) * sfreq):
        return f"its windows begin {tmin:g} s after the target, those of the scorer {TMIN:g} s"
    return ""


def other_steps(plan: Plan) -> list[str]:
    """Return the steps of a plan that the scorer does not repeat, as words of `prepare`; limits of amplitude are none.

    The scorer's windows are band-passed (`BAND`), and shown to a model one at a time.
    """
    steps = plan.preprocessing
    harmless = {
        "band": None if steps.band == BAND else steps.band,
        "reject": None,
        "flat": None,
        "bads": None if steps.bads == "drop" else steps.bads,
    }
    return flags(steps.model_copy(update=harmless))


def other_cuts(manifest: Manifest, challenge: int) -> list[str]:
    """Return what leaves out windows of a store that the scorer scores, or cuts others, as words of `prepare`."""
    asked, plan = manifest.settings, manifest.plan
    limits = {"reject": plan.preprocessing.reject, "flat": plan.preprocessing.flat}
    limits |= {"max-windows": asked.max_windows, "min-windows": asked.min_windows}
    words = [f"--{name} {value:g}" for name, value in limits.items() if value is not None]
    words += [f"--select '{plan.select}'"] if plan.select is not None else []
    if challenge == 2 and (plan.window, plan.stride) != CUTS:
        words.append(f"--window {plan.window:g} --stride {plan.stride:g}")
    return words
