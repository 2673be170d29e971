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


def tests_of(file: str) -> list[str]:
    """Return the unit tests of a file: itself if it is one, those of its module, or those of the documents.

    A module without a test file of its own is tested by those in its package's folder that import it, or by all there.
    """
    path = PurePosixPath(file)
    if path.parts[:2] == ("tests", "unit") and path.name.startswith("test_"):
        return [file]
    if path.parts[0] != "raypipe" or path.suffix != ".py":
        return ["tests/unit/test_docs.py"]
    if len(path.parts) == 2:
        return ["tests/unit/test_api.py"]
    folder = PurePosixPath("tests/unit", *path.parts[1:-1])
    if (ROOT / folder / f"test_{path.name}").is_file():
        return [str(folder / f"test_{path.name}")]
    module = ".".join(path.with_suffix("").parts)
    found = [test for test in (ROOT / folder).glob("test_*.py") if module in test.read_text()]
    return [str(test.relative_to(ROOT)) for test in found] or [str(folder)]


def main() -> None:
    """Print the tests that exist, on one line."""
    found = {test for file in changed_files() for test in tests_of(file) if (ROOT / test).exists()}
    print(*(sorted(found) or DEFAULT))


if __name__ == "__main__":
    main()
