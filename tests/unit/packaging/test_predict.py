from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest
import torch

from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT
from raypipe.data import alignment_units, kept_windows
from raypipe.data.alignment import MeanCovariance, align, inverse_root
from raypipe.data.kept_windows import alignment_of, windows_of
from raypipe.data.prepare import prepare
from raypipe.data.targets import parse_target
from raypipe.packaging.bundle import LoadedEnsemble, export_bundle, load_ensemble
from raypipe.packaging.check_graph import check_graph, graph_text
from raypipe.packaging.graphs import export_graph
from raypipe.packaging.predict import predict
from raypipe.packaging.roles import role_of
from raypipe.recordings.layout import find_recordings
from raypipe.recordings.recording import Recording
from raypipe.simulation.contrast_change import simulate
from tests.support.recordings import eeg_names, microvolts
from tests.unit.conftest import Finished, finish


@pytest.fixture(scope="module")
def bundle(simulated, tmp_path_factory):
    where = tmp_path_factory.mktemp("bundles") / "bundle"
    return export_bundle(simulated.run, simulated.ensemble(top=2), where, windows=simulated.windows)


def test_a_table_that_cannot_be_written_is_refused_first(simulated, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}: a folder; name a file, such as {tmp_path}/predictions\.csv$"):
        predict("no bundle", simulated.bids, tmp_path)


def test_a_folder_is_predicted_as_its_windows_were(simulated, bundle, tmp_path):
    said = []
    table = predict(bundle, simulated.bids, tmp_path / "out.csv", progress=lambda *news: said.append(news))
    assert [news[:2] for news in said] == [(k, 9) for k in range(1, 10)]
    held = simulated.ensemble(top=2).held_out
    known = simulated.windows.table.iloc[held.windows].assign(expected=held.predictions[:, 0])
    both = table.merge(known, on=["recording", "onset"])
    assert len(both) == len(held.windows)
    np.testing.assert_allclose(both["prediction"], both["expected"], rtol=1e-4)
    assert set(both["role"]) == {"held out"} and set(table["role"]) == {"held out", "training"}
    # Windows whose response is unknown are predicted too.
    assert len(table) >= len(simulated.windows)
    assert table["recording"].is_monotonic_increasing and np.isfinite(table["prediction"]).all()
    written = pd.read_csv(tmp_path / "out.csv", dtype={"subject": str})
    np.testing.assert_allclose(written["prediction"], table["prediction"], rtol=1e-6)
    assert list(written.columns) == list(table.columns)


STEPS = {
    "notch": 30,
    "band": (1, 45),
    "bads": "interpolate",
    "montage": "GSN-HydroCel-129",
    "reference": "average",
    "baseline": (0.5, 0.7),
    "reject": 60,
    "flat": 0.01,
    "align": "recording",
}


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory) -> Finished:
    """A run on windows that every step of preprocessing has gone through."""
    root = tmp_path_factory.mktemp("preprocessed")
    bids = simulate(root / "bids", subjects=9, channels=8, trials=8)
    for table in sorted(bids.glob("sub-*/eeg/*_channels.tsv"))[::3]:
        head, *rows = table.read_text().splitlines()
        status = ["bad" if row.startswith("E2\t") else "good" for row in rows]
        lines = [f"{head}\tstatus", *(f"{row}\t{one}" for row, one in zip(rows, status, strict=True))]
        table.write_text("\n".join(lines) + "\n")
    prepare(bids, "challenge1", root / "store", jobs=1, **STEPS)
    return finish(root, root / "store", bids, target="challenge1")


def test_a_bundle_repeats_the_preprocessing(preprocessed, tmp_path):
    """Windows equal those of `prepare` to 1e-6, and so do predictions of held-out people."""
    store, ensemble = preprocessed.windows, preprocessed.ensemble(top=2)
    accounting = store.manifest.accounting
    assert any("peak to peak" in reason for reason in accounting.counts())
    assert any(
        note.startswith("Interpolated channels, with the number of recordings (E2 3)") for note in accounting.notes
    )
    bundle = load_ensemble(export_bundle(preprocessed.run, ensemble, tmp_path / "bundle", windows=store))
    plan = bundle.info.prepare
    for recording in find_recordings(preprocessed.bids):
        parts = list(windows_of(recording, parse_target(plan), plan)[0])
        cut = pd.concat([part.table for part in parts], ignore_index=True)
        cut["place"] = range(len(cut))
        both = cut[["onset", "place"]].merge(store.table[store.table["recording"] == recording.key], on="onset")
        assert len(both) == (store.table["recording"] == recording.key).sum()
        crops_NCT = np.concatenate([part.crops for part in parts])[both["place"]]
        np.testing.assert_allclose(crops_NCT, store.gather(both["window"]), rtol=1e-6, atol=1e-6)
    table = predict(bundle, preprocessed.bids)
    known = store.table.iloc[ensemble.held_out.windows].assign(expected=ensemble.held_out.predictions[:, 0])
    both = table.merge(known, on=["recording", "onset"])
    assert len(both) == len(known)
    np.testing.assert_allclose(both["prediction"], both["expected"], rtol=1e-5, atol=1e-6)
    assert any("windows of more than 60 uV peak to peak" in why for why in table.attrs["left_out"].values())


