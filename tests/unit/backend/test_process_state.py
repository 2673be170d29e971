"""State of the caller's process: restored after a sweep, and a Ctrl-C that waits for a clean-up."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raypipe.backend.process_state import deferred_interrupt, restored_process_state, restored_signal_handlers


def test_variables_that_were_added_changed_and_removed_are_restored(monkeypatch):
    monkeypatch.setenv("RAYPIPE_TEST_A", "before")
    monkeypatch.setenv("RAYPIPE_TEST_B", "before")
    before = dict(os.environ)
    with restored_process_state():
        os.environ |= {"RAYPIPE_TEST_A": "changed", "RAYPIPE_TEST_C": "added"}
        del os.environ["RAYPIPE_TEST_B"]
    assert dict(os.environ) == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(ZeroDivisionError), restored_signal_handlers():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_ctrl_c_waits_for_the_end_of_a_clean_up():
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")
        done.append("not reached")
    assert done == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_the_clean_up_comes_before_the_ctrl_c():
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_in_another_thread_signals_are_left_alone():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with restored_process_state(), deferred_interrupt():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
