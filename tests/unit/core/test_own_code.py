"""Users' code: names, files, and what a configuration keeps of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core import own_code
from raypipe.core.config import TrialConfig, config_hash
from raypipe.core.errors import UserError
from raypipe.core.model_config import MODELS, OwnConfig
from raypipe.core.own_calls import network_arguments
from raypipe.core.own_code import SourceFile, named_files
from raypipe.core.parameters import flatten, nest, parse_config
from raypipe.core.search_space import load_space
from tests.support.own import NET, SPACE, write_space

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e6, 1e6) | st.text(max_size=5)
ARGS = st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), SCALARS | st.lists(SCALARS, max_size=3))


@given(ARGS)
def test_a_configuration_is_the_same_after_a_file_and_another_order_of_its_arguments(args):
    config = parse_config({"model": {"name": "a.py:Net", "args": args}})
    turned = parse_config({"model": {"args": dict(reversed(list(args.items()))), "name": "a.py:Net"}})
    read = TrialConfig.model_validate_json(json.dumps(config.model_dump(mode="json")))
    assert config == turned == read and config.hash() == turned.hash() == read.hash() and hash(config) == hash(read)
    assert config_hash(config.model_dump(mode="json")) == config.hash()
    assert parse_config(flatten(config)) == config or not args
    assert (
        nest({f"model/args/{name}": value for name, value in args.items()}).get("model", {"args": {}})["args"] == args
    )


@pytest.mark.parametrize("value", [{"a": 1}, float("nan"), {1}, [[object()]]])
def test_an_argument_is_text_a_number_or_a_list(value):
    with pytest.raises(UserError, match=r"^configuration: parameter 'model/args': must be"):
        parse_config({"model": {"name": "a.py:Net", "args": {"x": value}}})


@pytest.mark.parametrize("given", [3, "ab", [1, 2], [["a", 1]], None])
def test_arguments_that_have_no_names_are_one_line(given):
    with pytest.raises(UserError, match="parameter 'model/args': must be arguments by name, such as args/NAME"):
        parse_config({"model/name": "my_nets.py:Net", "model/args": given})


def test_an_integer_of_thousands_of_digits_is_one_line():
    with pytest.raises(UserError, match="parameter 'model/args': an integer of more than 64 bits"):
        parse_config({"model/name": "my_nets.py:Net", "model/args/width": 10**5000})


@pytest.mark.parametrize("name", ["own", "", "Net", "my_nets.py"])
def test_a_name_that_is_neither_a_models_nor_of_code_is_one_line(name):
    with pytest.raises(UserError, match=f"there is no model '{name}'"):
        parse_config({"model/name": name})


def test_a_parameter_of_another_network_is_an_argument_of_ones_own():
    with pytest.raises(
        UserError, match=r"'model/filters' is for .*, not for .*file.py:Name \(its arguments: model/args/filters"
    ):
        parse_config({"model/name": "a.py:Net", "model/filters": 3})
    with pytest.raises(UserError, match=r"unknown parameter 'model/width'; an argument .* is model/args/width$"):
        parse_config({"model/name": "a.py:Net", "model/width": 3})
    with pytest.raises(UserError, match=r"there is no model 'my_nets.py'; .*\(your own is file.py:Name\)"):
        parse_config({"model/name": "my_nets.py"})


def test_a_space_reads_the_files_that_it_names(tmp_path):
    space = load_space(write_space(tmp_path))
    assert list(space.files) == ["my_nets.py"] and space.files["my_nets.py"].text == NET
    config = space.draw(1)[0]
    assert isinstance(config.model, OwnConfig) and config.model.code == SourceFile("my_nets.py", NET).code
    assert pickle.loads(pickle.dumps(space)) == space
    assert load_space(write_space(tmp_path / "b", NET + "\n")).draw(1)[0].hash() != config.hash()


def test_the_folder_of_a_file_is_in_no_record(tmp_path):
    write_space(tmp_path / "nets")
    space = tmp_path / "space.py"
    space.write_text(SPACE.replace("my_nets.py", "nets/my_nets.py"))
    assert load_space(space).draw(1)[0].model.name == "my_nets.py:Net"


def test_another_process_gets_the_file_with_the_configuration(tmp_path):
    config = load_space(write_space(tmp_path)).draw(1)[0]
    code = (
        "import pickle, sys; c = pickle.load(sys.stdin.buffer)\n"
        "from raypipe.core.own_code import load_object\n"
        "print(load_object(c.model.name, c.model.code).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, check=True)
    assert found.stdout == b"Net\n"


DRAWS = """import random
import numpy as np
import torch
random_, numpy_, torch_ = random.random(), np.random.rand(), float(torch.rand(1))
random.seed(3), np.random.seed(3), torch.manual_seed(3)
def drawn():
    return random_, numpy_, torch_
"""


def test_a_files_annotations_are_its_own():
    """They are not text, as those of raypipe's modules are."""
    text = "from dataclasses import dataclass\n\n\n@dataclass\nclass Sizes:\n    n: int = 4\n"
    sizes = own_code.load_object("sizes.py:Sizes", own_code.keep_source(SourceFile("sizes.py", text)))
    (field,) = dataclasses.fields(sizes)
    assert field.type is int


