from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from raypipe.data import association
from raypipe.data.confounds import DURATION, WINDOWS, WithoutEeg, without_eeg
from raypipe.data.prepare import prepare
from raypipe.simulation.contrast_change import simulate


def table_of(counts, targets):
    """Return a table of one recording a person with so many windows."""
    people = [f"p{k:03d}" for k in range(len(counts))]
    rows = [
        (who, f"sub-{who}", target) for who, n, target in zip(people, counts, targets, strict=True) for _ in range(n)
    ]
    return pd.DataFrame(rows, columns=["subject", "recording", "target"]), people


def found_of(counts, targets, durations=None, cells=None, classes=("a", "b")):
    table, people = table_of(counts, targets)
    seconds = {f"sub-{who}": d for who, d in zip(people, durations or [None] * len(people), strict=True)}
    rows = dict(zip(people, cells or [{}] * len(people), strict=True))
    return without_eeg(table, classes, seconds, rows)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_auc_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    targets = np.repeat([0, 1], 15)
    counts = rng.integers(1, 8, 30)
    durations = rng.uniform(10, 99, 30).tolist()
    found = {each.name: each for each in found_of(counts, targets, durations).predictors}
    for name, values in ((WINDOWS, counts), (DURATION, durations)):
        auc = roc_auc_score(targets, values)
        assert found[name].auc == pytest.approx(max(auc, 1 - auc))


def test_the_number_of_windows_that_tells_classes_apart_is_a_confound():
    found = found_of([5] * 12 + [6, 7] * 6, [0] * 12 + [1] * 12)
    (predictor,) = found.predictors
    assert (predictor.name, predictor.auc, predictor.people, predictor.is_confound) == (WINDOWS, 1.0, 24, True)
    assert found.lines() == [
        "class a: 60 windows of 12 people (5 each)",
        "class b: 78 windows of 12 people (6 to 7, median 6.5 each)",
        "confound: without EEG, the number of windows of a person predicts the class with AUC 1.00 (p 0.001, "
        "24 people; a: median 5; b: median 6.5)",
    ]


def test_chance_is_named_as_often_as_it_should_be(monkeypatch):
    monkeypatch.setattr(association, "PERMUTATIONS", 199)
    rng = np.random.default_rng(0)
    p_values = [found_of(rng.integers(1, 30, 24), np.repeat([0, 1], 12)).predictors[0].p_value for _ in range(100)]
    assert abs(np.mean(np.array(p_values) <= 0.1) - 0.1) < 0.08


def test_categories_are_judged_on_other_people():
    rng = np.random.default_rng(1)
    targets = np.repeat([0, 1], 40)
    sites = [f"site{k}" for k in rng.integers(0, 10, 80)]
    cells = [
        {"Sex": "F" if target else "M", "site": site, "age": "n/a", "hand": "R" * (1 + target)}
        for target, site in zip(targets, sites, strict=True)
    ]
    found = {each.name: each for each in found_of([3] * 80, targets, cells=cells).predictors}
    assert set(found) == {"Sex", "site"}  # the number of windows is the same for all, and age is not known
    assert found["Sex"].auc == 1.0 and found["Sex"].is_confound and found["Sex"].by_class == {"a": "M 40", "b": "F 40"}
    assert found["site"].auc < 0.65 and not found["site"].is_confound


def test_people_who_have_all_classes_are_not_judged():
    rows = [(f"p{k}", f"sub-p{k}", target) for k in range(12) for target in (0, 1) for _ in range(2 + target)]
    table = pd.DataFrame(rows, columns=["subject", "recording", "target"])
    found = without_eeg(table, ("a", "b"), {}, {f"p{k}": {"age": str(k)} for k in range(12)})
    assert found.predictors == () and [each.windows for each in found.classes] == [24, 36]


def test_few_people_and_regressions_are_not_judged():
    assert found_of([1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1]).predictors == ()
    found = found_of([1, 2, 6], [0.1, 0.2, 0.3], classes=())
    assert found.predictors == () and found.lines() == ["9 windows of 3 people (1 to 6, median 2 each)"]


def test_prepare_judges_what_is_known_of_people(tmp_path):
    bids = simulate(tmp_path / "bids", subjects=12, channels=2, trials=4)
    labels = sorted(path.name for path in bids.glob("sub-*"))
    rows = [f"{name}\t{'case' if k % 2 else 'control'}\t{30 + 9 * (k % 2) + k / 10}" for k, name in enumerate(labels)]
    (bids / "participants.tsv").write_text("\n".join(["participant_id\tgroup\tage", *rows]) + "\n")
    store = prepare(bids, "participants:group", tmp_path / "store", jobs=1)
    found = {each.name: each for each in store.manifest.without_eeg.predictors}
    assert found["age"].is_confound and found["age"].auc == 1.0 and DURATION in found
    assert any(
        line.startswith("confound: without EEG, the age of a person") for line in store.manifest.without_eeg.lines()
    )
    of_age = prepare(bids, "participants:Age", tmp_path / "age", jobs=1).manifest.without_eeg
    assert {each.name for each in of_age.predictors} == {WINDOWS, DURATION} and of_age.classes[0].people == 12
    assert all(each.correlation is not None for each in of_age.predictors) and of_age.known == {}


