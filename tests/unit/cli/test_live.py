"""Lines of a stream's predictions, without LabStreamingLayer."""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
import pytest

from raypipe.cli.live import write_windows
from raypipe.cli.terminal import LastingStream
from raypipe.core.errors import UserError
from raypipe.packaging.live import LivePredictor
from raypipe.recordings.live import Chunk
from tests.support.streams import FakeSource, SumEnsemble, plan_of


class EndlessSource(FakeSource):
    """Noise without an end, or up to a Ctrl-C."""

    def __init__(self, interrupted_after=10**9):
        super().__init__([], 100.0)
        self._turns = itertools.count()
        self._limit = interrupted_after

    def pull(self):
        if (turn := next(self._turns)) >= self._limit:
            raise KeyboardInterrupt
        return Chunk(np.random.default_rng(turn).normal(size=(3, 50)), (50 * turn + np.arange(50)) / 100)


def live(source):
    return LivePredictor(SumEnsemble(plan_of()), source, say=print)


@pytest.mark.parametrize("to_file", [True, False])
def test_ctrl_c_ends_with_a_summary_and_the_lines_so_far(tmp_path, capsys, to_file):
    out = tmp_path / "answers.tsv"
    write_windows(live(EndlessSource(interrupted_after=9)), out if to_file else None)
    captured = capsys.readouterr()
    lines = (out.read_text() if to_file else captured.out).splitlines()
    assert len(lines) == 5 and lines[0] == "start\tprediction\tflag" and lines[2].startswith("1.000000\t")
    assert captured.err.splitlines()[-1].startswith("4 windows predicted; 0 gaps; 99 % of the predictions within ")


def test_a_stream_that_cannot_be_read_any_more_ends_with_what_is_left_and_a_summary(tmp_path, capsys):
    class Failing(EndlessSource):
        def pull(self):
            try:
                return super().pull()
            except KeyboardInterrupt:
                raise UserError("2 streams have this name") from None

    def lines(name, source):
        write_windows(live(source), tmp_path / name)
        return (tmp_path / name).read_text()

    source = EndlessSource()
    whole = lines("whole.tsv", FakeSource([source.pull() for _ in range(8)], 100.0))
    summary = capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match="2 streams"):
        lines("failed.tsv", Failing(interrupted_after=8))
    assert (tmp_path / "failed.tsv").read_text() == whole and len(whole.splitlines()) == 5
    assert capsys.readouterr().err.splitlines()[-1].partition(";")[0] == summary.partition(";")[0]


def test_windows_without_a_prediction_have_a_line_with_a_flag(tmp_path):
    source = FakeSource([Chunk(np.full((3, 100), np.nan), np.arange(100) / 100)], 100.0)
    write_windows(live(source), tmp_path / "answers.tsv")
    assert (tmp_path / "answers.tsv").read_text().splitlines()[1] == "0.000000\tn/a\tmissing"


def test_a_stream_ends_when_its_reader_is_gone(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", LastingStream(os.fdopen(writing, "w")))
    write_windows(live(EndlessSource()), None)
    assert not sys.stdout.has_reader


def test_lines_are_in_the_file_while_the_stream_goes_on(tmp_path):
    out, seen = tmp_path / "answers.tsv", []

    class Watching(EndlessSource):
        def pull(self):
            seen.append(len(out.read_text().splitlines()))
            return super().pull()

    write_windows(live(Watching(interrupted_after=6)), out)
    assert seen == [1, 1, 2, 2, 3, 3, 4]
