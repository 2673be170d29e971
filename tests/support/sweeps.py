"""Sweeps as child processes: started, watched, killed, and looked at when all is over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe import Run
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log
from tests.support.faults import inject, kill, ray_processes, session, title

# Computed one way, so that two runs can be compared to the bit; `auto` measures, and may choose either in either run.
HOW = {"stem": "fourier", "stack": "off"}
OPTIONS = {"trials": 3, "folds": 4, "workers": 2, "prune": False, **HOW}
FLAGS = ["--trials", 3, "--folds", 4, "--workers", 2, "--no-prune", "--stem", "fourier", "--stack", "off"]

ROOT = Path(__file__).parents[2]

PATIENCE = 240.0

# Ray's own; without their raylet they take up to a minute to end.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")


def wait_until(ready: Callable[[], object], what: str, patience: float = PATIENCE, pause: float = 0.02) -> object:
    """Look again and again until `ready` is true, every `pause` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(pause)  # between two looks at a condition
    raise AssertionError(f"waited in vain for {what}")


def answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Driver:
    """``raypipe ARGUMENTS`` as a child process with a session of its own, in which all that it starts is found."""

    def __init__(self, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        # Not a pipe, which would stay open with whatever outlives the driver.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.child = subprocess.Popen(
            [sys.executable, "-m", "raypipe", *map(str, arguments)],
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"} | dict(env or {}),
        )

    def processes(self) -> list[int]:
        """Ids of what it started, and of itself; also after its end."""
        return session(self.child.pid)

    def named(self, *names: str) -> list[int]:
        """Ids of the processes that run actors of these classes."""
        return ray_processes(self.processes(), *names)

    def kill(self, *pids: int) -> None:
        """SIGKILL these, or the driver itself."""
        kill(*(pids or (self.child.pid,)))

    def finish(self, timeout: float = PATIENCE) -> str:
        """Wait for the end; what it printed."""
        self.child.wait(timeout)
        return self.said()

    def finish_interrupted(self) -> None:
        """Wait for the end that a Ctrl-C brings: its status, its one line, and nothing left but Ray's agents."""
        out = self.finish()
        assert self.child.returncode == 130, out
        assert out.endswith("raypipe: interrupted; the same command continues from here\n"), out
        assert "Traceback" not in out
        wait_until(lambda: not self.orphans(agents=False), "workers and actors to end with their driver")

    def said(self) -> str:
        """What it has printed so far."""
        return os.pread(self._said.fileno(), 10**6, 0).decode()  # the child has this position in the file too

    def orphans(self, *, agents: bool = True) -> list[str]:
        """Titles of what outlives it; with or without Ray's own agents."""
        left = [pid for pid in self.processes() if pid != self.child.pid]
        spared = [] if agents else ray_processes(left, *AGENTS)
        return [name for pid in left if pid not in spared and (name := title(pid))]

    def end(self) -> None:
        """SIGKILL whatever is left, and wait."""
        kill(*self.processes())
        self.child.wait()


def injected(folder: Path, after: Mapping[str, str]) -> dict[str, str]:
    """Do as `inject`, for code that imports from the tests."""
    return {"PYTHONPATH": f"{inject(folder, after)['PYTHONPATH']}:{ROOT}"}


def tracing() -> dict[str, str]:
    """For `Hooks`: every epoch that a fold begins, repeated ones too, leaves a line that `traced` reads."""
    return {"raypipe.trial.fold_runner": "import tests.support.sweeps as t; t.trace(module.FoldRunner)"}


class Gate:
    """Have every fold of a sweep, and pretraining, wait before an epoch until the test lets it train on.

    Parameters
    ----------
    folder
        By whose files the processes of the sweep and the test understand each other.
    epochs
        Before which they wait.

    Attributes
    ----------
    hooks
        For `Hooks`.
    """

    def __init__(self, folder: Path, *epochs: int) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        held = {"raypipe.training.trainer": "SupervisedTrainer", "raypipe.pretraining.trainer": "Pretrainer"}
        self.hooks = {
            module: f"import tests.support.sweeps as t; t.hold(module.{trainer}, {str(folder)!r}, {epochs})"
            for module, trainer in held.items()
        }

    def wait(self, epoch: int, over: Callable[[], object] = lambda: None) -> None:
        """Wait until a fold waits here; fail where the sweep is `over` before."""
        wait_until(lambda: (self._folder / f"reached-{epoch}").exists() or over(), f"a fold to begin epoch {epoch}")
        assert (self._folder / f"reached-{epoch}").exists(), f"it was over before epoch {epoch}"

    def open(self, epoch: int) -> None:
        """Let the folds train this epoch."""
        (self._folder / f"open-{epoch}").touch()

    def shut(self) -> None:
        """Have the folds of the next sweep wait again."""
        for file in self._folder.iterdir():
            file.unlink()


def hold(trainer: Any, folder: str, epochs: tuple[int, ...]) -> None:
    """Have a class of trainers wait at a `Gate`."""
    step = trainer.step

    def gated_step(self: Any, batch: Any, n: int) -> float:
        epoch = self.epoch + 1
        gate = Path(folder, f"open-{epoch}")
        if epoch in epochs and not gate.exists():
            Path(folder, f"reached-{epoch}").touch()
            wait_until(gate.exists, f"{gate} to be there")
        return float(step(self, batch, n))

    trainer.step = gated_step


@dataclass(frozen=True)
class Begun:
    """An epoch that a fold began to train."""

    number: int
    fold: int
    epoch: int
    at: float
    """Unix time."""


def trace(share: Any) -> None:
    """Have `share.FoldRunner` leave a line for every epoch that a fold begins, in a file beside the run's folder."""
    run_epoch = share._run_epoch

    def traced_epoch(self: Any, trainers: list[Any], interrupted: Any) -> Any:
        lines = [f"{self.number} {t.fold} {t.epoch + 1} {time.time()}\n" for t in trainers if not t.stopped]
        handle = os.open(f"{self.run.where}.begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, "".join(lines).encode())
        os.close(handle)
        return run_epoch(self, trainers, interrupted)

    share._run_epoch = traced_epoch


def traced(run: Path) -> list[Begun]:
    """What `tracing` has left of a run, in order."""
    path = Path(f"{run}.begun")
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Begun(int(number), int(fold), int(epoch), float(at)) for number, fold, epoch, at in rows]


def epochs_of(run: Path | str, number: int = 0) -> int:
    """Return how many epochs of a trial are scored, of a run that may not be there yet."""
    return len(RunStore.open(run).history(number)) if RunStore.exists(run) else 0


def starts_of(run: Path | str, worker: str, number: int = 0) -> int:
    """Return how often a worker with these folds has started or resumed a trial."""
    if not RunStore.exists(run):
        return 0
    lines = read_log(RunStore.open(run).folder, number)
    return sum(f"{worker} on cpu" in line and ": folds" in line for line in lines)


def numbers(run: Run) -> dict[int, Any]:
    """Everything that must be the same: configurations, scores of every epoch, out-of-fold predictions."""
    store = run.store
    return {
        n: (store.config(n), [e.score for e in store.history(n)], store.oof(n).predictions.tolist())
        for n in store.numbers()
    }


def study_of(run: Run) -> Any:
    """The Optuna study of a local run."""
    import optuna

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(run.store.local / "study.journal"))
    )
    return optuna.load_study(study_name=None, storage=storage)
