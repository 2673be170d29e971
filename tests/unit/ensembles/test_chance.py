"""The permutation test: uniform where there is nothing to find, and exchanges only what may be exchanged."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from scipy.stats import kstest

from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.levels import ScoredRows
from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.chance import MIN_ORDERS, chance_test, permute
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.storage.run_store import RunStore

PEOPLE, EACH = 12, 6
LONG = pytest.mark.long


def rows_of(targets, predictions, subjects, folds=None) -> ScoredRows:
    if predictions.ndim == 1:
        predictions = predictions[:, None]
    return ScoredRows(targets, subjects, np.zeros(len(targets), int) if folds is None else folds, predictions)


def null_rows(kind: str, rng) -> tuple[str, str, ScoredRows]:
    """Return metric, level and rows of a search that has found nothing, whatever its predictions look like."""
    if kind == "a value per person":
        return "nrmse", "person", rows_of(rng.normal(size=PEOPLE), rng.gamma(1.0, size=PEOPLE), np.arange(PEOPLE))
    if kind == "a class per person":
        p = rng.beta(0.5, 0.5, PEOPLE)
        return "brier", "person", rows_of(rng.permutation(PEOPLE) % 2, np.stack([1 - p, p], 1), np.arange(PEOPLE))
    subjects = np.repeat(np.arange(PEOPLE), EACH)
    own = rng.normal(size=PEOPLE)[subjects]  # people differ, and the predictions know by how much
    targets, predictions = own + rng.normal(size=len(own)), own + 0.3 * rng.normal(size=len(own))
    return "nrmse", "window", rows_of(targets, predictions, subjects)


@pytest.mark.parametrize("kind", ["a value per person", "a class per person", "a value per window"])
def test_p_is_uniform_where_there_is_nothing_to_find(kind):
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        metric, level, rows = null_rows(kind, rng)
        test = permute(metric, level, rows, 199, seed)
        found.append(test.p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_an_effect_is_found_with_the_smallest_p_there_is():
    targets = np.linspace(-1, 1, PEOPLE)
    test = permute("nrmse", "person", rows_of(targets, 0.9 * targets, np.arange(PEOPLE)), 999, 0)
    assert test.p == 1 / 1000 and test.error == pytest.approx(0.001, rel=0.01) and test.level == "person"
    assert "p = 0.001" in test.render() and "exact for the whole search" in test.render()
    flipped = permute("nrmse", "person", rows_of(targets, -0.9 * targets, np.arange(PEOPLE)), 999, 0)
    assert flipped.p == 1.0


def test_targets_stay_within_their_person_and_their_part():
    subjects = np.repeat(np.arange(PEOPLE), EACH)
    targets = subjects + np.tile(np.arange(EACH), PEOPLE) / 100
    by_person = permute("nrmse", "window", rows_of(targets, subjects.astype(float), subjects), 50, 0)
    np.testing.assert_allclose(by_person.null, by_person.score)  # predictions of the person alone say nothing more
    parts = np.arange(PEOPLE) // 6
    in_parts = permute(
        "nrmse", "person", rows_of(parts * 9.0 + np.arange(PEOPLE), parts * 9.0, np.arange(PEOPLE), parts), 50, 0
    )
    np.testing.assert_allclose(in_parts.null, in_parts.score)


def test_one_window_per_person_is_exchanged_between_people():
    targets = np.linspace(-1, 1, PEOPLE)
    assert permute("nrmse", "window", rows_of(targets, targets, np.arange(PEOPLE)), 99, 0).p == 0.01


def test_too_few_orders_are_one_line():
    for targets in (np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 2.0])):
        rows = rows_of(targets, np.stack([1 - targets, targets], 1), np.arange(len(targets)))
        with pytest.raises(UserError, match=f"different orders, and a test of chance needs {MIN_ORDERS}"):
            permute("auc" if len(targets) == 4 else "nrmse", "person", rows, 99, 0)


def test_the_command(classes, tmp_path, capsys):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fit_ensemble(run, windows=classes.windows, method="equal").save()
    with pytest.raises(SystemExit) as end:
        app.main(["chance", run.where, "--permutations", "200"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "AUC" in said and "shuffled within each person" in said and "of 200 permutations" in said


def test_classes_are_decided_as_by_the_verdict(decided):
    run = RunStore.open(decided)
    ensemble = Ensemble.load(run)
    held = ensemble.held_out
    with pytest.raises(UserError, match="--seed -1: must be 0 or more"):
        chance_test(run, seed=-1)
    found = chance_test(run, permutations=20)
    assert found.score == pytest.approx(ensemble.table.loc["ensemble", "held_out"])
    most_probable = score("balanced-accuracy", held.targets, np.eye(2)[held.predictions.argmax(1)])
    assert found.score != pytest.approx(most_probable)


def test_the_level_is_that_of_the_run(classes, tmp_path, monkeypatch):
    """Few held-out people may happen to have one class each, where the trials of the others have both."""
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fit_ensemble(run, windows=classes.windows, method="equal").save()
    assert run.info.level == "window"
    ensemble = Ensemble.load(run)
    held = ensemble.held_out
    ones = dataclasses.replace(held, targets=np.unique(held.subjects, return_inverse=True)[1] % 2)
    changed = dataclasses.replace(ensemble, held_out=ones)
    monkeypatch.setattr(Ensemble, "load", lambda run: changed)
    with pytest.raises(UserError, match="have 1 different orders"):
        chance_test(run)


def test_a_run_without_an_ensemble_is_one_line(twelve, capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["chance", twelve.where])
    assert end.value.code == 2 and "no ensemble yet" in capsys.readouterr().err


def families(rng, sizes=(3, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1)):
    """Return families' targets and predictions, which say nothing about one another, and each person's family."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    drawn = [rng.normal(size=len(sizes))[of] + 0.3 * rng.normal(size=len(of)) for _ in range(2)]
    return *drawn, dict(zip(range(len(of)), of.tolist(), strict=True))


