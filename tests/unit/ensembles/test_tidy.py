"""Weights are removed where neither the ensemble nor the report needs them; both are the same before and after."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest

from raypipe.cli.app import main
from raypipe.core.errors import UserError
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.tidy import tidy
from raypipe.reporting.report import render_report
from raypipe.storage.lease import Lease
from raypipe.storage.run_store import RunStore
from raypipe.storage.transfer import pull_run


@pytest.fixture
def run(values, tmp_path) -> RunStore:
    """A copy of a run with three complete trials and a failed one."""
    shutil.copytree(values.run.folder.path, tmp_path / "run")
    return RunStore.open(tmp_path / "run")


def weights(run: RunStore) -> dict[int, int]:
    """Return the number of files of weights of each trial that has some."""
    counts = {number: sum("safetensors" in name for name in names) for number, names in run.listing().items()}
    return {number: count for number, count in counts.items() if count}


def without_time(report: str) -> str:
    """Return a report without the time at which it was written."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d</p>", "", report, count=1)


def test_the_ensemble_and_the_report_are_the_same_afterwards(run, values):
    best, *others = [result.number for result in run.ranked()]
    before = fit_ensemble(run, windows=values.windows, top=1)
    report = without_time(render_report(run))
    size = sum(path.stat().st_size for path in run.folder.path.rglob("*.safetensors"))
    done = tidy(run, keep=1)
    assert (done.kept, done.trials, done.files) == (1, 2, 2 * run.folds.n_folds)
    left = sum(path.stat().st_size for path in run.folder.path.rglob("*.safetensors"))
    assert done.size == size - left > 0
    assert weights(run) == {best: run.folds.n_folds}
    assert run.verify() == {}
    assert [run.result(number).tidied for number in (best, *others)] == [False, True, True]
    assert without_time(render_report(run)) == report
    pd.testing.assert_frame_equal(fit_ensemble(run, windows=values.windows, top=1).table, before.table)
    assert tidy(run, keep=1)[1:] == (0, 0, 0)


@pytest.mark.parametrize("storage", ["file", "s3"])
def test_a_run_behind_a_uri_is_tidied_as_one_in_a_folder(run, storage, request, capsys):
    where = f"file://{run.where}" if storage == "file" else request.getfixturevalue("s3").new_folder()
    if storage == "s3":
        pull_run(run.where, where)
    remote = RunStore.open(where)
    best, n_folds = remote.ranked()[0].number, remote.folds.n_folds
    for flags, left in ((["--dry-run"], 3), ([], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["tidy", where, "--keep", "best:1", *flags])
        assert not ended.value.code and len(weights(remote)) == left
        said = capsys.readouterr().out
        assert f"removed: {2 * n_folds} files of 2 trials" in said and said.count("\n") == 1
    assert weights(remote) == {best: n_folds} and remote.verify() == {}
    assert "Result" in render_report(RunStore.open(where))


def test_more_trials_than_have_weights_are_refused_in_one_line(run, values):
    _, *others = [result.number for result in run.ranked()]
    tidy(run, keep=1)
    with pytest.raises(UserError) as caught:
        fit_ensemble(run, windows=values.windows, top=3)
    numbers = ", ".join(map(str, others))
    assert f"has removed the weights of trial(s) {numbers}, which are of the best 3; use --top 1 or less" in str(
        caught.value
    )


def test_a_dry_run_removes_nothing(run):
    before = weights(run)
    would = tidy(run, keep=1, dry_run=True)
    assert weights(run) == before and not any(result.tidied for result in run.results())
    assert tidy(run, keep=1) == would


def test_members_of_a_fitted_ensemble_are_kept(run, values):
    ensemble = fit_ensemble(run, windows=values.windows, top=3, method="equal")
    ensemble.save()
    assert tidy(run, keep=1) == (3, 0, 0, 0)
    assert weights(run).keys() == set(ensemble.trials)


def test_what_a_kill_leaves_is_removed_the_next_time(run, monkeypatch):
    def killed(name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.folder, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            tidy(run, keep=1)
    assert len(weights(run)) == 3 and run.verify() == {}, "recorded first, so that nothing is missing"
    assert tidy(run, keep=1).trials == 2
    assert len(weights(run)) == 1 and run.verify() == {}


def test_checkpoints_of_ended_trials_are_left_overs(run):
    number = run.ranked()[0].number
    run.write_checkpoint(number, 0, 2, b"state")
    assert tidy(run, keep=3) == (3, 1, 1, 5)
    assert run.checkpoints(number, 0) == [] and run.result(number).tidied is False


def test_a_run_that_is_driven_is_left_alone(run):
    before = weights(run)
    with Lease(run.folder, run=run.run_id), pytest.raises(UserError, match="another raypipe is driving this run"):
        tidy(run, keep=1)
    assert weights(run) == before


@pytest.mark.parametrize(
    ("keep", "message"),
    [("best:0", "--keep best:0: must be 1 or more"), ("10", "--keep 10: must be best:N, such as best:10"),
     ("best:x", "--keep best:x: must be best:N"), ("best:-1", "--keep best:-1: must be best:N")],
)  # fmt: skip
def test_the_command_says_what_it_frees(run, keep, message, capsys):
    def typed(*words: object) -> int:
        with pytest.raises(SystemExit) as left:
            main(["tidy", *map(str, words)])
        return int(left.value.code or 0)

    assert typed(run.where, "--keep", keep) == 2
    assert message in capsys.readouterr().err
    assert typed(run.where, "--keep", "best:1", "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run.where}: would be removed: {2 * run.folds.n_folds} files of 2 trials, ")
    assert said.endswith("; weights of 1 trials are kept, and all scores and predictions\n")
    assert len(weights(run)) == 3
