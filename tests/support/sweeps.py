"""Sweeps as child processes: start, watch and kill them, and read what they leave."""

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
from tests.support.consoles import Console, ConsoleKind
from tests.support.faults import inject, kill, ray_processes, session, title
from tests.support.waiting import MAX_WAIT_SECONDS, WaitedInVainError, wait_until

# Fixed, so that two runs are equal bit for bit: `auto` measures, and may choose differently in each run.
HOW = {"stem": "fourier", "stack": "off"}
OPTIONS = {"trials": 3, "folds": 4, "workers": 2, "prune": False, **HOW}
FLAGS = ["--trials", 3, "--folds", 4, "--workers", 2, "--no-prune", "--stem", "fourier", "--stack", "off"]

ROOT = Path(__file__).parents[2]

AGENTS = ("DashboardAgent", "RuntimeEnvAgent")
"""Ray's own agents; without their raylet they take up to a minute to end."""
SHOWN_LINES = 60
"""Last lines of a driver's output that a failed wait shows."""


def answers(host: str, port: int) -> bool:
    """Return whether a server listens at a port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Driver:
    """``raypipe ARGUMENTS`` as a child process, in a session of its own by which its processes are found.

    Its output goes to a file: directly, or by way of a console that can be closed.
    """

    def __init__(
        self, *arguments: object, env: Mapping[str, str] | None = None, console: ConsoleKind | None = None
    ) -> None:
        # Not a pipe, which would stay open as long as any process that outlives the driver.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._console = Console(console, self._output.fileno()) if console else None
        words = [sys.executable, "-m", "raypipe", *map(str, arguments)]
        streams = self._console.streams if self._console else {"stdout": self._output, "stderr": self._output}
        self.child = subprocess.Popen(
            self._console.command(words) if self._console else words,
            start_new_session=True,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"} | dict(env or {}),
            **streams,
        )
        if self._console:
            self._console.start()

    def close_console(self) -> None:
        """Close the driver's console, if it has one that is open."""
        if self._console:
            self._console.close()

    def processes(self) -> list[int]:
        """Return the ids of the driver and of what it has started, also after its end."""
        return session(self.child.pid)

    def named(self, *names: str) -> list[int]:
        """Return the ids of the processes that run actors of these classes."""
        return ray_processes(self.processes(), *names)

    def kill(self, *pids: int) -> None:
        """Send SIGKILL to these processes; to the driver itself if none is given."""
        kill(*(pids or (self.child.pid,)))

    def wait_until(self, ready: Callable[[], object], what: str, pause: float = 0.02) -> object:
        """Wait until `ready` returns something true; fail and show the output if the driver ends before."""
        return wait_while_it_runs(self.child, ready, what, self.output, pause)

    def finish(self, timeout: float = MAX_WAIT_SECONDS) -> str:
        """Wait for the end; return what the driver has printed."""
        try:
            self.child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            error.add_note(last_lines(self.output()))
            raise
        return self.output()

    def finish_interrupted(self) -> None:
        """Wait for the end after a Ctrl-C; check its status, its one line, and that only Ray's agents are left."""
        out = self.finish()
        assert self.child.returncode == 130, out
        assert out.endswith("raypipe: interrupted; the same command continues from here\n"), out
        assert "Traceback" not in out
        wait_until(lambda: not self.orphans(agents=False), "workers and actors to end with their driver")

    def output(self) -> str:
        """Return what the driver has printed so far."""
        return os.pread(self._output.fileno(), 10**6, 0).decode()  # the child has this position in the file too

    def orphans(self, *, agents: bool = True) -> list[str]:
        """Return the titles of the processes that outlive the driver, with or without Ray's own agents."""
        left = [pid for pid in self.processes() if pid != self.child.pid]
        spared = [] if agents else ray_processes(left, *AGENTS)
        return [name for pid in left if pid not in spared and (name := title(pid))]

    def end(self) -> None:
        """Send SIGKILL to all processes that are left, and wait for the driver."""
        kill(*self.processes())
        self.child.wait()
        self.close_console()


def wait_while_it_runs(
    child: subprocess.Popen[Any],
    ready: Callable[[], object],
    what: str,
    output: Callable[[], str],
    pause: float = 0.02,
) -> object:
    """Wait until `ready` returns something true, while a process runs; return that.

    Raises
    ------
    AssertionError
        The process has ended before, or the wait was in vain (`WaitedInVainError`); shows the end of its `output`.
    """

    def found() -> object:
        ended = child.poll() is not None  # before `ready`, for what the process has done last
        result = ready()
        assert result or not ended, f"ended with status {child.returncode}, waited for {what}; {last_lines(output())}"
        return result

    try:
        return wait_until(found, what, pause=pause)
    except WaitedInVainError as error:
        raise WaitedInVainError(f"{error}; {last_lines(output())}") from None


