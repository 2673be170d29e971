"""Consoles that die, and text that a terminal must not obey; with real processes, pipes and terminals."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from raypipe.cli import app
from raypipe.cli.process import training_process
from raypipe.cli.terminal import LastingStream, lasting_streams
from raypipe.core.text import visible
from raypipe.reporting.plain_console import PlainConsole
from raypipe.reporting.progress_lines import PrintProgress
from tests.support.toys import ToyWindows, add_ended, make_run, write_store
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]

# ---- Streams


def test_a_stream_whose_reader_is_gone_leads_to_nothing():
    reading, writing = os.pipe()
    stream = LastingStream(os.fdopen(writing, "w"))
    stream.write("seen\n")
    stream.flush()
    assert os.read(reading, 10) == b"seen\n"
    os.close(reading)
    for _ in range(3):
        stream.write("not seen\n")
        stream.flush()
    os.write(stream.fileno(), b"nor is what other code writes")


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_stream_that_is_closed_or_was_never_open(stream):
    if stream is not None:
        stream.close()
    lasting = LastingStream(stream)
    lasting.write("text")
    lasting.flush()
    assert not lasting.isatty()


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with lasting_streams():
        assert isinstance(sys.stdout, LastingStream) and sys.stdout.encoding
    assert (sys.stdout, sys.stderr) == before


LONG = """
import sys, time
from raypipe.cli.terminal import lasting_streams
from raypipe.reporting.plain_console import PlainConsole
from pathlib import Path
with lasting_streams():
    console = PlainConsole()
    for number in range(2000):
        console.print(f"line {number}")
        print("to standard error", file=sys.stderr)
    import subprocess
    subprocess.run([sys.executable, "-c", "print('a child writes')"], check=True)
    Path(sys.argv[1]).write_text("done")
"""


def start(code: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)


def test_work_goes_on_without_the_reader_of_a_pipe(tmp_path):
    child = start(LONG, tmp_path / "done", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(60) == 0 and (tmp_path / "done").read_text() == "done"


def test_work_goes_on_without_descriptors(tmp_path):
    code = f"import os\n[os.close(n) for n in (0, 1, 2)]\n{LONG}"
    assert start(code, tmp_path / "done").wait(60) == 0 and (tmp_path / "done").exists()
    shell = ["sh", "-c", f'exec "{sys.executable}" -m raypipe --version <&- >&- 2>&-']
    assert subprocess.run(shell, cwd=ROOT).returncode == 0


def test_work_goes_on_without_its_terminal_where_the_hang_up_is_ignored(tmp_path):
    """As under nohup: the terminal is closed, every write fails with EIO."""
    ours, theirs = pty.openpty()
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{LONG}"
    child = start(code, tmp_path / "done", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert child.wait(60) == 0 and (tmp_path / "done").exists()


def test_a_locale_without_utf_8_prints_escapes():
    code = "from raypipe.cli.terminal import lasting_streams\nwith lasting_streams(): print('5 \\xb5V, \\u2192')"
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert ended.stdout == b"5 \\xb5V, \\u2192\n"


# ---- Signals

WAITING = """
import signal, sys
from pathlib import Path
from raypipe.cli.process import training_process
with training_process() as stop, stop.accepting():
    Path(sys.argv[1]).touch()
    while not stop.is_set():
        signal.pause()
    Path(sys.argv[2]).write_text("drained")
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_hang_up_drains_as_other_notices_do(tmp_path, number):
    child = start(WAITING, tmp_path / "begun", tmp_path / "drained")
    wait_until((tmp_path / "begun").exists, "the work to begin")
    child.send_signal(number)
    assert child.wait(60) == 0 and (tmp_path / "drained").read_text() == "drained"


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with training_process():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- Text from outside

HOSTILE = "a\x1b]0;title\x07b\x1b[2Kc\rd\x9bm\u202ee[bold]f[/nothing]:smile:[link=x]g"


def printed(thing, **options) -> str:
    text = io.StringIO()
    PlainConsole(file=text, width=200, **options).print(thing)
    return text.getvalue()


