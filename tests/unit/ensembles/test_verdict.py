"""Two or three sentences on an ensemble, for people who do not know the methods, and notes under its table."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from raypipe.core.bootstrap import Interval
from raypipe.ensembles.evaluation_log import Evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.verdict import Outcome, held_out_evidence, soup_notes, write_verdict
from raypipe.storage.records import Member
from tests.support.score_tables import table_of

SCORES = {"best": 0.195, "ridge": 0.191, "equal": 0.24, "auto": 0.198}


def sentences(verdict: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z])", verdict)


def of_table(table, target="participants:age", **changes) -> tuple[str, list[str]]:
    return write_verdict(Outcome(table=table, metric="nrmse", target=target, method="best", candidates=1, **changes))


# Against the predictor without EEG


def test_the_verdict_of_a_signal_that_is_there(classes):
    ensemble = classes.ensemble()
    n = len(classes.run.folds.held_out)
    assert ensemble.table.loc["ensemble", "low"] > 0.5
    assert f"On {n} held-out subjects, " in ensemble.verdict
    assert "better than chance (0.5): it generalizes to new people" in ensemble.verdict
    assert ensemble.table.loc["class frequencies", "held_out"] == 0.5
    assert 2 <= len(sentences(ensemble.verdict)) <= 3


def test_targets_of_subjects_are_data_points_by_subject():
    table = table_of(1.0, 8)
    verdict, notes = of_table(table, "participants:age:regression@rest")
    value, chance = table.loc["ensemble", "subject_held_out"], table["subject_held_out"].iloc[-1]
    assert (
        f"NRMSE of {value:.3f} (95 % interval" in verdict and f"the training mean without EEG ({chance:.3f})" in verdict
    )
    assert "it generalizes to new people" in verdict
    assert any("8 held-out subjects are 8 data points" in note for note in notes)


def test_the_verdict_of_no_signal():
    verdict, _ = of_table(table_of(0.0, 8), "participants:count_quality")
    assert "no evidence that it predicts count_quality" in verdict or "worse than the training mean" in verdict


def test_the_verdict_claims_nothing_from_few_subjects():
    verdict, notes = of_table(table_of(1.0, 4))
    assert "4 subjects are too few to say whether it generalizes to new people" in verdict
    assert any("4 such subjects give the clearest result in 6.25 % of cases" in note for note in notes)
    assert "shows nothing about age" in of_table(table_of(1.0, 1))[0]


@pytest.mark.parametrize(
    ("signal", "n", "evidence"), [(1.0, 8, "better"), (1.0, 4, "too few"), (0.0, 4, "too few"), (1.0, 1, "undefined")]
)
def test_the_evidence_agrees_with_the_verdict(signal, n, evidence):
    assert held_out_evidence(table_of(signal, n), "nrmse") == evidence


def test_further_scorings_of_the_held_out_subjects_are_noted_first():
    _, notes = of_table(table_of(1.0, 8), evaluations=Evaluations(3, 1), notes=["of the method"])
    assert notes[0].startswith("This run has been scored on its held-out subjects 3 times.")
    assert notes[-1] == "of the method"


# Against the best single trial


def compared(nested, held_out, scores=SCORES, subjects=8, metric="nrmse") -> list[str]:
    """Sentences of an ensemble whose differences to the best single trial have these intervals."""
    columns = {"held_out": 0.5, "low": 0.4, "high": 0.6, "difference_low": -0.1, "difference_high": 0.1}
    columns |= {"nested_to_best": sum(nested) / 2, "nested_to_best_low": nested[0], "nested_to_best_high": nested[1]}
    rows = ["ensemble", "best single trial", "training mean"]
    counts = {"subjects": subjects, "units": subjects, "smallest_chance": 2.0**-subjects}
    table = pd.DataFrame([columns | counts] * 3, index=rows)
    outcome = Outcome(
        table=table,
        metric=metric,
        target="latency:stim",
        method="ridge",
        candidates=4,
        to_best=Interval(*held_out, 100),
        nested_scores=scores,
    )
    verdict, _ = write_verdict(outcome)
    assert len(sentences(verdict)) == 3
    return sentences(verdict)


@pytest.mark.parametrize(
    ("nested", "held_out", "comparison", "worth"),
    [
        ((-0.2, 0.1), (0.01, 0.02), "not distinguishable from .* held-out subjects it is worse", "was not worth it"),
        ((-0.2, 0.1), (-0.02, -0.01), "not distinguishable from .* held-out subjects it is better", "was worth it."),
        (
            (-0.2, -0.1),
            (-0.1, 0.1),
            "better than .* held-out subjects it is not distinguishable",
            "alone do not show it",
        ),
        ((0.1, 0.2), (-0.1, 0.1), "worse than .* held-out subjects it is not distinguishable", "was not worth it"),
        ((-0.1, 0.1), (-0.1, 0.1), "not distinguishable from .* it is not distinguishable", "is open; the best single"),
    ],
)
def test_every_verdict_compares_with_the_best_trial_and_ends_with_a_plain_sentence(nested, held_out, comparison, worth):
    _, second, last = compared(nested, held_out)
    assert re.search(comparison, second)
    assert f"(difference {sum(nested) / 2:+.3f}, {nested[0]:+.3f} to {nested[1]:+.3f})" in second
    assert worth in last and "NRMSE" not in last and last.endswith(".")


def test_an_ensemble_that_is_worse_says_why_it_is_shipped():
    last = compared((-0.2, 0.1), (0.01, 0.02))[-1]
    assert "because of its nested score ('ridge' 0.191, the best single trial 0.195)" in last
    assert "held-out scores are never used to choose" in last
    assert "because '--method ridge' was given" in compared((-0.2, 0.1), (0.01, 0.02), scores=None)[-1]


def test_the_direction_of_the_metric_is_respected():
    assert compared((0.1, 0.2), (0.1, 0.2), metric="auc")[-1] == "Combining was worth it."


def test_few_held_out_subjects_decide_nothing():
    _, second, last = compared((-0.1, 0.1), (0.01, 0.02), subjects=4)
    assert "held-out" not in second and "is open" in last


# What is shipped


def alone(candidates, method, scores) -> str:
    table = table_of(1.0, 8)
    outcome = Outcome(table, "nrmse", "participants:age", method, candidates, alone="trial 3", nested_scores=scores)
    first, second = sentences(write_verdict(outcome)[0])
    assert "trial 3 reaches" in first
    return second


def test_a_trial_that_is_shipped_alone_is_explained():
    chosen = alone(4, "best", SCORES | {"ridge": 0.2})
    assert chosen.startswith(
        "Only trial 3 is shipped, because no combination is better by more than one standard error"
    )
    assert "the best combination scores NRMSE 0.200, the best single trial 0.195" in chosen
    assert "because '--method best' was given" in alone(4, "best", None)
    assert "'greedy' gives it all the weight" in alone(4, "greedy", None)
    assert "no other trial to combine it with" in alone(1, "best", SCORES)


def test_a_trial_that_is_shipped_alone_is_not_compared_with_itself(values):
    by_itself = fit_ensemble(values.run, method="best", windows=values.windows)
    assert f"Only trial {by_itself.trials[0]} is shipped" in by_itself.verdict
    assert f"trial {by_itself.trials[0]} reaches" in by_itself.verdict and "distinguishable" not in by_itself.verdict
    both = fit_ensemble(values.run, method="equal", windows=values.windows)
    assert "the ensemble reaches" in both.verdict and "Combining was" in both.verdict


def test_notes_on_a_soup_name_what_was_not_tried():
    members = [Member(0), Member(1), Member(4), Member(5)]
    first, second, third = soup_notes("soup", members[:2], members, members[:2])
    assert first == "The network of each fold is the mean of the weights of trial 0, trial 1."
    assert second.startswith("Trials 4, 5 were not tried") and "optimistic" in third
    assert "trial 0 alone" in soup_notes("soup", members[:1], members[:2], members[:2])[0]
    swa = soup_notes("swa", [Member(0), Member(0, 4)], members, members)
    assert swa[0].endswith("trial 0, trial 0 at epoch 4.") and "no nested score" in swa[1]


def test_groups_of_subjects_are_what_is_counted():
    verdict, notes = of_table(table_of(1.0, 8, groups=4))
    assert "On 8 held-out subjects" in verdict and "4 groups of subjects are too few to say whether it" in verdict
    assert any("4 such groups give the clearest result in 6.25 % of cases" in note for note in notes)
    assert any("The 8 held-out subjects are 4 groups (prepare --groups). Intervals and tests" in note for note in notes)
    assert "it generalizes to new people" in of_table(table_of(1.0, 16, groups=8))[0]
    assert not any("groups" in note for note in of_table(table_of(1.0, 8))[1])