def last_lines(output: str) -> str:
    """Return the end of what a process has printed, for the message of a failed test."""
    lines = output.splitlines()[-SHOWN_LINES:]
    return "\n".join([f"its last {len(lines)} lines:", *lines]) if lines else "it has printed nothing"


def injected(folder: Path, after: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of `inject`, for code that imports from the tests."""
    return {"PYTHONPATH": f"{inject(folder, after)['PYTHONPATH']}:{ROOT}"}


def tracing() -> dict[str, str]:
    """Return code for `Hooks` that writes a line for every epoch a fold begins, repeated ones too; see `traced`."""
    return {"raypipe.trial.fold_runner": "import tests.support.sweeps as t; t.trace(module.FoldRunner)"}


class Gate:
    """Make every fold of a sweep, and pretraining, wait before an epoch until the test opens it.

    Parameters
    ----------
    folder
        Folder of the files by which the test and the processes of the sweep communicate.
    epochs
        Epochs before which they wait.

    Attributes
    ----------
    hooks
        Code for `Hooks`.
    """

    def __init__(self, folder: Path, *epochs: int) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        held = {
            "raypipe.training.trainer": ("SupervisedTrainer", "step"),
            "raypipe.training.closed_form": ("ClosedFormTrainer", "predict"),
            "raypipe.pretraining.trainer": ("Pretrainer", "step"),
        }
        self.hooks = {
            module: f"import tests.support.sweeps as t; t.hold(module.{trainer}, {method!r}, {str(folder)!r}, {epochs})"
            for module, (trainer, method) in held.items()
        }

    def reached(self, epoch: int) -> bool:
        """Return whether a fold waits, or has waited, before an epoch."""
        return (self._folder / f"reached-{epoch}").exists()

    def wait(self, epoch: int, driver: Driver) -> None:
        """Wait until a fold waits before an epoch; fail and show the driver's output if that ends before."""
        driver.wait_until(lambda: self.reached(epoch), f"a fold to begin epoch {epoch}")

    def open(self, epoch: int) -> None:
        """Let the folds train an epoch."""
        (self._folder / f"open-{epoch}").touch()

    def shut(self) -> None:
        """Make the folds of the next sweep wait again."""
        for file in self._folder.iterdir():
            file.unlink()


def hold(trainer: Any, method: str, folder: str, epochs: tuple[int, ...]) -> None:
    """Make a class of trainers wait at a `Gate`, in a method that each epoch calls; a fit has its epoch by then."""
    work = getattr(trainer, method)

    def gated(self: Any, *args: Any) -> Any:
        epoch = self.epoch + (method == "step")
        gate = Path(folder, f"open-{epoch}")
        if epoch in epochs and not gate.exists():
            Path(folder, f"reached-{epoch}").touch()
            wait_until(gate.exists, f"{gate} to be there")
        return work(self, *args)

    setattr(trainer, method, gated)


@dataclass(frozen=True)
class Begun:
    """An epoch that a fold began to train."""

    number: int
    fold: int
    epoch: int
    at: float
    """Unix time."""


def trace(runner: Any) -> None:
    """Make `FoldRunner` write a line for every epoch that a fold begins, to a file beside the run's folder."""
    run_epoch = runner._run_epoch

    def traced_epoch(self: Any, trainers: list[Any], interrupted: Any) -> Any:
        lines = [f"{self.number} {t.fold} {t.epoch + 1} {time.time()}\n" for t in trainers if not t.stopped]
        handle = os.open(f"{self.run.where}.begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, "".join(lines).encode())
        os.close(handle)
        return run_epoch(self, trainers, interrupted)

    runner._run_epoch = traced_epoch


def traced(run: Path) -> list[Begun]:
    """Return the epochs that `tracing` has recorded for a run, in order."""
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
    """Return all that must be equal: configurations, scores of every epoch, out-of-fold predictions."""
    store = run.store
    return {
        n: (store.config(n), [e.score for e in store.history(n)], store.oof(n).predictions.tolist())
        for n in store.numbers()
    }


def study_of(run: Run) -> Any:
    """Return the Optuna study of a local run."""
    import optuna

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(run.store.local / "study.journal"))
    )
    return optuna.load_study(study_name=None, storage=storage)


def same(run: Run, undisturbed: Run, trials: int) -> bool:
    """Return whether a run has so many trials, and their numbers are those of the run that nothing disturbed."""
    assert [(t.number, t.state.name) for t in study_of(run).trials] == [(n, "COMPLETE") for n in range(trials)]
    return numbers(run) == {n: found for n, found in numbers(undisturbed).items() if n < trials}


def cli(*arguments) -> str:
    command = [sys.executable, "-m", "raypipe", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    ).stdout