def test_prepare_judges_each_of_several_values(tmp_path):
    bids = simulate(tmp_path / "bids", subjects=12, channels=2, trials=4)
    labels = sorted(path.name for path in bids.glob("sub-*"))
    rows = [f"{name}\t{k / 7}\t{(5 * k) % 12 / 3}\t{30 + k}" for k, name in enumerate(labels)]
    (bids / "participants.tsv").write_text("\n".join(["participant_id\tp_factor\tattention\tage", *rows]) + "\n")
    store = prepare(bids, "participants:p_factor,attention", tmp_path / "store", jobs=1)
    found = store.manifest.without_eeg
    assert found.known == {"age": "median 35.5, 30 to 41"}
    of_age = {each.value: each.correlation for each in found.predictors if each.name == "age"}
    assert set(of_age) == {"p_factor", "attention"} and of_age["p_factor"] == pytest.approx(1.0)
    assert any("the age of a person is correlated with p_factor, 1.00" in line for line in found.lines())
    assert prepare(bids, "participants:p_factor,attention", tmp_path / "store", jobs=1).is_up_to_date


def test_a_numeric_target_gets_correlations():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=40)
    cells = [{"age": f"{10 + t + 0.1 * rng.normal():.3f}", "sex": "F" if t > 0 else "M"} for t in targets]
    found = found_of(rng.integers(4, 9, 40), targets.tolist(), cells=cells, classes=())
    by_name = {each.name: each for each in found.predictors}
    assert list(by_name) == [WINDOWS, "age", "sex"] and all(each.auc is None for each in found.predictors)
    ages = [float(cell["age"]) for cell in cells]
    assert by_name["age"].correlation == pytest.approx(spearmanr(targets, ages).statistic)
    assert by_name["sex"].correlation == pytest.approx(abs(spearmanr(targets, targets > 0).statistic))
    assert by_name["age"].is_confound and by_name["sex"].is_confound and not by_name[WINDOWS].is_confound
    assert set(by_name["sex"].by_class) == {"F", "M"}
    assert any("age of a person is correlated with the target, 0.9" in line for line in found.lines())


def test_each_of_several_values_is_judged_as_it_is_alone():
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=40), rng.normal(size=40)
    ages, sites = 10 + first + 0.1 * rng.normal(size=40), np.where(other > 0, "A", "B").tolist()
    cells = [{"age": f"{age:.3f}", "site": site} for age, site in zip(ages, sites, strict=True)]
    counts = rng.integers(4, 9, 40)
    table, people = table_of(counts, first)
    alone = [found_of(counts, y.tolist(), cells=cells, classes=()) for y in (first, other)]
    table["target:other"] = np.repeat(other, counts)
    table["target:trial"] = rng.normal(size=len(table))  # it changes within people
    rows = dict(zip(people, cells, strict=True))
    found = without_eeg(table.rename(columns={"target": "target:first"}), (), {}, rows)
    expected = [
        each.model_copy(update={"value": name})
        for name, of in zip(("first", "other"), alone, strict=True)
        for each in of.predictors
    ]
    assert list(found.predictors) == expected and len(expected) == 6
    assert found.known == alone[0].known and set(found.known) == {"age", "site"}
    assert [each.label for each in found.predictors if each.is_confound] == ["first: age", "other: site"]
    assert any("the age of a person is correlated with first, 0.9" in line for line in found.lines())
    assert "value" not in alone[0].predictors[0].model_dump()
    assert WithoutEeg.model_validate_json(found.model_dump_json()) == found


def test_what_is_known_of_people_is_described_whatever_the_target():
    cells = [{"age": f"{k}", "sex": "F" if k < 3 else "n/a"} for k in range(8)]
    found = found_of([2] * 8, range(8), cells=cells, classes=())
    assert found.known == {"age": "median 3.5, 0 to 7", "sex": "F 3; unknown for 5"}
    table, people = table_of([2] * 8, [0] * 8)
    table["target"] = np.arange(16) % 2
    within = without_eeg(table, ["a", "b"], {}, dict(zip(people, cells, strict=True)))
    assert within.known == found.known and within.predictors == ()
    assert found_of([2] * 8, range(8), cells=[{"age": ""}] * 8, classes=()).known == {}
