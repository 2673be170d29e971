"""A network distilled from an ensemble: its targets, its scores, and that it is what is shipped."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.cli.app import main
from raypipe.core.errors import UserError
from raypipe.ensembles.distillation import LABEL_SHARE, _StudentData, distill
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.methods import METHODS, Method
from raypipe.ensembles.weights import linear_rule
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.reporting.report import write_report
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import SupervisedTrainer
from tests.support.toys import ToyWindows, make_run, tiny
from tests.unit.conftest import Finished


@pytest.fixture(params=["values", "classes"])
def made(request, tmp_path) -> Finished:
    given: Finished = request.getfixturevalue(request.param)
    return Finished(RunStore.open(shutil.copytree(given.run.local, tmp_path / "run")), given.windows)


def test_the_student_learns_labels_and_predictions_of_search_subjects_only(made):
    run, windows = made.run, made.windows
    index = run.folds.search_index(windows.subjects)
    rng = np.random.default_rng(0)
    predictions = rng.dirichlet((1, 1), len(index)) if windows.classes else rng.normal(size=(len(index), 1))
    one = _StudentData(run.config(0), WindowLoader(windows), index, index[:0], fold=3)
    one.predictions_NO = np.full((len(windows), predictions.shape[1]), np.nan)
    one.predictions_NO[index] = predictions
    some = index[:5]
    given = one.targets(some, np.array([1, 2, 0, 1, 2])).numpy()
    if windows.classes:
        expected = LABEL_SHARE * np.eye(2)[windows.targets[some]] + (1 - LABEL_SHARE) * predictions[:5]
    else:
        mean = LABEL_SHARE * windows.targets[some] + (1 - LABEL_SHARE) * predictions[:5, 0]
        expected = (mean - one.centre) / one.scale
    np.testing.assert_allclose(given, expected, rtol=1e-5)
    targets = torch.cat([batch.y for batch in one.batches(1, lambda size: [])])
    assert torch.isfinite(targets).all()  # the rows of held-out windows, which are NaN here, are never read


def test_distilling_again_gives_the_same_network(made):
    run, windows = made.run, made.windows
    index = run.folds.search_index(windows.subjects)
    predictions = np.full((len(index), windows.n_outputs), 0.5)
    calls: list[tuple[int, int, str]] = []
    one, other = (
        distill(run, windows, Member(0), index, predictions, lambda *call: calls.append(call)).folds[0]
        for _ in range(2)
    )
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    best = run.result(0).best_epoch
    assert [call[:2] for call in calls] == 2 * [(epoch, best) for epoch in range(1, best + 1)]


def test_one_network_is_shipped_scored_and_reported(made, tmp_path):
    run, windows = made.run, made.windows
    plain = fit_ensemble(run, windows=windows, method="equal")
    fitted = fit_ensemble(run, windows=windows, method="equal", distilled=True)
    rows = fitted.table
    assert list(rows.index)[:2] == ["ensemble", "equal weights"] and "distilled" in rows.index
    assert rows.loc["ensemble", "held_out"] == plain.table.loc["ensemble", "held_out"]
    assert np.isnan(rows.loc["distilled", "oof"]) and np.isnan(rows.loc["distilled", "nested"])
    # It has learned what its teacher knows: far better than no EEG, and not far from the teacher.
    gain = rows["held_out"] - rows["held_out"].iloc[-1]
    assert gain["distilled"] / gain["ensemble"] > 0.7
    assert "One distilled network is shipped" in fitted.verdict
    fitted.save()
    loaded = Ensemble.load(run)
    assert loaded.distilled and len(loaded.merged.folds) == 1
    assert loaded.table.loc["distilled"].isna().any()
    bundle = load_ensemble(export_bundle(run, loaded, tmp_path / "bundle", windows=windows))
    assert len(bundle.module.members) == 1
    given = bundle.predict(windows.gather(fitted.held_out.windows))
    np.testing.assert_allclose(given, fitted.held_out.predictions, atol=1e-5)
    assert "One network with the configuration of trial" in (tmp_path / "bundle/README.md").read_text()
    page = re.sub(r'src="data:[^"]*"', "", html.unescape(Path(write_report(run)).read_text()))
    assert "distilled to the one network that is shipped" in page and "NaN" not in page and ">nan<" not in page


@pytest.mark.parametrize("method", ["ridge", "boosting", "greedy"])
def test_the_student_predicts_without_its_teachers_rule(made, tmp_path, method):
    run, windows = made.run, made.windows
    fitted = fit_ensemble(run, windows=windows, method=method, distilled=True)
    assert fitted.rule is None
    given = load_ensemble(export_bundle(run, fitted, tmp_path / "bundle", windows=windows)).predict(
        windows.gather(fitted.held_out.windows)
    )
    np.testing.assert_allclose(given, fitted.held_out.predictions, atol=1e-5)


def test_a_student_of_a_trial_that_was_left_out_is_shipped(made, tmp_path, monkeypatch):
    run, windows = made.run, made.windows
    best = run.ranked()[0].number
    others = lambda members: linear_rule(np.array([0.0, 0.5, 0.5]))  # noqa: E731 - all but the best
    monkeypatch.setitem(METHODS, "ridge", Method("ridge", "", others))
    fitted = fit_ensemble(run, windows=windows, method="ridge", distilled=True)
    assert best not in [member.trial for member in fitted.members] and best in fitted.trials
    export_bundle(run, fitted, tmp_path / "bundle", windows=windows)
    assert f"with the configuration of trial {best}," in (tmp_path / "bundle/README.md").read_text()


def test_a_shrunken_teacher_is_not_shrunk_again(values):
    run, windows = values.run, values.windows
    index = run.folds.search_index(windows.subjects)
    config = run.config(0).model_copy(update={"shrink": 0.5})
    one = _StudentData(config, WindowLoader(windows), index, index[:0], fold=3)
    perfect = one.centre + 0.5 * (windows.targets - one.centre)  # the label, drawn half-way to the mean
    one.predictions_NO = perfect[:, None].astype(np.float64)
    labels = (windows.targets[index[:9]] - one.centre) / one.scale
    np.testing.assert_allclose(one.targets(index[:9], None).numpy(), labels, atol=1e-5)


@pytest.mark.parametrize("steps", ["waiting", "deferred"])
def test_a_student_whose_loss_is_not_finite_is_one_line(values, monkeypatch, request, steps):
    """On a GPU, no step waits for its outcome, and one that is not finite moves nothing: the student is at random."""
    run, windows = values.run, values.windows
    index = run.folds.search_index(windows.subjects)
    real, epochs = SupervisedTrainer.loss_of, []
    broken = lambda self, raw, y: real(self, raw, y) * float("nan" if len(epochs) == 1 else 1)  # noqa: E731
    monkeypatch.setattr(SupervisedTrainer, "loss_of", broken)
    monkeypatch.setattr(run, "result", lambda number: None)  # no best epoch: all of the configuration's
    if steps == "deferred":
        request.getfixturevalue("deferred")
    with pytest.raises(UserError, match=r"^--distill: a student .* of trial 0 .* not finite in epoch 2; take.*$"):
        distill(run, windows, Member(0), index, np.full((len(index), 1), 0.5), lambda done, *_: epochs.append(done))
    assert epochs == [1]


def test_by_the_command_line(made, capsys):
    run = made.run
    with pytest.raises(SystemExit) as ended:
        main(["ensemble", str(run.local), "--method", "best", "--distill"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "One distilled network is shipped" in shown and "distilled into one network" in shown
    assert json.loads((run.local / "ensemble/ensemble.json").read_text())["soup"]["student"] is True


def test_a_student_of_a_pretrained_trial_is_refused(tmp_path):
    toy = ToyWindows()
    run = make_run(tmp_path / "run", toy)
    run.add_trial(0, tiny(model__name="vit", init__name="pretrained"))
    with pytest.raises(UserError, match=r"--distill: trial 0, .* started from a pretrained encoder"):
        distill(run, toy, Member(0), np.arange(4), np.zeros((4, 1)))
