"""What each family brings: scores alone and left out, nested, and whether the signs favour the ensemble."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from raypipe.core.metrics import get_metric
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.terminal import render
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny, write_store


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Ensemble:
    root = tmp_path_factory.mktemp("families")
    toy = WindowStore(write_store(root / "store", ToyWindows(subjects=16)))
    run = make_run(root / "run", toy)
    for number, config in enumerate((tiny(), tiny(seed=1), tiny(seed=2), tiny(model__name="tcn", seed=3))):
        run.add_trial(number, config)
        assert run_trial(run, toy, number).state == "complete"
    ensemble = fit_ensemble(run, top=2, windows=toy)
    ensemble.save()
    return Ensemble.load(run)


def test_the_best_of_each_family_is_a_candidate(fitted):
    trials = {name.removeprefix("trial ") for name in fitted.diversity["members"]}
    assert "3" in trials and len(trials) in (2, 3)


def test_each_family_has_a_row_with_consistent_numbers(fitted):
    rows = {family.name: family for family in fitted.families}
    assert rows.keys() == {"conformer", "tcn"}
    assert rows["conformer"].trials == 3 and rows["tcn"].trials == 1 and rows["tcn"].best == "trial 3"
    assert sum(family.weight for family in fitted.families) == pytest.approx(1.0)
    for family in fitted.families:
        assert family.low < family.score < family.high
        assert -1 <= family.correlation <= 1
    assert rows["conformer"].correlation == pytest.approx(rows["tcn"].correlation)
    # The metric is an error: without a family it rises by the loss; alone a family is worse by the gain.
    whole = [family.without - family.loss for family in fitted.families]
    whole += [family.score - family.gain for family in fitted.families]
    np.testing.assert_allclose(whole, whole[0], atol=1e-12)
    assert [family.score for family in fitted.families] == sorted(family.score for family in fitted.families)


def test_families_are_shown_with_signs_that_favour_the_ensemble(fitted, capsys):
    from rich.console import Console

    console = Console(width=80, record=True)
    console.print(render(fitted))
    text = console.export_text()
    assert "loss" in text and "conformer" in text and "tcn" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_gain_without_an_interval_is_shown(fitted):
    from rich.console import Console

    few = [family.model_copy(update={"gain_low": None, "gain_high": None}) for family in fitted.families]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(replace(fitted, families=few)))
    assert all(f"{family.gain:+.3f}" in console.export_text(clear=False) for family in few)


def test_families_of_packages_and_files_can_be_told_apart_in_a_terminal(fitted):
    from rich.console import Console

    def shown(*names):
        console = Console(width=80, record=True, quiet=False, file=io.StringIO())
        families = [fitted.families[0].model_copy(update={"name": name}) for name in names]
        console.print(render(replace(fitted, families=families)))
        return console.export_text()

    text = shown("braindecode.models:EEGNeX", "braindecode.models:ShallowFBCSPNet", "tcn")
    assert "EEGNeX " in text and "ShallowFBC" in text and "braindecode" not in text and "…" not in text
    same = "".join(shown("one.py:Net", "two.py:Net").split())
    assert "one.py:Net" in same and "two.py:Net" in same


class PeopleWindows(ToyWindows):
    """The target is the person's."""

    def __init__(self, **options):
        super().__init__(**options)
        first = np.unique(self.subjects, return_index=True, return_inverse=True)
        self.targets = self.targets[first[1]][first[2]]


def test_rows_of_people_and_of_repeats_are_scored(tmp_path):
    """A person has a row in each repeat of the folds, and each network one prediction of it."""
    toy = WindowStore(write_store(tmp_path / "store", PeopleWindows(subjects=16, each=4)))
    run = make_run(tmp_path / "run", toy, repeats=2)
    for number, model in enumerate(("covariance", "linear")):
        run.add_trial(number, parse_config({"model/name": model}))
        assert run_trial(run, toy, number).state == "complete"
    assert run.info.level == "person"
    ensemble = fit_ensemble(run, windows=toy, method="equal")
    whole = [family.without - family.loss for family in ensemble.families]
    assert whole == pytest.approx([ensemble.table["nested"]["ensemble"]] * 2)


