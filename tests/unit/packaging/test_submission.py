from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.packaging import submission as submission_module
from raypipe.packaging.challenge_windows import challenge_of, scorer_misfit, shown_from
from raypipe.packaging.check import check_submission
from raypipe.packaging.scorer import reference_windows
from raypipe.packaging.submission import export_submission, require_challenge
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny, write_store


def test_both_challenges_and_the_second_class(simulated, classes, tmp_path):
    people = classes.ensemble(top=1)
    pair = {1: simulated.ensemble(top=1), 2: people}
    windows = {1: simulated.windows, 2: classes.windows}
    both = export_submission(pair, tmp_path / "both.zip", windows=windows)
    assert check_submission(both).challenges == [1, 2]
    with zipfile.ZipFile(both) as archive:
        entry = json.loads(archive.read("manifest.json"))["challenges"]["2"]
    with torch.no_grad():
        from raypipe.ensembles.members import build_module, read_members

        weights, calibration = people.weights.tolist(), people.calibration.spec
        members = read_members(classes.run, classes.windows, people.members, weights, calibration=calibration)
        module = build_module(*members)
        x_NCT = torch.from_numpy(reference_windows(3, 64) * np.float32(1e6))
        expected = module(x_NCT)[:, 1]
    np.testing.assert_allclose(entry["reference"]["answers"], expected.numpy(), rtol=1e-6)
    assert entry["spec"]["calibration"] == people.calibration.spec and entry["threshold"] == people.threshold


def test_the_same_ensemble_gives_the_same_bytes(submission, simulated, tmp_path):
    again = export_submission({1: simulated.ensemble(top=2)}, tmp_path / "again.zip", windows={1: simulated.windows})
    assert again.read_bytes() == submission.read_bytes()


def test_a_run_is_exported_by_its_saved_ensemble(simulated, four_channels, tmp_path):
    run = RunStore.open(shutil.copytree(simulated.run.local, tmp_path / "run"))
    with pytest.raises(UserError, match="no ensemble yet"):
        export_submission(run, tmp_path / "out.zip")
    fit_ensemble(run, top=1).save()
    assert export_submission(run, tmp_path / "out.zip").is_file()


def test_bad_exports(simulated, classes, tmp_path):
    ensemble = simulated.ensemble(top=1)
    for wrong in ({3: ensemble}, {}):
        with pytest.raises(UserError, match="challenge 1, 2 or both"):
            export_submission(wrong, tmp_path / "out.zip")
    with pytest.raises(UserError, match="a submission is a zip file"):
        export_submission(ensemble, tmp_path)
    info = classes.run.info.model_copy(update={"classes": ["a", "b", "c"]})
    many = RunStore(classes.run.folder, info, classes.run.folds, classes.run.space)
    found = classes.ensemble(top=1)
    three = replace(found, run=many)
    with pytest.raises(UserError, match="predicts 3 classes, but the scorer reads one number per window"):
        export_submission({1: three}, tmp_path / "out.zip")


def test_windows_that_the_scorer_does_not_show_are_refused(simulated, tmp_path):
    manifest = simulated.windows.manifest
    for steps, words in (
        (Preprocessing(align="recording", reject=100.0), "--align recording"),
        (Preprocessing(baseline=(0.5, 0.7)), "--baseline 0.5 0.7"),
        (Preprocessing(reference="average"), "--reference average"),
        (Preprocessing(notch=(60.0,), band=(0.5, 50.0)), "--notch 60"),
        (Preprocessing(band=(8.0, 12.0)), "--band 8 12"),
        (
            Preprocessing(bads="interpolate", montage="GSN-HydroCel-129"),
            "--bads interpolate --montage GSN-HydroCel-129",
        ),
    ):
        plan = manifest.plan.model_copy(update={"preprocessing": steps})
        windows = copy.copy(simulated.windows)
        windows.manifest = manifest.model_copy(update={"plan": plan})
        with pytest.raises(UserError, match=f"its windows were made with {words}; the scorer shows"):
            export_submission({1: simulated.ensemble(top=1)}, tmp_path / "out.zip", windows={1: windows})
    assert not (tmp_path / "out.zip").exists()


def test_challenge_of_a_target():
    assert challenge_of("challenge1") == challenge_of("challenge1:drop-duplicates") == 1
    assert challenge_of("challenge2") == challenge_of("challenge2:no-caution") == 2
    assert challenge_of("participants:externalizing") == 2
    assert challenge_of("participants:diagnosis") is challenge_of("latency:x") is challenge_of("events:a,b") is None
    assert challenge_of("table:externalizing.csv:externalizing") is challenge_of("arrays") is None


