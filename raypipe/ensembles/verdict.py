"""Write the verdict of an ensemble in a few sentences, and notes on how to read the score table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from raypipe.core.bootstrap import MAX_CHANCE, MIN_SUBJECTS
from raypipe.core.metrics import get_metric
from raypipe.ensembles.comparisons import compare_with_baseline, gap_note
from raypipe.ensembles.evaluation_log import OPTIMISTIC, UNCOUNTED
from raypipe.ensembles.labels import describe_interval, describe_target, metric_label, resampled, with_article
from raypipe.ensembles.outcome import Outcome, side_of
from raypipe.ensembles.scores import BEST, DISTILLED, ENSEMBLE, is_by_subject
from raypipe.ensembles.soup import SWA
from raypipe.storage.records import Member

Evidence = Literal["better", "none", "worse", "too few", "undefined"]
"""Evidence of the held-out scores against the predictor without EEG.

With ``too few`` subjects, chance alone gives the clearest result too often; ``undefined`` has no score or no interval.
"""


def held_out_evidence(table: pd.DataFrame, metric: str) -> Evidence:
    """Classify the ensemble's held-out difference to the predictor without EEG by its 95 % interval."""
    row = table.loc[ENSEMBLE].to_dict()
    if np.isnan(row["held_out"]):
        return "undefined"
    if row["smallest_chance"] > MAX_CHANCE:
        return "too few"
    if np.isnan(row["low"]):
        return "undefined"
    side = side_of(metric, row["difference_low"], row["difference_high"])
    return "better" if side > 0 else "worse" if side < 0 else "none"


# Sentences


def write_verdict(outcome: Outcome) -> tuple[str, list[str]]:
    """Write a few sentences on an ensemble, and notes on how to read its table.

    One sentence compares the ensemble with the predictor without EEG, on held-out subjects. Another compares what is
    shipped with the best classical baseline: it is the first if the baseline is better. Then the ensemble is
    compared with the best single trial, and the last sentence says whether combining was worth it. "Better" means that
    the 95 % interval of the paired difference is wholly on the better side, and that a sign-flip test over subjects
    agrees. Where subjects share groups, both are over groups.
    """
    sentences = [_held_out_sentence(outcome)]
    if (baseline := compare_with_baseline(outcome)) is not None:
        sentences.insert(0 if baseline.side < 0 else 1, baseline.sentence)
    if outcome.alone is not None:
        sentences.append(_alone_sentence(outcome, outcome.alone))
    elif outcome.candidates > 1 and outcome.method != "best":
        sentences.append(_comparison_sentence(outcome))
        if not outcome.distilled:
            sentences.append(_worth_sentence(outcome))
    if outcome.distilled:
        sentences.append(_distilled_sentence(outcome))
    return " ".join(sentence for sentence in sentences if sentence), _notes(outcome)


def _held_out_sentence(outcome: Outcome) -> str:
    scores, target, label = outcome.held_out, describe_target(outcome.target), metric_label(outcome.metric)
    n = scores.subjects
    subjects = f"On {n} held-out subject{'' if n == 1 else 's'},"
    if np.isnan(scores.value):
        why = "all targets are the same, or a class is missing"
        return f"{subjects} {why}, so the score is undefined and shows nothing about {target}."
    reached = f"{subjects} {outcome.alone or 'the ensemble'} reaches {with_article(label)} of {scores.value:z.3f}"
    if held_out_evidence(outcome.table, outcome.metric) == "undefined":
        return f"{reached}; its interval is undefined, so the score shows nothing about {target}."
    return f"{reached} ({describe_interval(scores.low, scores.high)}), {_conclusion(outcome, target)}."


