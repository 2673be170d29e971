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

    A Ctrl-C while it is imported, when nothing has been done, is one line; so is a system that raypipe does not run on.
    """
    if unsupported():
        print(f"raypipe: error: {unsupported()}", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _leave)  # an exception could break into an import anywhere
        from raypipe.cli.app import main as run

        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:
        _leave()


def _leave(*_: object) -> NoReturn:
    os.write(2, b"raypipe: interrupted\n")
    os._exit(INTERRUPTED_STATUS)


if __name__ == "__main__":
    main()
