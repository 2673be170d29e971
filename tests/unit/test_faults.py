"""The faults that tests bring in do what they say, and a trial that they hit ends with the same numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raypipe.storage.files import open_folder
from raypipe.storage.run_store import RunStore
from tests.support.consoles import Console
from tests.support.faults import (
    Kill,
    KillingFolder,
    Pauses,
    arming,
    descendants,
    flip,
    inject,
    kill,
    ray_processes,
    running,
    session,
    slow_disk,
    small_disk,
    title,
    truncate,
)
from tests.support.sweeps import Driver, Gate
from tests.support.toys import ToyWindows, make_run, tiny
from tests.support.waiting import MAX_WAIT_SECONDS, wait_until

ROOT = Path(__file__).parents[2]

# A trial in a process of its own; its run knows of no faults.
TRIAL = """
import sys
import torch
from raypipe.trial.local import run_trial
from raypipe.storage.run_store import RunStore
from tests.support.sweeps import Driver, Gate
from tests.support.toys import ToyWindows
torch.set_num_threads(1)
run_trial(RunStore.open(sys.argv[1]), ToyWindows(), 0)
"""


def test_flipping_changes_a_byte_and_truncating_the_length(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    flip(path)
    changed = [n for n, byte in enumerate(path.read_bytes()) if byte != n]
    assert (changed, path.stat().st_size) == ([50], 100)
    flip(path, 1.0)
    assert path.read_bytes()[99] == 99 ^ 0xFF
    truncate(path, 0.25)
    assert path.stat().st_size == 25


def test_a_small_disk_is_full_and_can_be_made_larger(tmp_path):
    try:
        with small_disk(tmp_path / "disk", "64k") as resize:
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "disk/large").write_bytes(bytes(100_000))
            resize("1m")
            (tmp_path / "disk/large").write_bytes(bytes(100_000))
    except PermissionError as error:
        pytest.skip(str(error))
    assert list((tmp_path / "disk").iterdir()) == []


def test_processes_are_found_by_their_session_and_their_title():
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    leader = subprocess.Popen([sys.executable, "-c", code, "ray::TrialTrainable.step"], start_new_session=True)
    try:
        while not any(title(pid).startswith("sleep") for pid in descendants(leader.pid)):
            assert leader.poll() is None
        (below,) = descendants(leader.pid)
        assert title(below) == "sleep 60"
        assert sorted(session(leader.pid)) == sorted([leader.pid, below])
        assert ray_processes([leader.pid, below], "TrialTrainable") == []  # the title is not its own, but an argument
        kill(leader.pid, leader.pid)
        leader.wait()
        assert session(leader.pid) == [below]
    finally:
        kill(*session(leader.pid))
    assert title(leader.pid) == ""


def test_kills_are_due_once_for_all_who_count_together(tmp_path):
    death = Kill(str(tmp_path), r"fold-\d/epoch-0002", nth=2)
    same = Kill(str(tmp_path), r"fold-\d/epoch-0002", nth=2)
    assert not death.due("write", "trials/0000/fold-1/epoch-0001.ckpt")
    assert not death.due("remove", "trials/0000/fold-1/epoch-0002.ckpt")
    assert not death.due("write", "trials/0000/fold-1/epoch-0002.ckpt")
    assert same.due("write", "trials/0000/fold-2/epoch-0002.ckpt")
    assert not death.due("write", "trials/0000/fold-3/epoch-0002.ckpt")


@pytest.mark.parametrize(("when", "left"), [("before", []), ("amid", [5]), ("after", [10])])
def test_a_killing_folder_kills_who_writes_to_it(tmp_path, when, left):
    folder = KillingFolder(open_folder(tmp_path / "run"), Kill(str(tmp_path / "state"), "second", when=when))
    folder.write("first", b"0123456789")
    assert folder.read("first") == b"0123456789"
    child = os.fork()
    if child == 0:
        folder.write("second", b"0123456789")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = [path for path in (tmp_path / "run").iterdir() if path.name != "first"]
    assert [path.stat().st_size for path in found] == left
    assert [re.sub(r"\.\w{8}\.", ".", path.name) for path in found] == (
        [".second.part"] if when == "amid" else ["second"] * len(left)
    )
    folder.write("second", b"again")
    folder.remove("second")
    assert folder.names() == ["first"]


def test_a_trial_killed_at_the_worst_places_ends_with_the_same_numbers(tmp_path):
    """Killed before, amid and after a checkpoint, where old ones are removed, and while its end is written."""
    windows = ToyWindows()
    runs = [make_run(tmp_path / name, windows) for name in ("undisturbed", "killed")]
    for run in runs:
        run.add_trial(0, tiny())
    program = [sys.executable, "-c", TRIAL]  # both in it, with as many threads: these decide on how sums are rounded
    subprocess.run([*program, runs[0].where], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    state = str(tmp_path / "state")
    kills = [
        Kill(state, "fold-1/epoch-0001", when="before"),
        Kill(state, "fold-0/epoch-0002", when="amid"),
        Kill(state, "fold-2/epoch-0003", when="after"),
        Kill(state, "ckpt", call="remove", when="after"),
        Kill(state, "oof.npz", when="amid"),
        Kill(state, "result.json", when="after"),
    ]
    env = inject(tmp_path / "hook", arming(*kills))
    env = os.environ | {"PYTHONPATH": f"{env['PYTHONPATH']}:{ROOT}"}
    deaths = 0
    while (ended := subprocess.run([*program, runs[1].where], env=env)).returncode:
        assert ended.returncode == -signal.SIGKILL
        deaths += 1
    assert deaths == len(kills)
    undisturbed, killed = (RunStore.open(run.where) for run in runs)
    assert [e.score for e in killed.history(0)] == [e.score for e in undisturbed.history(0)]
    assert killed.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()
    assert killed.result(0).score == undisturbed.result(0).score
    killed.remove_leftovers()
    assert not [path for path in killed.local.rglob("*") if path.name.endswith((".part", ".ckpt"))]


def test_a_paused_process_is_stopped_for_its_time_and_continues_at_the_end_of_the_block():
    with subprocess.Popen(["sleep", "600"]) as child, Pauses() as pauses:
        pauses.pause(child.pid, 0.2)
        wait_until(lambda: _state(child.pid) == "S", "the process to continue")
        pauses.pause(child.pid, 600.0)
        wait_until(lambda: _state(child.pid) == "T", "the process to stop")
        pauses.end()
        wait_until(lambda: _state(child.pid) == "S", "the process to continue")
        pauses.pause(child.pid, 600.0)
        kill(child.pid)
        child.wait()
        pauses.pause(child.pid, 0.0)  # it has ended


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_programs_are_found_by_their_names():
    with subprocess.Popen(["sleep", "600"]) as child:
        wait_until(lambda: running(descendants(os.getpid()), "sleep") == [child.pid], "the program to run")
        assert running([child.pid], "600") == []
        kill(child.pid)


def test_on_a_slow_disk_every_sync_takes_longer(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
slept = []
time.sleep = slept.append
from raypipe.storage.files import open_folder
open_folder(sys.argv[1]).write("name", b"data")
os.fdatasync(os.open(sys.argv[1] + "/name", os.O_RDWR))
print(*slept)
"""
    env = inject(tmp_path / "hook", slow_disk(0.08))
    env = os.environ | {"PYTHONPATH": f"{env['PYTHONPATH']}:{ROOT}"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == "0.08 0.08 0.08\n"


@pytest.mark.parametrize(("kind", "end"), [("pipe", "BrokenPipeError"), ("terminal", "SIGHUP"), ("nohup", "OSError")])
def test_a_closed_console(kind, end, tmp_path):
    """The child prints until it fails or gets a signal, and writes to a file which."""
    code = """
import os, signal, sys, time
def hang_up(*_):
    raise SystemExit
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    signal.signal(signal.SIGHUP, hang_up)
end = ""
while not end:
    try:
        os.write(1, b"printed")
        time.sleep(0.01)
    except SystemExit:
        end = "SIGHUP"
    except OSError as error:  # of a terminal, writes may fail before the signal comes
        end = "" if sys.argv[2] == "terminal" else type(error).__name__
with open(sys.argv[1], "w") as file:
    file.write(end)
"""
    with open(tmp_path / "output", "w+b") as output:
        console = Console(kind, output.fileno())
        command = console.command([sys.executable, "-c", code, str(tmp_path / "end"), kind])
        with subprocess.Popen(command, start_new_session=True, **console.streams) as child:
            console.start()
            wait_until(lambda: os.pread(output.fileno(), 100, 0).startswith(b"printed"), "some output")
            console.close()
            console.close()
            child.wait(MAX_WAIT_SECONDS)
    assert (tmp_path / "end").read_text() == end


def test_a_wait_for_a_driver_that_ends_before_shows_its_output(tmp_path):
    driver = Driver("status", tmp_path / "nothing")
    gate = Gate(tmp_path / "gate", 3)
    try:
        with pytest.raises(
            AssertionError, match=r"(?s)ended with status 2, waited for a fold to begin epoch 3;.*nothing"
        ):
            gate.wait(3, driver)
        (tmp_path / "gate/reached-3").touch()
        gate.wait(3, driver)  # it came as far before it ended
    finally:
        driver.end()
