"""A fold of a model that is fitted in closed form: what it learns from, its checkpoints, and what becomes of it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raypipe.core.errors import InterruptedEpochError, UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.soup import incompatibility
from raypipe.models.covariance import Covariance
from raypipe.models.ensemble import EnsembleModule
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.check import check_submission
from raypipe.packaging.submission import export_submission
from raypipe.training import checkpoint, closed_form, features
from raypipe.training.closed_form import ClosedFormTrainer, inner_parts
from raypipe.training.features import SharedFeatures
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.trial.failures import OUT_OF_MEMORY, Failure, retry_or_fail
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny, write_store

MODELS = {
    "covariance": {"model/name": "covariance", "model/shrinkage": 0.01},
    "everything": {
        "model/name": "covariance",
        "model/components": 3,
        "model/bands": "log",
        "model/n_bands": 2,
        "model/high": 20.0,
        "model/geometry": "riemann",
        "model/order": 2,
        "model/scale": "window",
    },
    "prototypes": {"model/name": "covariance", "model/prototypes": 2, "model/bands": "even", "model/n_bands": 1},
    "band power": {"model/name": "linear"},
    "time courses": {"model/name": "linear", "model/predictors": "time-courses", "model/components": 2},
    "bins": {
        "model/name": "linear",
        "model/predictors": "time-courses",
        "model/scale": "window",
        "model/bins": 4,
        "model/crops": 3,
    },
}


@pytest.fixture(params=[False, True], ids=["regression", "classes"])
def windows(request):
    return ToyWindows(subjects=12, each=8, channels=4, classes=request.param, spare=6)


def trainer(windows, fold=0, **params):
    config = parse_config({name.replace("__", "/"): value for name, value in params.items()})
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=3, seed=0)
    train, validation = folds.split(windows.subjects, fold)
    data = FoldData(config, WindowLoader(windows), train, validation, fold=fold)
    return ClosedFormTrainer(config, data, folds.groups(windows.subjects))


@pytest.mark.parametrize("name", MODELS)
def test_a_trial_that_was_killed_ends_bit_for_bit_the_same(tmp_path, windows, name):
    whole, killed = (make_run(tmp_path / where, windows) for where in ("whole", "killed"))
    for run in (whole, killed):
        run.add_trial(0, parse_config(MODELS[name]))
    asked: list[int] = []
    expected = run_trial(whole, windows, 0, interrupted=lambda: asked.append(0))
    assert expected.state == "complete" and expected.epochs == 1 and np.isfinite(expected.score)
    # It is asked before every batch whether to stop: here in the second of three folds.
    answers = itertools.chain([False] * (len(asked) // 2), itertools.repeat(True))
    with pytest.raises(InterruptedEpochError):
        run_trial(killed, windows, 0, interrupted=lambda: next(answers))
    assert killed.result(0) is None and run_trial(killed, windows, 0).score == expected.score
    np.testing.assert_array_equal(whole.oof(0).predictions, killed.oof(0).predictions)
    for fold in range(3):
        one, other = (run.weights(0, fold) for run in (whole, killed))
        assert all(torch.equal(one[key], other[key]) for key in one | other)


def test_a_time_course_shows_the_bump(windows):
    one = trainer(windows, **MODELS["time courses"]).run_epoch()
    if windows.classes:
        assert one.loss < 0.5
    else:
        targets = windows.targets[trainer(windows, **MODELS["time courses"]).data.validation]
        assert np.corrcoef(one.predictions[:, 0], targets)[0, 1] > 0.7


def test_a_checkpoint_holds_all_that_a_trial_leaves(windows):
    one, other = (trainer(windows, **MODELS["everything"]) for _ in range(2))
    outcome = one.run_epoch()
    state = checkpoint.loads(checkpoint.dumps(one.state_dict()))
    other.load_state_dict(state)
    assert other.epoch == 1 and state["initial"] == ""
    np.testing.assert_array_equal(other.predict(other.data.validation), outcome.predictions)
    with pytest.raises(ValueError, match="cannot continue"):
        trainer(windows, fold=1, **MODELS["everything"]).load_state_dict(state)


def test_held_out_windows_change_nothing_that_is_fitted(windows):
    one = trainer(windows, **MODELS["everything"])
    one.run_epoch()
    windows.x[one.data.validation] *= 100
    other = trainer(windows, **MODELS["everything"])
    other.run_epoch()
    assert all(torch.equal(tensor, other.weights()[name]) for name, tensor in one.weights().items())


def test_batches_do_not_change_numbers(windows, monkeypatch):
    one = trainer(windows, **MODELS["covariance"]).run_epoch()
    monkeypatch.setattr(features, "BATCH_VALUES", 1000)
    np.testing.assert_allclose(
        trainer(windows, **MODELS["covariance"]).run_epoch().predictions, one.predictions, rtol=1e-5
    )


def test_folds_share_features_in_which_nothing_is_fitted(windows):
    shared = SharedFeatures(np.arange(len(windows)))
    for name in ("covariance", "band power"):
        alone, together = trainer(windows, **MODELS[name]), trainer(windows, **MODELS[name])
        together.shared = SharedFeatures(np.arange(len(windows)))
        outcomes = alone.run_epoch(), together.run_epoch()
        np.testing.assert_allclose(outcomes[0].predictions, outcomes[1].predictions, rtol=1e-5)
    everything = trainer(windows, **MODELS["everything"])
    assert shared.of(everything.data, everything.model, everything.data.train, lambda: False) is None


def test_more_windows_than_fit_in_memory_are_left_out_and_said(windows, monkeypatch):
    one = trainer(windows, **MODELS["band power"])
    one.run_epoch()
    assert one.note.startswith(f"fold 0: 16 features of {len(one.data.train)} training windows with a penalty of ")
    monkeypatch.setattr(features, "MAX_FEATURE_VALUES", 16 * len(one.data.train) // 2)
    other = trainer(windows, **MODELS["band power"])
    other.run_epoch()
    half = len(one.data.train) // 2
    assert f"{half} of {len(one.data.train)} training windows, drawn by seed, with" in other.note


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_a_part_of_the_windows_has_the_classes_of_all_in_whatever_order_they_follow_each_other(n_classes):
    windows = ToyWindows(subjects=6, each=60, channels=2, classes=True)
    windows.targets = np.arange(len(windows)) % n_classes
    one = trainer(windows, **MODELS["covariance"])
    fit = closed_form._Fit(one.config, one.data, one.model, None, lambda: False)
    n = len(one.data.train)
    for share in (2, 3, 4, 6):
        counts = np.bincount(fit._sample(n // share).targets, minlength=n_classes)
        assert counts.sum() == n // share and counts.min() > 0.5 * n / share / n_classes


@pytest.mark.parametrize("bins", [0, 3])
def test_filters_that_know_the_people_who_are_left_out_do_not_choose_the_penalty(bins, monkeypatch):
    """Of noise, filters fitted on the targets make features that tell the classes of the same windows only."""
    windows = ToyWindows(subjects=12, each=20, channels=12, classes=not bins)
    windows.x = np.random.default_rng(1).standard_normal(windows.x.shape).astype(np.float32)
    params = MODELS["prototypes"] | ({"model/bins": bins} if bins else {})
    fitted, heads = [], []
    responses = closed_form.fit_responses
    monkeypatch.setattr(closed_form, "fit_responses", lambda *args: fitted.append(args) or responses(*args))
    for knows in (True, False):
        one = trainer(windows, **params)
        fit = closed_form._Fit(one.config, one.data, one.model, None, lambda: False)
        if knows:
            monkeypatch.setattr(fit, "_losses_without_parts", lambda parts: None)
        heads.append(fit.run(one.groups_N))
    assert len(fitted) == 1 + 5 + 1, "once for all windows, and once without each part"
    assert heads[1].penalty >= 3 * heads[0].penalty


def test_a_fit_on_crops_is_one_on_windows_that_are_cut_there(windows):
    params = MODELS["bins"] | {"model/crops": 4}
    one = trainer(windows, **params)
    head = closed_form._Fit(one.config, one.data, one.model, None, lambda: False).run(one.groups_N)
    cut = ToyWindows(subjects=12, each=32, channels=4, classes=bool(windows.classes))
    cut.x = np.stack([windows.x[:, :, start : start + 64] for start in (0, 2, 4, 6)], 1).reshape(-1, 4, 64)
    cut.subjects, cut.targets = np.repeat(windows.subjects, 4), np.repeat(windows.targets, 4)
    other = trainer(cut, **params)
    other.run_epoch()
    assert head.penalty > 0 and "crops of" in one_note(one, head)
    for name, tensor in other.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], tensor)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 8, 11])
def test_whatever_is_left_out_every_place_of_a_crop_is_taken(windows, most):
    one = trainer(windows, **MODELS["bins"] | {"model/crops": 4})
    fit = closed_form._Fit(one.config, one.data, one.model, None, lambda: False)
    n = len(one.data.train)
    some = fit._sample(n * 4 // most)
    assert set(some.offsets) == {0, 2, 4, 6} and len(some.numbers) <= n * 4 // most
    assert np.ptp(np.bincount(some.offsets // 2)) <= 1


def one_note(one, head):
    return closed_form._Fit(one.config, one.data, one.model, None, lambda: False).note(head)


def test_bins_follow_a_target_that_is_no_line_of_the_features_and_say_how_sure_they_are():
    windows = ToyWindows(subjects=24, each=16, channels=4)
    delay_N = np.random.default_rng(1).integers(0, 30, len(windows))
    time = np.arange(64)
    bump_NT = np.exp(-(((time - 15 - delay_N[:, None]) / 4) ** 2))
    noise_N = np.tile([0.3, 2.0], len(windows) // 2)[:, None, None]
    windows.x = noise_N * np.random.default_rng(2).normal(size=windows.x.shape) + 3 * bump_NT[:, None]
    windows.x = windows.x.astype(np.float32)
    windows.targets = (delay_N / 50).astype(np.float32)
    params = MODELS["time courses"] | {"model/scale": "window"}
    errors = []
    for bins in (0, 15):
        one = trainer(windows, **params, **{"model/bins": bins})
        found_NO = one.run_epoch().predictions
        residual_N = found_NO[:, 0] - windows.targets[one.data.validation]
        errors.append(np.std(residual_N) / np.std(windows.targets))
    assert errors[1] < 0.6 * errors[0] and found_NO.shape[1] == 2
    noisy_N = noise_N[one.data.validation, 0, 0] > 1
    assert np.mean(residual_N[noisy_N] ** 2) > np.mean(residual_N[~noisy_N] ** 2)
    assert np.mean(found_NO[noisy_N, 1]) > 1.1 * np.mean(found_NO[~noisy_N, 1]) > 0


def test_subjects_and_classes_count_as_other_trials_weight_them():
    windows = ToyWindows(subjects=12, each=8, channels=4, classes=True)
    windows.targets[:] = np.arange(96) % 8 == 0  # one in eight
    plain = trainer(windows, loss__balanced=False, **{k.replace("/", "__"): v for k, v in MODELS["band power"].items()})
    assert plain.run_epoch().predictions[:, 1].mean() == pytest.approx(1 / 8, abs=0.03)
    assert trainer(windows, **MODELS["band power"]).run_epoch().predictions[:, 1].mean() == pytest.approx(
        1 / 2, abs=0.1
    )


def test_shrinkage_of_predictions_applies():
    windows = ToyWindows(subjects=12, each=8)
    params = {key.replace("/", "__"): value for key, value in MODELS["time courses"].items()}
    one = trainer(windows, shrink=1.0, **params)
    np.testing.assert_allclose(one.run_epoch().predictions, one.data.mean, rtol=1e-5)


@pytest.mark.parametrize("classes", [False, True])
def test_parts_that_choose_the_penalty_divide_no_group(classes):
    groups_N = np.repeat([f"g{k}" for k in range(9)], 5)
    targets_N = np.arange(45) % 2 if classes else np.linspace(0, 1, 45)
    part_N = inner_parts(groups_N, targets_N, classes, 0, 1).numpy()
    assert sorted(set(part_N)) == [0, 1, 2, 3, 4]
    assert all(len(set(part_N[groups_N == group])) == 1 for group in set(groups_N))
    np.testing.assert_array_equal(part_N, inner_parts(groups_N, targets_N, classes, 0, 1))
    assert inner_parts(groups_N[:5], targets_N[:5], classes, 0, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module", params=[False, True], ids=["regression", "classes"])
def families(request, tmp_path_factory):
    """Return a run of a covariance model, a linear one and a Conformer, and its windows."""
    folder = tmp_path_factory.mktemp("families")
    toy = ToyWindows(subjects=12, each=8, channels=4, classes=request.param)
    store = WindowStore(write_store(folder / "store", toy))
    run = make_run(folder / "run", store, data=str(folder / "store"))
    configs = [*(parse_config(MODELS[name]) for name in ("everything", "prototypes", "time courses", "bins")), tiny()]
    for number, config in enumerate(configs):
        run.add_trial(number, config)
        run_trial(run, store, number)
    return SimpleNamespace(run=run, store=store, n=len(configs))


def test_members_of_all_families_are_shipped_as_one_module(families, tmp_path):
    ensemble = fit_ensemble(families.run, windows=families.store, top=families.n, method="equal")
    bundle = export_bundle(families.run, ensemble, tmp_path / "bundle", windows=families.store)
    loaded = load_ensemble(bundle)
    held = ensemble.held_out
    answers = loaded.predict(families.store.gather(held.windows), batch_size=7)
    np.testing.assert_allclose(answers, held.predictions, rtol=1e-5, atol=1e-5)
    zipped = export_submission({1: ensemble}, tmp_path / "submission.zip", windows={1: families.store})
    report = check_submission(zipped, bundle=bundle)
    assert [line.name for line in report.failures] == ["challenge 1: target and windows"], str(report)


def test_out_of_fold_predictions_are_those_of_the_module(families):
    from raypipe.ensembles.members import build_module, read_members
    from raypipe.storage.records import Member

    module = build_module(*read_members(families.run, families.store, [Member(0)], [1.0]))
    oof = families.run.oof(0)
    first = oof.windows[oof.folds == 0]
    with torch.no_grad():
        member = module.predict_members(torch.from_numpy(families.store.gather(first)))[0][0].numpy()
    np.testing.assert_allclose(member, oof.predictions[oof.folds == 0], rtol=1e-5, atol=1e-6)


def test_folds_share_features_that_are_not_fitted(monkeypatch):
    spec = {"kind": "regression", "n_channels": 4, "n_times": 64, "n_outputs": 1, "sfreq": 50.0}
    covariance = parse_config(MODELS["covariance"]).model.model_dump()
    power = parse_config(MODELS["band power"]).model.model_dump()
    fitted = parse_config(MODELS["everything"]).model.model_dump()
    member = {"trial": 0, "fold": 0, "weight": 0.25, "centre": 0.0, "scale": 1.0}
    models = [covariance, covariance, power, fitted, fitted, covariance | {"shrinkage": 0.5}]
    module = EnsembleModule(spec | {"members": [member | {"model": model} for model in models]})
    torch.manual_seed(0)
    for network in module.members:
        network.weight_OF.normal_()
    x_BCT, asked = torch.randn(5, 4, 64), []
    expected = torch.stack([network(x_BCT) for network in module.members])
    front = Covariance.front

    def counted(self, x, **options):
        asked.append(self)
        return front(self, x, **options)

    monkeypatch.setattr(Covariance, "front", counted)
    torch.testing.assert_close(module.predict_members(x_BCT)[0], expected)
    assert asked == [module.members[place] for place in (0, 3, 4, 5)]


def test_fits_are_never_averaged_and_a_student_is_a_network(families):
    assert "fitted in closed form" in incompatibility(families.run, 0, 0)
    from raypipe.ensembles.distillation import choose_student
    from raypipe.storage.records import Member

    assert choose_student(families.run, [Member(n) for n in range(families.n)]) == Member(4)
    with pytest.raises(UserError, match="no member is a network that can be trained"):
        choose_student(families.run, [Member(0), Member(2)])


def test_a_fit_that_has_no_memory_is_not_tried_again(families):
    failure = Failure(OUT_OF_MEMORY, "no memory left on the host")
    assert retry_or_fail(families.run, 0, failure, "process") is failure
