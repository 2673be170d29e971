"""Stores of given windows go the whole way: a search, an ensemble, a report and a bundle that predicts."""

from __future__ import annotations

import re
import warnings

import mne
import numpy as np
import pandas as pd
import pytest

import raypipe
from raypipe.core.errors import UserError
from raypipe.data.preprocessing import Preprocessing
from raypipe.packaging.predict import predict
from tests.support.given import CHANNELS, SFREQ, info, simulate_windows, write_bids
from tests.support.plain import plain_sweep
from tests.support.toys import SPACE

WINDOWS = simulate_windows(subjects=9, each=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> raypipe.Run:
    """A sweep of two trials over windows from arrays, with its ensemble."""
    root = tmp_path_factory.mktemp("given")
    raypipe.from_arrays(**WINDOWS.arguments(out=root / "store"))
    (root / "space.py").write_text(SPACE)
    found = plain_sweep(root / "space.py", root / "store", root / "run", trials=2, folds=3)
    found.ensemble(top=2, method="equal")
    return found


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return run.export(tmp_path_factory.mktemp("given") / "bundle")


def test_a_store_from_arrays_is_searched_and_reported(run):
    assert run.trials["state"].tolist() == ["complete", "complete"]
    html = run.report().read_text()
    assert "left against right" in html
    assert "raypipe.from_arrays(..., out=&#39;STORE&#39;)  # in Python" in html


def epochs_of(who: str, x_NCT=None, **options) -> mne.EpochsArray:
    x_NCT = WINDOWS.X[WINDOWS.subject == who].astype(float) if x_NCT is None else x_NCT
    events = np.stack([100 * np.arange(len(x_NCT)), np.zeros(len(x_NCT)), np.ones(len(x_NCT))], axis=1).astype(int)
    return mne.EpochsArray(x_NCT, options.pop("info", info()), events, verbose="ERROR", **options)


PEOPLE = list(dict.fromkeys(WINDOWS.subject))


def test_arrays_are_predicted_as_the_windows_of_the_store(run, bundle, tmp_path):
    table = raypipe.predict(bundle, WINDOWS.X, tmp_path / "out.csv", subject=WINDOWS.subject)
    store = raypipe.open_windows(run.store.info.data)
    expected = raypipe.load_ensemble(bundle).predict(store.gather(range(72)))
    np.testing.assert_allclose(table[["probability_left", "probability_right"]], expected, rtol=1e-6)
    assert table["recording"].tolist() == store.table["recording"].tolist()
    np.testing.assert_array_equal(table["onset"], store.table["onset"])
    roles = {who: "held out" if who in run.store.folds.held_out else "training" for who in PEOPLE}
    assert table["role"].tolist() == [roles[who] for who in WINDOWS.subject]
    written = pd.read_csv(tmp_path / "out.csv", dtype={"subject": str})
    assert list(written.columns) == list(table.columns) and len(written) == 72
    held = run.ensemble(top=2, method="equal").held_out
    np.testing.assert_allclose(expected[held.windows], held.predictions, rtol=1e-4)


def test_windows_by_store_are_refused_where_there_is_one_store(bundle):
    with pytest.raises(raypipe.UserError, match=r"^windows of low: this bundle has one store; give an array$"):
        raypipe.predict(bundle, {"low": WINDOWS.X})


def test_every_way_of_giving_windows_gives_the_same_predictions(bundle, tmp_path):
    expected = raypipe.predict(bundle, WINDOWS.X, subject=WINDOWS.subject)
    numbers = ["probability_left", "probability_right"]
    for who in PEOPLE:
        epochs_of(who).save(tmp_path / f"sub-{who}_epo.fif", verbose="ERROR")
    shuffled = WINDOWS.X[:, [2, 0, 3, 1]]
    ways = {
        "iterator": raypipe.predict(bundle, iter(WINDOWS.X), subject=WINDOWS.subject),
        "microvolts": raypipe.predict(bundle, WINDOWS.X * 1e6, unit="uV", sfreq=100),
        "other order": raypipe.predict(bundle, shuffled, ch_names=["Pz", "Fz", "Oz", "Cz"]),
        "epochs": raypipe.predict(bundle, [epochs_of(who) for who in PEOPLE], subject=PEOPLE),
        "files": raypipe.predict(bundle, tmp_path / "sub-*_epo.fif"),
        "objects from files": raypipe.predict(
            bundle, [mne.read_epochs(f, verbose="ERROR") for f in sorted(tmp_path.glob("*.fif"))]
        ),
    }
    for name, table in ways.items():
        np.testing.assert_allclose(table[numbers], expected[numbers], rtol=1e-5, err_msg=name)
        is_known = name in ("iterator", "epochs", "files", "objects from files")
        assert set(table["role"]) == ({"held out", "training"} if is_known else {"unknown"}), name
    assert ways["files"]["subject"].tolist() == WINDOWS.subject.tolist()
    assert ways["files"]["recording"].tolist() == expected["recording"].tolist()


def test_means_per_recording_and_what_is_left_out(bundle):
    hole = WINDOWS.X[:8].astype(float)
    hole[3, 1, 50] = np.nan
    given = [epochs_of("01", hole), epochs_of("02")]
    given[1].drop([0], verbose="ERROR")
    table = raypipe.predict(bundle, given, subject=["01", "02"])
    assert len(table) == 14
    assert table.attrs["left_out"] == {
        "epochs[1]": "1 epochs dropped by MNE (USER)",
        "sub-01": "1 windows with missing samples",
    }
    means = raypipe.predict(bundle, given, subject=["01", "02"], level="recording")
    assert means["windows"].tolist() == [7, 7] and means["recording"].tolist() == ["sub-01", "sub-02"]
    by = table.groupby("recording")["probability_right"].mean()
    np.testing.assert_allclose(means["probability_right"], by)


def test_crops_and_whole_windows_are_taken(tmp_path):
    windows = simulate_windows(subjects=6, each=6)
    raypipe.from_arrays(**windows.arguments(out=tmp_path / "store", crop=0.8))
    (tmp_path / "space.py").write_text(SPACE)
    run = plain_sweep(tmp_path / "space.py", tmp_path / "store", tmp_path / "run", trials=1, folds=2)
    run.ensemble(top=1, method="equal")
    bundle = run.export(tmp_path / "bundle")
    whole, crop = raypipe.predict(bundle, windows.X), raypipe.predict(bundle, windows.X[:, :, 10:90])
    np.testing.assert_array_equal(whole["probability_left"], crop["probability_left"])
    with pytest.raises(UserError, match="windows of 90 samples: the bundle takes 80 or 100 samples at 100 Hz"):
        raypipe.predict(bundle, windows.X[:, :, :90])


EMPTIED = (
    "def space(trial):\n    return {'model/name': 'covariance', 'model/shrinkage': 0.0, 'model/geometry': 'riemann'}\n"
)


def test_windows_are_rounded_as_those_that_the_model_was_fitted_to(tmp_path):
    """In float16, a direction that an average reference empties holds rounding errors, which logarithms enlarge."""
    onnxruntime = pytest.importorskip("onnxruntime")
    windows = simulate_windows(subjects=8, each=8)
    x_NCT = windows.X - windows.X.mean(axis=1, keepdims=True)
    raypipe.from_arrays(**windows.arguments(out=tmp_path / "store", X_NCT=x_NCT, dtype="float16"))
    (tmp_path / "space.py").write_text(EMPTIED)
    run = plain_sweep(tmp_path / "space.py", tmp_path / "store", tmp_path / "run", trials=1, folds=2)
    held = run.ensemble(top=1, method="equal").held_out
    x_NCT = x_NCT[held.windows]
    table = raypipe.predict(run.export(tmp_path / "bundle"), x_NCT)
    found = table[["probability_left", "probability_right"]]
    np.testing.assert_allclose(found, held.predictions, atol=1e-3)
    graph = onnxruntime.InferenceSession(run.export(tmp_path / "model.onnx"))
    answers = graph.run(None, {"windows": (1e6 * x_NCT).astype(np.float32)})
    np.testing.assert_allclose(answers[0], held.predictions, atol=1e-3)


X = WINDOWS.X
OTHER_RATE = mne.create_info(list(CHANNELS), 2 * SFREQ, "eeg")
OTHER_NAMES = mne.create_info([*CHANNELS[:3], "O1"], SFREQ, "eeg")
WRONG = {
    "windows of 90 samples: the bundle takes 100 samples": (X[:, :, :90], {}),
    "X: windows from 0 on have 3 channels and 100 samples, ch_names has 4": (X[:, :3], {}),
    "ch_names: no EEG channel 'Fz', which the bundle needs; did you mean 'FCz'?": (
        X,
        {"ch_names": ["FCz", "Cz", "Pz", "Oz"]},
    ),
    "sfreq: 200 Hz; the bundle was trained on 100 Hz, so resample first": (X, {"sfreq": 200}),
    "subject 'metadata:who': for arrays, give": (X, {"subject": "metadata:who"}),
    "X holds 72 windows, subject has 2 values": (X, {"subject": ["a", "b"]}),
    "X holds 8 windows, subject has 72 values": (iter(X[:8]), {"subject": WINDOWS.subject}),
    "X holds more windows than subject has values (2)": (iter(X), {"subject": [1, 2]}),
    "X: window 0 has 28800 samples that are NaN": (np.full((1, 4, 7200), np.nan), {}),
    "arrays: its samples spread over": (X * 1e6, {}),
    "no window to predict": (iter([]), {}),
    "epochs[0]: 200 Hz; the bundle was trained on 100 Hz": (lambda: epochs_of("01", info=OTHER_RATE), {}),
    "epochs[0]: no EEG channel 'Oz', which the bundle needs": (lambda: epochs_of("01", info=OTHER_NAMES), {}),
    "sfreq: epochs say it themselves": (lambda: epochs_of("01"), {"sfreq": 100}),
    "nothing_epo.fif: no such file": ("nothing_epo.fif", {}),
    "X is a int: it needs an array": (3, {}),
    "level 'person': must be window, recording or subject": (X, {"level": "person"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_windows_that_do_not_fit_are_one_line(bundle, message):
    windows, options = WRONG[message]
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        raypipe.predict(bundle, windows() if callable(windows) else windows, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "begins", "refused"),
    [
        ("epochs:metadata:side", (-0.2, -0.196), (-0.21, 0.0)),
        ("moabb:left,right", (-0.2,), (0.0,)),
        ("events:left,right", (-0.2,), (0.0,)),
        ("arrays:y", (-0.2, 0.0), ()),
        ("braindecode:y", (-0.2, 0.0), ()),
        ("bids-task:a,b", (-0.2, 0.0), ()),
    ],
)
def test_epochs_begin_as_long_after_their_events_as_in_training(bundle, target, begins, refused):
    ensemble = raypipe.load_ensemble(bundle)
    plan = ensemble.info.prepare.model_copy(update={"target": target, "tmin": -0.2})
    ensemble.info = ensemble.info.model_copy(update={"prepare": plan})
    for tmin in begins:
        assert len(raypipe.predict(ensemble, epochs_of("01", tmin=tmin))) == 8
    for tmin in refused:
        message = rf"^epochs\[1\]: begins {tmin:g} s after the event; .* trained on windows from -0\.2 s on, so cut"
        with pytest.raises(UserError, match=message):
            raypipe.predict(ensemble, [epochs_of("01", tmin=-0.2), epochs_of("02", tmin=tmin)])


@pytest.mark.parametrize("unit", ["recording", "subject"])
def test_a_bundle_that_aligns_takes_no_windows(bundle, unit):
    ensemble = raypipe.load_ensemble(bundle)
    aligned = {"preprocessing": Preprocessing(align=unit)}
    ensemble.info = ensemble.info.model_copy(update={"prepare": ensemble.info.prepare.model_copy(update=aligned)})
    with pytest.raises(UserError, match=f"aligns the windows of each {unit}, so"):
        raypipe.predict(ensemble, X)


def test_steps_that_given_windows_go_past_are_said_once(bundle, tmp_path, capsys):
    ensemble = raypipe.load_ensemble(bundle)
    steps = {"preprocessing": Preprocessing(notch=(50.0,), band=(1.0, 40.0), reference="average")}
    ensemble.info = ensemble.info.model_copy(update={"prepare": ensemble.info.prepare.model_copy(update=steps)})
    said = (
        "the given windows are taken as they are, so they must have had what the bundle's data had: --notch 50 --band "
        "1 40 --reference average"
    )
    with pytest.warns(UserWarning, match=f"^{said}$") as caught:
        table = raypipe.predict(ensemble, WINDOWS.X, subject=WINDOWS.subject)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert table.attrs["not_applied"] == said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "not_applied" not in raypipe.predict(bundle, WINDOWS.X).attrs


def test_what_recordings_say_themselves_is_refused(bundle, tmp_path):
    with pytest.raises(UserError, match="subject: recordings say it themselves"):
        raypipe.predict(bundle, tmp_path, subject="metadata:who")


def test_its_bundle_cuts_no_recordings(bundle, tmp_path):
    bids = write_bids(tmp_path / "bids", WINDOWS)
    with pytest.raises(UserError, match="its windows were given, so it cuts none from recordings"):
        predict(bundle, bids)


def test_prepare_names_the_function_instead(tmp_path):
    bids = write_bids(tmp_path / "bids", WINDOWS)
    with pytest.raises(UserError, match=r"target 'arrays': .* make them with raypipe.from_arrays\("):
        raypipe.prepare(bids, "arrays", tmp_path / "store")
