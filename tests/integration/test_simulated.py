"""A sweep without training (`benchmarks/crowd.py`): all but the workers is the real thing."""

from __future__ import annotations

import pytest

from raypipe import sweep
from raypipe.driver import _open, _options
from raypipe.logs import read_log
from raypipe.noise import read_noise
from raypipe.simulated import prepare_simulation, simulated
from raypipe.space import load_space
from raypipe.windows import WindowStore

pytestmark = pytest.mark.ray


def test_simulated_trials_end_like_any_and_are_in_the_study_once(tmp_path, toy, capfd):
    options = {"folds": 4, "workers": 1, "concurrent": 4, "cpus_per_worker": 0.25, "track": []}
    windows = WindowStore(toy / "store")
    run = _open(load_space(toy / "space.py"), windows, str(tmp_path / "run"), _options(options), None)
    prepare_simulation(run, windows, tmp_path / "packed", seconds=0.2)
    seen = []
    with simulated():
        sweep(
            toy / "space.py",
            toy / "store",
            tmp_path / "run",
            trials=10,
            watch=lambda *event: seen.append(event),
            **options,
        )
    results = run.results()
    assert [result.number for result in results] == list(range(10))
    assert {result.state for result in results} <= {"complete", "pruned"}
    assert {"pruned", "complete"} <= {result.state for result in results}
    assert sorted(news["number"] for kind, news in seen if kind == "end") == list(range(10))
    assert len(run.oof(0).windows) == len(run.folds.search_index(windows.subjects))
    assert run.checkpoints(0, 0) == []
    told = read_noise(run.folder)
    assert "Configuration for experiment" in told, "what Tune prints in the driver"
    assert "SimulatedSlot " in told, "what Ray's processes print"
    printed = capfd.readouterr()
    assert not [word for word in ("Configuration for", "SimulatedSlot") if word in printed.out + printed.err]
    assert len([line for line in read_log(run.folder, 0) if "Z epoch " in line]) == len(run.history(0))
