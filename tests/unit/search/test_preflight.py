"""A search space is checked against the data before anything is started."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.data.target_base import TargetSpec
from raypipe.models.from_config import build_model
from raypipe.search.example_configs import example_configs
from raypipe.search.forecast import Forecast
from raypipe.search.preflight import check_space
from raypipe.search.sweep import sweep
from raypipe.trial.callback import SweepCallback
from tests.support.toys import TINY, ToyWindows, write_store


def space(**constants) -> SearchSpace:
    given = TINY | {name.replace("__", "/"): value for name, value in constants.items()}
    return SearchSpace(f"def space(trial):\n    return {given!r}\n", "space.py")


def check(chosen, windows):
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=3, seed=0)
    return check_space(chosen, windows, folds)


def short_windows(samples):
    toy = ToyWindows(subjects=20, each=2)
    toy.crop_samples = toy.window_samples = samples
    toy.sfreq = 100.0
    return toy


@pytest.mark.parametrize("samples", [80, 50, 40, 25])
def test_the_space_to_start_with_fits_the_windows_of_events(samples):
    """Kernels that are too long for windows give way to shorter ones, which a line says."""
    chosen, toy = load_space("all_families"), short_windows(samples)
    lines = check(chosen, toy)
    for config in example_configs(chosen):
        build_model(config.model, n_channels=4, n_times=samples, n_outputs=2, sfreq=100.0)
    assert len(lines) == {80: 2, 50: 2, 40: 3, 25: 5}[samples]
    used = "rate" if samples >= 39 else "short"
    windows = f"windows of {samples} samples ({samples / 100:g} s at 100 Hz) are too short for"
    assert f"{windows} model/kernels=paper of the shallow, which uses those of '{used}' instead" in lines
    assert check(chosen, short_windows(99)) == []


def test_a_network_that_windows_are_too_short_for_is_refused():
    message = r"^space.py: windows of 18 samples \(0.18 s at 100 Hz\) are too short for the shallow's kernel of 10"
    with pytest.raises(UserError, match=message):
        check(SearchSpace("def space(trial):\n    return {'model/name': 'shallow'}\n", "space.py"), short_windows(18))
    message = r"^all_families: windows of 20 samples .* too short for the eegnet's pools: it needs 21 samples or more$"
    with pytest.raises(UserError, match=message):
        check(load_space("all_families"), short_windows(20))


def only(**model) -> SearchSpace:
    given = {f"model/{name}": value for name, value in model.items()}
    return SearchSpace(f"def space(trial):\n    return {given!r}\n", "space.py")


def test_bands_and_covariances_that_windows_cannot_have_are_refused_before_a_sweep():
    toy = short_windows(100)
    message = r"^space.py: windows of 100 samples \(1 s at 100 Hz\) have no frequency in any band of model/bands=even$"
    for name in ("covariance", "linear"):
        with pytest.raises(UserError, match=message):
            check(only(name=name, bands="even", low=60.0, high=90.0), toy)
    check(only(name="linear", predictors="time-courses", components=4), toy)
    message = r"^space.py: model/name=covariance: covariances of 300 signals in 18 bands have 1,620,000 values"
    with pytest.raises(UserError, match=message):
        check(only(name="covariance", bands="even", low=2.0, high=38.0, n_bands=18, order=100), toy)
    check(only(name="covariance", bands="even", low=2.0, high=38.0, n_bands=18, order=50), toy)


def test_delays_and_intervals_as_long_as_windows_are_refused():
    """A copy that is delayed by a whole window is the signal itself, and the mean of a whole window is removed."""
    toy = short_windows(100)
    with pytest.raises(
        UserError, match=r"no longer than the delay of 100 samples of the last copy by model/order=3 an"
    ):
        check(only(name="covariance", order=3, lag=0.5), toy)
    check(only(name="covariance", order=3, lag=0.49), toy)
    with pytest.raises(UserError, match=r"^space.py: windows of .* have one interval at model/rate=1, .* more than 1$"):
        check(only(name="linear", predictors="time-courses", rate=1.0), toy)
    check(only(name="linear", predictors="time-courses", rate=1.02), toy)


def test_few_people_do_not_choose_epochs():
    with pytest.raises(UserError, match=r"^space.py: early_stop=fold: fold 0 has \d+ training subjects, .* needs 16"):
        check(space(early_stop="fold"), ToyWindows(subjects=20, each=2))
    check(space(early_stop="fold"), ToyWindows(subjects=40, each=2))
    check(space(), ToyWindows(subjects=20, each=2))


def test_a_class_of_one_person_chooses_no_epoch():
    toy = ToyWindows(subjects=40, each=2, classes=True)
    toy.targets = (toy.subjects == "s00").astype(int)
    folds = make_folds(toy.subjects, toy.targets, classes=False, n_folds=3, held_out=["s39"], seed=0)
    with pytest.raises(UserError, match=r"^space.py: early_stop=fold: fold \d cannot choose its epoch .* lack a class"):
        check_space(space(early_stop="fold"), toy, folds)


def test_parameters_of_another_kind_of_target_are_refused():
    with pytest.raises(UserError, match=r"^space.py: loss/name: 'huber' is for regression"):
        check(space(loss__name="huber"), ToyWindows(classes=True))
    check(space(loss__name="huber"), ToyWindows())
    with pytest.raises(UserError, match=r"^space.py: loss/smoothing: labels are smoothed for classes only"):
        check(space(loss__smoothing=0.1), ToyWindows())


@pytest.mark.parametrize("target", ["latency:target", "challenge1", "participants:age"])
def test_windows_are_not_shifted_where_targets_are_times(target):
    toy = ToyWindows()
    toy.manifest = SimpleNamespace(plan=TargetSpec(target=target))
    check(space(augment__name="noise"), toy)
    if target == "participants:age":
        check(space(augment__name="time-shift"), toy)
        return
    with pytest.raises(UserError, match=f"^space.py: augment/name=time-shift: the targets of '{target}' are times"):
        check(space(augment__name="time-shift"), toy)


class WarnedError(Exception):
    pass


class EndAtWarning(SweepCallback):
    def on_warning(self, line):
        raise WarnedError(line)

    def on_ray_start(self, address):
        raise AssertionError("Ray was started")


def test_a_sweep_names_parameters_without_effect_before_it_starts(tmp_path):
    store = write_store(tmp_path / "store", ToyWindows())
    file = tmp_path / "space.py"
    file.write_text(f"def space(trial):\n    trial.suggest_float('sam/rho', 0.01, 0.2)\n    return {TINY!r}\n")
    with pytest.raises(WarnedError, match=r"drawn without effect: sam/rho \(40 of 40 draws: sam/name=none\)"):
        sweep(file, store, tmp_path / "run", folds=3, callback=EndAtWarning())
    assert not (tmp_path / "run").exists()


def test_a_sweep_that_cannot_train_starts_nothing(tmp_path):
    store = write_store(tmp_path / "store", ToyWindows())
    file = tmp_path / "space.py"
    file.write_text(f"def space(trial):\n    return {TINY | {'early_stop': 'fold'}!r}\n")
    with pytest.raises(UserError, match=r"early_stop=fold: fold 0 has \d training subjects") as caught:
        sweep(file, store, tmp_path / "run", folds=3, callback=EndAtWarning())
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_plan_ends_with_the_warning():
    from raypipe.search.measurement import Cost

    cost = Cost(step=1.0, epoch=1.0, trial=1.0, checkpoint=1, result=1, weights=1, parameters=1)
    plan = Forecast(1, 3, 1, 1, 1.0, 0.0, "a machine", [cost], 1, warnings=["space.py: drawn without effect: sam/rho"])
    assert plan.render().splitlines()[-1] == "Warning: space.py: drawn without effect: sam/rho"


def test_a_driver_and_its_controllers_start_without_torch(tmp_path):
    """Its import takes a second of a processor and 0.1 GB in each process; only users' own networks need it here."""
    store = write_store(tmp_path / "store", ToyWindows())
    code = f"""
import sys
import raypipe.backend.group_controller, raypipe.backend.worker_groups, raypipe.search.sweep
from raypipe.core.search_space import load_space
from raypipe.data.splits import folds_of
from raypipe.data.window_store import WindowStore
from raypipe.search.preflight import check_space
windows = WindowStore({str(store)!r})
check_space(load_space("all_families"), windows, folds_of(windows, 3, 0.2, 0))
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
