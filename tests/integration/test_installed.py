"""The wheel in an environment of its own, outside the clone: it does what the clone does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*words: object, folder: Path | None = None) -> str:
    """Run a command that must work; what it printed."""
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(source: Path, out: Path, *kinds: str) -> None:
    """Build distributions from a folder with the installed back-end, so that nothing is fetched."""
    targets = [word for kind in kinds for word in ("--target", kind)]
    run(sys.executable, "-m", "hatchling", "build", *targets, "--directory", out, folder=source)


def contents(wheel: Path) -> list[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out, "wheel")
    (file,) = out.glob("raypipe_eeg-*-py3-none-any.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment that has the wheel and sees this environment's other packages."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # Lines of .pth files in this other folder are not read: the clone, installed in place, is not seen.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps",
        "--no-index", wheel,
    )  # fmt: skip
    return folder / "bin"


def test_a_wheel_from_the_sdist_is_that_of_the_clone(wheel, tmp_path):
    build(ROOT, tmp_path, "sdist")
    (sdist,) = tmp_path.glob("raypipe_eeg-*.tar.gz")
    with tarfile.open(sdist) as archive:
        # Python has filters from 3.11.4 on.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "dist", "wheel")
    names = contents(wheel)
    assert contents(tmp_path / "dist" / wheel.name) == names
    spaces = {path.name for path in (ROOT / "search_spaces").glob("*.py")}
    assert {Path(name).name for name in names if name.startswith("raypipe/shipped/search_spaces/")} == spaces
    assert {name.partition("/")[0] for name in names} == {"raypipe", wheel.name.partition("-py3")[0] + ".dist-info"}


def test_from_recordings_to_a_report_with_nothing_but_the_wheel(programs, tmp_path):
    def raypipe(*words: object) -> str:
        return run(programs / "raypipe", *words, folder=tmp_path)

    where = run(programs / "python", "-c", "import raypipe; print(raypipe.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
    raypipe("simulate", "bids", "--subjects", 8, "--channels", 6, "--trials", 12)
    raypipe("prepare", "bids", "--target", "challenge1", "--out", "store", "--jobs", 1)
    assert "smoke" in raypipe("spaces")
    raypipe("sweep", "smoke", "--data", "store", "--run", "run", "--trials", 1, "--folds", 2)
    assert (tmp_path / "run/space.py").read_bytes() == (ROOT / "search_spaces/smoke.py").read_bytes()
    raypipe("report", "run")
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    raypipe("init", "study", "--space", "smoke")
    assert next((tmp_path / "study/dist").iterdir()).name.startswith("raypipe_eeg-"), "for the image of a cluster"
    plan = run("make", "--dry-run", "bundle", "BIDS=../bids", folder=tmp_path / "study")
    assert "raypipe export results/run results/bundle" in plan
