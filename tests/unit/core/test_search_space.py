from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from raypipe.core.errors import UserError
from raypipe.core.search_space import SearchSpace, load_space
from tests.support.own import NET

LARGE = "parameter 'epochs': Input should be less than or equal to 1000000 (given "
FORKED = "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\ndef space(trial): return {}\n"
KEPT = "from os import _exit as leave\ndef space(trial): return {}\n"
SHIPPED = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_spaces_draw_valid_configurations_and_known_good_points(path):
    space = load_space(path)
    assert len(space.draw(200)) == 200
    assert space.start
    assert len(space.description.splitlines()) >= 3


def test_conditional_parameters_are_drawn_only_where_they_have_an_effect():
    space = load_space(next(p for p in SHIPPED if p.stem == "focal_mixup_sam"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        space(trial)
        params = trial.params
        assert ("loss/gamma" in params) == (params["loss/name"] == "focal")
        assert ("mixup/alpha" in params) == (params["mixup/name"] != "none")
        assert ("sam/rho" in params) == (params["sam/name"] != "none")
        seen.add((params["loss/name"], params["sam/name"]))
    assert len(seen) == 6


def test_all_families_start_with_one_point_of_each_and_share_one_study():
    space = load_space(next(p for p in SHIPPED if p.stem == "all_families"))
    starts = [space(optuna.trial.FixedTrial(point)).model for point in space.start]
    in_closed_form = [model.closed_form for model in starts]
    assert in_closed_form == sorted(in_closed_form, reverse=True), "those that take seconds come first"
    # A parameter that several families draw has the same choices in all: Optuna refuses others within a study.
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for point in space.start:
        study.enqueue_trial(point)
    drawn = set()
    for number in range(80):
        trial = study.ask()
        drawn.add(space(trial).model.name)
        study.tell(trial, float(number))
    assert drawn == {model.name for model in starts}


def write(tmp_path, text):
    path = tmp_path / "space.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def space(trial:\n", r"space\.py: line 1: SyntaxError"),
        ("import nothing_there\n", r"line 1: ModuleNotFoundError"),
        ("x = 1\n", r"no function space\(trial\)"),
        ("START = 3\ndef space(trial): return {}\n", "START must be a list"),
        ("def space(trial): return 3\n", "must return a dict"),
        ("def space(trial):\n    return {'loss/gama': 1}\n", "did you mean 'loss/gamma'"),
        ("def space(trial):\n    trial.suggest_float('optim/lrr', 0.1, 1)\n", "did you mean 'optim/lr'"),
        ("def space(trial):\n    x = 1\n    return x.nothing\n", r"space\.py: line 3: AttributeError"),
        (
            "START = [{}]\ndef space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n",
            r"^\S+space\.py: START\[0\] lacks optim/lr, which the space draws$",
        ),
        (
            "START = [{'optim/lr': 5}]\ndef space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n",
            r"START\[0\].*out of",
        ),
        (
            "START = [{'optim/lr': 0.5, 'epochs': 3}]\ndef space(t):\n    t.suggest_float('optim/lr', 0.1, 1)\n",
            r"START\[0\] sets 'epochs', which",
        ),
    ],
)
def test_a_bad_space_gives_one_line_with_the_position(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_space(write(tmp_path, text))
    assert "\n" not in str(caught.value)


SPACE = "def space(trial):\n    return {'epochs': 3}\n"
NO_UTF_8 = "is no UTF-8; save it as UTF-8"
NO_TEXT = "UTF-16, or no text at all; save it as UTF-8"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"# Größe\n{SPACE}".encode("latin-1"), f"line 1: byte 0xf6 {NO_UTF_8}"),
        (f"# -*- coding: latin-1 -*-\n\n# Größe\n{SPACE}".encode("latin-1"), f"line 3: byte 0xf6 {NO_UTF_8}"),
        (f"# 大きさ\n{SPACE}".encode("shift-jis"), f"line 1: byte 0x91 {NO_UTF_8}"),
        (f"# \ud800\n{SPACE}".encode("utf-8", "surrogatepass"), f"line 1: byte 0xed {NO_UTF_8}"),
        (SPACE.encode("utf-16"), NO_TEXT),
        (SPACE.encode("utf-16-le"), NO_TEXT),
        (SPACE.encode("utf-16-be"), NO_TEXT),
        (SPACE.encode("utf-32"), NO_TEXT),
        (SPACE.encode() + b"\0", NO_TEXT),
        (bytes(range(256)), NO_TEXT),
        (b"", r"no function space(trial); raypipe init shows the form"),
    ],
)
def test_a_file_of_another_encoding_gives_one_line(tmp_path, data, message):
    path = tmp_path / "space.py"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_space(path)
    assert str(caught.value) == f"{path}: {message}"


