"""A run's trials as a table, in Python without Ray and in files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from raypipe import Run
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.reporting.trial_table import encode_table, trials_table, varied_parameters, write_table
from raypipe.storage.records import Epoch
from raypipe.trial.evaluator import finish_trial
from tests.support.toys import ToyWindows, make_run, tiny


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        app.main(list(words))
    return int(end.value.code or 0)


@pytest.fixture
def run(tmp_path):
    windows = ToyWindows()
    made = make_run(tmp_path / "run", windows)
    made.add_trial(0, tiny(optim__lr=0.01))
    pairs = [(1, 0.9, [0.8, None, 1.0]), (2, 0.7, [0.6, 0.7, 0.8]), (3, 0.8, [0.7, 0.8, 0.9])]
    epochs = [
        Epoch(epoch=e, passes=e, score=s, fold_scores=f, losses=[1.0], seconds=2.0, finished=0.0) for e, s, f in pairs
    ]
    made.write_history(0, epochs)
    made.add_trial(1, tiny(optim__lr=0.02))
    finish_trial(made, windows, 1, "failed", "the loss is, say, no number", "non-finite")
    finish_trial(made, windows, 2, "failed", "parameter 'batch_size'", "bad-configuration")  # never recorded
    return made


def test_a_row_has_the_best_epoch_of_all_folds(run):
    table = trials_table(run)
    row = table.loc[0]
    assert (row["state"], row["score"], row["best_epoch"], row["trained"], row["seconds"]) == (
        "interrupted", 0.7, 2, 3, 6.0,
    )  # fmt: skip
    assert [row[f"fold_{fold}"] for fold in range(3)] == [0.6, 0.7, 0.8]
    assert row["optim/lr"] == 0.01 and row["epochs"] == 4
    assert (table.loc[1, "failure"], table.loc[1, "reason"]) == ("non-finite", "the loss is, say, no number")
    assert np.isnan(table.loc[1, "score"])
    assert table.loc[2, "failure"] == "bad-configuration" and pd.isna(table.loc[2, "optim/lr"])
    assert varied_parameters(table) == ["optim/lr"]


def test_a_fold_without_a_score_is_missing_and_not_zero(run):
    run.write_history(0, run.history(0)[:1])
    assert trials_table(run)[["fold_0", "fold_1", "fold_2"]].loc[0].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_files_hold_what_the_table_holds(run, tmp_path, kind):
    out = tmp_path / "sub" / f"trials.{kind}"
    assert command("trials", run.where, f"--{kind}", str(out)) == 0
    read = {
        "csv": pd.read_csv,
        "parquet": pd.read_parquet,
        "json": lambda file: pd.DataFrame(json.loads(file.read_text())),
    }
    back = read[kind](out).set_index("number")
    table = trials_table(run)
    assert list(back.columns) == list(table.columns)
    for name in ("score", "fold_1", "trained", "seconds", "optim/lr"):
        np.testing.assert_array_equal(back[name].astype(float), table[name].astype(float))
    assert back["reason"].fillna("").tolist() == table["reason"].tolist()


def test_json_on_standard_output_is_nothing_else(run, capsys):
    assert command("trials", run.where, "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert rows[1]["score"] is None and rows[2]["optim/lr"] is None


def test_the_terminal_shows_what_differs_in_full(run, capsys):
    assert command("trials", run.where) == 0
    out = capsys.readouterr().out
    assert out.split()[:7] == ["number", "state", "score", "trained", "seconds", "optim/lr", "failure"]
    assert "bad-configuration" in out and "0.02" in out and "0.7000" in out


def test_a_run_without_trials_has_a_table_without_rows(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    table = Run(run).trials
    assert len(table) == 0 and {"state", "score", "fold_2", "optim/lr"} <= set(table.columns)
    assert json.loads(encode_table(table, "json")) == []


@pytest.mark.parametrize("values", [[[4, 2], "auto"], [3, "auto"], [[4, 2], ["auto"]], [[True], [2]], [[4, [1]], [8]]])
def test_arguments_of_several_types_are_text_in_parquet(tmp_path, values):
    run = make_run(tmp_path / "run", ToyWindows())
    for number, value in enumerate(values):
        run.add_trial(number, parse_config({"model/name": "nets.py:Net", "model/args/width": value}))
    run.add_trial(2, tiny(optim__lr=0.01))
    table = trials_table(run)
    write_table(table, "parquet", tmp_path / "trials.parquet")
    read = pd.read_parquet(tmp_path / "trials.parquet")
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    assert list(read["model/args/width"].fillna("")) == [*texts, ""] and read["optim/lr"].equals(table["optim/lr"])


def test_bad_targets_are_errors(run, tmp_path, capsys):
    with pytest.raises(UserError, match=rf"^{tmp_path}: a folder; name a file, such as {tmp_path}/trials\.csv$"):
        write_table(trials_table(run), "csv", tmp_path)
    assert command("trials", run.where, "--parquet", "-") == 2
    assert "not text" in capsys.readouterr().err


def test_neither_ray_nor_torch_is_loaded(run):
    code = (
        "import sys; from raypipe import Run; "
        "print(len(Run(sys.argv[1]).trials), 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, run.where], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["3", "False", "False"]
