"""The command line: help with examples, and one clear line with exit status 2 for every bad input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest

from raypipe.cli import app
from raypipe.cli.app import CONTINUED
from raypipe.core.errors import InterruptedSweepError, UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_store import RunStore
from tests.support.toys import SPACE, ToyWindows, make_run, tiny, write_store

VERBS = ["simulate", "inspect", "prepare", "sweep", "rerun", "resume", "status", "logs", "trials", "ensemble"]
VERBS += ["plan", "check", "predict", "compare", "doctor", "score", "pretrain", "submit", "jobs", "stop"]
VERBS += ["push", "pull", "report", "export", "spaces", "init", "tidy", "enqueue", "watch", "stream"]


def run(*arguments: object) -> int:
    """Return the exit status of ``raypipe ARGUMENTS``."""
    try:
        app.main([str(a) for a in arguments])
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with one line; return the line."""

    def check(*arguments: object) -> str:
        status = run(*arguments)
        captured = capsys.readouterr()
        assert status == 2, captured.out + captured.err
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("raypipe: error: ")
        assert "Traceback" not in captured.out
        return lines[0].removeprefix("raypipe: error: ")

    return check


@pytest.mark.parametrize("verb", ["report", "ensemble", "status", "trials", "doctor", "rerun", "check"])
def test_a_name_that_is_no_utf_8_is_one_line_before_any_work(refused, toy, tmp_path, monkeypatch, verb):
    name = tmp_path / "r\udcff"
    name.mkdir()
    assert r"r\udcff: this name is no UTF-8 text here" in refused(verb, name)
    monkeypatch.chdir(name)
    assert r"r\udcff: this name is no UTF-8 text here" in refused(verb, "run")
    assert "no such" in refused("doctor", tmp_path / "none")
    for option in ("--out=r\udcff.html", "--out"):
        assert "no UTF-8" in refused("report", toy / "run", option, "r\udcff.html")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_store(folder / "store", ToyWindows())
    (folder / "space.py").write_text(SPACE)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert run(verb, "--help") == 0
    out = capsys.readouterr().out
    assert f"raypipe {verb} " in " ".join(out.split())
    assert "Example:" in out


def test_help_lists_every_verb_and_importing_it_is_light():
    heavy = ("torch", "ray", "mne", "optuna")
    code = f"import sys, raypipe.cli.app; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    module = [sys.executable, "-m", "raypipe", "--help"]
    out = subprocess.run(module, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"}).stdout
    assert all(verb in out for verb in VERBS)


def test_the_installed_command_is_the_command_line():
    """Other tests run ``python -m raypipe``."""
    installed = Path(sysconfig.get_path("scripts"), "raypipe")
    out = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(verb in out for verb in VERBS)


P = ("prepare", "x", "--target", "challenge1")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*P, "--windw", 4), "prepare --windw: no such option; did you mean '--window'?"),
        (("sweep", "x", "--trial", 2), "sweep --trial: no such option; did you mean '--trials'?"),
        (P, "prepare: --out is missing (Folder for the windows)"),
        (("prepare",), "prepare: --target is missing (What to predict: challenge1, challenge2, participants:COLUMN"),
        (("prepare", "--target", "challenge1", "--out", "x"), "prepare needs a BIDS folder, or files of MNE epochs"),
        (("inspect",), "inspect: BIDS is missing (BIDS folders, or a folder of BIDS folders, here or behind s3://)"),
        (("logs", "demo/run", "zero"), "logs TRIAL: must be a valid integer (Number of the trial)"),
        (
            ("ensemble", "r", "--top", 0),
            "ensemble --top 0: must be greater than or equal to 1 (Number of best trials to combine)",
        ),
        (("ensemble", "r", "--top=x"), "ensemble --top x: must be a valid integer"),
        (
            (*P, "--band", "40,4", "--out", "o"),
            "prepare --band 40,4: takes two numbers (Band-pass: two numbers in Hz, such as --band 0.5 40)",
        ),
        (
            (*P, "--out", "o", "--band", "40,4"),
            "prepare --band 40,4: takes two numbers (Band-pass: ",
        ),
        (("swep", "x"), "swep: no such verb; did you mean 'sweep'?"),
        (("status", "a", "b"), "status: got unexpected extra argument(s) (b); see raypipe status --help"),
        (("submit", "sweep", "x", "--dta", "s"), "submit sweep --dta: no such option; did you mean '--data'?"),
        (("--vesion",), "raypipe --vesion: no such option; did you mean '--version'?"),
    ],
)
def test_misuse_is_one_line_that_says_what_would_be_right(refused, words, line):
    assert refused(*words).startswith(line)


