"""Which seeds are played, and the run that nothing disturbs."""

from __future__ import annotations

import pytest

from tests.chaos.places import Nodes
from tests.chaos.play import numbers, play, prepare

SEEDS = 12


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="play this seed of tests/chaos only")


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        only = metafunc.config.getoption("--seed", default=None)
        metafunc.parametrize("seed", range(SEEDS) if only is None else [only])


@pytest.fixture(scope="session")
def field(tmp_path_factory):
    """A folder with windows and a space, and three nodes of Ray."""
    folder = tmp_path_factory.mktemp("chaos")
    with Nodes(prepare(folder)) as place:
        yield folder, place


@pytest.fixture(scope="session")
def reference(field):
    """Numbers of the undisturbed run."""
    folder, place = field
    assert play(place, folder, "undisturbed", []).kills == []
    return numbers(folder / "undisturbed")
