"""Draw from a seed what is done to a sweep, and when.

A moment is a file of the run folder that is there for the first time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.consoles import ConsoleKind
from tests.support.toys import SPACE

TRIALS, FOLDS, EPOCHS, WORKERS = 3, 4, 6, 2
SOURCE = SPACE.replace("'epochs': 4", f"'epochs': {EPOCHS}").replace("'patience': 4", f"'patience': {EPOCHS}")
# Computed one way, so that runs can be compared to the bit.
FLAGS = ("--trials", TRIALS, "--folds", FOLDS, "--workers", WORKERS, "--concurrent", 1, "--no-prune")
FLAGS += ("--stem", "fourier", "--stack", "off")

FAULTS = {"kill": 6, "pause": 3, "console": 2}
"""How often each is chosen."""
# The same for whom it befalls, by where the sweep runs.
VICTIMS = {
    "alone": {"worker": 3, "actor": 3, "controller": 2, "broker": 1, "driver": 4},
    "nodes": {"worker": 3, "actor": 3, "controller": 2, "broker": 1, "driver": 5, "node": 3, "store": 2},
}
PAUSED = {"worker": 2, "actor": 2, "controller": 2, "broker": 2, "driver": 3, "gcs": 3, "raylet": 3}
CONSOLES: dict[ConsoleKind, int] = {"pipe": 2, "terminal": 2, "nohup": 1}
PAUSE_SECONDS = 90.0
"""Longer than Ray waits for a raylet, and raypipe for an actor."""
SHORT_PAUSE_SECONDS = 3.0
"""Pauses of `CI_SEEDS`."""
SLOW_DISK_SHARE = 0.25
"""Share of the seeds whose disk is slow: every sync takes `SYNC_SECONDS` longer."""
SYNC_SECONDS = 0.08
MAX_LOST_NODES = 2
"""Of three nodes: one worker fits on the last."""
WHAT = ("asked", "checkpoint", "scored", "weights", "predictions", "ended")
CI_SEEDS = (390, 21386, 61772)
"""On nodes they kill every kind of process, at every kind of moment, pause one and close a console. All strikes come
before the last trial trains, so a late poll still finds the process. A test checks this."""
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
    """A fault at a moment."""

    at: Moment
    fault: str
    """`kill`, `pause` or `console`."""
    victim: str
    """Kind of process; kind of console."""
    choice: float
    """Which of several: a number in [0, 1)."""

    @property
    def kind(self) -> str:
        """Return the kind of fault, such as ``kill worker``."""
        return f"{self.fault} {self.victim}"

    @property
    def loses_node(self) -> bool:
        """Return whether a node may be lost by it: Ray gives up a raylet that does not answer."""
        return self.kind in ("kill node", "pause raylet")

    @property
    def may_end_driver(self) -> bool:
        """Return whether a driver may end by it, so that the same command must be given again."""
        return self.kind in ("console terminal", "pause gcs", "pause raylet", "pause driver")


@dataclass(frozen=True)
class Plan:
    """All that is done to one sweep."""

    strikes: tuple[Strike, ...]
    """In order of time."""
    slow_disk: bool = False
    pause_seconds: float = PAUSE_SECONDS

    @property
    def console(self) -> ConsoleKind | None:
        """Return the kind of console of all its drivers."""
        return next((strike.victim for strike in self.strikes if strike.fault == "console"), None)  # type: ignore[return-value]

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of its faults."""
        return [*(strike.kind for strike in self.strikes), *(["slow disk"] * self.slow_disk)]

    def __str__(self) -> str:
        strikes = ", ".join(f"{strike.kind} at {strike.at}" for strike in self.strikes)
        return strikes + ", slow disk" * self.slow_disk


def draw(seed: int, place: str, most: int = 3) -> Plan:
    """Draw one to `most` strikes, and whether the disk is slow."""
    rng = random.Random(f"{place} {seed}")
    strikes: list[Strike] = []
    for at in sorted(rng.sample(moments(), rng.randint(1, most))):
        strike = _draw_strike(rng, at, place)
        while not _fits(strike, strikes, place):
            strike = _draw_strike(rng, at, place)
        strikes.append(strike)
    pause = SHORT_PAUSE_SECONDS if seed in CI_SEEDS else PAUSE_SECONDS
    return Plan(tuple(strikes), slow_disk=rng.random() < SLOW_DISK_SHARE, pause_seconds=pause)


def _draw_strike(rng: random.Random, at: Moment, place: str) -> Strike:
    fault = _choose(rng, FAULTS)
    weights = {"kill": VICTIMS[place], "pause": PAUSED, "console": CONSOLES}[fault]
    return Strike(at, fault, _choose(rng, weights), rng.random())


def _choose(rng: random.Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _fits(strike: Strike, before: Sequence[Strike], place: str) -> bool:
    """Return whether a sweep can outlast a strike after others: it keeps a node, and has one kind of console."""
    if place == "nodes" and sum(s.loses_node for s in [*before, strike]) > MAX_LOST_NODES:
        return False
    return strike.fault != "console" or all(s.fault != "console" or s.victim == strike.victim for s in before)