def test_p_is_uniform_where_families_share_targets_and_predictions():
    found, alone = [], []
    for seed in range(200):
        targets, predictions, family = families(np.random.default_rng(seed))
        rows = rows_of(targets, predictions, np.arange(len(targets)))
        found.append(permute("nrmse", "person", rows, 199, seed, family).p)
        alone.append(permute("nrmse", "person", rows, 199, seed).p)
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(alone) <= 0.05) > 0.07  # people exchanged one by one


def test_groups_are_exchanged_whole_with_others_of_their_size():
    targets = np.array([0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0])
    group_of = dict(zip(range(7), "aabbccd", strict=True))
    test = permute("nrmse", "person", rows_of(targets, targets, np.arange(7)), 400, 0, group_of)
    assert test.groups == 4 and "their 4 groups that have equally many people" in test.render()
    assert len(np.unique(test.null.round(6))) <= 3 * 2 * 2**3  # orders of a, b and c, and of the two of each
    assert (test.null == test.score).any() and test.p > 1 / 401
    with pytest.raises(UserError, match="have 8 different orders"):
        permute("nrmse", "person", rows_of(targets[:4], targets[:4], np.arange(4)), 9, 0, group_of)


def test_an_undefined_score_has_no_p():
    rng = np.random.default_rng(0)
    two_of_three = rows_of(np.arange(10) % 2, rng.dirichlet(np.ones(3), 10), np.arange(10))
    with pytest.raises(UserError, match="AUC of these 10 people is undefined: a class is missing"):
        permute("auc", "person", two_of_three, 99, 0)
    constant = rows_of(np.c_[rng.normal(size=10), np.ones(10)], rng.normal(size=(10, 2)), np.arange(10))
    with pytest.raises(UserError, match="a value is the same for all"):
        permute("nrmse", "person", constant, 99, 0)


def test_orders_without_a_score_count_as_good():
    test = permute("nrmse", "person", rows_of(np.arange(12.0), np.arange(12.0), np.arange(12)), 9, 0)
    assert test.p == 0.1
    assert dataclasses.replace(test, null=np.full(9, np.nan)).p == 1.0


def with_offsets(seed, recordings, offset=1.0, people=8):
    """Return windows of noise and an offset of each block, in recordings of blocks, and the recording of each window.

    A block is the share of its second class, and its number of windows.
    """
    rng = np.random.default_rng(seed)
    subjects, names, targets, logits = [], [], [], []
    for person in range(people):
        for number, blocks in enumerate(recordings):
            for share, n in blocks:
                subjects += [f"p{person}"] * n
                names += [f"p{person}-{number}"] * n
                targets += (rng.permutation(n) < round(share * n)).astype(int).tolist()
                logits += (offset * rng.normal() + rng.normal(size=n)).tolist()
    p = 1 / (1 + np.exp(-np.array(logits)))
    return rows_of(np.array(targets), np.stack([1 - p, p], 1), np.array(subjects)), np.array(names)


def one_by_one(rows, rng) -> float:
    """Return p of windows that are exchanged one by one within each person, wherever they come from."""
    observed, null = score("auc", rows.targets, rows.predictions), []
    places = [np.flatnonzero(rows.subjects == subject) for subject in np.unique(rows.subjects)]
    for _ in range(39):
        shuffled = rows.targets.copy()
        for place in places:
            shuffled[place] = rng.permutation(rows.targets[place])
        null.append(score("auc", shuffled, rows.predictions))
    return (1 + np.sum(np.array(null) >= observed)) / 40


@pytest.mark.parametrize(
    ("recordings", "known"),
    [
        pytest.param([[(0, 20)], [(1, 20)]], True, id="a class in each recording"),
        pytest.param([[(0, 20)], [(1, 20)]], False, id="a class in each half", marks=LONG),
        pytest.param([[(0, 45)], [(1, 15)]], True, id="recordings of different length", marks=LONG),
        pytest.param([[(0, 10), (1, 10)] * 3], True, id="blocks of one recording"),
        pytest.param([[(0.2, 20)], [(0.8, 20)]], True, id="trials of recordings with more of one class", marks=LONG),
    ],
)
def test_offsets_of_recordings_and_blocks_are_not_taken_for_an_effect(recordings, known):
    found, alone = [], []
    for seed in range(150):
        rows, names = with_offsets(seed, recordings)
        found.append(permute("auc", "window", rows, 99, seed, recordings=names if known else None).p)
        alone += [one_by_one(rows, np.random.default_rng(seed))] if seed < 60 else []
    assert np.mean(np.array(found) <= 0.05) < 0.11 and 0.4 < np.mean(found) < 0.62
    assert np.mean(np.array(alone) <= 0.05) > 0.11


