"""Streams of LabStreamingLayer, on this machine only."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.recordings.lsl import LslSource
from raypipe.recordings.signal import Channel
from tests.support.streams import outlet


@pytest.fixture
def name() -> str:
    return f"raypipe test {uuid.uuid4()}"


def pulled(source, n):
    """Pull until `n` samples have come; return them with their stamps."""
    parts = []
    while sum(len(part.stamps) for part in parts) < n:
        parts.append(source.pull())
    return np.concatenate([p.samples for p in parts], axis=1), np.concatenate([p.stamps for p in parts])


def test_samples_come_with_their_stamps_labels_and_units(lsl, name):
    out = outlet(lsl, name, ("Cz", "Pz"), 250.0)
    source = LslSource(name)
    assert source.channels == (Channel("Cz", 250.0, "microvolts"), Channel("Pz", 250.0, "microvolts"))
    x_TC = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    start = lsl.local_clock()
    out.push_chunk(x_TC, list(start + np.arange(600) / 250))
    x_CT, stamps_T = pulled(source, 600)
    np.testing.assert_array_equal(x_CT.T, x_TC)
    np.testing.assert_allclose(stamps_T, start + np.arange(600) / 250, atol=5e-3)


def test_a_unit_is_taken_where_the_stream_has_none(lsl, name):
    out = outlet(lsl, name, ("Cz",), 100.0, unit="")
    assert LslSource(name).channels[0].unit == ""
    assert LslSource(name, unit="mV").channels[0].unit == "mV"
    del out
    out = outlet(lsl, f"{name} b", ("Cz",), 100.0)
    assert LslSource(f"{name} b", unit="mV").channels[0].unit == "microvolts"
    del out


def test_a_stream_that_is_not_there_is_one_line_with_those_that_are(lsl, name):
    out = outlet(lsl, name, ("Cz",), 100.0)
    with pytest.raises(UserError, match=f"none of this name within 0.1 s; did you mean '{name}'") as caught:
        LslSource(name[:-1], wait=0.1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="wait -1: must be"):
        LslSource(name, wait=-1)
    del out


def test_two_streams_of_one_name_are_refused(lsl, name):
    both = outlet(lsl, name, ("Cz",), 100.0), outlet(lsl, name, ("Cz",), 200.0)
    with pytest.raises(UserError, match="2 streams have this name: "):
        LslSource(name)
    del both


@pytest.mark.parametrize(
    ("labels", "rate", "format", "line"),
    [
        (("Cz",), 0.0, "float32", "no fixed rate"),
        (("Cz",), 100.0, "string", "holds text"),
        (("Cz", ""), 100.0, "float32", "2 channels, of which its description names 1"),
    ],
)
def test_a_stream_without_rate_samples_or_labels_is_refused(lsl, name, labels, rate, format, line):
    out = outlet(lsl, name, labels, rate, format=format)
    with pytest.raises(UserError, match=line):
        LslSource(name)
    del out


def test_a_lost_stream_is_waited_for_and_continues_when_it_returns(lsl, name):
    said = []
    out = outlet(lsl, name, ("Cz",), 100.0)
    source = LslSource(name, wait=20.0, say=said.append)
    out.push_chunk(np.ones((5, 1), np.float32))
    pulled(source, 5)
    del out
    while not (chunk := source.pull()).follows_loss:
        pass
    assert len(chunk.stamps) == 0 and said == [f"Stream {name} is lost; waiting 20 s for its return."]
    out = outlet(lsl, name, ("Cz",), 100.0)
    while not (chunk := source.pull()).follows_loss:
        pass
    assert said[1:] == [f"Stream {name} has returned."]
    out.push_chunk(np.full((5, 1), 2, np.float32))
    assert pulled(source, 5)[0].min() == 2
    del out


def test_a_stream_that_returns_as_another_is_the_end(lsl, name):
    said = []
    out = outlet(lsl, name, ("Cz",), 100.0)
    source = LslSource(name, wait=20.0, say=said.append)
    del out
    out = outlet(lsl, name, ("Cz",), 200.0)
    while source.pull() is not None:
        pass
    assert "has returned with other channels, units or another rate" in said[-1]
    del out


def test_a_stream_that_stays_away_or_is_silent_has_ended(lsl, name):
    said = []
    out = outlet(lsl, name, ("Cz",), 100.0)
    source = LslSource(name, wait=0.5, say=said.append)
    while source.pull() is not None:
        pass
    assert said == [f"Stream {name} has ended: no sample for 0.5 s."]
    source = LslSource(name, wait=0.5, say=said.append)
    del out
    while source.pull() is not None:
        pass
    assert [line.removeprefix(f"Stream {name} ") for line in said[1:]] == [
        "is lost; waiting 0.5 s for its return.",
        "has ended: no sample for 0.5 s.",
    ]


@pytest.mark.parametrize("kind", ["TimeoutError", pytest.param("LostError", marks=pytest.mark.long)])
def test_a_stream_that_does_not_describe_itself_is_not_found_yet(lsl, name, kind, monkeypatch):
    described, failures = lsl.StreamInlet.info, []

    def info(inlet, timeout):
        if len(failures) < 2:
            failures.append(timeout)
            raise getattr(lsl.util, kind)("no description")
        return described(inlet, timeout)

    monkeypatch.setattr(lsl.StreamInlet, "info", info)
    out = outlet(lsl, name, ("Cz",), 100.0)
    said = []
    source = LslSource(name, wait=20.0, say=said.append)
    assert len(failures) == 2 and source.channels[0].name == "Cz"
    del out
    while not source.pull().follows_loss:
        pass
    failures.clear()
    out = outlet(lsl, name, ("Cz",), 100.0)
    while not source.pull().follows_loss:
        pass
    assert len(failures) == 2 and said[1:] == [f"Stream {name} has returned."]
    del out


def test_a_stream_that_never_describes_itself_is_one_line(lsl, name, monkeypatch):
    def info(*_):
        raise lsl.util.TimeoutError("no description")

    monkeypatch.setattr(lsl.StreamInlet, "info", info)
    out = outlet(lsl, name, ("Cz",), 100.0)
    with pytest.raises(UserError, match=r"has not described itself within 0\.1 s"):
        LslSource(name, wait=0.1)
    del out


def test_without_pylsl_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pylsl", None)
    with pytest.raises(UserError, match=r"streams need pylsl; pip install .*raypipe-eeg\[stream\]"):
        LslSource("x")
