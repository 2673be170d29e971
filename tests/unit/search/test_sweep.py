"""A driver's decisions before Ray is started: what it refuses."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.search.outer import resume_outer, sweep_outer
from raypipe.search.sweep import resume, sweep
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from tests.support.plain import plain_cross_validation
from tests.support.records import edit_record
from tests.support.toys import SPACE, ToyWindows, make_run, write_store

SECRET_URI = "s3://key:geheim@bucket/tune"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("windows") / "store", ToyWindows(subjects=8, each=4))


@pytest.fixture
def begun(tmp_path, store) -> RunStore:
    """A run of two trials that was driven before, with no trial yet."""
    run = make_run(tmp_path / "run", WindowStore(store), n_folds=2)
    edit_record(run.folder, "run.json", {"data": str(store)})
    options = {"folds": 2, "trials": 2, "held_out": "auto"}
    write_options(run.folder, options, run.run_id)
    return RunStore.open(run.where)


def files_with_secret(folder):
    return [path for path in folder.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]


@pytest.mark.parametrize("call", [sweep, lambda *places, **options: sweep_outer(*places, outer=2, **options)])
def test_a_storage_with_keys_is_refused_by_a_new_search(tmp_path, store, call):
    (tmp_path / "space.py").write_text(SPACE)
    with pytest.raises(UserError, match="leave the keys out of the URI") as caught:
        call(tmp_path / "space.py", store, tmp_path / "run", storage=SECRET_URI)
    assert "geheim" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_storage_with_keys_is_refused_by_a_search_that_continues(tmp_path, begun, store):
    (tmp_path / "space.py").write_text(SPACE)
    options = {"outer": 2, "trials": 1, "folds": 2}
    outer = plain_cross_validation(tmp_path / "space.py", store, tmp_path / "outer", **options)
    for call, where in ((resume, begun.where), (resume_outer, outer.where)):
        with pytest.raises(UserError, match="leave the keys out of the URI"):
            call(where, storage=SECRET_URI)
    assert not files_with_secret(tmp_path)
