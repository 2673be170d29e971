"""Handle signals and hide warnings while the command line trains. The Python API does neither."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator

from raypipe.core.stop import StopRequest


@contextlib.contextmanager
def training_process() -> Iterator[StopRequest]:
    """Handle Ctrl-C and SIGTERM and hide warnings of libraries, for the duration of the block.

    While the work accepts a stop, the first Ctrl-C asks for one, so that the epochs under way are finished. A second
    one, or one at another time, raises KeyboardInterrupt, which ends the work at once. SIGTERM, which a cluster sends
    before it takes a machine away, counts as a Ctrl-C.

    Yields
    ------
    StopRequest
        To be passed to the work.
    """
    stop = StopRequest()

    def handle(number: int, frame: object) -> None:
        if not stop.accepted or stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