def test_without_arguments_help_is_shown(capsys):
    assert run() == 2
    out = "".join(capsys.readouterr())
    assert "Usage" in out and "raypipe: error" not in out


def test_the_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"raypipe {version('raypipe-eeg')}\n"


def test_help_lists_the_forms_of_arguments(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("prepare", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--bids-task" in out and "challenge1:OPTION" in out and "--band 0.5 40" in out and "[ses-*/]" in out
    assert run("export", "--help") == 0
    assert "raypipe export demo/run demo/bundle or raypipe export demo/run demo/model.onnx" in " ".join(
        capsys.readouterr().out.split()
    )


# Recordings


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedSweepError])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("resume", "RUN"), "interrupted; the same command continues from here"),
        (("status", "RUN"), "interrupted"),
        (("pull", "RUN", "OUT"), "interrupted"),  # copies all files again
    ],
)
def test_an_interrupted_command_says_whether_it_continues(error, words, line, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise error

    monkeypatch.setattr("raypipe.storage.run_store.RunStore.open", interrupt)
    assert run(*words) == 130
    assert capsys.readouterr().err.endswith(f"raypipe: {line}\n")
    assert set(CONTINUED) < set(VERBS)


@pytest.mark.parametrize(("given", "joined"), [((), "here:6379"), (("--address", "there:6379"), "there:6379")])
def test_the_cluster_is_the_one_that_is_named(given, joined, refused, toy, tmp_path, monkeypatch):
    def join(*_, address, **__):
        raise UserError(f"no Ray at {address}")

    monkeypatch.setenv("RAY_ADDRESS", "here:6379")
    monkeypatch.setattr("raypipe.search.sweep.sweep", join)
    flags = ("--data", toy / "store", "--run", tmp_path / "run", *given)
    assert refused("sweep", toy / "space.py", *flags) == f"no Ray at {joined}"


def test_no_such_folder(refused, tmp_path):
    assert "no such folder" in refused("prepare", tmp_path / "x", "--target", "challenge1", "--out", tmp_path / "s")


def test_a_folder_without_recordings(refused, tmp_path):
    (tmp_path / "bids").mkdir()
    message = refused("prepare", tmp_path / "bids", "--target", "challenge1", "--out", tmp_path / "s")
    assert "sub-*" in message
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bids-task:rest,contrastChangeDetection", "rest"),
        ("participants:externalising", "did you mean 'externalizing'"),
        ("events:left_targt,right_target", "did you mean 'left_target'"),
        ("nothing:x", "nothing"),
    ],
)
def test_a_target_that_the_data_lacks(refused, tiny_bids, tmp_path, target, message):
    assert message in refused("prepare", tiny_bids, "--target", target, "--out", tmp_path / "s")


def test_a_column_that_is_all_missing(refused, tiny_bids, tmp_path):
    bids = shutil.copytree(tiny_bids, tmp_path / "bids")
    table = (bids / "participants.tsv").read_text().splitlines()
    rows = [table[0] + "\tiq"] + [row + "\tn/a" for row in table[1:]]
    (bids / "participants.tsv").write_text("\n".join(rows) + "\n")
    message = refused("prepare", bids, "--target", "participants:iq", "--out", tmp_path / "s")
    assert "iq" in message and "n/a" in message


def test_one_subject_only(refused, tiny_bids, tmp_path):
    bids = shutil.copytree(tiny_bids, tmp_path / "bids")
    for folder in sorted(bids.glob("sub-*"))[1:]:
        shutil.rmtree(folder)
    assert "one subject only" in refused("prepare", bids, "--target", "challenge1", "--out", tmp_path / "s")


def test_recordings_without_a_common_channel(refused, tmp_path):
    for subject, names in (("01", ["Fz", "Cz"]), ("02", ["A1", "B1"])):
        folder = tmp_path / "bids" / f"sub-{subject}" / "eeg"
        folder.mkdir(parents=True)
        raw = mne.io.RawArray(np.zeros((2, 500)), mne.create_info(names, 100.0, "eeg"), verbose="error")
        raw.save(folder / f"sub-{subject}_task-rest_eeg.fif", verbose="error")
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\nsub-01\t20\nsub-02\t30\n")
    message = refused("prepare", tmp_path / "bids", "--target", "participants:age", "--out", tmp_path / "s")
    assert "common" in message and "sub-01" in message and "sub-02" in message


