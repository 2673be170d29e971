"""A sweep over models that are fitted in closed form and networks, killed within a fit and within a training."""

from __future__ import annotations

import pytest

from raypipe import Run
from tests.support.plain import plain_sweep
from tests.support.sweeps import FLAGS, Gate, numbers

pytestmark = pytest.mark.ray

SPACE = """'''Three families.'''
START = [{"model/name": name} for name in ("covariance", "conformer", "linear")]
def space(trial):
    name = trial.suggest_categorical("model/name", ["covariance", "linear", "conformer"])
    if name == "covariance":
        return {"model/geometry": "riemann", "model/prototypes": 1}
    if name == "linear":
        return {"model/predictors": "time-courses", "model/components": 2}
    small = {"model/filters": 4, "model/heads": 2, "model/depth": 1, "model/hidden": 8}
    return {"epochs": 3, "patience": 3, "batch_size": 16, **small}
"""


def test_a_sweep_over_families_that_was_killed_twice_ends_bit_for_bit_the_same(toy, tmp_path, shared):
    space, where = tmp_path / "space.py", tmp_path / "run"
    space.write_text(SPACE)
    expected = plain_sweep(space, toy / "store", tmp_path / "plain", trials=3)
    gate = Gate(tmp_path / "gate", 1, 2)
    shared.hooks.set(gate.hooks)
    words = ("sweep", space, "--data", toy / "store", "--run", where, *FLAGS, "--concurrent", 1)

    def kill_in(epoch):
        driver = shared.drive(*words)
        gate.wait(epoch, driver)
        driver.kill()
        driver.finish()
        shared.settle()
        gate.open(epoch)

    kill_in(1)  # of the covariance model, after its fit and before its predictions
    kill_in(2)  # of the Conformer
    driver = shared.drive(*words)
    driver.finish()
    assert driver.child.returncode == 0, driver.output()
    found = Run(where)
    assert numbers(found) == numbers(expected)
    assert found.trials.trained.tolist() == [1, 3, 1]
    first, second, third = (found.store.weights(number, 0) for number in range(3))
    for number, tensors in enumerate((first, second, third)):
        plain = expected.store.weights(number, 0)
        assert all(tensors[name].equal(tensor) for name, tensor in plain.items())
    ensemble = found.ensemble(top=3)
    assert len(ensemble.trials) >= 1
