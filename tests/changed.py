"""Print the unit tests of modules that differ from the main branch: `pytest $(python -m tests.changed)`."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
DEFAULT = ["tests/unit/core", "tests/unit/test_docs.py"]
"""Tests for when nothing has changed."""


def git(*words: str) -> list[str]:
    """Return the lines that a git command prints; none if it fails."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()


def changed_files() -> list[str]:
    """Return files that differ from where the branch left main, and files that git does not know yet."""
    base = next((found for name in ("origin/main", "main") if (found := git("merge-base", "HEAD", name))), ["HEAD"])
    return [*git("diff", "--name-only", base[0]), *git("ls-files", "--others", "--exclude-standard")]


def tests_of(file: str) -> str:
    """Return the unit tests of a file: those of its module, itself if it is one, or those of the documents."""
    path = PurePosixPath(file)
    if path.parts[:2] == ("tests", "unit") and path.name.startswith("test_"):
        return file
    if path.parts[0] == "raypipe" and path.suffix == ".py":
        return str(PurePosixPath("tests/unit", *path.parts[1:-1], f"test_{path.name}"))
    return "tests/unit/test_docs.py"


def main() -> None:
    """Print the tests that exist, on one line."""
    found = {test for file in changed_files() if (ROOT / (test := tests_of(file))).is_file()}
    print(*(sorted(found) or DEFAULT))


if __name__ == "__main__":
    main()
