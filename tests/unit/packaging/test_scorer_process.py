"""The scorer's process runs code that may do anything: what it leaves is read with care."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from raypipe.packaging import scorer_process
from raypipe.packaging.scorer_process import ScorerProcessError, run_limited, run_scorer
from tests.support.hostile import KINDS_OF_FILE, replace_by
from tests.support.waiting import wait_until

SCHEMA: TypeAdapter[dict[str, list[float]]] = TypeAdapter(dict[str, list[float]])


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Return a function that reads the answer that a process has left."""

    def answer(text, kind=None, stderr=b""):
        def run(command, cwd, errors, timeout):
            errors.write_bytes(stderr)
            if text is not None:
                Path(command[-1]).write_text(text)
            if kind:
                replace_by(Path(command[-1]), kind)
            return 3

        monkeypatch.setattr(scorer_process, "run_limited", run)
        return run_scorer(tmp_path / "submission", tmp_path, {}, SCHEMA)

    return answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"1": 3}',
        '{"1": ["x"]}',
        "[" * 5000,
        '{"1": ' + "1" * 5000 + "}",
        '{"\x1b[31m": 1}',
    ],
)
def test_another_answer_is_one_line(answered, text):
    with pytest.raises(ScorerProcessError, match="answer was changed by what it ran") as caught:
        answered(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_FILE if kind not in ("missing", "dangling")])
def test_an_answer_that_is_no_file_is_not_waited_for(answered, kind):
    with pytest.raises(ScorerProcessError, match="answer was changed by what it ran"):
        answered("{}", kind)


def test_what_a_dying_process_prints_is_shown_without_escape_sequences(answered):
    with pytest.raises(ScorerProcessError, match=r"died \(exit status 3\): \?\[2Jbye\?$"):
        answered(None, stderr=b"x" * 10**6 + b"\n\x1b[2Jbye\xff\n".replace(b"\xff", b"\x07"))


def run_code(tmp_path, code, timeout):
    return run_limited([sys.executable, "-c", code], tmp_path, tmp_path / "stderr", timeout)


def test_what_a_submission_prints_takes_no_memory(tmp_path):
    before = scorer_process.Path("/proc/self/statm").read_text().split()[1] if sys.platform == "linux" else "0"
    assert run_code(tmp_path, "for _ in range(300): print('x' * 10**6)", 60) == 0
    after = scorer_process.Path("/proc/self/statm").read_text().split()[1] if sys.platform == "linux" else "0"
    assert (int(after) - int(before)) * os.sysconf("SC_PAGE_SIZE") < 100 * 2**20


@pytest.mark.parametrize("ends", [True, False])
def test_processes_that_a_submission_starts_end_with_it(tmp_path, ends):
    code = (
        "import os, threading\n"
        "if not (child := os.fork()): threading.Event().wait()\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child))\n"
        f"{ends} or threading.Event().wait()"
    )
    if ends:
        run_code(tmp_path, code, 60)
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            run_code(tmp_path, code, 3)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not _runs(child), "the child's new parent to collect it")


def _runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_process_cannot_fill_the_disk(tmp_path):
    from raypipe.packaging import scorer

    code = (
        f"import sys; sys.path.insert(0, {str(Path(scorer.__file__).parent)!r}); import scorer\n"
        "scorer.MAX_FILE_BYTES = 1000; scorer.limit_resources('cpu')\n"
        "open('large', 'wb', 0).write(bytes(500)); open('large', 'ab', 0).write(bytes(2000)); "
        "open('large', 'ab', 0).write(b'1')"
    )
    assert run_code(tmp_path, code, 120) == 1
    assert "File too large" in (tmp_path / "stderr").read_text()
    assert json.dumps((tmp_path / "large").stat().st_size) == "1000"