def test_what_is_shipped_says_that_windows_are_aligned(preprocessed, tmp_path):
    ensemble = preprocessed.ensemble(top=1)
    bundle = export_bundle(preprocessed.run, ensemble, tmp_path / "bundle", windows=preprocessed.windows)
    card = (bundle / "README.md").read_text()
    assert " Hz, aligned by recording (no unit)" in card and "`raypipe prepare --align recording`" in card
    assert "at 100 Hz, in microvolts" not in card
    path, info = export_graph(ensemble, tmp_path / "model.pt2", "pt2", windows=preprocessed.windows)
    assert info.unit == preprocessed.windows.manifest.unit == "1"
    assert "aligned by recording (no unit)" in graph_text(path, info)
    assert check_graph(path, bundle=bundle).ok


def test_windows_are_aligned_as_the_document_on_graphs_says():
    text = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text()
    (code,) = (block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "covariance" in block)
    x_NCT = np.random.default_rng(0).normal(0, 10, (20, 4, 50))
    x_NCT -= x_NCT.mean(axis=1, keepdims=True)  # an average reference, so the rank is not full
    found = {"np": np, "windows": x_NCT}
    exec(code, found)
    mean = MeanCovariance(4)
    mean.add(x_NCT)
    np.testing.assert_allclose(found["windows"], align(inverse_root(mean.value()), x_NCT), atol=1e-5)


def test_subjects_are_aligned_as_their_windows_were_and_need_all_classes(tmp_path, monkeypatch):
    bids, rng = tmp_path / "bids", np.random.default_rng(0)
    for number in range(9):
        for task in ("rest", "count"):
            mixing = rng.normal(size=(4, 4)) * 1e-5
            raw = mne.io.RawArray(mixing @ rng.normal(size=(4, 900)), mne.create_info(4, 100.0, "eeg"), verbose="ERROR")
            path = bids / f"sub-{number}" / "eeg" / f"sub-{number}_task-{task}_eeg.fif"
            path.parent.mkdir(parents=True, exist_ok=True)
            raw.save(path, verbose="ERROR")
    target = "bids-task:rest,count"
    prepare(bids, target, tmp_path / "store", jobs=1, window=1.0, align="subject")
    made = finish(tmp_path, tmp_path / "store", bids, target=target)
    ensemble = made.ensemble(top=2)
    bundle = export_bundle(made.run, ensemble, tmp_path / "bundle", windows=made.windows)
    made_of: list[list[str]] = []

    def watched(recordings, plan):
        made_of.append(sorted(each.key for each in recordings))
        return alignment_of(recordings, plan)

    monkeypatch.setattr(alignment_units, "alignment_of", watched)
    table = predict(bundle, bids)
    assert sorted(made_of) == [[f"sub-{n}_task-{task}" for task in ("count", "rest")] for n in range(9)]  # each once
    held = ensemble.held_out
    known = made.windows.table.iloc[held.windows].assign(expected=held.predictions[:, 1])
    both = table.merge(known, on=["recording", "onset"])
    assert len(both) == len(known) > 0
    np.testing.assert_allclose(both["probability_count"], both["expected"], rtol=1e-4, atol=1e-6)
    left = bids / "sub-3" / "eeg" / "sub-3_task-count_eeg.fif"
    with pytest.raises(UserError, match=r"without a recording of BIDS task rest, .* give a BIDS folder that has all"):
        predict(bundle, left)
    left.unlink()
    fewer = predict(bundle, bids)
    assert len(fewer) == len(table) - 2 * 9
    assert set(table["subject"]) - set(fewer["subject"]) == {"3"}
    assert (
        fewer.attrs["left_out"]["subject 3"]
        == "one of the subjects without a recording of BIDS task count, which align subject needs"
    )


def test_a_row_depends_on_its_own_recording_only(simulated, bundle, tmp_path):
    everything = predict(bundle, simulated.bids)
    file = sorted(simulated.bids.glob("sub-*/eeg/*_eeg.bdf"))[4]
    alone = predict(bundle, file)
    pd.testing.assert_frame_equal(
        alone, everything[everything["recording"] == alone["recording"][0]].reset_index(drop=True), check_exact=True
    )


