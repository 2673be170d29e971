"""Contestants of benchmarks: that they leave out what they are said to, and how many cores and trials they ask for."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import checkpoint, handover, scale, sweep
from raypipe.backend.resources import divide_resources
from raypipe.core.options import parse_options
from raypipe.storage.trial_store import TrialStore
from raypipe.training import checkpoint as packing
from raypipe.training.trainer import SupervisedTrainer


class AskedError(Exception):
    """Ends a benchmark at its sweep."""


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


@pytest.mark.parametrize(
    ("script", "work", "workers"),
    [
        (handover, lambda folder: handover.swept(folder, 3), 2),
        (scale, lambda folder: scale.sweep_seconds(1, windows=60), 1),
        (sweep, lambda folder: sweep.by_raypipe(folder, 2), 2),
    ],
    ids=["handover", "scale", "sweep"],
)
@pytest.mark.parametrize("cores", [2, 16])
def test_a_larger_machine_runs_no_more_workers_and_trials_at_a_time(
    script, work, workers, cores, monkeypatch, tmp_path
):
    def asked(space, data, where, *, callback, **options):
        parsed = parse_options(options)
        raise AskedError(divide_resources(parsed, parsed.folds, [{"CPU": float(cores)}]))

    monkeypatch.setattr(script, "sweep", asked)
    with pytest.raises(AskedError) as found:
        work(tmp_path)
    assert found.value.args == ((workers, 1),)


def test_all_contestants_of_a_search_have_the_same_two_cores_and_only_these_are_counted(monkeypatch):
    taken = {1, 3, 4, 7}
    ticks = "cpu 999 0 0 999 0 0 0 0 0 0\n" + "".join(f"cpu{n} {n} 0 1 10 2 0 0 0 0 0\n" for n in range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: taken)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: taken.intersection_update(cores))
    monkeypatch.setattr(Path, "read_text", lambda path: ticks)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", "")
    sweep.take_cores()
    assert taken == {1, 3}
    assert sweep.processor_seconds() == (6.0, 30.0), "1 + 3 and a tick of the system each, and 12 idle ones"
    taken = {5}
    with pytest.raises(SystemExit, match="needs 2 cores"):
        sweep.take_cores()
