"""Handle signals and hide warnings while the command line trains. The Python API does neither."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator
from types import FrameType

from raypipe.core.interrupts import interrupt
from raypipe.core.stop import StopRequest


@contextlib.contextmanager
def training_process() -> Iterator[StopRequest]:
    """Handle Ctrl-C and SIGTERM and hide warnings of libraries, for the duration of the block.

    While the work accepts a stop, the first Ctrl-C asks for one, so that the epochs under way are finished. A second
    one, or one at another time, raises KeyboardInterrupt, which ends the work at once. SIGTERM, which a cluster sends
    before it takes a machine away, counts as a Ctrl-C, and so does SIGHUP, which a terminal sends when it is closed.
    A signal that is ignored, as SIGHUP under ``nohup``, stays ignored.

    Yields
    ------
    StopRequest
        To be passed to the work.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and stop.is_set():
            return  # a terminal may send it more than once
        if not stop.accepted or stop.is_set():
            interrupt(number, frame)
            return
        stop.set()

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
