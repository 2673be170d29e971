"""The record of what a family of models brings to an ensemble, a part of ``ensemble/ensemble.json``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raypipe.core.record import FrozenModel

Share = Annotated[float, Field(ge=0.0, le=1.000001)]


class Family(FrozenModel):
    """What one family of models brings. All scores are nested, at the level of the verdict."""

    name: str
    """Its ``model/name``."""
    trials: int
    """Trials that have not failed."""
    best: str
    """Its best member."""
    score: float | None
    """Of its best trial, chosen anew for each group of people; None where it is undefined."""
    low: float | None
    high: float | None
    """95 % interval over people."""
    gain: float | None
    """How much better the ensemble is (positive: it is better), as the score table has it."""
    gain_low: float | None
    gain_high: float | None
    """95 % interval over people, on paired resamples."""
    correlation: float | None
    """Largest correlation of its best member's errors with those of the best member of another family."""
    weight: Share
    """Sum of its members' weights in what is shipped."""
    without: float | None
    """Score of the shipped method without this family: members and weights are chosen anew, the method is not.

    It is that of equal weights where the shipped method cannot combine the other families.
    """
    loss: float | None
    """How much worse that is than the same method with the family (positive: the family helps)."""
    loss_low: float | None
    loss_high: float | None
    """95 % interval over people."""
