from __future__ import annotations

import contextlib
import importlib
import math
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import raypipe
from raypipe.core.errors import UserError
from raypipe.core.parallel import map_processes, usable_cores
from tests.support.waiting import wait_until

PACKAGE = str(Path(raypipe.__file__).parents[1])


def results(function, calls, jobs=2):
    return [result for _, result in sorted(map_processes(function, calls, jobs))]


def test_every_call_is_answered_by_any_number_of_processes():
    calls = [(n, 2) for n in range(1000)]
    for jobs in (1, 2, 4):
        assert results(operator.mul, calls, jobs) == [2 * n for n in range(1000)]
    assert results(operator.mul, []) == []


def test_large_arguments_and_results_pass():
    block = bytes(50_000_000)
    assert [len(each) for each in results(operator.add, [(block, b"1"), (block, b"22"), (block, b"")])] == [
        50_000_001,
        50_000_002,
        50_000_000,
    ]


def test_an_exception_is_raised_with_the_traceback_of_its_process():
    with pytest.raises(ValueError, match="math domain error") as caught:
        results(math.sqrt, [(1.0,), (-1.0,)])
    assert "in _call" in caught.value.__notes__[0]


def test_an_error_of_the_user_is_a_result(tmp_path):
    from raypipe.data.manifest import read_manifest

    found = results(read_manifest, [(tmp_path / "a",), (tmp_path / "b",)])
    assert all(isinstance(each, UserError) for each in found) and "no such folder" in str(found[1])


def test_a_killed_process_gives_one_line():
    with pytest.raises(UserError, match="one of 2 processes was killed"):
        results(os._exit, [(1,), (1,)])


def test_a_call_that_cannot_be_unpickled_is_an_exception_with_its_cause(tmp_path):
    (tmp_path / "script.py").write_text(OWN)
    done = run_python(tmp_path, "script.py")
    assert done.stdout.startswith("AttributeError") and "own" in done.stdout and done.stderr == ""


def test_an_exception_that_cannot_be_unpickled_keeps_its_message(tmp_path, monkeypatch):
    (tmp_path / "lost.py").write_text(LOST)
    monkeypatch.syspath_prepend(tmp_path)
    lost = importlib.import_module("lost")
    with pytest.raises(RuntimeError, match="Lost: 3 calls are lost") as caught:
        results(lost.fail, [(3,), (3,)])
    assert "in fail" in str(caught.value)


def test_an_interrupt_while_a_process_starts_is_left_to_this_process(monkeypatch, capfd):
    start = subprocess.Popen

    def start_and_interrupt(*arguments, **options):
        process = start(*arguments, **options)
        process.send_signal(signal.SIGINT)
        return process

    monkeypatch.setattr("raypipe.core.parallel.subprocess.Popen", start_and_interrupt)
    assert results(operator.neg, [(1,), (2,), (3,)]) == [-1, -2, -3]
    assert capfd.readouterr().err == "" and signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_ctrl_c_that_reaches_all_processes_ends_them_without_a_word(tmp_path):
    code = """
        import contextlib, signal, time
        from raypipe.core.parallel import map_processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with contextlib.closing(map_processes(time.sleep, [(0,), (600,), (600,), (600,)], 3)) as calls:
                for number, _ in calls:
                    print(number, flush=True)
        except KeyboardInterrupt:
            print("interrupted")
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PACKAGE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "0\n"  # one process has served a call, the others may be starting
    os.killpg(child.pid, signal.SIGINT)
    assert child.communicate() == ("interrupted\n", "") and child.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_a_ctrl_c_between_two_results_ends_the_running_calls():
    with (
        pytest.raises(KeyboardInterrupt),
        contextlib.closing(map_processes(time.sleep, [(0,), (600,), (600,)], 3)) as calls,
    ):
        next(calls)
        raise KeyboardInterrupt


def test_a_result_that_cannot_be_pickled_is_an_exception():
    with pytest.raises(TypeError, match="pickle"):
        results(open, [(os.devnull,), (os.devnull,)])


def test_closing_early_cancels_the_rest_and_leaves_no_process(tmp_path):
    before = children()
    with contextlib.closing(map_processes(os.mkdir, [(tmp_path / str(n),) for n in range(100)], 2)) as made:
        next(made)
    assert 1 <= len(list(tmp_path.iterdir())) <= 3
    assert children() == before


def children() -> set[int]:
    lines = subprocess.run(["ps", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return {int(pid) for pid, parent, command in rows if int(parent) == os.getpid() and command != "ps"}


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": PACKAGE}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


SCRIPT = """
from raypipe.core.parallel import map_processes
import operator
print("read")
print(sorted(map_processes(operator.neg, [(1,), (2,), (3,)], 2)))
"""

OWN = """
from raypipe.core.parallel import map_processes
def own(number):
    return number
try:
    list(map_processes(own, [(1,), (2,)], 2))
except Exception as error:
    print(type(error).__name__, error)
"""

LOST = """
class Lost(Exception):
    def __init__(self, count, *, why):
        super().__init__(f"{count} calls are lost")

def fail(count):
    raise Lost(count, why="test")
"""


def test_a_script_needs_no_main_guard_and_is_not_imported_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python(tmp_path, "script.py")
    assert done.stderr == "" and done.stdout == "read\n[(0, -1), (1, -2), (2, -3)]\n"


def test_files_in_the_working_folder_are_not_imported(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("signal", "types", "random", "numpy", "pickle", "raypipe", "traceback", "operator", "encodings"):
        (folder / f"{name}.py").write_text("raise AssertionError(__file__)\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python(folder, "-P", str(tmp_path / "script.py"))
    assert done.stderr == "" and done.stdout.endswith("[(0, -1), (1, -2), (2, -3)]\n")


def test_processes_end_when_their_parent_is_killed(tmp_path):
    code = """
        import os, signal, sys, time
        from raypipe.core.parallel import map_processes
        for number, pid in map_processes(os.getpid, [()] * 2, 2):
            print(pid, flush=True)
            if number:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_python(tmp_path, "-c", textwrap.dedent(code))
    pids = [int(line) for line in done.stdout.split()]
    assert pids and done.returncode == -9
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the processes end")


def test_cores_are_counted_where_processes_have_no_set_of_them(monkeypatch):
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
