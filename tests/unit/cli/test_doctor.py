"""The doctor names what is broken, and reports intact files as ok."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raypipe.cli import app
from raypipe.cli.doctor import diagnose
from raypipe.cli.machine import Finding
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.data.window_cache import push_store
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.evaluation_log import EVALUATION_LOG
from raypipe.ensembles.fit import fit_ensemble
from raypipe.packaging.bundle import export_bundle
from raypipe.search.pretrain import pretrain
from raypipe.search.reconcile import open_study
from raypipe.search.reruns import write_reruns
from raypipe.search.study import StudyQueue
from raypipe.storage.driver_record import DriverRecord
from raypipe.storage.files import open_folder, write_record
from raypipe.storage.journal import JOURNAL_FILE, open_journal
from raypipe.storage.lease import DRIVER_FILE, Lease
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback
from tests.support.hostile import replace_by
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_checkpoints, write_store

OPTIONS = SweepOptions(trials=4, folds=3).model_dump(mode="json")


def broken(target) -> list[str]:
    return [found.what for found in diagnose(target) if found.level == "broken"]


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", ToyWindows(subjects=12, each=4))


@pytest.fixture
def run(tmp_path, store):
    """A run on its store with a trial under way: a checkpoint of each of two epochs of fold 0."""
    windows = WindowStore(store)
    made = make_run(tmp_path / "run", windows)
    edit_record(made.folder, "run.json", {"data": str(store)})
    run = RunStore.open(tmp_path / "run")
    write_options(run.folder, OPTIONS, run.run_id)
    assert StudyQueue(run, windows, open_journal(run), trials=1).next() == 0
    for epoch in (1, 2):
        write_checkpoints(run, windows, 0, epoch)
    for fold in (1, 2):
        run.drop_checkpoints(0, fold)
    with Lease(run.folder, run=run.run_id):
        pass
    return run


def test_intact_files_are_reported_as_ok(run, store):
    for target in (store, run.where):
        found = list(diagnose(target))
        assert [each.level for each in found] == ["ok"] * len(found) and found
    assert any("no leak" in each.what for each in diagnose(run.where))
    assert any("2 checkpoints" in each.what for each in diagnose(run.where))


@pytest.mark.timeout(120)
def test_no_file_of_a_run_or_store_is_waited_for(run, store):
    files = [path for top in (Path(run.where), store) for path in top.rglob("*") if path.is_file()]
    assert any(path.name == "study.journal" for path in files) and any(path.suffix == ".npy" for path in files)
    for path in files:
        content = path.read_bytes()
        replace_by(path, "fifo")
        lines = broken(run.where)
        # A pipe in place of a record counts as no record, a checkpoint's as a damaged one.
        assert lines or path.name in ("driver.lock", "history.json") or path.suffix == ".ckpt", path
        if path.name in ("study.journal", "windows.csv") or path.suffix == ".npy":
            assert any(path.name in line and "not a regular file" in line for line in lines), (path, lines)
        path.unlink()
        path.write_bytes(content)


@pytest.mark.timeout(60)
def test_a_driver_does_not_wait_for_a_journal_that_is_no_file(run):
    replace_by(Path(run.where) / JOURNAL_FILE, "fifo")
    for writable in (True, False):
        with pytest.raises(UserError, match=r"study\.journal: not a regular file"):
            open_journal(run, writable=writable)


def test_every_damaged_shard_is_named(store):
    shards = sorted((store / "shards").iterdir())
    shards[0].unlink()
    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    lines = broken(store)
    assert len(lines) == 2 and all("run prepare again" in line for line in lines)
    assert shards[0].name in lines[0] and "missing" in lines[0]
    assert shards[1].name in lines[1] and "damaged" in lines[1]


def test_one_recording_under_two_names_is_a_leak(tmp_path):
    toy = ToyWindows(subjects=6, each=4)
    toy.x[4:8] = toy.x[:4]
    (line,) = broken(write_store(tmp_path / "store", toy))
    assert "4 windows of sub-s00 and sub-s01 hold the same samples" in line


def test_a_damaged_checkpoint_comes_with_what_resume_will_do(run):
    for epoch, fix in ((2, "continues from the one of epoch 1"), (1, "trains that fold's epochs again")):
        path = run.local / f"trials/0000/fold-0/epoch-000{epoch}.ckpt"
        path.write_bytes(path.read_bytes()[:-1])
        found = [each for each in diagnose(run.where) if each.level == "broken"]
        assert f"trial 0, fold 0, checkpoint of epoch {epoch}" in found[0].what
        assert found[0].fix.endswith(fix)


def test_files_of_ended_trials_are_compared_with_their_checksums(values, tmp_path):
    place = shutil.copytree(values.run.local, tmp_path / "run")
    write_options(open_folder(place), OPTIONS, values.run.run_id)
    fit_ensemble(RunStore.open(place), windows=values.windows, method="equal").save()
    found = [each.what for each in diagnose(place)]
    assert "its ensemble can be read: equal, 3 trial(s)" in found
    assert "out-of-fold predictions of 3 trial(s) follow the fold map and are finite" in found
    path = place / "trials/0001/fold-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (place / "trials/0002/oof.npz").unlink()
    lines = broken(place)
    assert len(lines) == 2 and "0001/fold-0.safetensors: damaged" in lines[0] and "oof.npz: missing" in lines[1]


def test_every_record_of_an_ensemble_is_read(values, tmp_path):
    run = RunStore.open(shutil.copytree(values.run.local, tmp_path / "run"))
    write_options(run.folder, OPTIONS, run.run_id)
    fit_ensemble(run, windows=values.windows, method="equal").save()
    assert broken(run.where) == []
    for name in (EVALUATION_LOG, "ensemble/table.csv"):
        whole = run.folder.read(name)
        run.folder.write(name, whole.replace(b"0", b"1", 1) if b"0" in whole else whole.replace(b"e", b"f", 1))
        (line,) = broken(run.where)
        assert f"{run.where}/{name}: " in line
        run.folder.write(name, whole)
    run.folder.remove(EVALUATION_LOG)
    (line,) = broken(run.where)
    assert "evaluations.json: missing, and the ensemble reports" in line


def test_predictions_that_do_not_follow_the_fold_map_are_a_leak(values, tmp_path):
    run = RunStore.open(shutil.copytree(values.run.local, tmp_path / "run"))
    write_options(run.folder, OPTIONS, run.run_id)
    best = run.ranked()[0]
    oof = run.oof(best.number)
    files = run.write_oof(best.number, OutOfFold(oof.windows, (oof.folds + 1) % 3, oof.predictions))
    run.write_result(best.model_copy(update={"files": best.files | files}))
    (line,) = broken(run.where)
    assert "come from another fold than the map says" in line


def test_other_windows_than_the_runs(run, store):
    shutil.rmtree(store)
    (line,) = broken(run.where)
    assert "cannot be opened" in line and "no such folder" in line
    write_store(store, ToyWindows(subjects=5))
    (line,) = broken(run.where)
    assert "not the windows that the run was made from" in line


def test_subjects_that_the_map_does_not_know(run, store):
    table = (store / "windows.csv").read_text().replace(",s00,", ",new,").encode()
    (store / "windows.csv").write_bytes(table)
    assert "windows.csv: damaged" in broken(run.where)[0]


def test_a_missing_file_of_a_journal_of_several_files(run):
    (run.local / "study.journal").unlink(missing_ok=True)
    for number in (0, 1, 3):
        run.folder.write(f"study/{number:08d}.jsonl", b'{"a": 1}\n')
    (found,) = [each for each in diagnose(run.where) if "study" in each.what]
    assert found.level == "warning" and "study/00000002.jsonl: missing" in found.what
    assert "raypipe resume rebuilds the study" in found.fix


def test_a_changed_fold_map_and_a_journal_of_something_else(run):
    (run.local / "study.journal").write_bytes(b'{"a": 1}\nnot json\n')
    (found,) = [each for each in diagnose(run.where) if "study" in each.what]
    assert found.level == "warning" and "study.journal: damaged" in found.what
    (run.local / "study.journal").write_bytes(b'{"a": 1}\n{"b"')
    found = [each for each in diagnose(run.where) if "cut short" in each.what]
    assert [each.level for each in found] == ["warning"]
    folds = json.loads((run.local / "folds.json").read_text())
    (run.local / "folds.json").write_text(json.dumps(folds | {"seed": 99}))
    (line,) = broken(run.where)
    assert "a run's fold map is frozen" in line


def test_nothing_is_written_to_a_run_whose_journal_is_missing(run):
    (run.local / JOURNAL_FILE).unlink()
    before = sorted(path.name for path in run.local.iterdir())
    (found,) = [each for each in diagnose(run.where) if "journal" in each.what]
    assert (found.level, found.what) == ("warning", "the study's journal is missing")
    assert sorted(path.name for path in run.local.iterdir()) == before


@pytest.mark.parametrize("name", ["points.json", "reruns.json"])
def test_damaged_lists_of_points_and_reruns_are_broken_and_mended_by_no_resume(run, store, name):
    queue = StudyQueue(run, WindowStore(store), open_journal(run), trials=4)
    queue.enqueue_point({"optim/lr": 0.005, "sam/name": "none"}, "request")
    write_reruns(run, [])
    path = run.local / name
    path.write_text(path.read_text().replace('"format"', '"fermat"'))
    found = list(diagnose(run.where))
    assert any(each.level == "broken" and name in each.what for each in found)
    assert not any("rebuilds the study" in (each.fix or "") for each in found)
    with pytest.raises(UserError, match=name):
        open_study(run, SweepCallback())


def test_a_driver_that_died_is_a_warning(run):
    times = {"started": 0.0, "beat": 0.0, "spent": 1.0, "gpu_hours": 0.0}
    write_record(run.folder, DRIVER_FILE, DriverRecord(run=run.run_id, id="x", host="elsewhere", pid=1, **times))
    found = [each for each in diagnose(run.where) if each.level == "warning"]
    assert len(found) == 1 and "died" in found[0].what and found[0].fix == "raypipe resume RUN"


def test_a_storage_is_written_read_and_left_clean(tmp_path):
    found = list(diagnose((tmp_path / "new").as_uri()))
    assert [each.level for each in found] == ["ok"] and "can be written, read and listed" in found[0].what
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert broken((tmp_path / "file" / "below").as_uri())
    assert "not a storage that pyarrow.fs can open" in broken("nonsense://bucket")[0]


def test_a_pretrained_run(store, tmp_path):
    small = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 8, "epochs": 2}
    pretrain("mae", store, tmp_path / "mae", params=small, folds=3, probe_every=0)
    assert [found.what for found in diagnose(tmp_path / "mae")][1:] == ["1 encoder(s), intact"]
    for name in ("encoder.safetensors", "all/epoch-0002.ckpt"):
        path = tmp_path / "mae" / name
        path.write_bytes(path.read_bytes()[:-1])
    lines = broken(tmp_path / "mae")
    assert len(lines) == 2 and "epoch-0002.ckpt" in lines[0] and "encoder.safetensors: damaged" in lines[1]


def test_a_bundle(values, tmp_path):
    run = RunStore.open(shutil.copytree(values.run.local, tmp_path / "run"))
    bundle = export_bundle(run, fit_ensemble(run, windows=values.windows, method="equal"), tmp_path / "bundle")
    (found,) = diagnose(bundle)
    assert found.level == "ok" and "an intact bundle: latency:bump, 9 models" in found.what
    (bundle / "bundle.json").write_text("{}")
    assert len(broken(bundle)) == 1


def test_other_folders_are_refused(tmp_path):
    assert "no such folder" in broken(tmp_path / "nothing")[0]
    (tmp_path / "photos").mkdir()
    assert "not a store, run" in broken(tmp_path / "photos")[0]


def test_a_bucket_that_is_there_and_one_that_is_not(s3):
    assert [found.level for found in diagnose(s3.new_folder())] == ["ok"]
    assert "no" in broken(s3.uri("no-such-bucket/run"))[0] and "bucket" in broken(s3.uri("no-such-bucket/run"))[0]


@pytest.mark.parametrize("whole", [True, False])
def test_exit_status(store, monkeypatch, capsys, whole):
    monkeypatch.setattr("raypipe.cli.machine.examine", lambda folder: [Finding("warning", "a machine")])
    if not whole:
        np.save(sorted((store / "shards").iterdir())[0], np.zeros(3))
    with pytest.raises(SystemExit) as end:
        app.main(["doctor", str(store)])
    out = capsys.readouterr().out
    assert int(end.value.code or 0) == int(not whole)
    assert "warning a machine" in out and ("1 broken" in out) != whole


def test_a_store_behind_a_uri(store, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path / "cache"))
    push_store(str(store), f"file://{tmp_path}/shared")
    found = list(diagnose(f"file://{tmp_path}/shared"))
    assert [finding.level for finding in found] == ["ok", "ok"], found
    assert "intact" in found[1].what
