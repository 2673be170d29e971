"""A folder to start from: its files are those of raypipe, and go together."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from raypipe.core import project
from raypipe.core.project import installed_wheel, write_project
from raypipe.core.search_space import load_space
from tests.support.programs import need_program

ROOT = Path(__file__).parents[3]


@pytest.fixture
def installed_from(monkeypatch):
    """Pretend that pip has installed raypipe from a URL."""

    def pretend(url: str | None) -> None:
        record = None if url is None else json.dumps({"url": url, "archive_info": {}})
        found = type("Found", (), {"read_text": lambda self, name: record if name == "direct_url.json" else None})
        monkeypatch.setattr(project.metadata, "distribution", lambda name: found())

    return pretend


def test_a_project_has_what_the_clone_has(tmp_path):
    written, kept = write_project(tmp_path, "smoke")
    assert kept == [] and {"space.py", "Makefile", "README.md", "deploy/slurm.sh"} <= set(written)
    for name in ("cluster.yaml", "constraints.txt", "deploy/Dockerfile", "deploy/rayjob.yaml", "examples/own/space.py"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert os.access(tmp_path / "deploy/slurm.sh", os.X_OK) and not os.access(tmp_path / "Makefile", os.X_OK)
    assert load_space(tmp_path / "space.py").hash == load_space("smoke").hash
    assert load_space(tmp_path / "examples/own/space.py").files
    listed = (tmp_path / "README.md").read_text()
    for name in ("space.py", "constraints.txt", "cluster.yaml", "deploy/", "examples/own", "Makefile"):
        assert f"`{name}`" in listed


def test_the_trial_with_simulated_recordings_is_apart_from_ones_own_run(tmp_path):
    """A store and a run belong to one target: in one folder, the second of these would be refused."""
    write_project(tmp_path, "smoke")

    def written(*words: str) -> set[str]:
        command = [need_program("make", "apt-get install make"), "-C", str(tmp_path), "--dry-run", *words]
        plan = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        places = r"raypipe (?:simulate|ensemble|export \S+) (\S+)|--(?:out|run) (\S+)"
        return {place for found in re.findall(places, plan) for place in found if place}

    tried, own, other = written("try"), written("graph"), written("graph", "TARGET=age", "OUT=age")
    assert tried == {"try/bids", "try/store", "try/run"}
    assert own == {f"results/{name}" for name in ("store", "run", "bundle", "model.onnx")}
    assert other == {place.replace("results", "age") for place in own}
    listed = (tmp_path / "README.md").read_text()
    assert "`make try`" in listed and all(f"`{place}`" in listed for place in own)


def test_nothing_is_overwritten_not_even_through_a_link(tmp_path):
    (tmp_path / "Makefile").symlink_to(tmp_path / "elsewhere")
    written, kept = write_project(tmp_path, "smoke")
    assert kept == ["Makefile"] and "Makefile" not in written
    assert not (tmp_path / "elsewhere").exists()
    assert write_project(tmp_path, "latency") == ([], sorted([*written, *kept]))


def test_the_wheel_that_was_installed_goes_into_the_project(tmp_path, installed_from):
    wheel = tmp_path / "my wheels/raypipe_eeg-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"wheel")
    installed_from(wheel.as_uri())
    written, _ = write_project(tmp_path / "project", "smoke")
    assert f"dist/{wheel.name}" in written
    assert (tmp_path / f"project/dist/{wheel.name}").read_bytes() == b"wheel"


@pytest.mark.parametrize(
    "url", [None, "file:///a/clone", "https://lab/raypipe_eeg-0.1.0-py3-none-any.whl", "file:///a.whl"]
)
def test_without_such_a_file_there_is_none(url, tmp_path, installed_from):
    installed_from(url)
    assert installed_wheel() is None
    assert not [name for name in write_project(tmp_path, "smoke")[0] if name.startswith("dist/")]


def test_a_raypipe_that_is_not_installed_has_none(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(project.metadata, "distribution", missing)
    assert installed_wheel() is None
