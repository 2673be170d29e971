"""How a search went: what halving saved, when trials ran, where the time went."""

from __future__ import annotations

import re
from html import unescape

from raypipe.reporting.timeline import course_section, effort, saved, spans
from tests.support.toys import ToyWindows, add_ended, make_run


def test_halving_saved_what_its_trials_had_left(twelve):
    run = twelve
    assert saved(run, run.results()) == (3, 3 + 2, 10.0 * 5)


def test_sections_say_what_they_have(twelve):
    run = twelve
    sections = course_section(run, run.results(), spans(run, run.results()))
    titles = [re.search(r"<h2[^>]*>(.*?)</h2>", section).group(1) for section in sections]
    assert titles == ["Which parameters mattered", "What halving saved", "When the trials ran"]
    assert "stopped 2 of 14 trials early, after 3 epochs of the 8" in sections[1]
    assert "1 were interrupted and went on" in sections[2] and "0 failed" in sections[2]
    assert sections[0].count("<img") == 3 and "Contour plot of the score over optim/lr and" in sections[0]
    assert all('alt="' in section for section in (sections[0], sections[2]))


def test_too_few_trials_say_so(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert course_section(run, [], []) == []
    add_ended(run, 0, 1.0)
    assert "1 trial(s) with a score: there is nothing to compare" in course_section(run, run.results(), [])[0]


def test_where_the_time_went(twelve):
    results = twelve.results()
    html = effort(twelve, results, spans(twelve, results))
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    assert re.search(r"wall time, from the first trial asked for to the last end\s+14 min \d\d s", text)
    assert "none had: start-up, waiting, breaks" in text and "workers' time with a trial in hand" in text
    assert effort(twelve, [], []) == ""


def test_the_timeline_has_ticks_at_trials_only(tmp_path):
    from raypipe.reporting.timeline import timeline

    run = make_run(tmp_path / "run", ToyWindows())
    for number in (0, 1, 5):
        add_ended(run, number, 1.0)
    (axes,) = timeline(spans(run, run.results())).axes
    assert axes.get_yticks().tolist() == [0, 1, 5]
