"""Draw from a seed what is killed, and when. A moment is a file of the run folder that is there for the first time."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.toys import SPACE

TRIALS, FOLDS, EPOCHS, WORKERS = 3, 4, 6, 2
SOURCE = SPACE.replace("'epochs': 4", f"'epochs': {EPOCHS}").replace("'patience': 4", f"'patience': {EPOCHS}")
# Computed one way, so that runs can be compared to the bit.
FLAGS = ("--trials", TRIALS, "--folds", FOLDS, "--workers", WORKERS, "--concurrent", 1, "--no-prune")
FLAGS += ("--stem", "fourier", "--stack", "off")

# How often each is chosen, by where the sweep runs.
VICTIMS = {
    "alone": {"worker": 3, "actor": 3, "controller": 2, "broker": 1, "driver": 4},
    "nodes": {"worker": 3, "actor": 3, "controller": 2, "broker": 1, "driver": 5, "node": 3, "store": 2},
}
WHAT = ("asked", "checkpoint", "scored", "weights", "predictions", "ended")
CI_SEEDS = (123, 157, 999)
"""On nodes they kill every kind of process, at every kind of moment. All kills come before the last trial trains, so a
late poll still finds the process. A test checks this."""
LONG_SEEDS = tuple(range(12))


@dataclass(frozen=True, order=True)
class Moment:
    """A file of a trial that is there for the first time."""

    number: int
    step: int
    what: str
    fold: int = 0

    def reached(self, run: Path) -> bool:
        """Return whether it has come, or is past."""
        trial = run / f"trials/{self.number:04d}"
        if (trial / "result.json").exists():
            return True
        there = {
            "asked": "trial.json",
            "checkpoint": f"fold-{self.fold}/epoch-{self.step:04d}.ckpt",
            "weights": f"fold-{self.fold}.safetensors",
            "predictions": "oof.npz",
        }.get(self.what)
        if there and (trial / there).exists():
            return True
        history = trial / "history.json"
        epochs = len(json.loads(history.read_text())["epochs"]) if history.exists() else 0
        return self.what in ("checkpoint", "scored") and epochs >= self.step

    def __str__(self) -> str:
        place = f" of fold {self.fold}" if self.what in ("checkpoint", "weights") else ""
        after = f" of epoch {self.step}" if self.what in ("checkpoint", "scored") else ""
        return f"trial {self.number}: {self.what}{place}{after}"


def moments() -> list[Moment]:
    """Return all moments of a sweep, more or less in order of time."""
    found = []
    for number in range(TRIALS):
        found.append(Moment(number, 0, "asked"))
        for epoch in range(1, EPOCHS + 1):
            found += [Moment(number, epoch, "checkpoint", fold) for fold in range(FOLDS)]
            found.append(Moment(number, epoch, "scored"))
        found += [Moment(number, EPOCHS + 1, "weights", fold) for fold in range(FOLDS)]
        found += [Moment(number, EPOCHS + 2, "predictions"), Moment(number, EPOCHS + 3, "ended")]
    return found[:-1]  # when the last trial has ended, so has the sweep


@dataclass(frozen=True)
class Strike:
    """Something is killed at a moment."""

    at: Moment
    victim: str
    choice: float
    """Which of several: a number in [0, 1)."""


def draw(seed: int, place: str, most: int = 3) -> list[Strike]:
    """Draw one to `most` strikes, in order of time. Of three nodes two may be lost: one worker fits on the last."""
    rng = random.Random(f"{place} {seed}")
    weights = dict(VICTIMS[place])
    strikes = []
    for at in sorted(rng.sample(moments(), rng.randint(1, most))):
        victim = rng.choices(list(weights), list(weights.values()))[0]
        if victim == "node" and any(strike.victim == "node" for strike in strikes):
            del weights["node"]
        strikes.append(Strike(at, victim, rng.random()))
    return strikes
