"""One disturbed run: played, and compared with the undisturbed one."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypipe.storage.run_store import RunStore
from tests.chaos.plan import EPOCHS, FLAGS, FOLDS, SOURCE, SYNC_SECONDS, TRIALS, Plan, Strike
from tests.support.faults import Pauses, kill, slow_disk
from tests.support.plain import plain_sweep
from tests.support.rays import OwnRay, SharedRay
from tests.support.sweeps import last_lines, traced, tracing
from tests.support.toys import ToyWindows, write_store
from tests.support.waiting import MAX_WAIT_SECONDS, WaitedInVainError, wait_until

OWN = {"seconds", "finished", "files", "run", "digest"}
"""Fields of a trial's result that each run has its own values of."""
ENDED = (1, 2, 3)  # COMPLETE, PRUNED, FAIL in Optuna's journal
CREATE, TELL = 4, 6


# In every process of a sweep: each epoch leaves a trace, and a lost node is not waited for long.
HOOKS = tracing() | {"raypipe.backend.worker_groups": "module.SHRINK_AFTER_SECONDS = 5.0"}
# Ray may have counted a node that has just gone; the workers' places are then waited for in vain.
ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}


def prepare(folder: Path) -> None:
    """Write the windows and the search space."""
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SOURCE)


def undisturbed(folder: Path) -> dict[int, Any]:
    """Return the numbers of the sweep without Ray."""
    plain_sweep(folder / "space.py", folder / "store", folder / "undisturbed", trials=TRIALS, folds=FOLDS)
    return numbers(folder / "undisturbed")


