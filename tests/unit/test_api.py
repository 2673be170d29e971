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
from raypipe.core.options import FIXED, PretrainOptions, SweepOptions, default_of, help_of
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


@pytest.mark.parametrize("name", [*FUNCTIONS, *(kind.__name__ for kind in (raypipe.Run, raypipe.CrossValidation))])
def test_signatures_name_every_option(name):
    found = getattr(raypipe, name)
    functions = [found] if inspect.isfunction(found) else [f for n, f in vars(found).items() if inspect.isfunction(f)]
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), (function, parameter)
            if parameter.name != "self":
                assert parameter.annotation is not parameter.empty, (function, parameter)


def test_options_that_a_run_keeps_are_no_options_of_resume():
    parameters = inspect.signature(raypipe.resume).parameters
    assert {"trials", "time_budget", "workers", "prune"} < set(parameters)
    assert not set(FIXED) & set(parameters) and all(p.default is None for n, p in parameters.items() if n != "run")
    assert "Default: that of the run." in (inspect.getdoc(raypipe.resume) or "")
    assert set(FIXED) < set(SweepOptions.model_fields)


def test_tab_completion_shows_public_names_only():
    assert dir(raypipe) == dir(api) == sorted(raypipe.__all__)


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
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)  # of tests before this one
    best = run.trials["score"].astype(float).idxmin()
    assert repr(run) == (
        f"Run({str(tmp_path / 'run')!r}): target challenge1, 4 of 4 trials (3 complete, 1 failed), "
        f"best NRMSE {run.trials['score'][best]:.4g} (trial {best}), held-out people not scored yet"
    )
    assert list(run.trials["state"]) == ["complete"] * 3 + ["failed"]
    assert list(run.trials.columns[:3]) == ["state", "score", "optim/lr"] and "fold_0" in run.trials
    table = run.oof()
    assert list(table.columns) == ["window", "recording", "onset", "subject", "target", "fold", "prediction"]
    assert table.equals(run.oof(best)) and not table.equals(run.oof(1 if best != 1 else 0))
    known = simulated.windows.table.iloc[table["window"]]
    for name in ("recording", "onset", "subject"):
        assert table[name].tolist() == known[name].tolist()
    assert table["target"].to_numpy() == pytest.approx(known["target"].to_numpy())
    assert table["fold"].tolist() == [run.store.folds.fold_of[who] for who in table["subject"]]
    assert "4 of 4 trials: 3 complete, 1 failed (1 non-finite)" in run.status()
    fitted = run.ensemble(top=2, method="equal")
    assert fitted.verdict and run.report() == tmp_path / "run/report.html"
    assert "held-out people scored 1 time(s)" in repr(run)
    assert raypipe.load_ensemble(run.export(tmp_path / "bundle")).channels == simulated.windows.channels
    with pytest.raises(
        raypipe.UserError, match=r"its windows are 4 channels x 200 samples at 100 Hz, those of the scorer"
    ):
        raypipe.export(run, tmp_path / "submission.ZIP")
    with pytest.raises(raypipe.UserError, match="no raypipe run there"):
        raypipe.Run(tmp_path)
