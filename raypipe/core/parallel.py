"""Run a function over many inputs, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from raypipe.core.errors import UserError

T = TypeVar("T")


def map_processes(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Generator[tuple[int, T | UserError], None, None]:
    """Call a function with each tuple of arguments, and yield results as they are ready.

    With one job, or one call, everything runs in this process. The caller may close the generator at any point, which
    waits for the running calls and cancels the others.

    Yields
    ------
    number, result
        Number of the call, and what it returned or the `UserError` that it raised.

    Raises
    ------
    UserError
        A process was killed.
    """
    if min(jobs, len(calls)) <= 1:
        for number, call in enumerate(calls):
            yield number, _call(function, call)
        return
    # spawn: a fork of a process with threads (BLAS, Ray) may hang.
    pool = ProcessPoolExecutor(min(jobs, len(calls)), mp_context=get_context("spawn"))
    try:
        numbers = {pool.submit(_call, function, call): number for number, call in enumerate(calls)}
        for future in as_completed(numbers):
            try:
                result = future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"one of {jobs} processes was killed: the memory is full, or the script lacks "
                    "'if __name__ == \"__main__\":'; run it again with fewer jobs (finished parts are kept)"
                ) from None
            yield numbers.pop(future), result
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T | UserError:
    try:
        return function(*arguments)
    except UserError as error:
        return error