@pytest.mark.parametrize("windows", [ToyWindows, PeopleWindows])
@pytest.mark.parametrize("metric", ["balanced-accuracy", "log-loss", "auc"])
def test_classes_are_calibrated_and_decided_as_in_the_score_table(tmp_path, metric, windows):
    toy = WindowStore(write_store(tmp_path / "store", windows(subjects=20, each=4, classes=True)))
    folder = make_run(tmp_path / "run", toy).folder
    edit_record(folder, "run.json", {"metric": metric, "direction": get_metric(metric).direction})
    run = RunStore.open(tmp_path / "run")
    for number, model in enumerate(("covariance", "linear")):
        run.add_trial(number, parse_config({"model/name": model}))
        assert run_trial(run, toy, number).state == "complete"
    ensemble = fit_ensemble(run, windows=toy, method="equal")
    sign = get_metric(metric).sign
    whole = [family.without - sign * family.loss for family in ensemble.families]
    assert whole == pytest.approx([ensemble.table["nested"]["ensemble"]] * 2)


def test_a_method_that_needs_what_one_family_predicts_gives_way_to_equal_weights(tmp_path):
    """Without the only family that predicts variances, weights per window cannot be fitted."""
    toy = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=16)))
    run = make_run(tmp_path / "run", toy)
    for number, config in enumerate(
        (tiny(model__variance=True, loss__name="nll"), parse_config({"model/name": "linear"}))
    ):
        run.add_trial(number, config)
        assert run_trial(run, toy, number).state == "complete"
    ensemble = fit_ensemble(run, windows=toy, method="sample")
    whole, equal = (ensemble.table["nested"][name] for name in ("ensemble", "equal weights"))
    assert whole != pytest.approx(equal)
    rows = {family.name: family for family in ensemble.families}
    assert rows["linear"].without - rows["linear"].loss == pytest.approx(whole)
    assert rows["conformer"].without - rows["conformer"].loss == pytest.approx(equal)


def test_the_ensemble_is_the_score_tables_and_a_family_is_left_out_under_the_shipped_method(tmp_path, monkeypatch):
    """The score of a method on the people who chose it is optimistic: it is compared with its own only."""
    toy = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=16)))
    run = make_run(tmp_path / "run", toy)
    for number, model in enumerate(("covariance", "linear")):
        run.add_trial(number, parse_config({"model/name": model}))
        assert run_trial(run, toy, number).state == "complete"
    monkeypatch.setattr("raypipe.ensembles.choice.simplest_within_error", lambda *_: "equal")
    monkeypatch.setattr("raypipe.ensembles.nested_cv.choose_method", lambda *_: "best")
    ensemble = fit_ensemble(run, windows=toy)
    nested = ensemble.table["nested"]
    assert ensemble.method == "equal" and nested["ensemble"] != pytest.approx(nested["equal weights"])
    for family in ensemble.families:
        assert family.score - family.gain == pytest.approx(nested["ensemble"])
        assert family.without - family.loss == pytest.approx(nested["equal weights"])


def test_models_without_parameters_are_an_ensemble_of_their_own(tmp_path):
    """Those fitted in closed form have buffers only."""
    toy = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=16)))
    run = make_run(tmp_path / "run", toy, data=str(tmp_path / "store"))
    for number, model in enumerate(("covariance", "linear")):
        run.add_trial(number, parse_config({"model/name": model}))
        assert run_trial(run, toy, number).state == "complete"
    ensemble = fit_ensemble(run, windows=toy, method="equal")
    assert {family.name for family in ensemble.families} == {"covariance", "linear"}
    export_bundle(run, ensemble, tmp_path / "bundle")
    loaded = load_ensemble(tmp_path / "bundle")
    assert loaded.device.type == "cpu"
    index = ensemble.held_out.windows
    found = loaded.predict(toy.gather(index))
    np.testing.assert_allclose(found, ensemble.held_out.predictions, rtol=1e-5, atol=1e-5)


def test_one_family_has_no_table(tmp_path):
    toy = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=16)))
    run = make_run(tmp_path / "run", toy)
    run.add_trial(0, tiny())
    run_trial(run, toy, 0)
    assert fit_ensemble(run, windows=toy).families == []
