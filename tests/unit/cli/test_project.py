"""Verbs to start with."""

from __future__ import annotations

from raypipe.cli.app import main
from raypipe.core.shipped import shipped_spaces, summary


def typed(*words: object) -> int:
    """Return the exit status of ``raypipe WORDS``."""
    try:
        main([str(word) for word in words])
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


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
    assert capsys.readouterr().err == "raypipe: error: spaces smok: no such search space; did you mean 'smoke'?\n"