def test_what_a_file_draws_when_it_is_read_follows_from_its_text_and_changes_no_generator():
    def read(text):
        random.seed(read.calls), np.random.seed(read.calls), torch.manual_seed(read.calls)  # noqa: NPY002
        after = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
        random.seed(read.calls), np.random.seed(read.calls), torch.manual_seed(read.calls)  # noqa: NPY002
        read.calls += 1
        with own_code.anew():
            found = own_code.load_object("d.py:drawn", own_code.keep_source(SourceFile("d.py", text)))()
        assert after == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
        return found

    read.calls = 0
    first = read(DRAWS)
    assert read(DRAWS) == first and not set(read(DRAWS + "# other\n")) & set(first)


def test_a_file_that_is_run_anew_leaves_the_module_that_was_there():
    code = own_code.keep_source(SourceFile("d.py", DRAWS))
    before = own_code.load_object("d.py:drawn", code)
    with own_code.anew():
        assert own_code.load_object("d.py:drawn", code) is not before
    assert own_code.load_object("d.py:drawn", code) is before
    assert sys.modules[before.__module__].drawn is before


def write_two_files(tmp_path, space, other):
    for folder, text in (("a", NET), ("b", other)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(text)
    (tmp_path / "space.py").write_text(f"def space(trial):\n    return {space}\n")
    return tmp_path / "space.py"


@pytest.mark.parametrize(
    "space",
    [
        '{"model/name": trial.suggest_categorical("model/name", ["a/nets.py:Net", "b/nets.py:Net"])}',
        '{"model/name": "a/nets.py:Net", "loss/name": "b/nets.py:loss"}',
        '{"model/name": "a/nets.py:Net", "augment/name": "b/nets.py:change", "augment/prob": 0.5}',
    ],
)
def test_two_files_of_one_name_are_one_line(tmp_path, space):
    file = write_two_files(tmp_path, space, NET + "# other\n")
    with pytest.raises(UserError) as caught:
        load_space(file)
    assert str(caught.value) == (f"{file}: a/nets.py and b/nets.py are different files of one name; rename one of them")


def test_one_text_in_two_folders_is_one_file(tmp_path):
    space = '{"model/name": trial.suggest_categorical("model/name", ["a/nets.py:Net", "b/nets.py:Net"])}'
    assert len({config.hash() for config in load_space(write_two_files(tmp_path, space, NET)).draw(9)}) == 1


def test_files_are_found_in_strings_of_the_source_only():
    assert named_files('"""see nets.py:Net for it"""\nx = {"a": ["b.py:C", \'d/e.py:F\', "b.py:G"]}\n# "h.py:I"') == [
        "b.py",
        "d/e.py",
    ]
    assert named_files("def (") == []


def test_a_docstring_names_no_file(tmp_path):
    named = '"""A space of my_nets.py:Net"""\nclass A:\n    """a.py:A"""\n    x = 1\n    """b.py:x"""\n'
    functions = 'async def f():\n    """c.py:f"""\ndef g():\n    """d.py:g"""\n    return "e.py:G"\n'
    assert named_files(named + functions) == ["e.py"]
    space = SPACE.replace("A network of one's own.", "A search of my_nets.py:Net")
    assert list(load_space(write_space(tmp_path, space=space)).files) == ["my_nets.py"]


def error_of(tmp_path, net=NET, space=SPACE):
    with pytest.raises(UserError) as caught:
        load_space(write_space(tmp_path, net, space))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path), "HERE")


def test_mistakes_in_files_are_one_line(tmp_path):
    missing = error_of(tmp_path, space=SPACE.replace("my_nets.py", "nets.py"))
    assert missing == "HERE/space.py: 'nets.py': there is no file HERE/nets.py"
    assert (
        error_of(tmp_path, "class Net(:\n")
        == "HERE/my_nets.py: line 1: SyntaxError: invalid syntax (my_nets.py, line 1)"
    )
    (tmp_path / "layers.py").touch()
    assert "my_nets.py: it imports 'layers', which is beside it; a run keeps one file" in error_of(
        tmp_path, "import layers"
    )
    built = error_of(tmp_path, space=SPACE.replace('"my_nets.py:Net"', '"my_nets" + ".py:Net"'))
    assert "model/name: 'my_nets.py:Net': write it as one whole string in the search space" in built
    assert "model/code is set by raypipe" in error_of(
        tmp_path, space=SPACE.replace('"epochs"', '"model/code": "x", "epochs"')
    )


NAMES = ["nets (1).py", "my+nets.py", "Netz für EEG.py", "a&b@2,%[x]'.py", "n" * 193 + ".py"]
BAD_NAMES = ["a:b.py", "a\\b.py", "a\x1b[31m.py", "a\u202e.py", "n" * 194 + ".py"]