def test_what_is_not_the_challenge_s_is_refused_and_fails_the_check(simulated, classes, submission, tmp_path):
    with pytest.raises(UserError, match=r"target is 'events:off,on', that of neither challenge; a submission is for"):
        require_challenge(classes.ensemble(top=1))
    with pytest.raises(
        UserError, match=r"its windows are 4 channels x 200 samples at 100 Hz, those of the scorer 129 channels"
    ):
        export_submission(simulated.ensemble(top=1), tmp_path / "out.zip")
    (line,) = check_submission(submission).failures
    assert line.name == "challenge 1: target and windows" and "those of the scorer 129 channels x 200" in line.detail
    other = export_submission({2: classes.ensemble(top=1)}, tmp_path / "2.zip", windows={2: classes.windows})
    (line,) = check_submission(other).failures
    assert line.detail == "its target is 'events:off,on', not that of challenge 2"


CHANNELS = [*(f"E{number}" for number in range(1, 129)), "Cz"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"tmin": -0.5}, "its windows begin -0.5 s after the target, those of the scorer 0.5 s"),
        ({"channels": [*CHANNELS[1:128], "E1", "Cz"]}, "channel 1 of its windows is E2, the scorer's is E1"),
        (
            {"channels": CHANNELS[:128]},
            "its windows are 128 channels x 200 samples at 100 Hz, those of the scorer 129",
        ),
        ({"sfreq": 50.0, "n_times": 100}, "its windows are 129 channels x 100 samples at 50 Hz"),
        ({"target": "challenge2"}, "its target is 'challenge2', not that of challenge 1"),
    ],
)
def test_windows_that_are_not_the_scorer_s(changed, words):
    fits = {"target": "challenge1", "channels": CHANNELS, "n_times": 200, "sfreq": 100.0, "tmin": 0.5}
    found = scorer_misfit(1, **fits | changed)
    assert found.startswith(words) and bool(found) == bool(words)
    assert scorer_misfit(2, **fits | {"target": "challenge2", "tmin": 0.0}) == ""


def with_plan(windows, **changed):
    """Return windows of which the manifest's plan says something else."""
    found = copy.copy(windows)
    plan = windows.manifest.plan.model_copy(update=changed)
    found.manifest = windows.manifest.model_copy(update={"plan": plan})
    return found


def test_windows_at_another_time_fail_at_export_and_in_the_check(simulated, four_channels, tmp_path, monkeypatch):
    ensemble, later = simulated.ensemble(top=1), with_plan(simulated.windows, tmin=-0.5)
    fits = export_submission(ensemble, tmp_path / "fits.zip")
    assert check_submission(fits).ok
    late = export_submission({1: ensemble}, tmp_path / "late.zip", windows={1: later})
    (line,) = check_submission(late).failures
    assert line.name == "challenge 1: target and windows" and line.detail.startswith("its windows begin -0.5 s after")
    monkeypatch.setattr(submission_module, "shipped_windows", lambda *_: later)
    with pytest.raises(UserError, match=r"its windows begin -0\.5 s after the target, those of the scorer 0\.5 s"):
        export_submission(ensemble, tmp_path / "out.zip")


def test_a_crop_in_the_middle_of_a_longer_window_is_where_the_scorer_s_is(simulated):
    plan = simulated.windows.manifest.plan
    assert shown_from(plan) == 0.5
    assert shown_from(plan.model_copy(update={"tmin": 0.0, "window": 3.0, "window_samples": 300})) == 0.5


def test_a_missing_challenge_and_another_sampling_rate_are_refused(submission, tmp_path):
    with zipfile.ZipFile(submission) as archive:
        archive.extractall(tmp_path)
    code = """import sys; sys.path.insert(0, '.'); from submission import Submission as S
for sfreq, challenge in ((100, 2), (250, 1)):
    try:
        getattr(S(sfreq, 'cpu'), f'get_model_challenge_{challenge}')()
    except Exception as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    other, rate = done.stdout.splitlines()
    assert "this submission holds only challenge 1" in other
    assert "trained at 100.0 Hz; SFREQ is 250.0" in rate


def test_other_networks_pass_the_check(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=9, each=6)))
    run = make_run(tmp_path / "run", windows)
    for number, name in enumerate(("eegnet", "shallow", "tcn")):
        run.add_trial(number, tiny(model__name=name, epochs=1))
        run_trial(run, windows, number)
    ensemble = fit_ensemble(run, windows=windows, top=3, method="equal")
    zip_file = export_submission({2: ensemble}, tmp_path / "three.zip", windows={2: windows})
    assert check_submission(zip_file).challenges == [2]
