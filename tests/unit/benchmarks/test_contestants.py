"""Contestants of benchmarks: that they leave out what they are said to."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import checkpoint
from raypipe.storage.trial_store import TrialStore
from raypipe.training import checkpoint as packing
from raypipe.training.trainer import SupervisedTrainer


@pytest.fixture
def made(monkeypatch):
    """Return, of each contestant of the benchmark of checkpoints, what it has made for them."""
    now, each = Counter(), []
    epochs_of = checkpoint.epochs_of

    def count(owner, name):
        call = getattr(owner, name)

        def counted(*given):
            now[name] += 1
            return call(*given)

        monkeypatch.setattr(owner, name, counted)

    def contestant(*given):
        now.clear()
        found = epochs_of(*given)
        each.append(set(now))
        return found

    count(SupervisedTrainer, "state_dict")
    count(packing, "dumps")
    count(TrialStore, "write_checkpoint")
    monkeypatch.setattr(checkpoint, "epochs_of", contestant)
    return each


def test_the_epochs_without_checkpoints_make_none(made, capsys):
    sizes = {"folds": 2, "windows": 32, "channels": 4, "epochs": 1, "rounds": 2}
    checkpoint.main([word for name, value in sizes.items() for word in (f"--{name}", str(value))])
    every = {"state_dict", "dumps", "write_checkpoint"}
    assert made == [every, set(), every, set()]
    assert "an epoch with checkpoints / without" in capsys.readouterr().out
