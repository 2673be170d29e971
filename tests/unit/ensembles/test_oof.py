from __future__ import annotations

from dataclasses import replace

import numpy as np

from raypipe.ensembles.oof import subject_groups, subject_splits
from tests.support.member_predictions import classes, independent, values


def test_groups_hold_whole_subjects_and_every_subject_is_tested_once():
    members = classes(n=400)
    groups = subject_groups(members, 4)
    assert set(groups) == {0, 1, 2, 3}
    for subject in np.unique(members.subjects):
        assert len(set(groups[members.subjects == subject])) == 1
    tested = np.zeros(400, int)
    for fit_N, test_N in subject_splits(members, 4):
        assert not set(members.subjects[fit_N]) & set(members.subjects[test_N])
        tested += test_N
    assert (tested == 1).all()


def test_selected_members_keep_their_order_and_drop_variances_that_none_of_them_has():
    y = np.arange(40.0)
    members = values([y, y + 1, y + 2], y, np.stack([np.ones(40), np.zeros(40), np.zeros(40)]))
    some = members.select_members([2, 0])
    assert some.names == ["trial 2", "trial 0"] and some.variances.tolist() == [[0.0] * 40, [1.0] * 40]
    assert members.select_members([1, 2]).variances is None


def test_a_rule_for_some_members_is_applied_to_those_only():
    members, _ = independent((1.0, 2.0, 3.0), n=40)
    rule = {"kind": "linear", "weights": [0.5, 0.5], "intercept": 0.0, "only": [0, 2]}
    np.testing.assert_allclose(members.combine(rule), members.predictions[[0, 2]].mean(0))


def test_a_group_of_subjects_is_in_one_nested_part():
    y = np.arange(24.0)
    members = replace(values([y], y), subjects=np.repeat([f"s{k}" for k in range(12)], 2))
    family = {f"s{k}": f"family {k % 5}" for k in range(12)}
    grouped = replace(members, groups=np.array([family[s] for s in members.subjects]))
    for n in (2, 3, 5):
        parts = subject_groups(grouped, n)
        assert len(set(parts)) == n and len(set(zip(grouped.groups, parts, strict=True))) == 5
    assert grouped.select_windows(np.arange(6)).groups.tolist() == grouped.groups[:6].tolist()
