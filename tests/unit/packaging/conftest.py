"""A submission that the tests of this folder share."""

from __future__ import annotations

import pytest

from raypipe.packaging.submission import export_submission


@pytest.fixture(scope="session")
def submission(simulated, tmp_path_factory):
    """A submission for challenge 1."""
    ensemble = simulated.ensemble(top=2)
    out = tmp_path_factory.mktemp("zip") / "submission.zip"
    return export_submission({1: ensemble}, out, windows={1: simulated.windows})
