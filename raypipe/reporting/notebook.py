"""What notebooks show: runs, ensembles and reports as HTML, the progress of a sweep, and what an interrupt does."""

from __future__ import annotations

import contextlib
import html
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import PosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedSweepError
from raypipe.core.stop import StopRequest
from raypipe.ensembles.notebook import rows_html
from raypipe.reporting.progress_lines import PrintProgress
from raypipe.trial.callback import RunSnapshot, SweepCallback

if TYPE_CHECKING:
    from raypipe.storage.run_store import RunStore

MAX_LINES = 8
"""Lines of events that the display of a sweep keeps."""
MAX_SHOWN_REPORT = 24 * 2**20
"""Bytes of a report that is shown in a notebook, which then holds it."""
REFRESH_SECONDS = 0.5


class ReportFile(PosixPath):
    """Path of a report, which a notebook shows in a frame."""

    def _repr_html_(self) -> str | None:
        if self.suffix != ".html" or not self.is_file():
            return None
        if self.stat().st_size > MAX_SHOWN_REPORT:
            return f"<p>{html.escape(str(self))}: too large to be shown here; open the file</p>"
        page = html.escape(self.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width:100%;height:640px;border:1px solid #ccc" title="report"></iframe>'


class RunFacts(NamedTuple):
    """A run in a few words."""

    trials: str
    best: str
    held_out: str

    def line(self) -> str:
        """Return all in one line."""
        return ", ".join(each for each in self if each)


def run_facts(store: RunStore) -> RunFacts:
    """Describe the trials, the best score and the scorings of the held-out people of a run."""
    from raypipe.ensembles.evaluation_log import read_evaluations
    from raypipe.ensembles.labels import metric_label
    from raypipe.reporting.status import read_status

    status = read_status(store)
    states = ", ".join(f"{n} {state}" for state, n in status.states.most_common())
    ranked = store.ranked()
    best = f"{ranked[0].score:.4g} (trial {ranked[0].number})" if ranked else ""
    times = len(read_evaluations(store))
    return RunFacts(
        trials=f"{len(status.rows)} of {status.planned} trials" + (f" ({states})" if states else ""),
        best=f"best {metric_label(store.info.metric)} {best}" if best else "",
        held_out="held-out people not scored yet" if not times else f"held-out people scored {times} time(s)",
    )


def run_html(store: RunStore) -> str:
    """Return a run as a small table."""
    from raypipe.ensembles.fitted import read_ensemble_record

    facts, record = run_facts(store), read_ensemble_record(store)
    rows = {
        "run": store.where,
        "target": store.info.target,
        "trials": facts.trials,
        "best": facts.best.removeprefix("best ") or "no score yet",
        "held out": f"{len(store.folds.held_out)} people: {facts.held_out}",
        "ensemble": record.verdict if record else "none yet: run.ensemble()",
    }
    return rows_html(rows)


# A sweep in a cell


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. IPython is not imported."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None and hasattr(shell, "get_ipython") else None
    return running is not None and getattr(running, "kernel", None) is not None


@contextlib.contextmanager
def cell(
    callback: SweepCallback | None, stop: StopRequest | None
) -> Iterator[tuple[SweepCallback | None, StopRequest | None]]:
    """Yield the callback and the stop request of a call: as given, but in a notebook those that a cell needs.

    There, a call without a callback shows its progress. The first interrupt of the kernel lets the epochs under way
    end, and a second one ends the call at once; the handler of before comes back with the end of the call.
    """
    if not in_notebook():
        yield callback, stop
        return
    _quiet_imports()
    callback = NotebookProgress() if callback is None else callback
    if stop is not None or threading.current_thread() is not threading.main_thread():
        yield callback, stop
        return
    stop = StopRequest()
    with _draining(stop):
        try:
            yield callback, stop
        except InterruptedSweepError:
            raise InterruptedSweepError("the sweep has stopped; run the cell again to continue it") from None


def _quiet_imports() -> None:
    """Keep Optuna's and Ray's advice to install ipywidgets, which nothing here uses, out of the cell."""
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("tqdm.auto")


@contextlib.contextmanager
def _draining(stop: StopRequest) -> Iterator[None]:
    def handle(number: int, frame: object) -> None:
        if not stop.accepted or stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class NotebookProgress(PrintProgress):
    """Callback that shows the progress of a sweep in the output of a notebook's cell, where it changes in place."""

    def __init__(self) -> None:
        super().__init__(self._add, every=REFRESH_SECONDS)
        self._lines: list[str] = []
        self._handle: Any = None
        self._lock = threading.Lock()

    def _add(self, line: str) -> None:
        self._lines = [*self._lines, line][-MAX_LINES:]
        self._show()

    def on_open(self, run: RunSnapshot) -> None:
        super().on_open(run)
        self._show()

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.state.on_trial_start(number, config)
        self._show()

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.state.on_epoch(number, epoch, score, fold_scores)
        if self._clock() - self._written_at > self._every:
            self._written_at = self._clock()
            self._show()

    def on_draining(self, running: int) -> None:
        self.print_line(f"stopping: {running} trial(s) finish the epoch under way; the same call continues the run")

    def _show(self) -> None:
        display = import_module("IPython.display").display  # there in every kernel
        known = self.state.trials or self.state.ended
        line = self.progress() if known else ""
        bar = f'<progress value="{self.state.ended}" max="{self.state.trials or 1}" style="width:60%"></progress>'
        past = "\n".join(self._lines)
        data = {
            "text/plain": f"{past}\n{line}".strip(),
            "text/html": f"{bar if known else ''}<pre>{html.escape(line)}\n\n{html.escape(past)}</pre>",
        }
        with self._lock:
            if self._handle is None:
                self._handle = display(data, raw=True, display_id=True)
            else:
                self._handle.update(data, raw=True)
