"""Two or three sentences on an ensemble, for people who do not know the methods, and notes under its table."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from raypipe.core.intervals import Interval
from raypipe.ensembles.comparisons import gap_note, level_of_best
from raypipe.ensembles.evaluation_log import Evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.outcome import ChosenBaseline, Outcome
from raypipe.ensembles.verdict import held_out_evidence, soup_notes, write_verdict
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.model_card import model_card
from raypipe.reporting.report import render_report
from raypipe.storage.records import Member
from tests.support.score_tables import table_of
from tests.support.toys import ToyWindows, write_store
from tests.unit.conftest import finish

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
    assert ensemble.table.loc["prior baseline", "held_out"] == 0.5
    assert 3 <= len(sentences(ensemble.verdict)) <= 4


def test_targets_of_subjects_are_data_points_by_subject():
    table = table_of(1.0, 8)
    verdict, notes = of_table(table, "participants:age:regression@rest")
    value, chance = table.loc["ensemble", "held_out"], table["held_out"].iloc[-1]
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
    assert "(no interval), beside the training mean without EEG" in verdict and "95 %" not in verdict
    assert "4 subjects are too few to say whether it generalizes to new people" in verdict
    assert any("have intervals from 6 subjects, or groups of them, on" in note for note in notes)
    assert any("4 such subjects give the clearest result in 6.25 % of cases" in note for note in notes)
    assert "shows nothing about age" in of_table(table_of(1.0, 1))[0]
    missing = of_table(table_of(1.0, 8).assign(held_out=np.nan))[0]
    assert "all targets are the same, or a class is missing, so the score is undefined" in missing


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
        (
            (-0.2, 0.1),
            (0.01, 0.02),
            "no detectable difference from .* held-out subjects it is worse",
            "was not worth it",
        ),
        (
            (-0.2, 0.1),
            (-0.02, -0.01),
            "no detectable difference from .* held-out subjects it is better",
            "was worth it.",
        ),
        (
            (-0.2, -0.1),
            (-0.1, 0.1),
            "better than .* held-out subjects there is no detectable difference",
            "alone do not show it",
        ),
        (
            (0.1, 0.2),
            (-0.1, 0.1),
            "worse than .* held-out subjects there is no detectable difference",
            "was not worth it",
        ),
        (
            (-0.1, 0.1),
            (-0.1, 0.1),
            "no detectable difference from .* there is no detectable difference",
            "shows no detectable difference",
        ),
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
    _, second, last = compared((-0.1, 0.1), (np.nan, np.nan), subjects=4)
    assert "held-out" not in second and "no detectable difference (95 % CI includes 0)" in last


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
    assert f"trial {by_itself.trials[0]} reaches" in by_itself.verdict and "best single trial" not in by_itself.verdict
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


# Beside the best classical baseline


def beside(nested, held_out, metric="auc", units=8, value=None, of_three=None, **changes) -> tuple[str, list[str]]:
    """Return verdict and notes where the baseline differs from what is shipped by these intervals.

    `of_three` is the nested one of the best of three baselines.
    """
    baseline = ChosenBaseline("ridge on x", 3 if of_three else 1, Interval(*(of_three or nested), 2000))
    row = {"held_out": 0.85, "low": 0.7, "high": 0.95, "difference_low": 0.1, "difference_high": 0.4}
    row |= {
        "nested": 0.8,
        "nested_low": 0.75,
        "nested_high": 0.9,
        "subjects": units,
        "units": units,
        "smallest_chance": 2.0**-units,
    }
    other = row | {"nested": 0.88, "held_out": 0.91}
    for name, (low, high) in (("nested_to_shipped", nested), ("to_shipped", held_out)):
        other |= {name: (low + high) / 2 if value is None else value, f"{name}_low": low, f"{name}_high": high}
    rows = {"ensemble": row, "best single trial": row, "distilled": row, "ridge on x": other, "training mean": row}
    table = pd.DataFrame(rows).T
    outcome = Outcome(table, metric, "events:a,b", "best", 1, baseline=baseline, **changes)
    return write_verdict(outcome)


def test_a_baseline_that_is_better_is_the_first_sentence_with_names_and_numbers():
    first = sentences(beside((0.02, 0.14), (-0.05, 0.17))[0])[0]
    assert first == (
        "A classical baseline, ridge on x, is better than the ensemble: nested AUC 0.880 against 0.800 (difference "
        "+0.080, 95 % CI +0.020 to +0.140); held-out AUC 0.910 against 0.850 (difference +0.060, 95 % CI -0.050 to "
        "+0.170)."
    )
    assert sentences(beside((-0.05, 0.17), (0.02, 0.14), alone="trial 3")[0])[0].startswith(
        "A classical baseline, ridge on x, is better than trial 3: "
    )
    assert sentences(beside((-0.2, 0.1), (0.02, 0.1), distilled=True)[0])[0].startswith(
        "A classical baseline, ridge on x, is better than the distilled network: "
    )


def test_the_best_of_three_baselines_is_better_by_an_interval_that_allows_for_the_choice():
    first, second, *_ = sentences(beside((0.02, 0.14), (-0.05, 0.17), of_three=(-0.01, 0.17))[0])
    assert first.startswith("On 8 held-out subjects")
    assert second.startswith(
        "No detectable difference between the ensemble and a classical baseline, ridge on x (the CI"
    )
    assert "(difference -0.080, 98.3 % CI -0.170 to +0.010); held-out" in second
    assert "95 % CI -0.170 to +0.050" in second, "held-out scores choose nothing"
    first = sentences(beside((0.02, 0.14), (-0.05, 0.17), of_three=(0.01, 0.15))[0])[0]
    assert first.startswith("A classical baseline, ridge on x, is better") and "98.3 % CI +0.010 to +0.150" in first
    assert [level_of_best(choices) for choices in (1, 2)] == [0.95, 0.975]


def test_the_nested_score_of_a_trial_that_was_chosen_says_that_it_is_the_choices():
    """It is not that of the best trial, which the same paragraph names too."""
    better, not_better = (
        " ".join(beside(nested, (-0.05, 0.17), alone="trial 3", nested_scores=SCORES)[0].split())
        for nested in ((0.02, 0.14), (-0.02, 0.14))
    )
    assert "nested AUC 0.880 against 0.800 (the method chosen anew in each part) (difference" in better
    assert "nested AUC 0.800 (the method chosen anew in each part) against 0.880 (difference" in not_better
    assert "held-out AUC 0.850 against 0.910 (difference" in not_better
    by_name = beside((0.02, 0.14), (-0.05, 0.17), alone="trial 3")[0]
    assert "chosen anew" not in by_name, "--method best: the row is the best trial's"


def test_scores_that_disagree_on_a_baseline_are_the_first_sentence_with_what_is_shipped_first():
    first = sentences(beside((-0.2, -0.1), (0.02, 0.1))[0])[0]
    assert first.startswith(
        "Nested and held-out scores disagree on which is better, the ensemble or a classical baseline, ridge on x: "
        "nested AUC 0.800 against 0.880 (difference +0.150, 95 % CI +0.100 to +0.200); held-out AUC 0.850 against"
    )


def test_a_baseline_within_noise_comes_second_and_scores_are_in_the_order_of_the_names():
    first, second, *_ = sentences(beside((-0.02, 0.14), (-0.05, 0.17))[0])
    assert first.startswith("On 8 held-out subjects")
    assert second.startswith(
        "No detectable difference between the ensemble and a classical baseline, ridge on x (the CI includes 0): "
        "nested AUC 0.800 against 0.880 (difference -0.060, 95 % CI -0.140 to +0.020)"
    )


def test_few_held_out_subjects_are_not_compared_with_a_baseline():
    text = beside((-0.02, 0.14), (np.nan, np.nan), units=3, value=0.06)[0]
    assert "held-out AUC 0.850 against 0.910 (difference -0.060, no interval)" in text
    assert "No detectable difference between the ensemble and a classical baseline" in text


def test_a_baseline_that_is_worse_comes_second():
    first, second, *_ = sentences(beside((-0.14, -0.02), (-0.17, 0.05))[0])
    assert first.startswith("On 8 held-out subjects")
    assert second.startswith("It is better than the best classical baseline, ridge on x: nested AUC 0.800 against")
    assert "(difference +0.080, 95 % CI +0.020 to +0.140)" in second
    assert sentences(beside((0.02, 0.14), (0.01, 0.2), metric="nrmse")[0])[1].startswith("It is better than the best")


def test_a_baseline_is_compared_where_there_are_scores():
    nan = (float("nan"), float("nan"))
    assert "nested" not in sentences(beside(nan, (-0.05, 0.17))[0])[0]
    assert "baseline" not in beside(nan, nan)[0]


def test_the_report_of_a_network_that_a_baseline_beats_begins_with_it(tmp_path):
    """Covariances hold the target; a network that is trained for one pass does not find it."""
    rng = np.random.default_rng(0)
    toy = ToyWindows(subjects=24, each=8, classes=True)
    toy.x = rng.normal(size=toy.x.shape).astype(np.float32)
    toy.x[toy.targets == 1, 0] *= 1.6
    made = finish(tmp_path, write_store(tmp_path / "store", toy), target="events:off,on", epochs=1)
    ensemble = made.ensemble(method="best")
    assert ensemble.verdict.startswith("A classical baseline, logistic regression on band power, is better than trial")
    ensemble.save()
    page = render_report(made.run)
    assert page.index("A classical baseline") < page.index("held-out subjects")
    info = load_ensemble(export_bundle(made.run, ensemble, tmp_path / "bundle", windows=made.windows)).info
    assert model_card(info).splitlines()[2].startswith("A classical baseline, logistic regression on band power")


# Held-out scores beside nested ones


def gap(held_out, nested=(0.766, 0.72, 0.81), metric="auc", chance=0.004) -> list[str]:
    columns = ("nested", "nested_low", "nested_high", "held_out", "low", "high")
    counts = {"subjects": 8.0, "units": 8.0, "smallest_chance": chance}
    row = dict(zip(columns, (*nested, *held_out), strict=True)) | counts
    table = pd.DataFrame({"ensemble": row, "training mean": row}).T
    return gap_note(Outcome(table, metric, "events:a,b", "best", 1))


def test_a_held_out_score_far_from_the_nested_one_is_explained_in_the_true_direction():
    (above,) = gap((0.865, 0.74, 0.95))
    assert above.startswith("The held-out score (0.865) is better than the nested one (0.766).")
    assert "Which 8 subjects were held out can explain that: their interval is 0.740 to 0.950" in above
    (below,) = gap((0.65, 0.55, 0.75))
    assert "(0.650) is worse than the nested one (0.766)" in below
    few = gap((1.0, 1.0, 1.0), chance=0.17)[0]
    assert few.endswith("Which 8 subjects were held out can explain that: they are few.")
    assert "is worse than" in gap((0.865, 0.74, 0.95), metric="nrmse")[0]


def test_a_gap_that_few_subjects_do_not_explain_says_so():
    assert "more than the intervals explain. The held-out subjects may be easier" in gap((0.95, 0.93, 0.97))[0]
    assert "more than the intervals explain. The held-out subjects may differ" in gap((0.6, 0.57, 0.63))[0]


def test_scores_that_agree_and_scores_without_intervals_have_no_note():
    assert gap((0.78, 0.7, 0.85)) == []
    nan = float("nan")
    assert gap((0.9, nan, nan)) == gap((0.9, 0.8, 0.95), (nan, nan, nan)) == []