@pytest.mark.parametrize("recordings", [[[(0, 20)], [(1, 20)]], [[(0, 10), (1, 10)] * 3]])
def test_an_effect_is_found_between_recordings_and_between_blocks(recordings):
    rows, names = with_offsets(0, recordings, offset=0.3)
    p = np.clip(rows.predictions[:, 1] / 2 + rows.targets / 2, 0.01, 0.99)
    test = permute("auc", "window", rows._replace(predictions=np.stack([1 - p, p], 1)), 499, 0, recordings=names)
    assert test.p < 0.02 and test.runs == 8 * sum(map(len, recordings))
    assert "exact for the whole search" in test.render() and "could have had any order" in test.render()


def test_predictions_that_know_only_how_frequent_classes_are_find_nothing():
    """Exchanged between recordings of different length, the targets of windows would be others on the whole."""
    rows, names = with_offsets(0, [[(0, 45)], [(1, 15)]])
    constant = rows._replace(predictions=np.tile([0.75, 0.25], (len(rows.targets), 1)))
    assert permute("brier", "window", constant, 99, 0, recordings=names).p == 1.0


def test_trials_stay_in_their_recording():
    rows, names = with_offsets(0, [[(0.2, 10)], [(0.7, 20)]])
    of_recording = np.unique(names, return_inverse=True)[1] % 2
    p = np.where(of_recording, 0.7, 0.2)  # what says nothing but the recording
    test = permute("auc", "window", rows._replace(predictions=np.stack([1 - p, p], 1)), 50, 0, recordings=names)
    np.testing.assert_allclose(test.null, test.score)
    assert test.runs is None and "shuffled within each recording" in test.render()
    assert "if a person's trials are independent of each other" in test.render()


def test_too_few_orders_of_recordings_are_one_line():
    rows, names = with_offsets(0, [[(0, 20)], [(1, 20)]], people=4)
    with pytest.raises(
        UserError, match=r"the 8 runs of windows of these 4 people have 16 different orders, and a test"
    ):
        permute("auc", "window", rows, 99, 0, recordings=names)
    rows, names = with_offsets(0, [[(0, 20)], [(1, 20)]], people=5)
    assert permute("auc", "window", rows, 99, 0, recordings=names).runs == 10


def test_recordings_and_order_are_those_of_the_windows(classes, tmp_path, monkeypatch):
    """Three windows of each person are of one recording and one class, and lie in the store in any order."""
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fit_ensemble(run, windows=classes.windows, method="equal").save()
    windows, ensemble = WindowStore(classes.windows.path), Ensemble.load(run)
    later = np.tile([1, 0, 0, 1, 1, 0], len(windows) // 6)
    windows.table["recording"] = [f"{who}-{half}" for who, half in zip(windows.subjects, later, strict=True)]
    held = dataclasses.replace(ensemble.held_out, targets=later[ensemble.held_out.windows])
    changed = dataclasses.replace(ensemble, held_out=held, held_out_evaluations=3)
    monkeypatch.setattr(Ensemble, "load", lambda run: changed)
    found = chance_test(run, permutations=20, windows=windows)
    people = len(np.unique(held.subjects))
    assert (found.recordings, found.runs) == (2 * people, 2 * people)
    assert f"of one mean prediction for each of {2 * people} recordings of {people} held-out people" in found.render()
    assert "shuffled between the recordings of each person" in found.render()
    assert "They have been scored up to 3 times: if this ensemble was chosen by its held-out score" in found.render()
    windows.table["recording"] = windows.subjects  # blocks of one recording, whose onsets have them in turn
    windows.table["onset"] = 10.0 * later + np.arange(len(windows)) % 6
    assert (found := chance_test(run, permutations=20, windows=windows)).runs == 2 * people
    assert found.recordings == people and "shuffled between the runs of each person" in found.render()


def test_several_values_of_a_person_stay_together():
    """Values that are equal stay equal, so predictions that are equal have the same score for each."""
    rng = np.random.default_rng(0)
    y, predicted = np.repeat(rng.normal(size=(2, PEOPLE, 1)), 2, axis=2)
    families = {person: str(person // 2) for person in range(PEOPLE)}
    both, one = (
        permute("pearson", "person", rows_of(y_NK, p_NK, np.arange(PEOPLE)), 50, 0, families)
        for y_NK, p_NK in ((y, predicted), (y[:, 0], predicted[:, 0]))
    )
    np.testing.assert_allclose(both.null, one.null)


def test_orders_of_people_with_several_values_are_counted():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="3 people have 6 different orders"):
        permute("nrmse", "person", rows_of(rng.normal(size=(3, 2)), rng.normal(size=(3, 2)), np.arange(3)), 9, 0)
