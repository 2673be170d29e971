"""braindecode is imported without the packages that most of its networks do not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGE = """
import torchaudio as ta
import wfdb
from linear_attention_transformer import LinearAttentionTransformer
from torchaudio.functional import lfilter
from torchaudio.transforms import Resample


class Net:
    pass


class Resampling:
    def __init__(self):
        self.resample = Resample(100, 200)
"""
SCRIPT = """
import sys
from raypipe.core.own_code import code_of, load_object
code = code_of("braindecode:Net", {}, "x")
print(load_object("braindecode:Net", code).__name__)
print([name for name in sys.modules if name.startswith(("torchaudio", "wfdb"))])
try:
    load_object("braindecode:Resampling", code)()
except ImportError as error:
    print(error)
"""


def run(folder, script):
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_missing_is_stood_in_for_while_braindecode_is_imported(tmp_path):
    (tmp_path / "braindecode.py").write_text(PACKAGE)
    (tmp_path / "torchaudio.py").write_text("raise OSError('built for another torch')")
    done = run(tmp_path, SCRIPT)
    assert done.stdout.splitlines() == [
        "Net",
        "[]",
        "it needs torchaudio.transforms.Resample, and torchaudio cannot be imported",
    ], done.stderr


@pytest.mark.parametrize("package", ["other", "braindecode"])
def test_another_package_and_another_name_are_not_stood_in_for(tmp_path, package):
    missing = "torchaudio" if package == "other" else "no_such_package"
    (tmp_path / f"{package}.py").write_text(f"import {missing}\nclass Net: pass\n")
    done = run(tmp_path, SCRIPT.replace("braindecode:", f"{package}:"))
    line = f"model/name: '{package}:Net' cannot be imported: ModuleNotFoundError: No module named '{missing}'; install"
    assert line in done.stderr


def test_a_package_that_is_there_is_used(tmp_path):
    for name in ("wfdb", "linear_attention_transformer"):
        (tmp_path / f"{name}.py").write_text("LinearAttentionTransformer = 3")
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("")
    (tmp_path / "torchaudio" / "functional.py").write_text("lfilter = 3")
    (tmp_path / "torchaudio" / "transforms.py").write_text("def Resample(*_): raise ImportError('the real one')")
    (tmp_path / "braindecode.py").write_text(PACKAGE)
    assert run(tmp_path, SCRIPT).stdout.splitlines()[-1] == "the real one"
