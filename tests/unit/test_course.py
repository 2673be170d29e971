"""How a search went: what mattered, what halving saved, when trials ran, the lines that make it again."""

from __future__ import annotations

import re
import shlex
from html import unescape
from itertools import pairwise

import numpy as np
import pytest

from raypipe.course import commands, contour, course, importances, parallel, saved
from raypipe.files import write_json
from raypipe.folds import make_folds
from raypipe.logs import TrialLog
from raypipe.space import SearchSpace
from raypipe.store import Epoch, TrialResult
from raypipe.trials import trials_table
from raypipe.verbs.common import held_out_of
from tests.toys import ToyWindows, make_run, tiny


def add(run, number, score, state="complete", epochs=4, **params):
    run.add_trial(number, tiny(**params))
    begun = run.started(number)
    history = [
        Epoch(epoch=e, passes=e, score=score, fold_scores=[score] * 3, losses=[1.0], seconds=10.0)
        for e in range(1, epochs + 1)
    ]
    run.write_history(number, history)
    end = {"best_epoch": 1, "seconds": 10.0 * epochs, "reason": "toy", "finished": begun + 60.0 * (number + 1)}
    run.write_result(TrialResult(number=number, state=state, score=score, epochs=epochs, **end))


@pytest.fixture
def run(tmp_path):
    """Twelve trials whose scores hang on the rate and on nothing else, and two that halving stopped."""
    made = make_run(tmp_path / "run", ToyWindows())
    rng = np.random.default_rng(0)
    for number in range(12):
        lr = float(10 ** rng.uniform(-4, -2))
        loss = "huber" if number % 2 else "focal"
        add(
            made,
            number,
            1.0 + np.log10(lr) / 10,
            optim__lr=lr,
            optim__weight_decay=float(rng.uniform(0, 0.1)),
            loss__name=loss,
        )
    add(made, 12, 1.2, "pruned", epochs=1)
    add(made, 13, 1.3, "pruned", epochs=2)
    TrialLog(made.folder, 3, "slot").say("rank 0: goes on after epoch 2")
    return made


def test_the_parameter_that_decides_is_found(run):
    table = trials_table(run)
    shares = importances(table[table["state"] == "complete"], "minimize")
    assert set(shares) == {"optim/lr", "optim/weight_decay", "loss/name"}
    assert next(iter(shares)) == "optim/lr" and shares["optim/lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)


def test_lines_of_parallel_coordinates_end_at_the_scores(run):
    table = trials_table(run)
    table = table[table["state"] == "complete"]
    (axes,) = parallel(table, ["optim/lr", "loss/name"], "NRMSE", "minimize").axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert len(lines) == 12
    heaviest = max(lines, key=lambda line: line.get_linewidth())
    assert heaviest.get_ydata()[2] == 0.0, "the best of scores that are to be low"
    assert {line.get_ydata()[1] for line in lines} == {0.0, 1.0}


def test_the_contour_plot_has_every_trial_and_leaves_no_trace(run):
    from matplotlib import pyplot, rcParams

    table = trials_table(run)
    table = table[table["state"] == "complete"]
    style, open_ones = dict(rcParams), pyplot.get_fignums()
    axes, bar = contour(table, ["optim/lr", "loss/name"], "NRMSE", "minimize").axes
    assert {axes.get_xlabel(), axes.get_ylabel()} == {"optim/lr", "loss/name"} and "NRMSE" in bar.get_ylabel()
    dots = [c for c in axes.collections if len(c.get_offsets()) == 12]
    assert len(dots) == 1 and len(axes.collections) > 2
    assert dict(rcParams) == style and pyplot.get_fignums() == open_ones


def test_halving_saved_what_its_trials_had_left(run):
    assert saved(run, run.results()) == (3, 3 + 2, 10.0 * 5)


def test_sections_say_what_they_have(run):
    sections = course(run, run.results())
    titles = [re.search(r"<h2[^>]*>(.*?)</h2>", section).group(1) for section in sections]
    assert titles == ["Which parameters mattered", "What halving saved", "When the trials ran"]
    assert "stopped 2 of 14 trials early, after 3 epochs of the 8" in sections[1]
    assert "1 were interrupted and went on" in sections[2] and "0 failed" in sections[2]
    assert sections[0].count("<img") == 3 and "Contour plot of the score over optim/lr and" in sections[0]
    assert all('alt="' in section for section in (sections[0], sections[2]))


def test_too_few_trials_say_so(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert course(run, []) == []
    add(run, 0, 1.0)
    assert "1 trial(s) trained to the end say too little" in course(run, run.results())[0]


def test_the_command_lines_give_the_same_folds_and_space(run):
    write_json(run.folder, "options.json", {"trials": 30, "grace": 2, "prune": False, "time_budget": 90.0})
    html = commands(run)
    (line,) = re.findall(r"<code>(raypipe sweep .*?)</code>", html)
    words = shlex.split(line)
    option = dict(pairwise(words))
    assert (option["--trials"], option["--grace"], option["--time-budget"]) == (
        "30",
        "2",
        "90s",
    ) and "--no-prune" in words
    toy = ToyWindows()
    held_out = held_out_of(option["--held-out"])
    folds = make_folds(
        toy.subjects, toy.targets, classes=False, n_folds=int(option["--folds"]), seed=int(option["--seed"]),
        held_out=held_out,
    )  # fmt: skip
    assert folds.held_out == run.folds.held_out
    source = re.search(r"<pre>(.*)</pre>", html, re.DOTALL).group(1)
    assert SearchSpace(unescape(source), "again").hash == run.space.hash
