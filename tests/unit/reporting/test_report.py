"""The report of whole runs: with and without an ensemble, just created, outdated, behind a URI, with hostile names."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from raypipe.ensembles.evaluation_log import record_evaluation
from raypipe.ensembles.fit import fit_ensemble
from raypipe.reporting.plotting import inline_svg
from raypipe.reporting.report import render_report, write_report
from raypipe.reporting.sections import search
from raypipe.reporting.sections.held_out import confusion_matrix
from raypipe.reporting.trial_spans import TrialSpan
from raypipe.storage.run_store import RunStore
from tests.support.toys import SPACE, ToyWindows, add_ended, make_run, tiny

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects texts and images, and checks that tags are closed in order and nothing is loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[dict[str, str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "svg":
            self.images.append(attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), "nothing may be fetched from elsewhere"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def says(self, words: str) -> bool:
        return words in re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture
def copy(request, tmp_path):
    def of(finished):
        shutil.copytree(finished.run.local, tmp_path / "my-run", dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "my-run" / "ensemble", ignore_errors=True)
        return RunStore.open(tmp_path / "my-run")

    return of


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_a_finished_run(kind, request, copy):
    finished = request.getfixturevalue(kind)
    run = copy(finished)
    ensemble = fit_ensemble(run, windows=finished.windows)
    ensemble.save()
    path = write_report(run)
    assert path == run.local / "report.html" and path.stat().st_size < 5e6
    page = Page(path.read_text())
    assert page.says(ensemble.verdict.replace("-0", "−0"))
    for words in (
        "equal weights",
        "best single trial",
        run.info.data_hash,
        "Only the held-out scores estimate the performance on new subjects",
        f"Run {run.local.parent.name}/my-run",
    ):
        assert page.says(words), words
    assert page.says("epoch 1: the loss is <not> a number"), "text must be escaped"
    assert all(subject in path.read_text() for subject in run.folds.held_out)
    assert len(page.images) == (15 if kind == "values" else 17) and all(image["aria-label"] for image in page.images)
    assert str(run.local.parent) not in path.read_text(), "a report names no folder of this machine"


def test_before_there_is_an_ensemble(values, copy, tmp_path):
    run = copy(values)
    path = write_report(run, tmp_path / "elsewhere" / "r.html")
    page = Page(path.read_text())
    assert page.says("No ensemble has been fitted yet, so the held-out subjects have not been evaluated")
    assert page.says(f"The best trial so far, number {run.ranked()[0].number}") and len(page.images) == 11
    record_evaluation(run, ToyWindows(), [0], "auto")
    assert Page(write_report(run).read_text()).says("were evaluated 1 time(s), but no ensemble was saved")


def test_a_run_that_has_only_begun(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert Page(write_report(run).read_text()).says("No trial has been started")
    run.add_trial(0, tiny())
    page = Page(write_report(run).read_text())
    assert page.says("1 not ended") and page.says("0 of 1 trials ended") and not page.images


def test_an_outdated_ensemble_is_reported(values, copy):
    run = copy(values)
    fit_ensemble(run, top=2, windows=values.windows).save()
    best = run.ranked()[0]
    run.add_trial(4, run.config(best.number))
    run.write_result(best.model_copy(update={"number": 4, "score": best.score - 1.0}))
    assert Page(write_report(run).read_text()).says("The run has continued since this ensemble was fitted")


def test_hostile_names_are_escaped_in_every_section(tmp_path):
    toy = ToyWindows(classes=True)
    toy.classes = ["<img src=x onerror=alert(1)>", "a&b"]
    toy.subjects = np.array([f"<i>{name}" for name in toy.subjects])
    made = make_run(tmp_path / "<b>run", toy, space=f"{SPACE}# </pre><script>alert(1)</script>\n")
    info = made.info.model_copy(update={"target": "events:<script>,<i>", "versions": {"<script>": "<i>"}})
    run = RunStore(made.folder, info, made.folds, made.space)
    for number, state in enumerate(("complete", "pruned", "failed", "stopped")):
        add_ended(run, number, 0.7 + number / 100, state)
        run.write_result(run.result(number).model_copy(update={"reason": "<script>reason</script>", "failure": "<i>"}))
    html = render_report(run)
    page = Page(html)
    assert not any(tag in html for tag in ("<script", "<img src=x", "<i>", "<b>run"))
    for words in ("<script>reason</script>", "# </pre><script>alert(1)</script>", "<i>s00", "<b>run", "<script> <i>"):
        assert page.says(words), words


def test_a_plot_that_cannot_be_drawn_leaves_a_line(values, copy, monkeypatch):
    monkeypatch.setattr(search, "scores_by_number", lambda *_: 1 / 0)
    page = Page(write_report(copy(values)).read_text())
    assert page.says("this plot could not be drawn (ZeroDivisionError: division by zero)") and len(page.images) == 10


def test_through_a_uri(values, copy):
    run = RunStore.open(copy(values).local.as_uri())
    where = write_report(run)
    assert where == f"{run.where}/report.html" and run.folder.exists("report.html")


def test_three_classes_have_a_confusion_matrix():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=30)
    figure, again = (confusion_matrix(np.arange(30) % 3, probabilities, ["a", "b", "c"]) for _ in range(2))
    assert sum(int(text.get_text().split()[0]) for text in figure.axes[0].texts) == 30
    assert inline_svg(figure, "a") == inline_svg(again, "a")


@pytest.mark.parametrize("scores", [[0.61, 0.7, 0.66, 0.72, 0.5, 0.58], [1.1, 0.99, 50.0, 1.0, 0.98, 1.2]])
def test_every_good_trial_is_within_the_axis(values, scores):
    direction = "maximize" if max(scores) < 1 else "minimize"
    info = values.run.info.model_copy(update={"direction": direction, "metric": "auc" if max(scores) < 1 else "nrmse"})
    run = RunStore(values.run.folder, info, values.run.folds, values.run.space)
    first = values.run.results()[0]
    results = [first.model_copy(update={"number": n, "score": s}) for n, s in enumerate(scores)]
    axes = search.scores_by_number(run, results).axes[0]
    low, high = axes.get_ylim()
    assert all(low <= score <= high for score in scores if score < 2)
    assert bool(axes.texts) == (max(scores) > 2)


def test_the_best_score_is_drawn_up_to_the_last_trial_and_pauses_are_labelled(values):
    first = values.run.results()[0]
    states = ("complete", "complete", "pruned", "pruned")
    results = [first.model_copy(update={"number": n, "score": 1.0 - n / 10, "state": s}) for n, s in enumerate(states)]
    spans = []
    for result, (start, end) in zip(results, [(0, 60), (3600, 4000), (3600, 4100), (3600, 4200)], strict=True):
        ended = result.model_copy(update={"finished": float(end)})
        spans.append(TrialSpan(ended, float(start), [(float(start), float(end))], 1))
    by_number = search.scores_by_number(values.run, results).axes[0]
    by_time = search.scores_by_time(values.run, results, spans).axes[0]
    for axes, last in ((by_number, 3.0), (by_time, 4200.0 / 60)):
        (best,) = [line for line in axes.get_lines() if line.get_label() == "best so far"]
        assert best.get_xdata()[-1] == last and best.get_ydata()[-1] == 0.9
    assert [text.get_text() for text in by_time.texts] == ["idle for 59 min 00 s"]


def test_a_name_that_is_no_utf_8_is_an_escape_in_the_page(tmp_path):
    run = make_run(tmp_path / "r\udcff", ToyWindows())
    assert "r\\udcff" in write_report(run).read_text()