@pytest.mark.parametrize("file", NAMES)
def test_a_name_that_every_system_can_store_is_taken(tmp_path, file):
    (tmp_path / file).write_text(NET)
    name = file.replace("\\", "\\\\") + ":Net"
    assert own_code.is_plain(name)
    config = load_space(write_space(tmp_path, space=SPACE.replace("my_nets.py:Net", name))).draw(1)[0]
    assert config.model.name == name


@pytest.mark.parametrize("file", BAD_NAMES)
@pytest.mark.parametrize("section", ["model", "loss", "augment"])
def test_a_name_that_a_submission_or_a_terminal_cannot_have_is_one_line(tmp_path, file, section):
    (tmp_path / file).write_text(NET)
    text = f'def space(trial):\n    return {{"{section}/name": {file + ":Net"!r}}}\n'
    with pytest.raises(UserError, match=rf"{section}/name: 'n*a?.*': too long, or its file has a colon") as caught:
        load_space(write_space(tmp_path, space=text)).draw(1)
    assert str(caught.value).isprintable() and not own_code.is_plain(f"{file}:Net")


def test_packages_are_known_by_their_version():
    code = own_code.code_of("torch.nn:Linear", {}, "x")
    assert code.startswith("torch ") and own_code.load_object("torch.nn:Linear", code).__name__ == "Linear"
    with pytest.raises(UserError, match=r"'torch.nn:Linear' is of torch 0.1, and here is torch .*; install the same"):
        own_code.load_object("torch.nn:Linear", "torch 0.1")
    with pytest.raises(
        UserError, match=r"'no_such:Net' cannot be imported: ModuleNotFoundError: .*; install no_such here"
    ):
        own_code.load_object("no_such:Net", own_code.code_of("no_such:Net", {}, "x"))
    with pytest.raises(UserError, match=r"no 'Linea' there; did you mean 'Linear'"):
        own_code.load_object("torch.nn:Linea", code)
    with pytest.raises(UserError, match=r"write file.py:Name or package.module:Name"):
        own_code.code_of("a b:c", {}, "x")


def test_a_package_registers_a_network(monkeypatch):
    entry = EntryPoint("plug", "torch.nn:Linear", own_code.ENTRY_POINTS)
    monkeypatch.setattr(own_code, "registered", lambda: {"plug": entry})
    code = own_code.code_of("plug", {}, "x")
    assert parse_config({"model": {"name": "plug"}}).model.name == "plug"
    assert own_code.load_object("plug", code).__name__ == "Linear"
    monkeypatch.setattr(own_code, "registered", dict)  # on a machine that has no such package, a run can be read
    assert parse_config({"model": {"name": "plug", "code": code}}).model.name == "plug"


def test_a_registered_name_is_not_one_of_raypipe(monkeypatch):
    entries = [EntryPoint("tcn", "pkg.nets:Tcn", own_code.ENTRY_POINTS)]
    monkeypatch.setattr(own_code.importlib.metadata, "entry_points", lambda group: entries)
    with pytest.raises(
        UserError, match=r"registers the network 'tcn', a name of raypipe; uninstall it, or write pkg.nets"
    ):
        own_code.check_registered(MODELS)


class Net:
    def __init__(self, n_chans, n_times, n_outputs, width, depth=1):
        pass


SIZES = {"n_channels": 3, "n_times": 64, "n_outputs": 1, "sfreq": 50.0}


def test_arguments_go_by_name():
    assert network_arguments(Net, "Net", SIZES, {"width": 2}) == {
        "n_chans": 3,
        "n_times": 64,
        "n_outputs": 1,
        "width": 2,
    }
    assert network_arguments(Net, "Net", SIZES, {"width": (2, (1, 3))})["width"] == [2, [1, 3]]
    anything = network_arguments(lambda **options: None, "f", SIZES, {"x": 1})
    assert anything == {"n_channels": 3, "n_times": 64, "n_outputs": 1, "x": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "Net needs the argument 'width'; set model/args/width"),
        ({"width": 1, "dpeth": 2}, "model/args/dpeth: Net takes no argument 'dpeth'; did you mean 'depth'?"),
        ({"width": 1, "n_times": 2}, "model/args/n_times: the data decides it; leave it out"),
        ({"width": 1, "n_channels": 2}, "model/args/n_channels: the data decides it; leave it out"),
    ],
)
def test_wrong_arguments_are_named(args, message):
    with pytest.raises(UserError) as caught:
        network_arguments(Net, "Net", SIZES, args)
    assert str(caught.value) == message


def test_a_network_must_take_the_shape_of_its_windows():
    with pytest.raises(
        UserError, match="its __init__ takes no 'n_times'; it must take n_channels, n_times and n_outputs"
    ):
        network_arguments(lambda n_channels, n_outputs: None, "Net", SIZES, {})


def test_names_are_shown_without_what_they_are_of_unless_they_become_the_same():
    names = ["braindecode.models:EEGNeX", "mine.py:Net", "tcn"]
    assert own_code.object_names(names) == ["EEGNeX", "Net", "tcn"]
    assert own_code.object_names(["a.py:Net", "b.py:Net", "tcn"]) == ["a.py:Net", "b.py:Net", "tcn"]
