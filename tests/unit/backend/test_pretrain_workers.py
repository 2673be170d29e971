"""What is made of workers' errors; no Ray is started."""

from __future__ import annotations

import signal
import threading

import pytest
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from raypipe.backend.pretrain_workers import LIVES, PretrainWorkers, _Patient, error_line, is_permanent
from raypipe.core.errors import NonFiniteError, UserError


def died(*causes: Exception) -> WorkerGroupError:
    wrapped = [
        UserExceptionWithTraceback(cause, f"Traceback:\n  ...\n{type(cause).__name__}: {cause}") for cause in causes
    ]
    return WorkerGroupError("...", dict(enumerate(wrapped)))


@pytest.mark.parametrize("cause", [UserError("other data"), NonFiniteError("no number")])
def test_what_would_happen_again_ends_pretraining(cause):
    error = died(RuntimeError("Connection closed by peer"), cause)
    assert is_permanent(error) is cause
    assert _Patient(FailureConfig(LIVES)).make_decision(error) is FailureDecision.RAISE


def test_workers_that_died_otherwise_are_started_again_but_not_for_ever():
    error = died(RuntimeError("Connection closed by peer"))
    policy = _Patient(FailureConfig(LIVES))
    decisions = [policy.make_decision(error) for _ in range(LIVES + 1)]
    assert decisions == [FailureDecision.RETRY] * LIVES + [FailureDecision.RAISE]
    assert is_permanent(error) is None
    assert error_line(error) == "RuntimeError: Connection closed by peer"
    assert error_line(ValueError("one\ntwo")) == "one"


def test_a_ctrl_c_while_the_workers_are_waited_for_does_not_make_them_seem_gone():
    """Else Ray would be left while they are still waited for, and it would end the process without a word."""
    waits, interrupted, goes_on = threading.Event(), threading.Event(), threading.Event()

    def interrupt(*_):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    class Trainer:
        def fit(self):
            waits.wait(60)
            # Repeated: CPython misses a signal that arrives between its last check and the lock's system call.
            while not interrupted.wait(0.1):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            goes_on.wait(60)
            raise RuntimeError("killed")

    before = signal.signal(signal.SIGINT, interrupt)
    going = PretrainWorkers.__new__(PretrainWorkers)
    going._start(Trainer())
    try:
        with pytest.raises(KeyboardInterrupt):
            waits.set()
            going.over(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not going.over(0)
    goes_on.set()
    assert going.over(60)
    assert error_line(going.error) == "killed"