def test_a_truncated_recording(refused, tiny_bids, tmp_path):
    bids = shutil.copytree(tiny_bids, tmp_path / "bids")
    path = next(iter(sorted(bids.rglob("*_eeg.bdf"))))
    path.write_bytes(path.read_bytes()[:-5000])
    message = refused("prepare", bids, "--target", "challenge1", "--out", tmp_path / "s")
    assert path.name in message and "truncated" in message


# Sweeps


def test_no_such_store(refused, toy, tmp_path):
    message = refused("sweep", toy / "space.py", "--data", tmp_path / "none", "--run", tmp_path / "r")
    assert "no such folder of windows" in message


def test_a_warm_start_from_what_is_no_run_or_of_another_target(refused, toy, tmp_path):
    flags = (toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", "--folds", 3)
    assert "no raypipe run there" in refused("sweep", *flags, "--warm-start", tmp_path / "none")
    make_run(tmp_path / "old", ToyWindows(classes=True))
    message = refused("sweep", *flags, "--warm-start", tmp_path / "old")
    assert "its trials predict toy by auc, not toy by nrmse" in message
    assert not (tmp_path / "r").exists()


def test_a_warm_start_is_stored_in_the_run_and_not_read_again(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("raypipe.backend.cluster.Cluster.start", lambda self: None)
    monkeypatch.setattr("raypipe.search.sweep.execute", lambda *_: None)
    old = make_run(tmp_path / "old", ToyWindows())
    old.add_trial(0, tiny())
    old.write_history(
        0, [Epoch(epoch=1, passes=1, score=0.5, fold_scores=[0.5], losses=[0.5], seconds=1, finished=0.0)]
    )
    end = {"score": 0.5, "best_epoch": 1, "epochs": 1, "seconds": 1, "reason": "toy", "finished": 0}
    old.write_result(TrialResult(number=0, state="complete", **end))
    flags = ("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", "--folds", 3)
    assert run(*flags, "--warm-start", old.where) == 0
    assert "the sampler starts with 1 of the 1 trials of" in capsys.readouterr().out.replace("\n", " ")
    made = RunStore.open(tmp_path / "r")
    shutil.rmtree(tmp_path / "old")
    assert run(*flags, "--warm-start", old.where) == 0
    assert "warm start" not in capsys.readouterr().out
    assert RunStore.open(tmp_path / "r").info == made.info
    assert made.info.warm["run"] == old.where
    assert made.numbers() == []


def test_an_unknown_parameter_comes_with_the_nearest_right_name(refused, toy, tmp_path):
    space = tmp_path / "space.py"
    space.write_text("def space(trial):\n    trial.suggest_float('loss/gama', 0, 1)\n")
    message = refused("sweep", space, "--data", toy / "store", "--run", tmp_path / "r")
    assert "unknown parameter 'loss/gama'; did you mean 'loss/gamma'?" in message
    assert not (tmp_path / "r").exists()


def test_more_folds_than_subjects(refused, toy, tmp_path):
    message = refused("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", "--folds", 9)
    assert "9 folds need at least 9 subjects beside the 2 held out" in message


def made(toy: Path, where: Path) -> RunStore:
    """A run as `sweep` would have made it, with options, but not driven."""
    toys = ToyWindows()
    run = make_run(where, toys)
    assert run.folds == make_folds(toys.subjects, toys.targets, classes=False, n_folds=3, seed=0)
    return run


def test_a_run_made_from_other_data(refused, toy, tmp_path):
    made(toy, tmp_path / "r")
    message = refused("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", "--folds", 3)
    assert "made from other data" in message


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--time-budget", "soon", "--time-budget soon: must be a time such as 90s, 30m or 2h"),
        ("--time-budget", "-5m", "--time-budget -5m: must be longer than 0 s"),
        ("--trials", 0, "--trials 0: must be greater than or equal to 1"),
        ("--held-out", "2", "between 0 and 1"),
        ("--held-out", "s99", "'s99' is not in the data"),
        ("--held-out", ",", "no held-out subject is named"),
        ("--folds", 1, "at least 2"),
    ],
)
def test_options_out_of_range(refused, toy, tmp_path, option, value, message):
    found = refused("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", option, value)
    assert message in found


