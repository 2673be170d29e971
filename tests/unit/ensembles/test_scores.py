"""Whether an ensemble was worth it, in words for people who do not know the methods."""

from __future__ import annotations

import pandas as pd
import pytest

from raypipe.core.metrics import Interval
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.verdict import alone_words, worth_words

SCORES = {"best": 0.195, "ridge": 0.191, "equal": 0.24, "auto": 0.198}


def words(nested, held_out, scores=SCORES, subjects=8, metric="nrmse"):
    low, high = nested
    row = {"nested_to_best_low": low, "nested_to_best_high": high, "subjects": subjects}
    table = pd.DataFrame([row], index=["ensemble"])
    return worth_words(table, metric, "ensemble", Interval(*held_out, 100), "ridge", scores)


@pytest.mark.parametrize(
    ("nested", "held_out", "said"),
    [
        ((-0.2, 0.1), (0.01, 0.02), "on these new people its best single trial did better"),
        ((-0.2, 0.1), (-0.02, -0.01), "was worth it; on new people"),
        ((-0.2, -0.1), (-0.1, 0.1), "was worth it; on people whom it was not fitted on"),
        ((0.1, 0.2), (-0.1, 0.1), "its best single trial does better"),
        ((-0.1, 0.1), (-0.1, 0.1), "cannot be told"),
    ],
)
def test_every_verdict_ends_with_a_plain_sentence(nested, held_out, said):
    last = words(nested, held_out).rpartition("In short: ")[2]
    assert said in last and "NRMSE" not in last and last.endswith(".")


def test_one_that_is_worse_says_why_it_is_shipped_all_the_same():
    told = words((-0.2, 0.1), (0.01, 0.02))
    assert "by the nested out-of-fold score ('ridge' 0.191, the best single trial 0.195)" in told
    assert "never by the held-out subjects" in told
    assert "because 'ridge' was asked for" in words((-0.2, 0.1), (0.01, 0.02), scores={})


def test_higher_is_better_where_it_is():
    assert "was worth it" in words((0.1, 0.2), (0.1, 0.2), metric="auc").rpartition("In short")[2]


def test_few_held_out_subjects_decide_nothing():
    assert "cannot be told" in words((-0.1, 0.1), (0.01, 0.02), subjects=4)


def test_a_trial_alone_says_why():
    told = alone_words("trial 3", 4, "best", "nrmse", SCORES | {"ridge": 0.2})
    assert told.startswith("What is shipped is trial 3 alone: combining did not help.")
    assert "scores NRMSE 0.200, the best single trial 0.195" in told and "not worth it" in told
    assert "as was asked for" in alone_words("trial 3", 4, "best", "nrmse", None)
    assert "'greedy' gave it all the weight" in alone_words("trial 3", 4, "greedy", "nrmse", None)
    assert "no other to combine it with" in alone_words("trial 3", 1, "best", "nrmse", SCORES)


def test_a_trial_that_is_shipped_alone_is_not_compared_with_itself(values):
    alone = fit_ensemble(values.run, method="best", windows=values.windows)
    assert f"What is shipped is trial {alone.trials[0]} alone" in alone.verdict
    assert f"trial {alone.trials[0]} reaches" in alone.verdict and "differ cannot be told" not in alone.verdict
    both = fit_ensemble(values.run, method="equal", windows=values.windows)
    assert "the ensemble reaches" in both.verdict and "In short: " in both.verdict
