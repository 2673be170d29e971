"""Send a message when a run ends, fails, is stopped or needs someone, by way of apprise.

An address may hold a password. It is kept in memory only, and no message shows it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

from raypipe.core.errors import InterruptedSweepError, UserError, first_line
from raypipe.core.shipped import install_command
from raypipe.core.text import one_line
from raypipe.storage.records import TrialResult
from raypipe.storage.remote import shell_quoted, without_settings
from raypipe.trial.callback import SweepCallback

NOTIFY_VARIABLE = "RAYPIPE_NOTIFY"
"""Environment variable with the addresses, separated by spaces."""
TIMEOUT_SECONDS = 20.0
"""Seconds that all messages may take together, after the run has been given back."""


class _Message(NamedTuple):
    """A message that is being sent."""

    work: threading.Thread
    sent: list[threading.Event]
    """One for each address, set when it has taken the message."""


class Notifier(SweepCallback, AbstractContextManager["Notifier"]):
    """Context manager that sends one message to each address when the block has ended, however it ends.

    It is also a callback, which sends a message at the first trial that fails and whenever a cluster is waited for.
    Messages that cannot be sent are one warning, and change nothing else.

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
        self._messages: list[_Message] = []
        self._has_failure = False

    def on_waiting(self, reason: str) -> None:
        """Send that the sweep waits for machines."""
        self._start(lambda: f"waiting for the cluster to grow: {one_line(reason)}")

    def on_trial_end(self, result: TrialResult) -> None:
        """Send that a trial has failed, of the first that does."""
        if result.state == "failed" and not self._has_failure:
            self._has_failure = True
            self._start(lambda: f"trial {result.number} failed: {one_line(result.reason)}; the run continues")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._start(lambda: self._text(error))
        end = time.monotonic() + self._timeout
        for message in self._messages:
            message.work.join(max(0.0, end - time.monotonic()))
        lacking = {number for each in self._messages for number, done in enumerate(each.sent, 1) if not done.is_set()}
        if lacking:
            failed = ", ".join(map(str, sorted(lacking)))
            with contextlib.suppress(Exception):
                self._warn(f"--notify: a message was not sent to address {failed} of {len(self._senders)}")

    def _start(self, text: Callable[[], str]) -> None:
        """Send a message in threads of its own; its text, too, is made there: a storage that hangs delays nothing."""
        if not self._senders:
            return
        sent = [threading.Event() for _ in self._senders]

        def send() -> None:
            title, body = f"raypipe: {one_line(without_settings(self._run))}", text()
            threads = [
                threading.Thread(target=_send, args=(sender, title, body, done), daemon=True)
                for sender, done in zip(self._senders, sent, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        work = threading.Thread(target=send, daemon=True)
        work.start()
        self._messages.append(_Message(work, sent))

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
