"""What notebooks show, without a kernel; with one: tests/integration/test_notebook.py."""

from __future__ import annotations

import html
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

import raypipe
from raypipe.core.stop import StopRequest
from raypipe.reporting import notebook
from raypipe.reporting.notebook import NotebookProgress, ReportFile, cell
from raypipe.reporting.progress_lines import PrintProgress

WHICH = ["window", "recording", "onset", "subject"]


def test_a_run_its_ensemble_and_its_report_show_themselves_without_other_files(classes, tmp_path):
    run = raypipe.Run(shutil.copytree(classes.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    shown = run._repr_html_()
    assert "events:off,on" in shown and "4 of 4 trials" in shown and "not scored yet" in shown
    ensemble = run.ensemble(top=2, method="equal")
    assert html.escape(ensemble.verdict) in ensemble._repr_html_() and "held out" in ensemble._repr_html_()
    assert html.escape(ensemble.verdict) in run._repr_html_()
    frame = run.report()._repr_html_()
    page = html.unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)" .*></iframe>', frame, re.DOTALL)[1])
    assert page == (tmp_path / "run/report.html").read_text(encoding="utf-8")
    for text in (run._repr_html_(), ensemble._repr_html_()):
        assert "http" not in text and "<script" not in text


def test_out_of_fold_tables_of_classes_have_their_names(repeated):
    run = raypipe.Run(repeated.run)
    table = run.oof()
    names = repeated.run.info.classes
    columns = [f"probability_{name}" for name in names]
    assert list(table.columns) == [*WHICH, "target", "fold", *columns, "prediction"]
    assert len(table) == 2 * table["window"].nunique(), "a row in each repeat"
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, rtol=1e-5)
    most = [names[k] for k in table[columns].to_numpy().argmax(axis=1)]
    assert table["prediction"].tolist() == most and set(table["target"]) == set(names)


def test_a_run_without_scores_says_so(classes, tmp_path):
    run = raypipe.Run(shutil.copytree(classes.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/trials")
    assert "0 of 0 trials, held-out" in repr(raypipe.Run(run.where))
    with pytest.raises(raypipe.UserError, match="no trial is complete yet"):
        raypipe.Run(run.where).oof()


def test_a_damaged_record_is_said_in_the_text_of_a_run(classes, tmp_path):
    run = raypipe.Run(shutil.copytree(classes.run.local, tmp_path / "run"))
    result = next((tmp_path / "run/trials").glob("*/result.json"))
    result.write_text(result.read_text()[:40])
    assert repr(run).startswith(f"Run({run.where!r}): target events:off,on; ") and "result.json" in repr(run)
    assert run._repr_html_() is None


def test_only_files_of_reports_are_shown(tmp_path):
    assert ReportFile(tmp_path)._repr_html_() is None
    assert ReportFile(tmp_path / "missing.html")._repr_html_() is None


def test_outside_a_notebook_nothing_is_added():
    handler = signal.getsignal(signal.SIGINT)
    with cell(None, None) as given:
        assert given == (None, None) and signal.getsignal(signal.SIGINT) is handler


def test_the_first_interrupt_in_a_notebook_asks_and_the_second_ends(monkeypatch):
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    before = signal.getsignal(signal.SIGINT)
    with cell(None, None) as (callback, stop):
        assert isinstance(callback, NotebookProgress) and stop is not None
        with stop.accepting():
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with cell(None, None) as (_, stop), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # nothing accepts a stop yet
    mine, own = PrintProgress(), StopRequest()
    with cell(mine, own) as given:
        assert given == (mine, own) and signal.getsignal(signal.SIGINT) is before


def test_progress_changes_in_place(monkeypatch):
    shown, clock = [], iter(range(1000))

    def display(data, **options):
        shown.append(data)
        return SimpleNamespace(update=lambda data, **_: shown.append(data))

    monkeypatch.setattr(notebook, "import_module", lambda name: SimpleNamespace(display=display))
    progress = NotebookProgress()
    progress._clock = lambda: next(clock)
    progress.on_ray_start(None)
    for number in range(12):
        progress.on_warning(f"<{number}>")
    progress.on_draining(2)
    assert len(shown) == 14 and shown[0]["text/plain"] == "starting Ray on this machine"
    assert "&lt;11&gt;" in shown[-1]["text/html"] and "<11>" not in shown[-1]["text/html"]
    assert shown[-1]["text/plain"].count("\n") == notebook.MAX_LINES - 1
