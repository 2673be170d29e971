"""An outer cross-validation on Ray: killed between two parts and in one, and the workers that all parts share."""

from __future__ import annotations

import pytest

from raypipe import CrossValidation, cross_validate
from raypipe.backend.worker_groups import WorkerGroups
from tests.support.callbacks import Recorder
from tests.support.plain import plain_cross_validation
from tests.support.sweeps import FLAGS, epochs_of, numbers

pytestmark = pytest.mark.ray

PARTS = {"outer": 3, "trials": 1, "folds": 2}


def test_a_cross_validation_killed_in_its_second_part_continues_with_the_same_numbers(
    toy, tmp_path, shared, light, monkeypatch
):
    plain = plain_cross_validation(toy / "space.py", toy / "store", tmp_path / "plain", **PARTS)
    where = tmp_path / "cv"
    command = ["sweep", toy / "space.py", "--data", toy / "store", "--run", where, *FLAGS, "--workers", 1]
    driver = shared.drive(*command, "--outer", 3, "--trials", 1, "--folds", 2)
    driver.wait_until(lambda: epochs_of(where / "part-2") >= 1, "an epoch of the second part")
    driver.kill()
    driver.finish()
    assert not (where / "part-3/trials/0000").exists()

    seen, started, start = Recorder(), [], WorkerGroups.__init__
    monkeypatch.setattr(WorkerGroups, "__init__", lambda self, *given: started.append(given) or start(self, *given))
    done = cross_validate(toy / "space.py", toy / "store", where, callback=seen, **light | PARTS)
    assert [numbers(run) for run in done.parts] == [numbers(run) for run in plain.parts]
    assert [(each.part, each.parts) for each in seen.of("on_part")] == [(1, 3), (2, 3), (3, 3)]
    assert len(seen.of("on_trial_end")) == 2, "the first part's trial had ended"
    assert len(started) == 1, "all parts share their workers"

    done.ensemble(method="equal")
    plain.ensemble(method="equal")
    assert done.predictions().equals(plain.predictions())
    assert CrossValidation(where).verdict == plain.verdict