def test_marks_of_other_editors_make_no_other_space(tmp_path):
    (tmp_path / "a.py").write_bytes(SPACE.encode())
    plain = load_space(tmp_path / "a.py")
    for data in (SPACE.encode("utf-8-sig"), SPACE.replace("\n", "\r\n").encode(), SPACE.replace("\n", "\r").encode()):
        (tmp_path / "b.py").write_bytes(data)
        assert load_space(tmp_path / "b.py").hash == plain.hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit()\n", "line 2: SystemExit"),
        ("import sys\nsys.exit('bye')\n", "line 2: SystemExit: bye"),
        ("import sys\ndef space(trial):\n    sys.exit(3)\n", "line 3: SystemExit: 3"),
        ("def space(trial):\n    quit()\n", "line 2: SystemExit: None"),
        ("import os\nos._exit(0)\n", "line 2: SystemExit: calls os._exit(0)"),
        ("from os import _exit\ndef space(trial):\n    _exit(1)\n", "line 3: SystemExit: calls os._exit(1)"),
        ("\nraise KeyboardInterrupt\n", "line 2: SystemExit: raises KeyboardInterrupt"),
        ("def space(trial):\n    raise KeyboardInterrupt\n", "line 2: SystemExit: raises KeyboardInterrupt"),
        ("def space(trial):\n    return {'epochs': 10**5000}\n", LARGE + "a number of thousands of digits)"),
        ("def space(trial):\n    return {'epochs': 10**30}\n", LARGE + f"{10**30})"),
        ("raise GeneratorExit\n", "line 1: GeneratorExit"),
        ("class Own(BaseException): pass\ndef space(trial):\n    raise Own('x')\n", "line 3: Own: x"),
        ("class E(Exception):\n    def __str__(self): raise E\ndef space(trial):\n    raise E\n", "line 4: E"),
        ("def space(trial):\n    raise ValueError('a\\nb')\n", "line 2: ValueError: a"),
        ("def space(trial):\n    raise ValueError('a' * 10**6)\n", "line 2: ValueError: " + "a" * 300),
        ("def space(trial):\n    raise ValueError\n", "line 2: ValueError"),
        ("def space(trial):\n    return space(trial)\n", "line 2: RecursionError: maximum recursion depth exceeded"),
        (
            "def space(trial):\n    open('/none')\n",
            "line 2: FileNotFoundError: [Errno 2] No such file or directory: '/none'",
        ),
        ("def space(trial):\n    return {1: 2}\n", "names of parameters must be text such as 'optim/lr' (given 1)"),
        (f"START = [3]\n{SPACE}", "START must be a list of points such as {'optim/lr': 1e-3}"),
        (f"START = ['ab']\n{SPACE}", "START must be a list of points such as {'optim/lr': 1e-3}"),
    ],
)
def test_whatever_a_space_raises_is_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_space(path)
    assert str(caught.value) == f"{path}: {message}"


RANGES = """{future}from dataclasses import dataclass, fields


@dataclass
class Ranges:
    low: float = 1e-4
    high: float = 1e-2


def space(trial):
    trial.suggest_float("optim/lr", **{{field.name: field.default for field in fields(Ranges)}}, log=True)
    return {{"epochs": 3 if fields(Ranges)[0].type is float else 4}}
"""


@pytest.mark.parametrize("future, epochs", [("", 3), ("from __future__ import annotations\n", 4)])
def test_a_space_may_define_classes_as_any_file(tmp_path, future, epochs):
    """Annotations are objects, or text where the file says so, which dataclasses look up in its module."""
    (tmp_path / "space.py").write_text(RANGES.format(future=future))
    assert {config.epochs for config in load_space(tmp_path / "space.py").draw(3)} == {epochs}


@pytest.mark.parametrize("text", ["{}", "def space(trial):\n    {}"])
def test_a_ctrl_c_in_a_space_is_no_error_of_it(tmp_path, text):
    before = signal.getsignal(signal.SIGINT), os._exit
    with pytest.raises(KeyboardInterrupt):
        load_space(write(tmp_path, "import signal\n" + text.format("signal.raise_signal(signal.SIGINT)\n")))
    assert (signal.getsignal(signal.SIGINT), os._exit) == before


def test_a_process_that_a_space_forks_can_end(tmp_path):
    load_space(write(tmp_path, "import os\nif not (child := os.fork()): os._exit(7)\n" + FORKED))


