"""What Tune reports, and what the run's ledger makes of it. Ray is imported, not started."""

from __future__ import annotations

import pytest

from raypipe.errors import DiskFullError, UserError
from raypipe.search import SAME_FAILURES, RunSearch
from raypipe.study import Ledger, open_journal
from tests.toys import ToyWindows, make_run


@pytest.fixture
def search(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    storage = open_journal(run)
    ledger = Ledger(run, windows, storage, trials=9)
    return RunSearch(ledger, storage, deadline=None, watch=lambda kind, news: None)


def fail(search, name, failure, reason):
    number = search.suggest(name)["number"]
    search.on_trial_complete(name, {"number": number, "failure": failure, "reason": reason, "done": True})
    return number


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(search):
    number = fail(search, "a", "non-finite", "fold 0, epoch 1: the training loss is not finite")
    result = search.ledger.run.result(number)
    assert (result.state, result.failure) == ("failed", "non-finite")
    assert search.fatal is None
    assert search.suggest("b")["number"] != number


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("disk-full", DiskFullError, "^no space left$"),
        ("no-workers", UserError, "^no space left; the same command goes on from here$"),
    ],
)
def test_what_no_trial_is_to_blame_for_stops_the_sweep_and_leaves_the_trial_open(search, failure, kind, message):
    number = fail(search, "a", failure, "no space left")
    assert search.ledger.run.result(number) is None
    with pytest.raises(kind, match=message):
        raise search.fatal
    assert search.suggest("b") == "FINISHED"
    ledger = search.ledger
    again = Ledger(ledger.run, ledger.windows, open_journal(ledger.run), trials=9)
    assert again.next() == number


def test_trials_that_fail_the_same_way_from_the_first_end_the_sweep(search):
    for trial in range(SAME_FAILURES):
        assert search.fatal is None
        fail(search, str(trial), "error", f"fold {trial} broke")
    with pytest.raises(UserError, match=r"first 3 trials failed the same way \(error\): fold 2 broke"):
        raise search.fatal
