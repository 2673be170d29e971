"""Metrics of users: tried before anything is started, kept by the run, and used to rank its trials."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.search.own_metrics import check_own_metric, find_own_metric
from raypipe.search.run_setup import check_unchanged, open_run
from raypipe.search.sweep import sweep
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback
from raypipe.trial.local import run_trial
from tests.support.own import METRIC, NET
from tests.support.toys import SPACE, ToyWindows, write_store


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Windows, and a search space."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "space.py").write_text(SPACE)
    return WindowStore(write_store(folder / "store", ToyWindows())), load_space(folder / "space.py")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make a working folder with a metric."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METRIC)
    return tmp_path


def options(**changes):
    return find_own_metric(SweepOptions(folds=3, metric="mine.py:score", **changes))


def test_a_run_keeps_its_metric_and_ranks_by_it(here, data):
    windows, space = data
    run = open_run(space, windows, "run", options())
    assert run.info.metric.startswith("mine.py:score@minimize:") and run.info.direction == "minimize"
    run.add_trial(0, space.draw(1)[0])
    run_trial(run, windows, 0)
    (here / "mine.py").unlink()
    again = RunStore.open("run")
    like = open_run(space, windows, "like", SweepOptions(folds=3, metric="rmse"))
    like.add_trial(0, space.draw(1)[0])
    run_trial(like, windows, 0)
    scores = [[epoch.score for epoch in each.history(0)] for each in (again, like)]
    assert scores[0] == pytest.approx(scores[1]) and len(scores[0]) > 1
    (copy,) = (here / "run" / "code").iterdir()
    copy.write_text(METRIC.replace("False", "True"))
    with pytest.raises(UserError, match=r"run/code/\w+-mine.py: changed since the run was made; restore it"):
        RunStore.open("run")
    copy.unlink()
    with pytest.raises(UserError, match=r"run/code/\w+-mine.py: missing; restore it from a copy"):
        RunStore.open("run")


def test_a_metric_that_was_changed_or_exchanged_is_one_line(here, data):
    windows, space = data
    run = open_run(space, windows, "run", options())
    check_unchanged(run, windows, space, options())
    check_unchanged(run, windows, space, SweepOptions(folds=3))
    with pytest.raises(UserError, match=r"ranked by mine.py:score, not rmse; this cannot change"):
        check_unchanged(run, windows, space, SweepOptions(folds=3, metric="rmse"))
    (here / "mine.py").write_text(METRIC + "# better\n")
    with pytest.raises(UserError, match=r"run: mine.py:score has changed since the run was made; name a new run"):
        check_unchanged(run, windows, space, options())


class NotStarted(SweepCallback):
    def on_ray_start(self, address):
        raise AssertionError("Ray was started")


MISTAKES = {
    "no file": (("", ""), "there is no file"),
    "direction": (("= False", "= True"), r"random predictions score .* better than the targets themselves, 0: is high"),
    "no direction": (("score.higher_is_better = False", ""), "does not say which scores are better"),
    "raises": (
        ("    return np.sqrt", "    assert len(y) > 1\n    return np.sqrt"),
        r"AssertionError \(for 1 targets",
    ),
    "text": (("    return np.sqrt", "    return 'good'\n    return np.sqrt"), r"could not convert string to float"),
    "not finite": (
        ("    return np.sqrt", "    return np.nan * np.sqrt"),
        "gave no finite number for 40 targets and predictions that are random",
    ),
    "infinite": (("return np.sqrt(", "return 1 / np.sqrt("), "for 40 targets and predictions that are right"),
    "draws": (("np.sqrt(", "np.random.rand() + np.sqrt("), "the same targets and predictions give"),
    "import": (("import numpy", "import nump, numpy"), "line 2: ModuleNotFoundError: No module named 'nump'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_ray_starts(here, data, mistake):
    (old, new), message = MISTAKES[mistake]
    (here / "mine.py").write_text(METRIC.replace(old, new)) if old else (here / "mine.py").unlink()
    windows, space = data
    with pytest.raises(UserError, match=message) as caught:
        sweep(space.name, windows.where, "run", metric="mine.py:score", folds=3, callback=NotStarted())
    assert "\n" not in str(caught.value) and not (here / "run").exists()


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_a_good_metric_passes(here, classes):
    check_own_metric(options().metric, classes)


def test_a_metric_whose_file_has_the_name_of_another_is_one_line(here, data):
    windows, _ = data
    (here / "nets").mkdir()
    (here / "nets" / "mine.py").write_text(NET)
    (here / "space.py").write_text('def space(trial):\n    return {"model/name": "nets/mine.py:Net"}\n')
    with pytest.raises(UserError) as caught:
        open_run(load_space("space.py"), windows, "run", options())
    assert str(caught.value) == (
        "space.py: nets/mine.py and that of --metric mine.py:score are different files of one name; rename one of them"
    )
    (here / "nets" / "mine.py").write_text(NET + METRIC)
    (here / "mine.py").write_text(NET + METRIC)
    assert open_run(load_space("space.py"), windows, "run", options()).info.metric.startswith("mine.py:score@")
