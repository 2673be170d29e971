"""One disturbed run: played, and compared with the undisturbed one."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypipe.storage.run_store import RunStore
from tests.chaos.plan import EPOCHS, FLAGS, FOLDS, SOURCE, TRIALS, Strike
from tests.support.faults import kill
from tests.support.plain import plain_sweep
from tests.support.rays import OwnRay, SharedRay
from tests.support.sweeps import Driver, traced, tracing
from tests.support.toys import ToyWindows, write_store
from tests.support.waiting import wait_until

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
    """The kills of one run, and what they cost."""

    kills: list[str] = field(default_factory=list)
    """What was killed."""
    repeated: list[int] = field(default_factory=list)
    """For each kill, how many epochs the fold that lost most had to begin again."""
    work: list[int] = field(default_factory=list)
    """For each kill, epochs of single folds that were begun again."""
    seconds: float = 0.0


def play(place: OwnRay | SharedRay, folder: Path, name: str, strikes: Sequence[Strike], suicides: int = 0) -> Played:
    """Drive a sweep to its end, whatever is killed meanwhile: the driver is started again by the same command.

    `suicides` is how often a driver is to kill itself, by faults that were armed in the place; then what was
    repeated is not counted.

    Raises
    ------
    AssertionError
        It did not end well, or left something behind.
    """
    run, played, times = folder / name, Played(), []
    command = ("sweep", folder / "space.py", "--data", folder / "store", "--run", run, *FLAGS)
    began = time.monotonic()
    drivers = [place.drive(*command)]
    finished: dict[str, int] = {}
    try:
        for strike in strikes:
            wait_until(lambda s=strike: s.at.reached(run) or _over(drivers[-1]), str(strike.at))
            finished |= _finished(run)
            if not _strike(place, drivers[-1], strike):
                break
            times.append(time.time())
            played.kills.append(strike.victim)
            if strike.victim == "driver":
                drivers[-1].child.wait()
                drivers.append(place.drive(*command))
        for _ in range(suicides):
            out = drivers[-1].finish()
            assert drivers[-1].child.returncode == -signal.SIGKILL, out
            drivers.append(place.drive(*command))
        out = drivers[-1].finish()
        assert drivers[-1].child.returncode == 0, out
        place.settle()
    except BaseException:
        place.end()
        raise
    played.seconds = time.monotonic() - began
    _check(run, finished)
    if not suicides:  # it is not known when workers and actors have killed themselves
        _count(run, times, played)
    return played


def _over(driver: Driver) -> bool:
    return driver.child.poll() is not None


def _strike(place: OwnRay | SharedRay, driver: Driver, strike: Strike) -> bool:
    """Kill the victim; return False where the sweep was over before."""
    if strike.victim == "driver":
        driver.kill()
        return True
    if strike.victim == "node":
        assert isinstance(place, SharedRay)
        place.lose_node(strike.choice)
        return not _over(driver)
    if strike.victim == "store":
        assert isinstance(place, SharedRay)
        place.kill_store()
        place.start_store()
        return not _over(driver)
    # One that has just been killed may not be back yet.
    found: Any = wait_until(lambda: _over(driver) or place.find(strike.victim), f"a {strike.victim} to kill")
    if found is True:
        return False
    kill(found[int(strike.choice * len(found))])
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
    assert sum(entry["op_code"] == CREATE for entry in log) == TRIALS
    told = Counter(e["trial_id"] for e in log if e["op_code"] == TELL and e["state"] in ENDED)
    assert sorted(told.values()) == [1] * TRIALS, f"trials told their end so often: {told}"
    store = RunStore.open(run)
    late = [b for b in traced(run) if b.at > (store.result(b.number) or _never(b.number)).finished]
    assert not late, f"trained after the trial had ended: {late}"


def _never(number: int) -> Any:
    raise AssertionError(f"trial {number} has no end")


def _count(run: Path, times: Sequence[float], played: Played) -> None:
    """Count the epochs that were begun again after each kill."""
    begun: Counter[tuple[int, int, int]] = Counter()
    again: list[Counter[tuple[int, int]]] = [Counter() for _ in times]
    for epoch in traced(run):
        key = epoch.number, epoch.fold, epoch.epoch
        begun[key] += 1
        if begun[key] > 1:
            after = [n for n, at in enumerate(times) if at <= epoch.at]
            assert after, f"{epoch} was begun again, and nothing had been killed"
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
            "result": (store.result(number) or _never(number)).model_dump(
                exclude={"run", "seconds", "finished", "files"}
            ),
        }
        for number in store.numbers()
    }


def differences(run: Path, reference: dict[int, Any]) -> list[str]:
    """List where a run's numbers are not the reference's."""
    found = numbers(run)
    if list(found) != list(reference):
        return [f"trials {list(found)}, not {list(reference)}"]
    return [f"trial {n}: {k}" for n, parts in reference.items() for k, part in parts.items() if found[n][k] != part]
