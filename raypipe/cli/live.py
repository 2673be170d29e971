"""Write the predictions of a stream as they come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from raypipe.cli.terminal import LastingStream
from raypipe.core.errors import UserError
from raypipe.packaging.live import LivePredictor
from raypipe.packaging.stream import table_head, table_line
from raypipe.storage.local_path import local_path


def write_windows(live: LivePredictor, out: Path | None) -> None:
    """Write a line per window until the stream ends, Ctrl-C, or the output is closed; then a summary to standard error.

    Parameters
    ----------
    live
        The windows.
    out
        A new file; None for standard output.

    Raises
    ------
    UserError
        The file exists, or the stream cannot be read any more; then after the summary.
    """
    with _opened(out) as write:
        write(table_head(live.ensemble))
        _say(live.description() + "; Ctrl-C ends it")
        try:
            for window in live:
                if not write(table_line(live.ensemble, window)):
                    break
        except KeyboardInterrupt:
            pass
        finally:
            _say(live.summary())


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[Callable[[str], bool]]:
    """Yield a function that writes a line and returns whether there is a reader."""
    if out is None:
        yield _print
        return
    out = local_path(out, "a table is written", "name a file here, and copy it")
    try:
        file = out.open("x", encoding="utf-8")
    except FileExistsError:
        raise UserError(f"--out {out}: exists; name a new file") from None
    with file:

        def write(line: str) -> bool:
            file.write(line + "\n")
            file.flush()
            return True

        yield write


def _print(line: str) -> bool:
    print(line, flush=True)
    return sys.stdout.has_reader if isinstance(sys.stdout, LastingStream) else True


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