@contextlib.contextmanager
def place(kind: str, folder: Path) -> Iterator[OwnRay | SharedRay]:
    """Open the place of this name: ``alone``, or three ``nodes`` with a core each and a control store that is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    made = OwnRay(folder, env=ENV) if kind == "alone" else SharedRay(folder, (1, 1, 1), store="rocksdb", env=ENV)
    made.hooks.set(HOOKS)
    with made:
        yield made


@dataclass
class Played:
    """The faults of one run, and what they cost."""

    kinds: list[str] = field(default_factory=list)
    """Kinds of the strikes that came before the sweep was over."""
    repeated: list[int] = field(default_factory=list)
    """For each strike, how many epochs the fold that lost most had to begin again."""
    work: list[int] = field(default_factory=list)
    """For each strike, epochs of single folds that were begun again."""
    ends: list[str] = field(default_factory=list)
    """Last lines of the drivers that a fault ended, and after which the same command was given again."""
    seconds: float = 0.0

    def costs(self) -> list[tuple[str, int, int]]:
        """Return kind, `repeated` and `work` of each strike, where these were counted."""
        return list(zip(self.kinds, self.repeated, self.work, strict=False))


def play(place: OwnRay | SharedRay, folder: Path, name: str, plan: Plan, suicides: int = 0) -> Played:
    """Drive a sweep to its end, whatever happens meanwhile: a driver that has died is started again.

    `suicides` is how often a driver is to kill itself, by faults that were armed in the place; then what was
    repeated is not counted.

    Raises
    ------
    AssertionError
        It did not end well, or left something behind.
    WaitedInVainError, TimeoutExpired
        It hangs.
    """
    began = time.monotonic()
    if plan.slow_disk:
        place.hooks.set(HOOKS | slow_disk(SYNC_SECONDS))
    run = folder / name
    command = ("sweep", folder / "space.py", "--data", folder / "store", "--run", run, *FLAGS)
    drama = _Drama(place, run, command, plan)
    try:
        for strike in plan.strikes:
            if not drama.strike(strike):
                break
        for _ in range(suicides):
            drama.restart_after(-signal.SIGKILL)
        drama.finish()
        place.settle()
    except BaseException:
        place.end()
        raise
    finally:
        drama.pauses.end()
        if plan.slow_disk:
            place.hooks.set(HOOKS)
    played = drama.played
    played.seconds = time.monotonic() - began
    _check(run, drama.finished)
    if not suicides:  # it is not known when workers and actors have killed themselves
        _count(run, drama.times, played)
    return played


class _Drama:
    """The drivers of one run, one after another, and what befalls them."""

    def __init__(self, place: OwnRay | SharedRay, run: Path, command: tuple[object, ...], plan: Plan) -> None:
        self.place, self.run, self.command, self.plan = place, run, command, plan
        self.played, self.pauses = Played(), Pauses()
        self.times: list[float] = []
        self.finished: dict[str, int] = {}
        self._ends_allowed = 0
        self._max_seconds = MAX_WAIT_SECONDS + 2 * plan.pause_seconds
        self._drive()

    def _drive(self) -> None:
        self.driver = self.place.drive(*self.command, console=self.plan.console)

    def strike(self, strike: Strike) -> bool:
        """Wait for the moment, and do it; return False where the sweep is over before."""
        self._wait(lambda: strike.at.reached(self.run), str(strike.at))
        self.finished |= _finished(self.run)
        self._ends_allowed += strike.may_end_driver
        if self._over() or not self._do(strike):
            return False
        self.times.append(time.time())
        self.played.kinds.append(strike.kind)
        if strike.kind == "kill driver":
            self.driver.child.wait()
            self._drive()
        return True

    def _wait(self, ready: Callable[[], object], what: str) -> Any:
        """Wait until something is so, or the sweep is over; start drivers again that were ended by faults."""
        try:
            return wait_until(lambda: ready() or self._over(), what, self._max_seconds)
        except WaitedInVainError as error:
            error.add_note(last_lines(self.driver.output()))
            raise

    def _over(self) -> bool:
        """Return whether the sweep is over; start its driver again if a fault has ended it."""
        if not (status := self.driver.child.poll()):
            return status is not None
        if not self._ends_allowed:
            return True  # `finish` shows its status
        self._ends_allowed -= 1
        self.restart_after(status)
        return False

    def restart_after(self, status: int) -> None:
        """Wait for the driver to end with this status, and give the same command again."""
        out = self.driver.finish(self._max_seconds)
        assert self.driver.child.returncode == status, out
        if status != -signal.SIGKILL:
            said = [line for line in out.splitlines() if line.startswith("raypipe: ")]
            self.played.ends.append(f"{status} ({said[-1] if said else 'said nothing'})")
            assert "Traceback" not in out, out
        self._drive()

    def finish(self) -> None:
        """Wait for the sweep to end well."""
        self._wait(lambda: False, "the sweep to end")
        out = self.driver.finish()
        assert self.driver.child.returncode == 0, out
        self.pauses.end()

    def _do(self, strike: Strike) -> bool:
        """Do what a strike is; return False where the sweep was over before."""
        if strike.fault == "console":
            self.driver.close_console()
            return not self._over()
        if strike.kind in ("kill node", "kill store"):
            assert isinstance(self.place, SharedRay)
            if strike.victim == "node":
                self.place.lose_node(strike.choice)
            else:
                self.place.kill_store()
                self.place.start_store()
            return not self._over()
        # One that has just been killed may not be back yet.
        found = self._wait(lambda: self.place.find(strike.victim), f"a {strike.victim} to {strike.fault}")
        if found is True:
            return False
        victim = found[int(strike.choice * len(found))]
        if strike.fault == "pause":
            self.pauses.pause(victim, self.plan.pause_seconds)
        else:
            kill(victim)
        return True


def _finished(run: Path) -> dict[str, int]:
    """Return the files of trials that have ended, and when they were written."""
    ended = [path.parent for path in (run / "trials").glob("*/result.json")]
    return {
        str(file): file.stat().st_mtime_ns for trial in ended for file in trial.glob("*.*") if file.suffix != ".part"
    }


def _check(run: Path, finished: dict[str, int]) -> None:
    """Check that nothing was reported or done twice, and that nothing is left behind."""
    again = [name for name, written in finished.items() if Path(name).stat().st_mtime_ns != written]
    assert not again, f"written again after the trial had ended: {again}"
    left = [str(p) for p in run.rglob("*") if p.name.endswith((".part", ".ckpt"))]
    assert not left, f"left behind: {left}"
    log = [json.loads(line) for line in (run / "study.journal").read_text().splitlines()]
    created = [entry for entry in log if entry["op_code"] == CREATE]
    assert len(created) == TRIALS
    told = Counter(e["trial_id"] for e in log if e["op_code"] == TELL and e["state"] in ENDED)
    told.update(n for n, entry in enumerate(created) if entry.get("state") in ENDED)  # of a study that was rebuilt
    assert sorted(told.values()) == [1] * TRIALS, f"trials told their end so often: {told}"
    store = RunStore.open(run)
    late = [b for b in traced(run) if b.at > (store.result(b.number) or _never(b.number)).finished]
    assert not late, f"trained after the trial had ended: {late}"


def _never(number: int) -> Any:
    raise AssertionError(f"trial {number} has no end")


def _count(run: Path, times: Sequence[float], played: Played) -> None:
    """Count the epochs that were begun again after each strike."""
    begun: Counter[tuple[int, int, int]] = Counter()
    again: list[Counter[tuple[int, int]]] = [Counter() for _ in times]
    for epoch in traced(run):
        key = epoch.number, epoch.fold, epoch.epoch
        begun[key] += 1
        if begun[key] > 1:
            after = [n for n, at in enumerate(times) if at <= epoch.at]
            assert after, f"{epoch} was begun again, and nothing had happened"
            again[after[-1]][epoch.number, epoch.fold] += 1
    assert len(begun) == TRIALS * FOLDS * EPOCHS
    played.repeated = [max(folds.values(), default=0) for folds in again]
    played.work = [sum(folds.values()) for folds in again]


def numbers(run: Path) -> dict[int, Any]:
    """Return all that must be the same to the bit: configurations, scores, out-of-fold predictions, weights, ends."""
    store = RunStore.open(run)
    return {
        number: {
            "config": store.config(number),
            "history": [epoch.model_dump(exclude={"seconds", "finished"}) for epoch in store.history(number)],
            "oof": [a.tobytes() for a in (lambda o: (o.windows, o.folds, o.predictions))(store.oof(number))],
            "weights": [store.folder.read(f"trials/{number:04d}/fold-{fold}.safetensors") for fold in range(FOLDS)],
            "result": (store.result(number) or _never(number)).model_dump(exclude=OWN),
        }
        for number in store.numbers()
    }


def differences(run: Path, reference: dict[int, Any]) -> list[str]:
    """List where a run's numbers are not the reference's."""
    found = numbers(run)
    if list(found) != list(reference):
        return [f"trials {list(found)}, not {list(reference)}"]
    return [f"trial {n}: {k}" for n, parts in reference.items() for k, part in parts.items() if found[n][k] != part]
