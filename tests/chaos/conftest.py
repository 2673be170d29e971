"""Which seeds are played, the Ray that all of them share, and the run that nothing disturbs."""

from __future__ import annotations

import pytest

from tests.chaos.plan import CI_SEEDS, LONG_SEEDS
from tests.chaos.play import HOOKS, place, prepare, undisturbed


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="play this seed of tests/chaos only")


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        only = metafunc.config.getoption("--seed", default=None)
        long = [pytest.param(seed, marks=pytest.mark.long) for seed in LONG_SEEDS]
        metafunc.parametrize("seed", [*CI_SEEDS, *long] if only is None else [only])


@pytest.fixture(scope="session")
def field(tmp_path_factory):
    """A folder with windows and a space, and three nodes of Ray."""
    folder = tmp_path_factory.mktemp("chaos")
    prepare(folder)
    with place("nodes", folder) as nodes:
        yield folder, nodes


@pytest.fixture
def nodes(field):
    """The three nodes; a test may set other hooks, and leaves them idle."""
    _, nodes = field
    try:
        yield nodes
        nodes.settle()
    finally:
        nodes.hooks.set(HOOKS)
        nodes.end()


@pytest.fixture(scope="session")
def reference(field):
    """Numbers of the sweep without Ray."""
    folder, _ = field
    return undisturbed(folder)