def _conclusion(outcome: Outcome, target: str) -> str:
    scores, name = outcome.held_out, outcome.table.index[-1]
    baseline = "chance (0.5)" if outcome.metric == "auc" else f"the {name} without EEG ({scores.baseline:z.3f})"
    evidence = held_out_evidence(outcome.table, outcome.metric)
    if evidence == "better":
        return f"better than {baseline}: it generalizes to new people"
    if evidence == "too few":
        counted = resampled(scores.subjects, scores.units)
        few = f"{scores.subjects} subjects" if counted == "subjects" else counted
        few = "1 subject is" if scores.subjects == 1 else f"{few} are"
        return f"beside {baseline}: {few} too few to say whether it generalizes to new people"
    if evidence == "worse":
        return f"worse than {baseline}: its predictions of {target} do not generalize to new people"
    return f"no detectable difference from {baseline}: there is no evidence that it predicts {target}"


class _ToBest(NamedTuple):
    """A difference to the best single trial."""

    side: int
    text: str


def _nested_to_best(outcome: Outcome) -> _ToBest | None:
    row = outcome.table.loc[ENSEMBLE].to_dict()
    value, low, high = (float(row[f"nested_to_best{end}"]) for end in ("", "_low", "_high"))
    if np.isnan(low):
        return None
    return _ToBest(side_of(outcome.metric, low, high), f"{value:+z.3f}, {low:+z.3f} to {high:+z.3f}")


def _held_out_to_best(outcome: Outcome) -> _ToBest | None:
    """Return the held-out difference, unless the subjects are too few to compare on."""
    to_best = outcome.to_best
    if to_best is None or np.isnan(to_best.low):
        return None
    scores = outcome.table["held_out"].to_dict()
    value = scores[ENSEMBLE] - scores[BEST]
    side = side_of(outcome.metric, to_best.low, to_best.high)
    return _ToBest(side, f"{value:+z.3f}, {to_best.low:+z.3f} to {to_best.high:+z.3f}")


_RELATION = {1: "it is better", 0: "there is no detectable difference", -1: "it is worse"}
_RELATION_TO = {1: "it is better than", 0: "there is no detectable difference from", -1: "it is worse than"}


def _comparison_sentence(outcome: Outcome) -> str:
    """Compare with the best single trial: nested over the search subjects, and on the held-out subjects."""
    nested, held_out = _nested_to_best(outcome), _held_out_to_best(outcome)
    if nested is None and held_out is None:
        return ""
    if nested is None or held_out is None:
        where, found = ("On these subjects", held_out) if held_out else ("In nested cross-validation", nested)
        assert found is not None
        return f"{where} {_RELATION_TO[found.side]} the best single trial (difference {found.text})."
    return (
        f"In nested cross-validation {_RELATION_TO[nested.side]} the best single trial (difference "
        f"{nested.text}); on the held-out subjects {_RELATION[held_out.side]} (difference {held_out.text})."
    )


def _worth_sentence(outcome: Outcome) -> str:
    """Say whether combining was worth it; if it was not, also why the ensemble is shipped."""
    nested, held_out = (found.side if found else 0 for found in (_nested_to_best(outcome), _held_out_to_best(outcome)))
    if held_out < 0 or nested < 0:
        scores = outcome.nested_scores
        if scores is None:
            return f"Combining was not worth it; the ensemble is shipped because '--method {outcome.method}' was given."
        return (
            f"Combining was not worth it; the ensemble is shipped because of its nested score "
            f"('{outcome.method}' {scores[outcome.method]:z.3f}, the best single trial {scores['best']:z.3f}), and "
            "held-out scores are never used to choose."
        )
    if held_out > 0:
        return "Combining was worth it."
    if nested > 0:
        return "Combining was worth it, though the held-out subjects alone do not show it."
    return (
        "Combining shows no detectable difference (95 % CI includes 0); the best single trial may do as well, and is "
        "simpler to ship."
    )


def _alone_sentence(outcome: Outcome, member: str) -> str:
    """Say why a single trial is shipped."""
    if outcome.candidates == 1:
        return f"Only {member} is shipped: there was no other trial to combine it with."
    if outcome.nested_scores is None:
        by_name = outcome.method == "best"
        reason = "'--method best' was given" if by_name else f"'{outcome.method}' gives it all the weight"
        return f"Only {member} is shipped, because {reason}."
    sentence = f"Only {member} is shipped, because no combination is better by more than one standard error"
    others = [value for name, value in outcome.nested_scores.items() if name not in ("best", "auto")]
    if not others:
        return f"{sentence}."
    best = min(others, key=lambda value: get_metric(outcome.metric).sign * value)
    return (
        f"{sentence}: in nested cross-validation the best combination scores {metric_label(outcome.metric)} "
        f"{best:z.3f}, the best single trial {outcome.nested_scores['best']:z.3f}."
    )


