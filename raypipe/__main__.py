"""The command ``raypipe``, which is ``python -m raypipe`` too."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from raypipe.core.supported import unsupported

USAGE_STATUS, INTERRUPTED_STATUS = 2, 130


def main() -> None:
    """Run the command line.

    A Ctrl-C while it is imported, when nothing has been done, is one line, and so is one while Python ends; so is a
    system that raypipe does not run on.
    """
    if unsupported():
        print(f"raypipe: error: {unsupported()}", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _leave)  # an exception could break into an import anywhere
        from raypipe.cli.app import main as run
        from raypipe.core.interrupts import interrupt

        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        run()
    except KeyboardInterrupt:
        _leave()
    finally:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _leave)  # what Python does at its end would be broken into


def _leave(*_: object) -> NoReturn:
    os.write(2, b"raypipe: interrupted\n")
    os._exit(INTERRUPTED_STATUS)


if __name__ == "__main__":
    main()
