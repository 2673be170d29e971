"""Streams of samples without LabStreamingLayer, and a bundle whose predictions are weighted sums of its windows."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np

from raypipe.core.errors import UserError
from raypipe.data.manifest import Plan
from raypipe.data.preprocessing import Preprocessing
from raypipe.recordings.live import Chunk
from raypipe.recordings.signal import Channel


class FakeSource:
    """A stream whose chunks are given."""

    name = "fake"

    def __init__(self, chunks, rate, names=("A", "B", "C"), unit="microvolts"):
        self.channels = tuple(Channel(name, rate, unit) for name in names)
        self._chunks = deque(chunks)

    def pull(self):
        return self._chunks.popleft() if self._chunks else None


def chunks_of(x_CT, stamps_T, sizes):
    """Cut samples into chunks of these sizes, in turn."""
    found, start, turn = [], 0, 0
    while start < len(stamps_T):
        part = slice(start, start + sizes[turn % len(sizes)])
        found.append(Chunk(x_CT[:, part], stamps_T[part]))
        start, turn = part.stop, turn + 1
    return found


def plan_of(*, channels=("A", "B"), sources=None, sfreq=100.0, window=1.0, crop=None, stride=None, **steps) -> Plan:
    return Plan(
        target=steps.pop("target", "participants:age"),
        channels=channels,
        sources=sources or channels,
        sfreq=sfreq,
        window=window,
        stride=stride or window,
        tmin=steps.pop("tmin", 0.0),
        window_samples=round(window * sfreq),
        crop_samples=round((crop or window) * sfreq),
        target_is_offset=steps.pop("target_is_offset", False),
        dtype="float32",
        crops=steps.pop("crops", "own"),
        preprocessing=Preprocessing(**steps),
    )


class SumEnsemble:
    """Predicts a weighted sum of a window, in double precision up to the last step."""

    classes = ()
    columns = ("prediction",)
    stores = ""

    def __init__(self, plan: Plan, scale: float = 0.0) -> None:
        self.info = SimpleNamespace(prepare=plan, scale=scale, n_outputs=1, people=None)

    def require_one_store(self, what):
        if self.stores:
            raise UserError(f"the bundle's networks take windows of stores {self.stores}; {what} takes windows of one")

    def predict(self, x_NCT):
        x_NCT = x_NCT.astype(np.float64)
        weight_CT = np.sqrt(1.0 + np.arange(np.prod(x_NCT.shape[1:]))).reshape(
            x_NCT.shape[1:]
        )  # of each sample its own
        return (x_NCT * weight_CT).sum(axis=(1, 2))[:, None].astype(np.float32)


LOOPBACK = """
[ports]
IPv6 = disable
[multicast]
ResolveScope = machine
AddressesOverride = {127.0.0.1}
[lab]
KnownPeers = {127.0.0.1}
[log]
level = -3
"""
"""Configuration of LabStreamingLayer under which nothing leaves the machine."""


def outlet(lsl, name, labels, rate, *, unit="microvolts", format="float32"):
    """Offer a stream; `lsl` is the module pylsl."""
    info = lsl.StreamInfo(name, "EEG", len(labels), rate, format, f"{name} {rate:g}")
    channels = info.desc().append_child("channels")
    for label in labels:
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        if unit:
            channel.append_child_value("unit", unit)
    return lsl.StreamOutlet(info)