def test_text_from_outside_is_text():
    shown = visible(HOSTILE)
    assert shown.startswith(r"a\x1b]0;title\x07b\x1b[2Kc\rd\x9bm\u202ee[bold]f")
    assert r"a\x1b]0;titleb\x1b[2Kc" in printed(HOSTILE)  # rich itself leaves out bells and carriage returns
    assert "e[bold]f[/nothing]:smile:[link=x]g" in printed(HOSTILE)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for out in (printed(table), printed(table, force_terminal=True)):
        assert out.count(r"\x1b]0;title") == 3 and "\x1b]" not in out and "\r" not in out and "[bold]f" in out


@given(st.text())
def test_no_control_character_is_printed(text):
    out = visible(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in out)
    assert visible(out) == out
    out.encode("utf-8")


def test_a_name_with_a_line_break_forges_no_line(tmp_path, capsys):
    name = tmp_path / "run\nraypipe: error: forged"
    run = make_run(name, ToyWindows())
    add_ended(run, 0, 0.5, "failed")
    for verb in ("status", "doctor", "report", "ensemble", "rerun", "trials"):
        with pytest.raises(SystemExit):
            app.main([verb, str(name)])
        captured = capsys.readouterr()
        assert not any(line.startswith("raypipe: error: forged") for line in captured.out.splitlines())
        assert len(captured.err.splitlines()) <= 1
    printing = PrintProgress()
    printing.on_ray_start("a\nforged")
    printing.on_warning("b\nforged")
    assert [line.split(r"\n")[1] for line in capsys.readouterr().out.splitlines()] == ["forged", "forged"]


def test_a_key_of_a_space_with_a_line_break_is_one_line(tmp_path, capsys):
    (tmp_path / "space.py").write_text("def space(trial):\n    return {'a\\nforged': 1}\n")
    store = write_store(tmp_path / "store", ToyWindows())
    with pytest.raises(SystemExit):
        app.main(["plan", str(tmp_path / "space.py"), "--data", str(store), "--trials", "1"])
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- Full disks


@pytest.mark.parametrize(
    ("arguments", "status"), [(["trials", "RUN"], 2), (["trials", "RUN", "--csv", "-"], 2), (["--help"], 2)]
)
def test_a_result_that_does_not_fit_on_the_disk_is_an_error(tmp_path, arguments, status):
    make_run(tmp_path / "run", ToyWindows())
    words = [str(tmp_path / "run") if word == "RUN" else word for word in arguments]
    with open("/dev/full", "w") as full:
        ended = start("from raypipe.cli.app import main; main()", *words, stdout=full, stderr=subprocess.PIPE)
        lines = ended.communicate(timeout=120)[1].decode().splitlines()
    assert lines == ["raypipe: error: standard output: No space left on device"] and ended.returncode == status


def test_work_outlives_a_full_disk_and_a_result_its_reader(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    code = "from raypipe.cli.app import main; main()"
    with open("/dev/full", "w") as full:
        assert start(code, "report", tmp_path / "run", stdout=full).wait(120) == 0
    assert run.folder.exists("report.html")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert start(code, "trials", tmp_path / "run", stdout=writing).wait(120) == 0
    finally:
        os.close(writing)


def test_a_report_says_nothing_of_a_cache_that_matplotlib_cannot_keep(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    for number in range(2):
        add_ended(run, number, 0.5 + number)
    (tmp_path / "file").touch()
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file")}
    code = "from raypipe.cli.app import main; main()"
    child = start(code, "report", tmp_path / "run", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.communicate(timeout=300)[0].decode().splitlines() == [f"report: {tmp_path / 'run/report.html'}"]


@pytest.mark.parametrize("verb", ["status", "doctor", "report", "ensemble", "check", "predict", "inspect", "logs"])
def test_no_verb_passes_on_what_a_name_holds(tmp_path, verb):
    """Whatever a verb does with a path that is no path of its kind, it says so on one line that a terminal can show."""
    place = tmp_path / HOSTILE.replace("/", "")
    (place / "sub-\x1b[31m1" / "eeg").mkdir(parents=True)
    more = [str(place), str(place), "--out", str(place / "out.csv")] if verb == "predict" else [str(place)]
    ended = subprocess.run([sys.executable, "-m", "raypipe", verb, *more], cwd=ROOT, capture_output=True, text=True)
    text = ended.stdout + ended.stderr
    assert "Traceback" not in text and text.strip()
    assert not any(c in text for c in "\x1b\x07\r\x9b\u202e")
