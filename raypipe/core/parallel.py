"""Run a function over many inputs, in this process or in several."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, TypeVar

from raypipe.core.errors import UserError

T = TypeVar("T")

_START = """
import sys
_, descriptor, package, *sys.path = sys.argv
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("raypipe", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["raypipe"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["raypipe"])
from raypipe.core.parallel import serve
serve(int(descriptor))
"""
"""Code of a worker: it imports this very package, wherever it is, and everything else from the path it is given."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_processes(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Generator[tuple[int, T | UserError], None, None]:
    """Call a function with each tuple of arguments, and yield results as they are ready.

    With one job, or one call, everything runs in this process. The caller may close the generator at any point, which
    waits for the running calls and cancels the others; after a Ctrl-C, it ends them.

    The processes import the function's module but neither the user's script nor modules beside it or in the working
    folder: a script needs no main guard, and a file named ``signal.py`` does no harm. So the function must be one of an
    installed package.

    Yields
    ------
    number, result
        Number of the call, and what it returned or the `UserError` that it raised.

    Raises
    ------
    UserError
        A process was killed.
    """
    count = min(jobs, len(calls))
    if count <= 1:
        for number, call in enumerate(calls):
            yield number, _call(function, call)
        return
    workers: list[_Worker] = []
    try:
        workers += [_Worker(count) for _ in range(count)]
        yield from _distribute(workers, function, calls)
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # the caller closes the generator, and not because of a Ctrl-C: the running calls may end
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.close()


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T | UserError:
    try:
        return function(*arguments)
    except UserError as error:
        return error


def _distribute(
    workers: list[_Worker], function: Callable[..., T], calls: Sequence[tuple[Any, ...]]
) -> Generator[tuple[int, T | UserError], None, None]:
    """Give each idle worker the next call, and yield results as they come."""
    waiting = iter(enumerate(calls))
    running: dict[Any, tuple[_Worker, int]] = {}
    for worker, (number, call) in zip(workers, waiting, strict=False):
        worker.send(function, call)
        running[worker.pipe] = worker, number
    while running:
        for pipe in wait(list(running)):
            worker, number = running.pop(pipe)
            result = worker.receive()
            following = next(waiting, None)
            if following is not None:
                worker.send(function, following[1])
                running[pipe] = worker, following[0]
            yield number, result


class _Worker:
    """A process that answers calls through a pipe. It ends when the pipe is closed, by death of this process too."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.pipe, other = Pipe()
        with other:
            # -P keeps the working folder off the path until the path is set; PYTHONPATH holds as for this process.
            package = str(Path(__file__).resolve().parents[1])
            command = [sys.executable, "-P", "-c", _START, str(other.fileno()), package, *_import_path()]
            with _blocked_interrupt():
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()])

    def send(self, function: Callable[..., Any], call: tuple[Any, ...]) -> None:
        """Start a call. A dead worker is noticed when its result is received."""
        data = pickle.dumps((function, call))
        try:
            self.pipe.send_bytes(data)
        except OSError:
            return

    def receive(self) -> Any:
        """Return the result of the call, or raise its exception.

        Raises
        ------
        UserError
            The process was killed.
        """
        try:
            data = self.pipe.recv_bytes()
        except (EOFError, OSError):
            raise UserError(
                f"one of {self._count} processes was killed, as happens when the memory is full; "
                "run it again with fewer jobs (finished parts are kept)"
            ) from None
        is_result, value = pickle.loads(data)
        if is_result:
            return value
        raise value

    def close(self) -> None:
        """Let the process end after its running call, and wait for it."""
        self.pipe.close()
        self.process.wait()


@contextlib.contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Let processes that are started in the block inherit a blocked SIGINT: a Ctrl-C must not break their imports."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _import_path() -> list[str]:
    """Return the path of this process without the working folder, and without the script's, which Python puts first."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    is_first = script is not None and Path(sys.path[0]).resolve() == Path(script).resolve().parent
    here = Path.cwd().resolve()
    return [entry for entry in sys.path[is_first:] if entry and Path(entry).resolve() != here]


def serve(descriptor: int) -> None:
    """Answer the calls that come through a pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all processes; the first one decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with Connection(descriptor) as pipe:
        while True:
            try:
                pipe.send_bytes(_answer(pipe.recv_bytes()))
            except (EOFError, OSError):
                return


def _answer(pickled: bytes) -> bytes:
    """Return the pickled result of a pickled call, or its exception with the traceback as a note."""
    try:
        function, arguments = pickle.loads(pickled)
        return pickle.dumps((True, _call(function, arguments)))
    except Exception as error:  # of any type: the caller gets it
        error.add_note("".join(traceback.format_exception(error)).rstrip())
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)  # an exception whose constructor takes other arguments can be pickled only
        except Exception:  # of any type: classes of errors say how they are pickled
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}\n{error.__notes__[-1]}")))
        return answer
