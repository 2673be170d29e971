from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from raypipe.core.errors import UserError
from raypipe.data import windower
from raypipe.packaging.bundle import LoadedEnsemble, export_bundle
from raypipe.packaging.predict import predict


@pytest.fixture(scope="module")
def bundle(simulated, tmp_path_factory):
    where = tmp_path_factory.mktemp("bundles") / "bundle"
    return export_bundle(simulated.run, simulated.ensemble(top=2), where, windows=simulated.windows)


def test_a_folder_is_predicted_as_its_windows_were(simulated, bundle, tmp_path):
    said = []
    table = predict(bundle, simulated.bids, tmp_path / "out.csv", progress=lambda *news: said.append(news))
    assert [news[:2] for news in said] == [(k, 9) for k in range(1, 10)]
    held = simulated.ensemble(top=2).held_out
    known = simulated.windows.table.iloc[held.windows].assign(expected=held.predictions[:, 0])
    both = table.merge(known, on=["recording", "onset"])
    assert len(both) == len(held.windows)
    np.testing.assert_allclose(both["prediction"], both["expected"], rtol=1e-4)
    assert set(both["role"]) == {"held out"} and set(table["role"]) == {"held out", "learned from"}
    # Windows whose response is unknown are predicted too.
    assert len(table) >= len(simulated.windows)
    assert table["recording"].is_monotonic_increasing and np.isfinite(table["prediction"]).all()
    written = pd.read_csv(tmp_path / "out.csv", dtype={"subject": str})
    np.testing.assert_allclose(written["prediction"], table["prediction"], rtol=1e-6)
    assert list(written.columns) == list(table.columns)


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
    windows, means = predict(bundle, simulated.bids), predict(bundle, simulated.bids, per="recording")
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
                    "task": "bids-task:off,on",
                    "channels": plan.channels[:3],
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


def test_bad_input(simulated, bundle, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        predict(bundle, tmp_path / "missing.bdf")
    with pytest.raises(UserError, match="no bundle"):
        predict(tmp_path, simulated.bids)
    with pytest.raises(UserError, match="must be window or recording"):
        predict(bundle, simulated.bids, per="subject")
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
    odd = plan.model_copy(update={"channels": ("E999", *plan.channels[1:])})
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
    monkeypatch.setattr(windower, "read_windows", partial(windower.read_windows, piece_bytes=8 * 4 * 600))
    table = predict(bundle, file)
    assert len(held) > 3 and sum(held) == len(table) and max(held) < len(table) / 2
    np.testing.assert_allclose(table["prediction"], whole["prediction"], rtol=1e-4)