def test_what_a_space_has_kept_ends_a_process_afterwards(tmp_path):
    code = "from raypipe.core.search_space import SearchSpace\nimport os\n"
    code += f"space = SearchSpace({KEPT!r})\nspace.check()\nspace._module['leave'](9)\n"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 9


def test_a_storage_that_fails_is_no_error_of_the_space(tmp_path):
    class FullDisk(optuna.trial.FixedTrial):
        def suggest_float(self, *arguments, **options):
            raise OSError(28, "No space left on device")

    space = load_space(write(tmp_path, "def space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n"))
    with pytest.raises(OSError, match="No space left"):
        space(FullDisk({}))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such search space"):
        load_space(tmp_path / "none.py")


def test_a_space_can_be_pickled_after_it_has_run(tmp_path):
    space = load_space(write(tmp_path, "def space(trial):\n    return {'epochs': 3}\n"))
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again(optuna.trial.FixedTrial({})).epochs == 3
    assert isinstance(again, SearchSpace)


def test_what_a_space_draws_when_it_is_read_is_the_same_for_each_driver(tmp_path):
    text = (
        "import random\nimport numpy as np\nRATES = [random.random() / 100, float(np.random.rand()) / 100]\n"
        "def space(trial):\n    trial.suggest_categorical('optim/lr', RATES)\n"
    )
    mine = random.getstate()
    rates = [{config.optim.lr for config in load_space(write(tmp_path, text)).draw(20)} for _ in range(2)]
    assert rates[0] == rates[1] and len(rates[0]) == 2
    assert random.getstate() == mine


# Several stores


FREE = (
    "START = [{'epochs': 2}, {'epochs': 3}, {'epochs': 4}]\ndef space(trial):\n    trial.suggest_int('epochs', 1, 9)\n"
)


def stores_of(space) -> list[str]:
    return [config.data.store for config in space.draw(20)]


def test_stores_are_a_choice_and_start_points_are_dealt_over_them(tmp_path):
    space = load_space(write(tmp_path, FREE), ("a", "b"))
    assert set(stores_of(space)) == {"a", "b"}
    assert [point["data/store"] for point in space.start] == ["a", "b", "a"]
    assert pickle.loads(pickle.dumps(space)).start == space.start
    alone = load_space(write(tmp_path, FREE))
    assert set(stores_of(alone)) == {""} and alone.start == [{"epochs": n} for n in (2, 3, 4)]
    assert alone.hash == space.hash


def test_a_space_may_name_its_stores(tmp_path):
    drawn = FREE + "    trial.suggest_categorical('data/store', ['b', 'c'])\n"
    space = load_space(write(tmp_path, drawn.replace("{'epochs': 2}", "{'epochs': 2, 'data/store': 'c'}")), ("b", "c"))
    assert [point["data/store"] for point in space.start] == ["c", "b", "c"]
    for constant in ("{'data/store': 'b'}", "{'data': {'store': 'b'}}"):
        space = load_space(write(tmp_path, FREE + f"    return {constant}\n"), ("a", "b"))
        assert set(stores_of(space)) == {"b"}
        assert all("data/store" not in point for point in space.start)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "b"), "data/store=wide: no such store; available: a, b"),
        (("a", "wide2"), "data/store=wide: no such store; did you mean 'wide2'"),
        ((), "data/store=wide: this sweep has one store without a name"),
    ],
)
def test_an_unknown_store_is_one_line(tmp_path, names, words):
    path = write(tmp_path, FREE + "    return {'data/store': 'wide'}\n")
    with pytest.raises(UserError, match=words):
        load_space(path, names)


def test_a_point_may_name_a_network_without_the_folder_of_its_file(tmp_path):
    """As the table of trials shows it."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/my_nets.py").write_text(NET)
    draw = '    return {"model/name": trial.suggest_categorical("model/name", ["tcn", "nets/my_nets.py:Net"])}\n'
    space = load_space(write(tmp_path, f"def space(trial):\n{draw}"))
    for name in ("my_nets.py:Net", "nets/my_nets.py:Net"):
        assert space.check_point({"model/name": name}, "the point") == {"model/name": "nets/my_nets.py:Net"}
    for name in ("my_nets.py:Other", "nets.py:Net", "tcn:Net", "vit"):
        with pytest.raises(UserError, match=rf"^the point: .*'(nets/)?{name}' not in \('tcn', 'nets/my_nets.py:Net'\)"):
            space.check_point({"model/name": name}, "the point")
