"""Verbs to start with."""

from __future__ import annotations

import pytest

from raypipe.cli.app import main
from raypipe.core.shipped import shipped_spaces, summary


def typed(*words: object) -> int:
    """Return the exit status of ``raypipe WORDS``."""
    try:
        main([str(word) for word in words])
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_a_project_is_written_once_and_what_is_there_is_kept(tmp_path, capsys):
    assert typed("init", tmp_path / "mine", "--space", "smoke") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/mine: 15 files written\n") and f"make -C {tmp_path}/mine try\n" in said
    assert (tmp_path / "mine/space.py").read_text() == shipped_spaces()["smoke"].read_text()
    (tmp_path / "mine/Makefile").write_text("mine\n")
    (tmp_path / "mine/README.md").unlink()
    assert typed("init", tmp_path / "mine") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/mine: 1 file written; kept as they are: Makefile, cluster.yaml, ")
    assert "make -C" not in said  # that Makefile is another one
    assert (tmp_path / "mine/Makefile").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("folder", "space", "line"),
    [
        ("new", "smok", "smok: not a search space that comes with raypipe; did you mean 'smoke'?"),
        ("file", "smoke", "/file: File exists"),
        ("file/below", "smoke", "/file/below: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_one_line(folder, space, line, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert typed("init", tmp_path / folder, "--space", space) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("raypipe: error: ") and line in said
    assert not (tmp_path / "new").exists()


def test_search_spaces_are_listed_with_what_they_are_for(capsys):
    assert typed("spaces") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_spaces())
    for line, file in zip(lines, shipped_spaces().values(), strict=True):
        assert line.endswith(f"  {summary(file)}")


def test_a_search_space_is_printed_to_start_ones_own_from(capsys):
    assert typed("spaces", "smoke") == 0
    assert capsys.readouterr().out == shipped_spaces()["smoke"].read_text()
    assert typed("spaces", "smok") == 2
    assert capsys.readouterr().err == (
        "raypipe: error: smok: not a search space that comes with raypipe; did you mean 'smoke'?\n"
    )
