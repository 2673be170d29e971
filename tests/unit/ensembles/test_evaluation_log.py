from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.evaluation_log import (
    EVALUATION_LOG,
    Evaluations,
    read_evaluations,
    read_looks,
    record_evaluation,
    registries_of,
)
from raypipe.ensembles.fit import fit_ensemble
from raypipe.storage.files import PARTIAL_SUFFIX
from raypipe.storage.run_store import RunStore
from tests.support.toys import ToyWindows, make_run


def test_every_scoring_of_the_held_out_subjects_is_recorded_and_noted(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    run.folder.remove(EVALUATION_LOG)
    windows = WindowStore(shutil.copytree(classes.windows.path, tmp_path / "store"))  # other tests score on the first
    assert read_evaluations(run) == []
    first = fit_ensemble(run, top=2, windows=windows)
    assert first.held_out_evaluations == 1 and not any("scored on its held-out" in note for note in first.notes)
    second = fit_ensemble(run, top=1, method="equal", windows=windows)
    assert second.held_out_evaluations == 2 and "scored on its held-out subjects 2 times" in second.notes[0]
    best, *_ = (result.number for result in run.ranked())
    assert [(len(each.trials), each.trials[0], each.method) for each in read_evaluations(run)] == [
        (2, best, "auto"),
        (1, best, "equal"),
    ]


def test_a_lost_log_and_registry_do_not_restart_the_count(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    counts = []
    for _ in range(3):
        fitted = fit_ensemble(run, top=1, windows=classes.windows)
        fitted.save()
        run.folder.remove(EVALUATION_LOG)
        counts.append(fitted.held_out_evaluations)
    assert counts == list(range(counts[0], counts[0] + 3))


def test_a_log_of_another_form_is_refused(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    run.folder.write(EVALUATION_LOG, b"[{}]")
    with pytest.raises(UserError, match=r"evaluations\.json"):
        fit_ensemble(run, top=1, windows=classes.windows)


class _Store:
    """Windows of which only the place matters."""

    def __init__(self, where):
        self.where = str(where)
        self.places = [self.where]


def _run(where, held_out, run_id):
    run = make_run(where, ToyWindows())
    people = dict.fromkeys(run.folds.fold_of, 0) | dict.fromkeys(held_out, HELD_OUT)
    run.folds = run.folds.model_copy(update={"fold_of": people})
    run.info = run.info.model_copy(update={"id": run_id})
    run.run_id = run_id
    return run


@pytest.fixture(params=["path", "uri"])
def store(request, tmp_path):
    (tmp_path / "store").mkdir()
    return _Store(tmp_path / "store" if request.param == "path" else f"file://{tmp_path}/store")


def test_looks_at_a_person_are_counted_over_all_runs_on_a_store(store, tmp_path):
    a = _run(tmp_path / "a", ["s00", "s01"], "a")
    b = _run(tmp_path / "b", ["s01", "s02"], "b")
    c = _run(tmp_path / "c", ["s05"], "c")
    assert record_evaluation(a, store, [0], "auto") == Evaluations(1, 1)
    assert record_evaluation(b, store, [0], "auto") == Evaluations(2, 2)
    assert record_evaluation(c, store, [0], "auto") == Evaluations(1, 1)
    assert record_evaluation(b, store, [0], "equal") == Evaluations(3, 2)
    assert [look.people for look in read_looks(store)] == [["s00", "s01"], ["s01", "s02"], ["s05"], ["s01", "s02"]]


@pytest.mark.parametrize("by", ["store", "a link", "a link above", "file URI", "file URI of a link"])
def test_a_store_that_is_reached_in_another_way_has_the_same_count(by, tmp_path):
    (tmp_path / "a b" / "store").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a b" / "store")
    (tmp_path / "above").symlink_to(tmp_path / "a b")
    own, link = tmp_path / "a b" / "store", tmp_path / "link"
    places = {"store": own, "a link": link, "a link above": tmp_path / "above" / "store"}
    other = (places | {"file URI": own.as_uri(), "file URI of a link": f"{link.as_uri()}/"})[by]
    run = _run(tmp_path / "a", ["s00"], "a")
    record_evaluation(run, _Store(own), [0], "auto")
    assert record_evaluation(_run(tmp_path / "b", ["s00"], "b"), _Store(other), [0], "auto") == Evaluations(2, 2)
    assert len(read_looks(_Store(own))) == len(read_looks(_Store(other))) == 2


def test_a_store_under_two_names_is_looked_at_once(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    both = _Store(tmp_path / "store")
    both.places = [str(tmp_path / name) for name in ("store", "link")]
    assert registries_of(both) == [str(tmp_path / "store.looks")]


def test_concurrent_looks_are_all_counted(store, tmp_path):
    run = _run(tmp_path / "a", ["s00"], "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: record_evaluation(run, store, [0], "auto"), range(24)))
    assert len(read_looks(store)) == 24


def test_a_writer_that_dies_leaves_no_part_of_a_look(tmp_path):
    store, run = _Store(tmp_path / "store"), _run(tmp_path / "a", ["s00"], "a")
    (tmp_path / "store").mkdir()
    record_evaluation(run, store, [0], "auto")
    (tmp_path / "store.looks" / f".x.json.1234{PARTIAL_SUFFIX}").write_bytes(b'{"format"')
    assert record_evaluation(run, store, [0], "auto") == Evaluations(2, 1)


def test_a_store_that_cannot_be_written_counts_the_runs_own_looks_and_says_so(tmp_path):
    store, run = _Store(tmp_path / "store"), _run(tmp_path / "a", ["s00"], "a")
    (tmp_path / "store").mkdir()
    (tmp_path / "store.looks").write_text("in the way, as a read-only folder is")
    found = record_evaluation(run, store, [0], "auto")
    assert found.times == 1 and "store.looks cannot be written" in found.uncounted


def test_of_several_stores_those_that_can_be_written_keep_the_look(tmp_path):
    stores, run = _Store(tmp_path / "one"), _run(tmp_path / "a", ["s00"], "a")
    stores.places = [str(tmp_path / name) for name in ("one", "other")]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.looks").write_text("in the way")
    found = record_evaluation(run, stores, [0], "auto")
    assert "one.looks cannot be written" in found.uncounted and "other.looks" not in found.uncounted
    assert len(read_looks(_Store(tmp_path / "other"))) == 1
