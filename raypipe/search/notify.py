"""Send one message when a run ends, fails or is stopped, by way of apprise.

An address may hold a password. It is kept in memory only, and no message shows it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from raypipe.core.errors import InterruptedSweepError, UserError, first_line
from raypipe.core.shipped import install_command
from raypipe.core.text import one_line
from raypipe.storage.remote import shell_quoted, without_settings

NOTIFY_VARIABLE = "RAYPIPE_NOTIFY"
"""Environment variable with the addresses, separated by spaces."""
TIMEOUT_SECONDS = 20.0
"""Seconds that all messages may take together, after the run has been given back."""


class Notifier(AbstractContextManager["Notifier"]):
    """Context manager that sends one message to each address when the block has ended, however it ends.

    A message that cannot be sent is one warning, and changes nothing else.

    Parameters
    ----------
    addresses
        URLs as apprise has them, such as ``ntfy://topic``; empty for no message.
    run
        The run that the block drives.
    warn
        Called with the warning.
    summary
        Returns the state of the run that has ended, in one line.
    timeout
        Seconds that all messages may take.

    Raises
    ------
    UserError
        apprise is not installed, or does not know the form of an address. The address is not shown.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        run: str,
        warn: Callable[[str], object],
        summary: Callable[[], str],
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._run, self._warn, self._summary, self._timeout = run, warn, summary, timeout
        self._senders = _senders(addresses)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._senders:
            return
        sent = [threading.Event() for _ in self._senders]

        def send(text: Callable[[], str]) -> None:
            title, body = f"raypipe: {one_line(without_settings(self._run))}", text()
            threads = [
                threading.Thread(target=_send, args=(sender, title, body, done), daemon=True)
                for sender, done in zip(self._senders, sent, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        work = threading.Thread(target=send, args=(lambda: self._text(error),), daemon=True)
        work.start()  # the state is read there too: a storage that hangs delays nothing
        work.join(self._timeout)
        failed = [str(number) for number, done in enumerate(sent, 1) if not done.is_set()]
        if failed:
            with contextlib.suppress(Exception):
                self._warn(f"--notify: no message was sent to address {', '.join(failed)} of {len(sent)}")

    def _text(self, error: BaseException | None) -> str:
        resume = f"continue with: raypipe resume {shell_quoted(without_settings(self._run))}"
        if error is None:
            try:
                return one_line(self._summary())
            except Exception:
                return "ended; its state could not be read"
        if isinstance(error, InterruptedSweepError | KeyboardInterrupt):
            return f"stopped before its end; {resume}"
        kind = "" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: "
        return f"failed: {kind}{one_line(first_line(error))}"


def _senders(addresses: Sequence[str]) -> list[Any]:
    """Return an object of apprise for each address; raises as `Notifier`."""
    if not addresses:
        return []
    try:
        import apprise
    except ImportError:
        raise UserError(f"--notify: apprise is not installed; {install_command('notify')}") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines may show addresses
    senders = []
    for number, address in enumerate(addresses, 1):
        sender = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False, app_id="raypipe"))
        if not sender.add(address):
            raise UserError(
                f"--notify: address {number} of {len(addresses)} has no form that apprise knows; such as ntfy://TOPIC"
            )
        senders.append(sender)
    return senders


def _send(sender: Any, title: str, body: str, done: threading.Event) -> None:
    with contextlib.suppress(Exception):
        if sender.notify(title=title, body=body):
            done.set()