@pytest.mark.parametrize("place", ["a-file", "/proc/nowhere"])
def test_a_run_where_nothing_can_be_written(refused, toy, tmp_path, place):
    (tmp_path / "a-file").write_text("")
    message = refused("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / place, "--folds", 3)
    assert Path(place).name in message


@pytest.mark.parametrize("verb", ["status", "resume", "rerun", "ensemble", "report"])
def test_no_run_there(refused, tmp_path, verb):
    assert "no raypipe run there" in refused(verb, tmp_path)


@pytest.mark.parametrize("verb", ["status", "resume", "rerun", "ensemble", "report", "trials", "logs"])
def test_a_store_is_no_run(refused, toy, verb):
    assert "a store of windows, not a run" in refused(verb, toy / "store", *([0] if verb == "logs" else []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", 1), "needs at least 2"),
        (("--folds", 100), "100 folds need at least 100 subjects"),
        (("--held-out", 37), "must be between 0 and 1"),
        (("--run", "STORE"), "a store of windows, not a run; name a new folder"),
    ],
)
def test_a_sweep_is_checked_before_ray_is_started(refused, toy, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("raypipe.backend.cluster.Cluster.start", lambda self: pytest.fail("Ray was started"))
    options = [toy / "store" if word == "STORE" else word for word in options]
    flags = ("--data", toy / "store", "--folds", 3, "--run", tmp_path / "r", *options)
    assert message in refused("sweep", toy / "space.py", *flags)


def test_fewer_trials_than_the_run_has_remove_none(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("raypipe.backend.cluster.Cluster.start", lambda self: None)
    monkeypatch.setattr("raypipe.search.sweep.execute", lambda *_: None)
    flags = ("sweep", toy / "space.py", "--data", toy / "store", "--run", tmp_path / "r", "--folds", 3, "--trials")
    assert run(*flags, 4) == 0
    store = RunStore.open(tmp_path / "r")
    for number in range(3):
        store.add_trial(number, tiny())
    capsys.readouterr()
    assert run(*flags, 2) == 0
    out = capsys.readouterr().out
    assert "--trials 2: the run has 3 trials already, and keeps them" in out and "3 of 3 trials" in out
    assert run("resume", tmp_path / "r", "--trials", 1) == 0
    assert "3 of 3 trials" in capsys.readouterr().out
    assert run(*flags, 4) == 0
    assert "--trials 4" not in capsys.readouterr().out, (
        "more than there are, though fewer than ever asked for, are meant"
    )


def test_doctor_refuses_a_missing_folder(refused, tmp_path):
    assert "no such folder; name what" in refused("doctor", tmp_path / "nowhere")


def test_a_run_without_trials_has_no_ensemble(refused, toy, tmp_path):
    made(toy, tmp_path / "r")
    assert "trial" in refused("ensemble", tmp_path / "r")
    assert "no ensemble yet" in refused("export", tmp_path / "r", tmp_path / "bundle")
    assert "no sweep was started" in refused("resume", tmp_path / "r")


def test_status_of_a_run_that_was_never_driven(toy, tmp_path, capsys):
    made(toy, tmp_path / "r")
    assert run("status", tmp_path / "r") == 0
    assert "not started" in capsys.readouterr().out


# What comes out


def test_logs_say_what_happened_to_a_trial(simulated, refused, capsys):
    assert run("logs", simulated.run.where, 3) == 0
    assert "end: failed (non-finite) after epoch 0: epoch 1: the loss is <not> a number" in capsys.readouterr().out
    assert run("logs", simulated.run.where, 0) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("process: folds 0, 1, 2 on cpu, fourier stem, one by one: starts")
    assert out[-1].endswith("end: complete after epoch 3: trained to the end")
    assert "no trial 99" in refused("logs", simulated.run.where, 99)


def test_logs_has_a_line_for_every_epoch_and_follows_a_trial_to_its_end(simulated, capsys, monkeypatch):
    assert run("logs", simulated.run.where, 0) == 0
    plain = capsys.readouterr().out
    epochs = [line for line in plain.splitlines() if "Z epoch " in line]
    first = simulated.run.history(0)[0]
    assert len(epochs) == 3 and f"epoch 1: score {first.score:.4f} (folds " in epochs[0]
    assert run("logs", simulated.run.where, 0, "-f") == 0
    assert capsys.readouterr().out == plain


def test_following_a_trial_without_a_driver_and_a_ctrl_c_are_no_errors(toy, tmp_path, capsys, monkeypatch):
    made(toy, tmp_path / "r").add_trial(0, tiny())
    assert run("logs", tmp_path / "r", 0, "-f") == 0
    assert "no driver is running; continue with: raypipe resume" in capsys.readouterr().out

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("raypipe.storage.lease.read_lease", lambda folder: SimpleNamespace(alive=True))
    monkeypatch.setattr("time.sleep", interrupt)
    assert run("logs", tmp_path / "r", 0, "-f") == 0
    assert capsys.readouterr() == ("", "")


def test_logs_of_a_run_alone_are_what_ray_printed(toy, tmp_path, capsys, refused):
    store = made(toy, tmp_path / "r")
    assert run("logs", tmp_path / "r") == 0
    assert "Ray has printed nothing yet" in capsys.readouterr().out
    store.folder.write("log/ray.txt", b"TrialTrainable 7: said\n")
    assert run("logs", tmp_path / "r") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "TrialTrainable 7: said" and f"raypipe logs {tmp_path / 'r'} TRIAL" in out[1]
    assert "--follow: needs a trial or a job" in refused("logs", tmp_path / "r", "-f")


def test_a_trial_without_a_log_says_so(toy, tmp_path, capsys):
    made(toy, tmp_path / "r").add_trial(0, tiny())
    assert run("logs", tmp_path / "r", 0) == 0
    assert capsys.readouterr().out == "trial 0 has no log yet\n"


def test_status_shows_why_trials_failed(simulated, capsys):
    assert run("status", simulated.run.where) == 0
    out = capsys.readouterr().out
    assert "4 of 4 trials: 3 complete, 1 failed (1 non-finite)" in out
    assert f"trial 3 failed (non-finite); more in: raypipe logs {simulated.run.where} 3" in out
    assert "after epoch 0: epoch 1: the loss is <not> a number" in out


@pytest.fixture
def where(simulated, tmp_path) -> Path:
    """A finished run of one's own: the shared one stays without an ensemble."""
    return shutil.copytree(simulated.run.local, tmp_path / "finished")


def test_a_full_disk_while_exporting_is_one_line(refused, where, tmp_path, monkeypatch):
    import errno

    assert run("ensemble", where, "--top", 1) == 0

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left on the disk" in refused("export", where, tmp_path / "bundle")


def test_export_says_which_formats_there_are(refused, four_channels, where, tmp_path, capsys):
    assert run("ensemble", where, "--top", 1) == 0
    capsys.readouterr()
    message = refused("export", where, tmp_path / "x", "--format", "keras")
    assert all(name in message for name in ("bundle", "submission", "onnx", "pt2"))
    assert "ends in .onnx" in refused("export", where, tmp_path / "x", "--format", "onnx")
    assert "only a submission (.zip) takes two runs" in refused("export", where, where, tmp_path / "x.pt2")
    same = refused("export", where, where, tmp_path / "x.zip")
    assert "both runs answer challenge 1" in same


def test_ensemble_export_predict_and_check_by_command(simulated, refused, four_channels, where, tmp_path, capsys):
    assert run("ensemble", where, "--top", 2) == 0
    assert run("export", where, tmp_path / "bundle") == 0
    out = capsys.readouterr().out
    assert "held-out" in out or "held out" in out
    assert run("predict", tmp_path / "bundle", simulated.bids, "--out", tmp_path / "answers.csv") == 0
    roles = pd.read_csv(tmp_path / "answers.csv")["role"].value_counts()
    counts = f"{roles['training']} of training subjects, {roles['held out']} of held-out subjects, 0 of unknown"
    assert counts in capsys.readouterr().out
    assert run("export", where, tmp_path / "model.pt2") == 0
    assert "a program of torch.export" in capsys.readouterr().out
    assert run("check", tmp_path / "model.pt2", "--bundle", tmp_path / "bundle") == 0
    assert "model.pt2: ready" in capsys.readouterr().out.replace("\n", "")
    assert run("bench", tmp_path / "bundle", "--seconds", 0.05, "--threads", 1) == 0
    starts = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert starts == ["one window", "batches of 256", "memory", "start"]
    assert "a graph is checked on the CPU" in refused("check", tmp_path / "model.pt2", "--device", "cuda")
    assert run("export", where, tmp_path / "sub.zip") == 0
    assert run("check", tmp_path / "sub.zip", "--bundle", tmp_path / "bundle") == 0
    assert run("status", where) == 0
    assert "3 complete, 1 failed" in capsys.readouterr().out
    assert (where / "report.html").is_file()


def test_check_fails_with_status_1_on_a_bad_submission(tmp_path, capsys):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("submission.py", "class Submission:\n    pass\n")
    assert run("check", tmp_path / "bad.zip") == 1
