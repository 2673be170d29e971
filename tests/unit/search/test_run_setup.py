"""Runs that several drivers create at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raypipe.core.errors import UserError
from raypipe.core.folds import LeakError
from raypipe.core.options import parse_options, parse_pretrain_options
from raypipe.core.parameters import parse_config
from raypipe.core.search_space import SearchSpace
from raypipe.data.splits import folds_of
from raypipe.data.window_store import WindowStore
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.search import pretrain
from raypipe.search.run_setup import open_run
from raypipe.storage.creation import sole_creator
from raypipe.storage.files import open_folder
from raypipe.storage.lease import Lease
from raypipe.storage.run_store import RunStore
from tests.support.toys import SPACE, ToyWindows, write_store

OPTIONS = parse_options({"folds": 3})
IN_USE = "another raypipe is driving this run"


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> WindowStore:
    return WindowStore(write_store(tmp_path_factory.mktemp("toy") / "store", ToyWindows()))


@pytest.mark.parametrize("classes", [False, True])
def test_search_subjects_that_can_have_no_score_are_refused_before_anything_is_trained(tmp_path, classes):
    toy = ToyWindows(classes=classes)
    toy.targets[:] = 0
    same = WindowStore(write_store(tmp_path / "store", toy))
    metric, why = ("auc", "a class is missing") if classes else ("nrmse", "their targets are all equal")
    with pytest.raises(UserError, match=f"--metric {metric}: it is undefined for the search subjects, .*{why}"):
        open_run(SearchSpace(SPACE), same, str(tmp_path / "run"), OPTIONS)
    assert not (tmp_path / "run").exists()


def at_once(count: int, call) -> list[object]:
    """Call a function in several threads at once with its number; return what each returned or the error it raised."""

    def attempt(number: int) -> object:
        try:
            return call(number)
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))


@pytest.mark.parametrize("attempt", range(5))
def test_drivers_that_start_at_once_make_one_run(windows, tmp_path, attempt):
    ready = threading.Barrier(3)
    where = str(tmp_path / "run")

    def create(number: int) -> RunStore:
        return open_run(SearchSpace(SPACE), windows, where, OPTIONS, before_create=ready.wait)

    found = at_once(3, create)
    stores = [each for each in found if isinstance(each, RunStore)]
    assert stores and {store.info.id for store in stores} == {RunStore.open(where).info.id}
    assert all(str(each).startswith(f"{where}: {IN_USE}") for each in found if isinstance(each, UserError))


def test_of_drivers_that_start_at_once_one_drives(windows, tmp_path):
    ready, refused = threading.Barrier(3), threading.Semaphore(0)
    where = str(tmp_path / "run")

    def drive(number: int) -> bool:
        try:
            with Lease(open_run(SearchSpace(SPACE), windows, where, OPTIONS, before_create=ready.wait).folder):
                return refused.acquire(timeout=60) and refused.acquire(timeout=60)
        except UserError:
            refused.release()
            raise

    found = at_once(3, drive)
    assert found.count(True) == 1
    assert [str(each).partition(" (")[0] for each in found if each is not True] == [f"{where}: {IN_USE}"] * 2


def test_a_driver_that_made_the_run_before_the_last_check_is_joined_and_other_options_are_refused(windows, tmp_path):
    where = str(tmp_path / "run")

    def other_driver() -> None:
        with Lease(open_run(SearchSpace(SPACE), windows, where, OPTIONS).folder):
            pass

    joined = open_run(SearchSpace(SPACE), windows, where, OPTIONS, before_create=other_driver)
    assert joined.info.id == RunStore.open(where).info.id
    where = str(tmp_path / "other")
    with pytest.raises(UserError, match="the run has seed 0, not 1; it cannot change"):
        open_run(SearchSpace(SPACE), windows, where, parse_options({"folds": 3, "seed": 1}), before_create=other_driver)


def test_the_metric_of_a_run_is_the_windows_or_the_option_and_is_kept(windows, tmp_path):
    made = open_run(SearchSpace(SPACE), windows, str(tmp_path / "run"), OPTIONS)
    assert (made.info.metric, made.info.direction) == (windows.metric, "minimize")
    asked = parse_options({"folds": 3, "metric": "pearson"})
    other = open_run(SearchSpace(SPACE), windows, str(tmp_path / "other"), asked)
    assert (other.info.metric, other.info.direction) == ("pearson", "maximize")
    assert open_run(SearchSpace(SPACE), windows, str(tmp_path / "other"), OPTIONS).info.metric == "pearson"
    with pytest.raises(UserError, match="trials are ranked by nrmse, not pearson; this cannot change"):
        open_run(SearchSpace(SPACE), windows, made.where, asked)
    with pytest.raises(UserError, match="--metric f1: target 'toy' predicts values"):
        wrong = parse_options({"folds": 3, "metric": "f1"})
        open_run(SearchSpace(SPACE), windows, str(tmp_path / "wrong"), wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_run_that_is_being_created_is_in_use(windows, tmp_path):
    where = tmp_path / "run"
    with sole_creator(where), pytest.raises(UserError, match=f"{IN_USE} \\(a process on this host\\)"):
        open_run(SearchSpace(SPACE), windows, str(where), OPTIONS)
    assert not RunStore.exists(where)
    assert open_run(SearchSpace(SPACE), windows, str(where), OPTIONS).info.seed == 0


def test_a_pretrained_run_is_made_once(windows, tmp_path, monkeypatch):
    ready, options = threading.Barrier(3), parse_pretrain_options({"folds": 3})
    config = parse_config({**pretrain.DEFAULT_MODEL, "pretrain/name": "mae"}, "pretrain")
    make = pretrain._fold_map
    monkeypatch.setattr(pretrain, "_fold_map", lambda *given: (ready.wait(), make(*given))[1])
    found = at_once(3, lambda number: pretrain._open(tmp_path / "run", windows, config, options))
    made = [each for each in found if isinstance(each, PretrainedRun)]
    assert made and len({run.info.created for run in made}) == 1
    assert all(IN_USE in str(each) for each in found if isinstance(each, UserError))


def test_what_is_no_run_is_left_as_it_is(windows, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not a raypipe run, and not empty \(notes.txt\)"):
        open_run(SearchSpace(SPACE), windows, str(tmp_path), OPTIONS)
    assert open_folder(tmp_path).names() == ["notes.txt"]


def test_repeats_of_the_folds_are_kept_and_cannot_change(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=12)))
    where = str(tmp_path / "run")
    twice = parse_options({"folds": 3, "repeats": 2})
    assert open_run(SearchSpace(SPACE), windows, where, twice).folds.n_folds == 6
    assert open_run(SearchSpace(SPACE), windows, where, twice).folds.repeats == 2
    with pytest.raises(UserError, match="the run has 2 repeats, not 1; they cannot change"):
        open_run(SearchSpace(SPACE), windows, where, OPTIONS)
    with pytest.raises(UserError, match="--repeats 0: must be greater than or equal to 1"):
        parse_options({"repeats": 0})


def test_pretraining_that_serves_repeated_folds_sees_their_search_subjects(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=12)))
    where = str(tmp_path / "run")
    run = open_run(SearchSpace(SPACE), windows, where, parse_options({"folds": 3, "repeats": 2}))
    folds = pretrain._fold_map(windows, parse_pretrain_options({"serves": where}))
    assert (folds.fold_of, folds.n_folds, folds.repeats) == (run.folds.fold_of, 3, 1)
    with pytest.raises(UserError, match="folds are repeated, and --fold-wise makes encoders for one repeat only"):
        pretrain._fold_map(windows, parse_pretrain_options({"serves": where, "fold_wise": True}))


def test_windows_that_are_copied_over_subjects_make_no_run(tmp_path):
    toy = ToyWindows()
    toy.x[8:16] = toy.x[:8]  # all windows of the second subject are those of the first
    stores = [write_store(tmp_path / "store", toy), write_store(tmp_path / "other", ToyWindows())]
    windows, clean = (WindowStore(store) for store in stores)
    where = str(tmp_path / "run")
    folds = folds_of(windows, OPTIONS.folds, OPTIONS.held_out, OPTIONS.seed, OPTIONS.repeats)
    assert folds.fold_of["s00"] != folds.fold_of["s01"]
    with pytest.raises(LeakError, match=r"sub-s00 .* and sub-s01 .* hold the same samples but are in different folds"):
        open_run(SearchSpace(SPACE), windows, where, OPTIONS)
    assert not RunStore.exists(where)
    open_run(SearchSpace(SPACE), clean, where, OPTIONS)
    assert RunStore.exists(where)