def test_no_label_is_needed(simulated, bundle, tmp_path):
    bids = shutil.copytree(simulated.bids, tmp_path / "bids")
    (bids / "participants.tsv").unlink()
    for events in bids.glob("sub-*/eeg/*_events.tsv"):
        lines = events.read_text().splitlines()
        events.write_text("\n".join(line for line in lines if "buttonPress" not in line) + "\n")
    pd.testing.assert_frame_equal(predict(bundle, bids), predict(bundle, simulated.bids))


def test_means_per_recording(simulated, bundle):
    windows, means = predict(bundle, simulated.bids), predict(bundle, simulated.bids, level="recording")
    assert list(means["windows"]) == list(windows.groupby("recording").size())
    np.testing.assert_allclose(means["prediction"], windows.groupby("recording")["prediction"].mean())
    assert "onset" not in means


def test_classes_have_probabilities(simulated, classes, tmp_path):
    from raypipe.packaging.bundle import BundleInfo, LoadedEnsemble, load_ensemble

    found = load_ensemble(export_bundle(classes.run, classes.ensemble(top=1), tmp_path / "b", windows=classes.windows))
    plan = simulated.windows.manifest.plan
    info = found.info.model_copy(
        update={
            "prepare": plan.model_copy(
                update={
                    "target": "bids-task:off,on",
                    "channels": plan.channels[:3],
                    "sources": plan.channels[:3],
                    "sfreq": 50.0,
                    "window_samples": 64,
                    "crop_samples": 64,
                    "window": 1.28,
                    "stride": 1.28,
                    "tmin": 0.0,
                }
            )
        }
    )
    assert isinstance(info, BundleInfo)
    file = sorted(simulated.bids.glob("sub-*/eeg/*_eeg.bdf"))[0]
    table = predict(LoadedEnsemble(info, found.module), file)
    np.testing.assert_allclose(table["probability_off"] + table["probability_on"], 1.0, rtol=1e-5)
    assert (table["prediction"] == np.where(table["probability_on"] > 0.5, "on", "off")).all()
    middle = float(table["probability_on"].median()) + 1e-6
    table = predict(
        LoadedEnsemble(info.model_copy(update={"decision_weights": [middle, 1.0 - middle]}), found.module), file
    )
    assert (table["prediction"] == np.where(table["probability_on"] > middle, "on", "off")).all()
    assert table["prediction"].nunique() == 2


