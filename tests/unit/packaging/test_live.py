"""Predictions of a stream are those of the recorded file, in whatever chunks it comes; gaps are flagged."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.kept_windows import Losses, kept_of
from raypipe.data.targets import parse_target
from raypipe.data.windower import place_windows, read_windows
from raypipe.ensembles.people import People
from raypipe.packaging.live import LivePredictor
from raypipe.recordings.channels import EegChannels
from raypipe.recordings.live import Chunk, LiveSignal
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel
from tests.support.streams import FakeSource, SumEnsemble, chunks_of, plan_of

START = 5000.25
"""Stamp of the first sample."""
RECIPES = {
    "plain": ({}, 100.0),
    "overlapping": ({"stride": 0.35}, 100.0),
    "band": ({"band": (2.0, 30.0), "stride": 0.5}, 100.0),
    "notch and band, resampled": ({"notch": (50.0,), "band": (4.0, 40.0), "window": 1.5}, 250.0),
    "resampled up": ({"sfreq": 100.0}, 64.0),
    "crop, baseline": ({"window": 2.0, "crop": 1.0, "baseline": (0.0, 0.2)}, 200.0),
    "reference": ({"sources": ("A", "B", "C"), "reference": "average", "reject": 45.0}, 100.0),
}


def samples(n, seed=0, n_channels=3):
    return np.random.default_rng(seed).normal(size=(n_channels, n)) * 10 + 40


def offline(plan, x_CT, rate):
    """Return the seconds from the start of the windows that `predict` cuts from a file, and their predictions."""
    names = ("A", "B", "C")
    signal = LiveSignal("file", [Channel(name, rate, "uV") for name in names])
    signal.add(Chunk(x_CT, np.arange(x_CT.shape[1]) / rate))
    channels = EegChannels(names, (0, 1, 2), (rate,) * 3, (1e-6,) * 3, {})
    places = [names.index(name) for name in plan.sources]
    opened = SimpleNamespace(recording=Recording(Path("file"), Path(), "x"), signal=signal, channels=channels)
    opened.sources = lambda _: places
    windows, _ = place_windows(opened, parse_target(plan), plan, None)
    onsets, found, losses = [], [], Losses(Counter())
    for group, x_NCT in read_windows(opened, windows, plan):
        kept_N = kept_of(x_NCT, plan, losses)
        offset = (plan.window_samples - plan.crop_samples) // 2
        onsets += [window.onset for window, is_kept in zip(group, kept_N, strict=True) if is_kept]
        found.append(SumEnsemble(plan).predict(x_NCT[kept_N][:, :, offset : offset + plan.crop_samples]))
    return onsets, np.concatenate(found) if found else np.empty((0, 1))


def live(plan, chunks, rate, **options):
    predictor = LivePredictor(SumEnsemble(plan), FakeSource(chunks, rate), say=lambda _: None, **options)
    return predictor, list(predictor)


@pytest.mark.parametrize("name", RECIPES)
def test_predictions_are_those_of_the_file(name):
    steps, rate = RECIPES[name]
    plan, x_CT = plan_of(**steps), samples(round(23.4 * rate))
    onsets, expected = offline(plan, x_CT, rate)
    stamps_T = START + np.arange(x_CT.shape[1]) / rate
    predictor, windows = live(plan, chunks_of(x_CT, stamps_T, [7]), rate)
    predicted = [window for window in windows if not window.flag]
    assert len(predicted) == len(onsets) > 5
    np.testing.assert_allclose([window.start - START for window in predicted], onsets, atol=1e-6)
    np.testing.assert_allclose([window.prediction for window in predicted], expected, rtol=1e-5, atol=0.05)
    assert {window.flag for window in windows} == ({"", "amplitude"} if "reject" in steps else {""})
    assert predictor.gaps == 0 and predictor.n_predicted == len(predicted)


@pytest.mark.parametrize("name", RECIPES)
def test_a_prediction_waits_for_what_the_filters_reach_and_no_more(name):
    steps, rate = RECIPES[name]
    plan = plan_of(**steps)
    n = round(15 * rate)
    x_CT, stamps_T = samples(n), START + np.arange(n) / rate
    source = FakeSource(chunks_of(x_CT, stamps_T, [1]), rate)
    predictor = LivePredictor(SumEnsemble(plan), source, say=lambda _: None)
    waited = [
        (n - len(source._chunks)) / rate - (window.start - START) - plan.window_samples / plan.sfreq
        for window in predictor
        if window.start - START + plan.window + predictor.behind + 0.1 < n / rate
    ]
    assert min(waited[3:]) > predictor.behind - 1.5 / rate and max(waited[3:]) < predictor.behind + 1.5 / rate
    reach = {"band": 0.82, "notch and band, resampled": 3.3 + 0.8 + 0.1, "resampled up": 0.25, "crop, baseline": 0.1}
    assert predictor.behind == pytest.approx(reach.get(name, 0.0), abs=0.06)


@given(
    name=st.sampled_from(sorted(RECIPES)),
    sizes=st.lists(st.integers(5, 900), min_size=1, max_size=5),
    gaps=st.lists(st.integers(1, 1500), max_size=3, unique=True),
    every=st.sampled_from([None, 0.25, 1.7, 3.0]),
)
@settings(deadline=None, max_examples=25)
def test_chunks_do_not_matter_and_a_gap_flags_the_windows_that_touch_it(name, sizes, gaps, every):
    steps, rate = RECIPES[name]
    plan, x_CT, gaps = plan_of(**steps), samples(1600), sorted(gaps)
    stamps_T = START + np.arange(1600) / rate
    for place in gaps:
        stamps_T[place:] += 20.0
    predictor, windows = live(plan, chunks_of(x_CT, stamps_T, sizes), rate, every=every)
    _, whole = live(plan, [Chunk(x_CT, stamps_T)], rate, every=every)
    assert [(w.start, w.flag) for w in windows] == [(w.start, w.flag) for w in whole]
    for one, other in zip(windows, whole, strict=True):
        np.testing.assert_array_equal(one.prediction, other.prediction)
    assert predictor.gaps == len(gaps)
    every = every or plan.stride
    edges = [0, *gaps, 1600]
    for first, end in pairwise(edges):
        seconds, begin = (end - first) / rate, stamps_T[first]
        starts = np.arange(np.ceil((seconds - 1e-6) / every)) * every
        touching = starts[starts + plan.window > seconds + 1e-6] if end < 1600 else []
        mine = [window for window in windows if begin - 1e-6 <= window.start < begin + seconds]
        flagged = [window.start - begin for window in mine if window.flag == "gap"]
        np.testing.assert_allclose(flagged, touching, atol=1.0 / rate)
        onsets, expected = (
            offline(plan.model_copy(update={"stride": every}), x_CT[:, first:end], rate)
            if (seconds >= predictor._filter_samples / rate)
            else ([], np.empty((0, 1)))
        )
        predicted = [window for window in mine if not window.flag]
        np.testing.assert_allclose([w.start - begin for w in predicted], onsets, atol=1.0 / rate)
        if onsets:
            np.testing.assert_allclose([w.prediction for w in predicted], expected, rtol=1e-5, atol=0.05)
        others = {window.flag for window in mine} - {"", "gap"}
        assert others <= {"short", "amplitude"}


def test_a_lost_stream_ends_its_windows_at_once_and_begins_anew():
    plan, x_CT = plan_of(), samples(500)
    stamps_T = START + np.arange(500) / 100.0  # stamps that show nothing
    lost = Chunk(np.empty((3, 0)), np.empty(0), follows_loss=True)
    predictor, windows = live(
        plan, [Chunk(x_CT[:, :250], stamps_T[:250]), lost, Chunk(x_CT[:, 250:], stamps_T[250:])], 100
    )
    assert [window.flag for window in windows] == ["", "", "gap", "", ""]
    np.testing.assert_allclose([w.start - START for w in windows], [0, 1, 2, 2.5, 3.5])
    assert predictor.gaps == 1 and predictor.left_out == {"windows that reach into a gap of the recording": 1}
    assert predictor.summary().startswith("4 windows predicted; not predicted: 1 windows that reach into a gap")


def test_the_end_of_a_lost_stream_is_no_gap():
    lost = Chunk(np.empty((3, 0)), np.empty(0), follows_loss=True)
    predictor, windows = live(plan_of(), [Chunk(samples(250), np.arange(250) / 100), lost, lost], 100.0)
    assert [window.flag for window in windows] == ["", ""] and predictor.summary().startswith(
        "2 windows predicted; 0 gaps"
    )


def test_stretches_that_are_shorter_than_the_filter_are_flagged():
    plan, x_CT = plan_of(band=(1.0, 30.0), window=0.5), samples(900)
    stamps_T = START + np.arange(900) / 100.0
    stamps_T[200:] += 1.0  # the filter is 3.3 s long
    _, windows = live(plan, [Chunk(x_CT, stamps_T)], 100.0)
    assert [window.flag for window in windows] == ["short"] * 4 + [""] * 14


@pytest.mark.parametrize("missing", [np.nan, np.inf, 1e31])
def test_missing_samples_leave_out_the_windows_that_they_reach(missing):
    plan, x_CT = plan_of(), samples(600)
    x_CT[1, 250] = missing
    _, windows = live(plan, chunks_of(x_CT, START + np.arange(600) / 100, [13]), 100.0)
    assert [window.flag for window in windows] == ["", "", "missing", "", "", ""]
    x_CT[1, 250], x_CT[2, 350] = 0.0, missing  # of a channel that is not used
    _, windows = live(plan, chunks_of(x_CT, START + np.arange(600) / 100, [13]), 100.0)
    assert {window.flag for window in windows} == {""}


def test_channels_are_found_by_name_and_units_are_converted():
    plan, x_CT = plan_of(channels=("B", "A")), samples(100)
    _, (expected,) = live(plan, [Chunk(x_CT, np.arange(100) / 100)], 100.0)
    source = FakeSource([Chunk(x_CT[[2, 0, 1]] * 1e-6, np.arange(100) / 100)], 100.0, ("C", "EEG a", "b."), "Volts")
    (window,) = LivePredictor(SumEnsemble(plan), source, say=print)
    np.testing.assert_allclose(window.prediction, expected.prediction, rtol=1e-5)


def test_windows_of_another_scale_have_no_prediction_and_the_unit_is_named():
    said, plan = [], plan_of()
    chunk = Chunk(samples(300) * 1e-6, np.arange(300) / 100)  # volts, called microvolts
    predictor = LivePredictor(SumEnsemble(plan, scale=12.0), FakeSource([chunk], 100.0), say=said.append)
    assert [window.flag for window in predictor] == ["scale"] * 3
    (line,) = said
    assert "spread over 9" in line and "12 uV" in line and "check the unit of stream fake" in line


@pytest.mark.parametrize("volts", [0.0, 250.0, 0.1])
def test_a_stream_to_which_nothing_is_connected_has_no_prediction(volts):
    said, plan = [], plan_of()
    chunk = Chunk(np.full((3, 300), volts), np.arange(300) / 100)
    predictor = LivePredictor(SumEnsemble(plan, scale=12.0), FakeSource([chunk], 100.0), say=said.append)
    assert [window.flag for window in predictor] == ["scale"] * 3
    assert len(said) == 1 and "those of the bundle's data over 12 uV: such windows have no prediction" in said[0]
    unknown = LivePredictor(SumEnsemble(plan, scale=0.0), FakeSource([chunk], 100.0), say=said.append)
    assert [window.flag for window in unknown] == [""] * 3


@pytest.mark.parametrize(
    ("plan", "source", "line"),
    [
        ({"align": "subject"}, {}, "align subject: needs all windows of a subject"),
        ({"target": "events:a,b"}, {}, "windows are at events, which a stream of samples has not; --every SECONDS"),
        ({"target": "latency:a", "target_is_offset": True}, {}, "crops of its windows are drawn"),
        ({"target": "challenge2", "crops": "scorer"}, {}, "crops of its windows are drawn"),
        ({"target": "epochs:event"}, {}, "windows were given, and how they were prepared is unknown"),
        ({"channels": ("A", "Q")}, {}, "stream fake: no channel 'Q'; available: A, B, C"),
        ({}, {"names": ("A", "B", "B")}, "stream fake: more than one channel 'B'"),
        ({}, {"unit": ""}, "channel 'A' states no unit; give it, such as --unit uV"),
        ({}, {"unit": "g"}, "channel 'A' is in 'g', no unit of voltage"),
        ({"band": (1.0, 40.0)}, {"rate": 64.0}, "fake: sampled at 64 Hz, so the band's upper edge must be below 32 Hz"),
        ({}, {"rate": 100.000031}, "its rate (100.000031 Hz) cannot be resampled to that of the bundle (100 Hz)"),
    ],
)
def test_what_a_stream_cannot_give_is_one_line_before_it_starts(plan, source, line):
    with pytest.raises(UserError) as caught:
        LivePredictor(SumEnsemble(plan_of(**plan)), FakeSource([], **{"rate": 100.0} | source), say=print)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_networks_of_several_stores_are_refused_before_it_starts():
    ensemble = SumEnsemble(plan_of())
    ensemble.stores = "a and b"
    with pytest.raises(UserError, match="stream takes windows of one"):
        LivePredictor(ensemble, FakeSource([], 100.0), say=print)


@pytest.mark.parametrize(("option", "value"), [("every", 0.0), ("every", np.nan), ("every", np.inf), ("jitter", 0.0)])
def test_numbers_out_of_range_are_one_line(option, value):
    with pytest.raises(UserError, match=f"{option} "):
        LivePredictor(SumEnsemble(plan_of()), FakeSource([], 100.0), **{option: value})


@pytest.mark.parametrize("people", [None, People(n=20, half_widths=(2.0,))])
def test_a_target_of_the_person_has_a_note_and_one_of_windows_none(people):
    ensemble, said = SumEnsemble(plan_of()), []
    ensemble.info.people, ensemble.info.target = people, "participants:age"
    chunk = Chunk(samples(300), np.arange(300) / 100)
    assert len(list(LivePredictor(ensemble, FakeSource([chunk], 100.0), say=said.append))) == 3
    if people is None:
        assert said == []
    else:
        (note,) = said
        assert note.startswith("Target 'participants:age' is the person's") and "do not apply" in note


def test_windows_at_events_are_predicted_where_every_asks_for_them_with_a_note():
    said = []
    plan = plan_of(target="events:a,b", tmin=-0.2, baseline=(-0.2, 0.0))
    chunk = Chunk(samples(300), np.arange(300) / 100)
    windows = list(LivePredictor(SumEnsemble(plan), FakeSource([chunk], 100.0), every=1.0, say=said.append))
    assert len(windows) == 3 and "trained and scored on windows at events" in said[0] and "do not apply" in said[0]
    means_C = samples(300)[:2, :21].mean(1)
    x_CT = samples(300)[:2, :100] - means_C[:, None]
    np.testing.assert_allclose(windows[0].prediction, SumEnsemble(plan).predict(x_CT[None])[0], rtol=1e-4)


def test_a_stream_that_ends_early_has_no_window_and_no_failure():
    predictor, windows = live(plan_of(), [Chunk(samples(50), np.arange(50) / 100)], 100.0)
    assert windows == [] and predictor.summary() == "0 windows predicted; 0 gaps"
    assert live(plan_of(), [], 100.0)[1] == []