def _distilled_sentence(outcome: Outcome) -> str:
    scores = outcome.table["held_out"].to_dict()
    return (
        f"One distilled network is shipped: its held-out {metric_label(outcome.metric)} is {scores[DISTILLED]:z.3f}, "
        f"the ensemble's {scores[ENSEMBLE]:z.3f}."
    )


# Notes


def _notes(outcome: Outcome) -> list[str]:
    n, units, notes = outcome.held_out.subjects, outcome.held_out.units, []
    times, runs, uncounted = outcome.evaluations
    if times > 1:
        scored = (
            f"These held-out subjects have been scored up to {times} times, by {runs} runs on the same windows."
            if runs > 1
            else f"This run has been scored on its held-out subjects {times} times."
        )
        notes.append(f"{scored} {OPTIMISTIC}")
    if uncounted is not None:
        notes.append(f"{UNCOUNTED}: {uncounted}.")
    if held_out_evidence(outcome.table, outcome.metric) == "too few":
        chance = float(outcome.table.loc[ENSEMBLE].to_dict()["smallest_chance"])
        notes.append(
            f"Without any effect, {units} such {'subjects' if units == n else 'groups'} give the clearest result in "
            f"{100 * chance:.3g} % of cases. "
            f"A claim may be wrong in {100 * MAX_CHANCE:g} %. "
            f"{_few_note(units)}"
        )
    if units < n:
        notes.append(
            f"The {n} held-out subjects are {units} groups (prepare --groups). Intervals and tests resample groups, "
            "because subjects of one group are not independent."
        )
    if is_by_subject(outcome.table):
        notes.append(
            f"The target belongs to the subject: {_counted(n)}, however many windows there are. All scores are of one "
            "mean prediction per subject."
        )
    notes += gap_note(outcome)
    if outcome.distilled:
        notes.append("The distilled network was trained on all search subjects, so it has no out-of-fold score.")
    return [*notes, *outcome.notes]


def _few_note(units: int) -> str:
    if units < MIN_SUBJECTS:
        return f"Scores and differences have intervals from {MIN_SUBJECTS} subjects, or groups of them, on."
    return "With so few, intervals are approximate and probably too narrow."


def _counted(n: int) -> str:
    return f"{n} held-out subjects are {n} data points" if n > 1 else "1 held-out subject is 1 data point"


def soup_notes(
    name: str, averaged: Sequence[Member], candidates: Sequence[Member], compatible: Sequence[Member]
) -> list[str]:
    """Write notes on a soup: which members were averaged, which were not and why, and how to read its scores.

    Parameters
    ----------
    name
        The soup's name.
    averaged
        Members whose weights were averaged.
    candidates, compatible
        All members, and those that the soup could average.
    """
    members = ", ".join(map(str, averaged))
    if len(averaged) > 1:
        notes = [f"The network of each fold is the mean of the weights of {members}."]
    else:
        notes = [f"The greedy soup is {members} alone: averaging another member with it made the score worse."]
    tried = {member.trial for member in compatible}
    others = [str(trial) for trial in dict.fromkeys(member.trial for member in candidates) if trial not in tried]
    if name != SWA and others:
        subject, verb = (f"Trial {others[0]}", "was") if len(others) == 1 else (f"Trials {', '.join(others)}", "were")
        notes.append(f"{subject} {verb} not tried: not the same network with the same initial weights.")
    notes.append(
        "A soup has no nested score, because the weights of other epochs are not kept. Its out-of-fold score is "
        "optimistic: its members and their epochs were chosen on the same windows."
    )
    return notes
