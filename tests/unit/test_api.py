"""The public API: every name is there, loaded when it is used, and documented in full."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

import raypipe
from raypipe import api
from raypipe.core.options import PretrainOptions, SweepOptions, default_of, help_of
from raypipe.ensembles.fitted import Ensemble
from raypipe.packaging.bundle import LoadedEnsemble

FUNCTIONS = [n for n in raypipe.__all__ if inspect.isfunction(getattr(raypipe, n))]
METHODS = [
    getattr(kind, name)
    for kind in (
        raypipe.Run,
        raypipe.CrossValidation,
        raypipe.SweepCallback,
        raypipe.PrintProgress,
        Ensemble,
        LoadedEnsemble,
    )
    for name in dir(kind)
    if not name.startswith("_")
]


@pytest.mark.parametrize("name", raypipe.__all__)
def test_every_public_name_is_in_both_places_and_hides_no_module(name):
    assert getattr(raypipe, name) is getattr(api, name)
    assert name in dir(raypipe) and name in api.__all__
    assert importlib.util.find_spec(f"raypipe.{name}") is None


def test_other_names_are_errors():
    for module in (raypipe, api):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = module.nothing
    assert sorted(raypipe.__all__) == sorted(api.__all__)


def test_importing_it_loads_neither_torch_nor_ray():
    code = "import sys, raypipe; raypipe.Run, raypipe.sweep, raypipe.SweepCallback, raypipe.PrintProgress\n"
    code += "print(sorted(name for name in ('torch', 'ray', 'mne', 'optuna') if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def sections(described: object) -> dict[str, str]:
    """The sections of a numpydoc docstring, by heading; the summary's is empty."""
    parts = re.split(r"^(\w+)\n-+\n", inspect.getdoc(described) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_describes_parameters_result_and_errors(name):
    function = getattr(raypipe, name)
    found = sections(function)
    described = re.findall(r"^(\S.*)$", found["Parameters"], re.MULTILINE)
    names = {each.lstrip("*") for line in described for each in line.split(" : ")[0].split(", ")}
    assert names == set(inspect.signature(function).parameters)
    raised = re.findall(r"^(\S.*)$", found["Raises"], re.MULTILINE)
    assert {error for line in raised for error in line.split(", ")} <= {*raypipe.__all__, *dir(builtins)}
    assert {"Returns", "Raises"} <= set(found) and re.match(r"[A-Z][a-z]+ .*\.", found[""])


@pytest.mark.parametrize("member", METHODS, ids=lambda member: getattr(member, "fget", member).__qualname__)
def test_every_public_member_is_documented(member):
    if inspect.isfunction(member) or isinstance(member, property):
        assert inspect.getdoc(member)


@pytest.mark.parametrize(
    ("function", "options"), [("sweep", SweepOptions), ("cross_validate", SweepOptions), ("pretrain", PretrainOptions)]
)
def test_docstring_and_signature_list_all_options(function, options):
    text = " ".join(sections(getattr(raypipe, function))["Parameters"].split())
    parameters = inspect.signature(getattr(raypipe, function)).parameters
    for name, field in options.model_fields.items():
        assert f"{name} {help_of(options, name)} Default: {default_of(options, name)}." in text
        assert parameters[name].default == field.default


def test_a_run_gives_what_a_notebook_asks_for(simulated, tmp_path):
    import shutil

    run = raypipe.Run(shutil.copytree(simulated.run.local, tmp_path / "run"))
    assert repr(run) == f"Run({str(tmp_path / 'run')!r})"
    assert list(run.trials["state"]) == ["complete"] * 3 + ["failed"]
    assert list(run.oof(0).columns) == ["window", "fold", "prediction"]
    assert "4 of 4 trials: 3 complete, 1 failed (1 non-finite)" in run.status()
    fitted = run.ensemble(top=2, method="equal")
    assert fitted.verdict and run.report() == tmp_path / "run/report.html"
    assert raypipe.load_ensemble(run.export(tmp_path / "bundle")).channels == simulated.windows.channels
    with pytest.raises(
        raypipe.UserError, match=r"takes windows of 4 channels x 200 samples at 100 Hz, the scorer shows"
    ):
        raypipe.export(run, tmp_path / "submission.zip")
    with pytest.raises(raypipe.UserError, match="no raypipe run there"):
        raypipe.Run(tmp_path)
