from __future__ import annotations

import sys

import pytest

from raypipe.core.errors import UserError
from raypipe.data.hbn import bucket_of, fetch


def test_without_eegdash_one_line_says_how_to_get_the_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "eegdash", None)
    with pytest.raises(
        UserError, match=r"pip install -c constraints.txt -e '.\[hbn\]'.*s3://nmdatasets/NeurIPS25/R5_mini_L100_bdf"
    ):
        fetch("hbn:R5", tmp_path, mini=True)
    with pytest.raises(UserError, match=r"hbn:R55: no such release; did you mean 'R5'"):
        fetch("hbn:R55", tmp_path)
    assert bucket_of("R2") == "s3://nmdatasets/NeurIPS25/R2_L100_bdf"


def test_with_eegdash_the_folder_it_filled_is_found(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, release, mini, cache_dir):
            assert (release, mini) == ("R5", True)
            (tmp_path / "ds005509-bdf-mini" / "sub-A" / "eeg").mkdir(parents=True)
            self.datasets = []

    monkeypatch.setitem(sys.modules, "eegdash", type(sys)("eegdash"))
    monkeypatch.setattr(sys.modules["eegdash"], "EEGChallengeDataset", Fake, raising=False)
    assert fetch("hbn:R5", tmp_path, mini=True) == [tmp_path / "ds005509-bdf-mini"]