def test_bad_input(simulated, bundle, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        predict(bundle, tmp_path / "missing.bdf")
    with pytest.raises(UserError, match="no bundle"):
        predict(tmp_path, simulated.bids)
    with pytest.raises(UserError, match="must be window, recording or subject"):
        predict(bundle, simulated.bids, level="person")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no recording there"):
        predict(bundle, tmp_path / "empty", tmp_path / "out.csv")
    other = shutil.copytree(simulated.bids, tmp_path / "bids")
    for path in list(other.rglob("*contrastChangeDetection*")):
        path.rename(path.with_name(path.name.replace("contrastChangeDetection", "RestingState")))
    with pytest.raises(UserError, match=r"no recording of BIDS task contrastChangeDetection.*available: RestingState"):
        predict(bundle, other, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_channel_is_named(simulated, bundle):
    from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble

    found = load_ensemble(bundle)
    plan = found.info.prepare
    names = ("E999", *plan.channels[1:])
    odd = plan.model_copy(update={"channels": names, "sources": names})
    with pytest.raises(UserError, match="no EEG channel 'E999'"):
        predict(LoadedEnsemble(found.info.model_copy(update={"prepare": odd}), found.module), simulated.bids)


def test_a_recording_is_predicted_in_parts(simulated, bundle, monkeypatch):
    file = sorted(simulated.bids.glob("sub-*/eeg/*_eeg.bdf"))[0]
    whole, held = predict(bundle, file), []
    given = LoadedEnsemble.predict

    def watched(self, x_NCT, **options):
        held.append(len(x_NCT))
        return given(self, x_NCT, **options)

    monkeypatch.setattr(LoadedEnsemble, "predict", watched)
    monkeypatch.setattr(kept_windows, "read_windows", partial(kept_windows.read_windows, piece_bytes=8 * 4 * 600))
    table = predict(bundle, file)
    assert len(held) > 3 and sum(held) == len(table) and max(held) < len(table) / 2
    np.testing.assert_allclose(table["prediction"], whole["prediction"], rtol=1e-4)


def test_what_cannot_be_predicted_is_named_and_the_rest_is_written(simulated, bundle, tmp_path):
    bids = shutil.copytree(simulated.bids, tmp_path / "bids")
    whole = predict(bundle, bids)
    assert whole.attrs["left_out"] == {}
    first, second, *_ = find_recordings(bids)
    onset = whole.loc[whole["recording"] == first.key, "onset"].iloc[2]
    info = mne.create_info(eeg_names(first), 100.0, "eeg")
    x_CT = microvolts(first) * 1e-6
    x_CT[1, round(onset * 100) + 3] = np.nan
    mne.io.RawArray(x_CT, info, verbose="ERROR").save(first.path.with_suffix(".fif"), verbose="ERROR")
    first.path.unlink()
    second.path.write_bytes(second.path.read_bytes()[:5000])

    table = predict(bundle, bids, tmp_path / "out.csv")
    lost = (whole["recording"] == first.key) & (whole["onset"] == onset)
    expected = whole[~lost & (whole["recording"] != second.key)].reset_index(drop=True)
    assert table["onset"].tolist() == expected["onset"].tolist() and lost.sum() == 1
    np.testing.assert_allclose(table["prediction"], expected["prediction"], rtol=1e-3, atol=1e-4)
    assert len(pd.read_csv(tmp_path / "out.csv")) == len(table)
    reasons = table.attrs["left_out"]
    assert reasons[first.key] == "1 windows with missing samples" and "truncated" in reasons[second.key]
    with pytest.raises(UserError, match="truncated"):
        predict(bundle, second.path)


@pytest.mark.parametrize(
    ("fold_of", "label", "folder", "role"),
    [
        ({"01": 0, "02": HELD_OUT}, "01", "any", "training"),
        ({"01": 0, "02": HELD_OUT}, "02", "any", "held out"),
        ({"01": 0, "02": HELD_OUT}, "03", "any", "new"),
        ({"a/01": 0, "b/01": HELD_OUT}, "01", "a", "training"),
        ({"a/01": 0, "b/01": HELD_OUT}, "01", "b", "held out"),
        ({"a/01": 0, "b/01": HELD_OUT}, "01", "c", "training"),
        ({"a/01": HELD_OUT, "b/01": HELD_OUT}, "01", "c", "held out"),
        ({"a/01": 0}, "1", "a", "new"),
    ],
)
def test_the_role_of_a_subject_of_several_data_sets(fold_of, label, folder, role, tmp_path):
    ensemble = SimpleNamespace(info=SimpleNamespace(fold_map=SimpleNamespace(fold_of=fold_of)))
    root = tmp_path / folder
    root.mkdir()
    assert role_of(ensemble, Recording(root / "x_eeg.edf", root, label)) == role


def test_a_recording_of_another_scale_is_not_predicted(simulated, bundle, tmp_path):
    found = find_recordings(simulated.bids)[0]
    path = tmp_path / f"{found.stem}_eeg.fif"
    info = mne.create_info(eeg_names(found), 100.0, "eeg")
    mne.io.RawArray(microvolts(found), info, verbose="ERROR").save(path, verbose="ERROR")  # microvolts said to be volts
    shutil.copy(found.sidecar("events.tsv"), path.with_name(f"{found.stem}_events.tsv"))
    with pytest.raises(
        UserError, match=r"spread over .*e\+0\d uV, those that the bundle was trained on over .* check the units"
    ):
        predict(bundle, path)


def test_files_and_people_that_are_not_predicted_are_named(simulated, bundle, tmp_path):
    bids = shutil.copytree(simulated.bids, tmp_path / "project" / "bids")
    (bids / "sub-X" / "eeg").mkdir(parents=True)
    (bids / "sub-X" / "eeg" / "sub-X_task-contrastChangeDetection_eeg.cnt").touch()
    (bids / "sub-Y").mkdir()
    table = predict(bundle, tmp_path / "project")
    assert len(table) == len(predict(bundle, simulated.bids))
    assert table.attrs["left_out"] == {
        "sub-X/eeg/sub-X_task-contrastChangeDetection_eeg.cnt": "a format that raypipe does not read (.cnt)",
        "subject Y": "no recording in its folder",
    }


def test_a_bad_stretch_is_no_other_scale(simulated, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_windows, "read_windows", partial(kept_windows.read_windows, piece_bytes=8 * 4 * 300))
    found = find_recordings(simulated.bids)[0]
    path = tmp_path / f"{found.stem}_eeg.fif"
    x_CT = microvolts(found) * 1e-6
    x_CT[:, -600:] *= 1000
    mne.io.RawArray(x_CT, mne.create_info(eeg_names(found), 100.0, "eeg"), verbose="ERROR").save(path, verbose="ERROR")
    shutil.copy(found.sidecar("events.tsv"), path.with_name(f"{found.stem}_events.tsv"))
    assert len(predict(bundle, path)) == len(predict(bundle, found.path))


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "bundle", "bids", "--out", "out.csv"],
        ["score", "out.zip", "--target", "challenge1", "--data", "store"],
        ["check", "out.zip"],
    ],
)
def test_a_device_that_is_not_here_is_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        app.main([*words, "--device", "cuda"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("raypipe: error: --device cuda: torch ") and line.endswith("; use --device cpu")
