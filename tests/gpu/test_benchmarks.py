"""Benchmarks run on the device, so that `make gpu` is not lost by one of them."""

from __future__ import annotations

import pytest

from benchmarks import folds, pretraining, report, step
from benchmarks.roofline import measure_peaks

SMALL = ["--device", "cuda", "--batch", "8", "--channels", "8"]


def test_a_device_has_peaks():
    peaks = measure_peaks("cuda")
    assert min(*peaks.flops.values(), peaks.bandwidth, peaks.launch) > 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (step, ["--stack", "2", "--seconds", "0", "--quick"]),
        (folds, ["--folds", "2", "--windows", "32", "--epochs", "1"]),
        (pretraining, ["--seconds", "0"]),
    ],
    ids=["step", "folds", "pretraining"],
)
def test_no_contestant_fails(script, words, monkeypatch):
    found = []
    monkeypatch.setattr(report, "text", lambda each: found.append(each) or "")
    script.main([*SMALL, *words])
    assert not report.has_failed(found[0]), found[0]["missing"]
    assert found[0]["ratios"]
