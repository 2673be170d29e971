"""Sections on how a search went: importance, halving, timeline, outcomes, time."""

from __future__ import annotations

import re
from html import unescape

from matplotlib.colors import to_hex

from raypipe.reporting.plotting import GREY, LIGHT
from raypipe.reporting.sections import search
from raypipe.reporting.sections import timeline as times
from raypipe.reporting.sections.importance import importance_section
from raypipe.reporting.sections.outcomes import halving_savings, halving_section, outcomes_section
from raypipe.reporting.sections.search import scores_by_number, search_section
from raypipe.reporting.sections.time_use import time_section
from raypipe.reporting.sections.timeline import timeline, timeline_section
from raypipe.reporting.trial_spans import trial_spans
from raypipe.reporting.trial_table import trials_table
from tests.support.toys import ToyWindows, add_ended, make_run


def test_halving_saved_the_epochs_that_its_trials_had_left(twelve):
    assert halving_savings(twelve, twelve.results()) == (2, 3, 2 + 3, 10.0 * 5)


def test_sections_show_what_the_run_has(twelve):
    results = twelve.results()
    sections = [
        importance_section(twelve, trials_table(twelve)),
        halving_section(twelve, results),
        timeline_section(trial_spans(twelve, results)),
    ]
    titles = [re.search(r"<h2[^>]*>(.*?)</h2>", section).group(1) for section in sections]
    assert titles == ["Parameter importance", "Successive halving", "Timeline"]
    assert "stopped 2 of 14 trials early, after 3 of 8 planned epochs" in sections[1]
    assert "1 were interrupted and resumed" in sections[2] and "0 failed" in sections[2]
    assert sections[0].count("<svg") == 3 and "Contour plot of the score over optim/lr and" in sections[0]
    assert all('aria-label="' in section for section in (sections[0], sections[2]))


def test_sections_without_content_are_empty(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert (
        importance_section(run, trials_table(run))
        == halving_section(run, [])
        == timeline_section([])
        == time_section(run, [], [])
        == ""
    )
    add_ended(run, 0, 1.0)
    assert "1 trial(s) with a score: there is nothing to compare" in importance_section(run, trials_table(run))


def test_a_trial_of_one_epoch_has_no_learning_curve(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    for number, epochs in enumerate((1, 4)):
        add_ended(run, number, 1.0 + number, epochs=epochs)
    html = search_section(run, run.results(), trial_spans(run, run.results()))
    assert re.findall(r"Learning curve of trial \d", html) == ["Learning curve of trial 1"]


def test_outcomes_are_counted(twelve):
    html = outcomes_section(twelve, twelve.results())
    assert "<p>12 complete, 2 pruned.</p>" in html and "<table>" not in html


def test_the_time_section_has_wall_time_and_worker_time(twelve):
    results = twelve.results()
    html = time_section(twelve, results, trial_spans(twelve, results))
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    assert re.search(r"wall-clock, from the first trial queued to the end of the last\s+14 min \d\d s", text)
    assert "idle: start-up, waiting, pauses" in text and "compute, summed over workers with a trial" in text


def test_the_timeline_has_ticks_at_trials_only(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    for number in (0, 1, 5):
        add_ended(run, number, 1.0)
    (axes,) = timeline(trial_spans(run, run.results())).axes
    assert axes.get_yticks().tolist() == [0, 1, 5]


def test_marks_that_are_pixels_suit_a_dark_page(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", ToyWindows())
    for number in range(6):
        add_ended(run, number, 1.0 + number, state=("stopped", "pruned")[number % 2])
    results = run.results()

    def drawn():
        (axes,) = scores_by_number(run, results).axes
        marks = [line for line in axes.get_lines() if line.get_label() in ("stopped", "pruned")]
        (lines,) = (each for each in timeline(trial_spans(run, results)).axes[0].collections if each.get_zorder() < 1)
        return marks, lines

    marks, lines = drawn()
    assert not any(mark.get_rasterized() for mark in marks) and to_hex(lines.get_color()[0]) == LIGHT
    monkeypatch.setattr(search, "MANY", 2)
    monkeypatch.setattr(times, "MANY", 2)
    marks, lines = drawn()
    assert len(marks) == 2 and all(mark.get_rasterized() for mark in marks) and lines.get_rasterized()
    assert {mark.get_markerfacecolor() for mark in marks} == {"none"}, "the page is seen through hollow marks"
    assert to_hex(lines.get_color()[0]) == GREY and lines.get_alpha() < 1
