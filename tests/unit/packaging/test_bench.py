"""Latency, throughput and memory of bundles and graphs."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.packaging import bench as module
from raypipe.packaging.bench import bench
from raypipe.packaging.bundle import export_bundle
from raypipe.packaging.graphs import export_graph


@pytest.fixture(scope="module")
def exported(classes, tmp_path_factory):
    folder, ensemble = tmp_path_factory.mktemp("exported"), classes.ensemble(top=1)
    export_bundle(classes.run, ensemble, folder / "bundle", windows=classes.windows)
    for kind in ("onnx", "pt2"):
        export_graph(ensemble, folder / f"model.{kind}", kind, windows=classes.windows)
    return folder


@pytest.mark.parametrize(
    ("name", "what"), [("bundle", "raypipe with torch"), ("model.onnx", "onnxruntime 1."), ("model.pt2", "alone")]
)
def test_everything_is_measured_in_a_process_of_its_own(exported, name, what):
    speed = bench(exported / name, threads=1, seconds=0.05)
    assert what in speed.what and "1 thread" in speed.what
    assert 0 < speed.latency_ms[0] <= speed.latency_ms[1] and speed.runs >= 3 and speed.batches >= 3
    assert speed.windows_per_s > 0 and speed.load_s > 0 and 10 < speed.load_mb <= speed.peak_mb
    text = str(speed)
    assert "99th percentile" in text and f"batches of {module.BATCH}" in text and "3 networks" in text


def test_no_seconds_are_three_runs(exported):
    speed = bench(exported / "model.onnx", threads=1, seconds=0.0)
    assert (speed.runs, speed.batches) == (3, 3)
    for seconds in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"seconds (-1|nan): must be 0 or more"):
            bench(exported / "model.onnx", seconds=seconds)


def test_what_cannot_be_measured_is_one_line(exported, tmp_path):
    for path, message in {
        tmp_path: "no bundle",
        tmp_path / "none.onnx": "no such bundle or graph",
        tmp_path / "none": "no such bundle or graph",
        exported / "bundle" / "bundle.json": "neither .onnx nor .pt2",
    }.items():
        with pytest.raises(UserError, match=message):
            bench(path)
    damaged = tmp_path / "model.pt2"
    damaged.write_bytes((exported / "model.pt2").read_bytes().replace(b"aten.", b"none."))
    with pytest.raises(UserError, match=r"model.pt2: the graph's process died") as caught:
        bench(damaged, seconds=0.05)
    assert "\n" not in str(caught.value)
