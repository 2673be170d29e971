"""Files that come with raypipe: found in a clone and in an installation, search spaces by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypipe.core import shipped as module
from raypipe.core.errors import UserError
from raypipe.core.search_space import load_space
from raypipe.core.shipped import find_space, install_command, shipped, shipped_spaces, summary

ROOT = Path(__file__).parents[3]
SPACE = '"""Mine."""\n\n\ndef space(trial):\n    return {"epochs": 3}\n'


def test_a_clone_has_them_where_they_are_edited():
    assert shipped("constraints.txt") == ROOT / "constraints.txt"
    assert set(shipped_spaces()) == {path.stem for path in (ROOT / "search_spaces").glob("*.py")} > {"smoke"}


def test_an_installation_has_them_in_its_package(tmp_path, monkeypatch):
    package = tmp_path / "raypipe"
    (package / "shipped/search_spaces").mkdir(parents=True)
    (package / "shipped/search_spaces/mine.py").write_text(SPACE)
    (tmp_path / "search_spaces").mkdir()  # of another package, or of the user
    monkeypatch.setattr(module, "_PACKAGE", package)
    assert list(shipped_spaces()) == ["mine"]
    assert load_space("mine").source == SPACE
    assert module.tested_versions() == {}
    assert install_command("hbn") == "pip install 'raypipe-eeg[hbn]'"
    with pytest.raises(UserError, match=r"^constraints\.txt: missing from this installation"):
        shipped("constraints.txt")


@pytest.mark.parametrize("name", sorted(shipped_spaces()))
def test_a_bare_name_is_one_that_comes_with_raypipe_wherever_one_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mine in (tmp_path / name, tmp_path / f"{name}.py"):
        mine.write_text(SPACE)
    assert find_space(name) == ROOT / f"search_spaces/{name}.py"
    assert load_space(f"{name}.py").source == load_space(tmp_path / name).source == SPACE
    assert summary(find_space(name)).endswith(".")


def test_a_file_without_py_is_a_file_where_no_name_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text(SPACE)
    assert load_space("mine").name == "mine"
    assert load_space("mine").description == "Mine."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("all_familys", "all_familys: not a search space that comes with raypipe; did you mean 'all_fam"),
        ("q", "q: not a search space that comes with raypipe; available: all_families, challenge1_"),
        ("smoke.py", "smoke.py: no such search space; without .py, smoke is one that comes with raypipe"),
        ("spaces/smoke", "spaces/smoke: no such search space"),
        ("none.py", "none.py: no such search space"),
        ("", "no such search space"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_would_be_right(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_space(given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_extras_are_installed_in_the_tested_versions(tmp_path, monkeypatch):
    assert install_command() == f"pip install -c {ROOT / 'constraints.txt'} raypipe-eeg"
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "my folder/raypipe")
    (tmp_path / "my folder").mkdir()
    (tmp_path / "my folder/constraints.txt").write_text("Torch==2.13.0\n# a line\n")
    assert module.tested_versions() == {"torch": "2.13.0"}
    assert install_command("wandb") == f"pip install -c '{tmp_path}/my folder/constraints.txt' 'raypipe-eeg[wandb]'"
