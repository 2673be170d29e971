"""Copies of runs."""

from __future__ import annotations

import pytest

from raypipe.core.errors import UserError
from raypipe.storage.transfer import pull_run


def test_a_pretrained_run_is_pulled_and_an_unknown_folder_is_not(tmp_path):
    run = tmp_path / "run"
    (run / "folds").mkdir(parents=True)
    (run / "folds" / "weights").write_bytes(b"weights")
    with pytest.raises(UserError, match="no raypipe run there"):
        pull_run(str(run), str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    (run / "pretrain.json").write_text("{}")
    assert pull_run(str(run), str(tmp_path / "there")) == 2
    assert (tmp_path / "there" / "folds" / "weights").read_bytes() == b"weights"
