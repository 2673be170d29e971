"""What a run was made from, and the command lines that reproduce it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html import unescape
from itertools import pairwise

import pytest

from raypipe.core.fold_drawing import make_folds
from raypipe.core.options import SweepOptions, parse_held_out
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.data.manifest import Settings
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.evaluation_log import record_evaluation
from raypipe.reporting.sections.provenance import (
    ensemble_command,
    prepare_command,
    provenance_section,
    sweep_command,
)
from raypipe.reporting.trial_table import trials_table
from raypipe.search.run_setup import open_run
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from tests.support.own import write_space
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, add_ended, make_run, write_store


def section(run):
    return provenance_section(run, run.results(), trials_table(run), "a/run")


def test_the_command_lines_give_the_same_folds_and_space(twelve):
    limits = {"time_budget": 90.0, "gpu_hours": 1.5}
    write_options(twelve.folder, {"trials": 30, "grace": 2, "prune": False} | limits, twelve.run_id)
    html = section(twelve)
    (line,) = re.findall(r"<code>(raypipe sweep .*?)</code>", html)
    words = shlex.split(line)
    option = dict(pairwise(words))
    names = ("--trials", "--grace", "--time-budget", "--gpu-hours")
    assert [option[name] for name in names] == ["30", "2", "90", "1.5"] and "--no-prune" in words
    toy = ToyWindows()
    held_out = parse_held_out(option["--held-out"])
    folds = make_folds(
        toy.subjects, toy.targets, classes=False, n_folds=int(option["--folds"]), seed=int(option["--seed"]),
        held_out=held_out,
    )  # fmt: skip
    assert folds.held_out == twelve.folds.held_out
    source = re.search(r"<pre>(.*)</pre>", html, re.DOTALL).group(1)
    assert SearchSpace(unescape(source), "again").hash == twelve.space.hash


ASKED = {
    "target": "events:left,right",
    "events_from": "trial_type",
    "select": "correct == 1 and block != 'training'",
    "sfreq": 128.0,
    "channels": ("Cz", "Pz"),
    "window": 4.0,
    "crop": 3.5,
    "stride": None,
    "tmin": -0.25,
    "dtype": "float16",
    "metric": "f1",
    "groups": "family",
    "max_windows": 40,
    "min_windows": 10,
    "seed": 3,
}
STEPS = {
    "notch": (50.0, 100.0),
    "band": (0.5, 40.0),
    "bads": "interpolate",
    "montage": "biosemi64",
    "reference": ("M1", "M2"),
    "baseline": (-0.2, 0.0),
    "reject": 150.0,
    "flat": 0.5,
    "align": "recording",
}


def test_every_setting_of_prepare_that_was_asked_for_is_printed():
    import typer

    from raypipe.cli.app import app

    words = prepare_command(Settings(**ASKED, bids_task=("odd", "rest"), preprocessing=Preprocessing(**STEPS)))
    group = typer.main.get_command(app)
    parsed = group.commands["prepare"].make_context("prepare", words[2:]).params
    given = {name: parsed[name] for name in ASKED} | {"channels": tuple(parsed["channels"].split(","))}
    assert given == ASKED and parsed["bids_task"] == "odd,rest"
    assert set(STEPS) == set(Preprocessing.model_fields)
    assert {name: parsed[name] for name in STEPS} == STEPS | {"notch": "50,100", "reference": "M1,M2"}
    plain = Settings(**dict.fromkeys(ASKED) | {"target": "challenge1", "dtype": "float32", "seed": 0})
    assert shlex.join(prepare_command(plain)) == "raypipe prepare RECORDINGS --target challenge1 --out STORE"


@pytest.fixture
def stored(tmp_path):
    """A run whose store was made with a window of four seconds."""
    store = write_store(tmp_path / "store", ToyWindows())
    manifest = json.loads((store / "manifest.json").read_text())
    edit_record(str(store), "manifest.json", {"settings": manifest["settings"] | {"window": 4.0}})
    run = make_run(tmp_path / "run", ToyWindows())
    edit_record(run.folder, "run.json", {"data": str(store), "data_hash": manifest["data_hash"]})
    return RunStore.open(tmp_path / "run")


def test_the_settings_come_from_the_store_or_the_section_says_that_they_are_unknown(stored, tmp_path):
    assert "--out STORE --window 4<" in section(stored) and "unknown here" not in section(stored)
    edit_record(stored.folder, "run.json", {"data_hash": "another"})
    assert "the windows have changed since the run was made" in section(RunStore.open(tmp_path / "run"))
    shutil.rmtree(tmp_path / "store")
    html = section(stored)
    assert "cannot be opened any more" in html and "--out STORE ...<" in html


def test_resource_options_are_printed_where_they_were_given(twelve):
    options = {
        "trials": 9,
        "workers": 2,
        "cpus_per_worker": 1.0,
        "gpus_per_worker": 0.5,
        "stem": "auto",
    }
    write_options(twelve.folder, options | {"stack": "off", "reduction": 4}, twelve.run_id)
    words = sweep_command(twelve)
    assert words[-8:] == ["--workers", "2", "--gpus-per-worker", "0.5", "--reduction", "4", "--stack", "off"]


def test_the_fold_map_is_listed_whole(twelve):
    html = section(twelve)
    folded = re.search(r"<details><summary>Subjects by fold.*?</details>", html, re.DOTALL)[0]
    assert twelve.info.folds_hash in html and folded.count("<li>") == len(twelve.folds.fold_of)
    for subject, fold in twelve.folds.fold_of.items():
        assert (f"<b>{subject}: held out</b>" if fold < 0 else f"<li>{subject}: {fold}</li>") in folded


def without_heads(html):
    """Return a page without the titles of columns that narrow screens show in each cell of a row."""
    assert 'data-head="over the trials"' in html, "a narrow screen shows the configuration as blocks, not clipped"
    return re.sub(r' data-head="[^"]*"', "", html)


def test_parameters_at_their_defaults_are_folded_away(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    add_ended(run, 0, 1.0, optim__lr=0.00123456789, sam__name="none")
    add_ended(run, 1, 2.0, optim__lr=0.002, sam__name="sam", sam__rho=0.1)
    shown, _, rest = without_heads(section(run)).partition("Configuration of")[2].partition("<details>")
    assert "<td>0.001235</td><td>0.001</td><td>0.001235 to 0.002</td>" in shown
    assert "<td>sam/rho</td><td>not used</td><td>0.05</td><td>0.1 to 0.1</td>" in shown
    assert "pretrain/" not in shown and "init/" not in shown and "pretrain/mask" in rest


def test_a_network_of_ones_own_is_shown_with_its_arguments_and_its_source(tmp_path):
    space = load_space(write_space(tmp_path))
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    run = open_run(space, windows, str(tmp_path / "run"), SweepOptions(folds=3))
    add_ended(run, 0, 1.0, config=space.draw(1)[0])
    html = without_heads(section(run))
    assert "<td>model/name</td><td>my_nets.py:Net</td><td>conformer</td>" in html
    assert re.search(r"<td>model/args/width</td><td>[48]</td><td></td>", html)
    assert "<summary>my_nets.py</summary>" in html and "class Net(nn.Module):" in html


def test_repeats_of_the_folds_are_named(repeated):
    html = section(repeated.run)
    assert "--folds 3 --repeats 2" in re.sub(r"\s+", " ", html) and "2 repeats; seed 0" in html
    for subject, fold in repeated.run.folds.fold_of.items():
        both = f"<li>{subject}: {fold}, {repeated.run.folds.repeated[0][subject]}</li>"
        assert (f"<b>{subject}: held out</b>" if fold < 0 else both) in html


def test_the_options_of_the_last_ensemble_are_printed(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert ensemble_command(run) == ["raypipe", "ensemble", "RUN"]
    record_evaluation(run, ToyWindows(), [0, 1, 2], "auto")  # the third is of another family
    assert ensemble_command(run) == ["raypipe", "ensemble", "RUN"]
    record_evaluation(run, ToyWindows(), [0, 1, 2], "best", top=2, max_members=4, max_mb=2.5)
    words = ["--method", "best", "--top", "2", "--max-members", "4", "--max-mb", "2.5"]
    assert ensemble_command(run)[3:] == words
