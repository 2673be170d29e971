from __future__ import annotations

import pytest

from raypipe.core.stop import StopRequest


def test_a_stop_is_accepted_within_the_block_only():
    stop = StopRequest()
    assert not stop.accepted and not stop.is_set()
    with pytest.raises(ZeroDivisionError), stop.accepting():
        assert stop.accepted
        raise ZeroDivisionError
    assert not stop.accepted
    stop.set()
    assert stop.is_set()
