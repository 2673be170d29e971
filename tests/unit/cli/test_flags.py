"""The flags of the verbs that train are exactly their options."""

from __future__ import annotations

import pytest
import typer

from raypipe.cli import app
from raypipe.core.options import PretrainOptions, SweepOptions, flag_of, help_of, parse_options

OWN = {
    "plan": {"outer", "data", "cpus", "gpus"},
    "sweep": {"data", "run", "warm_start", "init", "outer", "notify"},
    "resume": {"notify"},
    "rerun": {"top", "seeds", "notify"},
    "pretrain": {
        *("data", "run", "epochs", "batch", "lr", "mask", "temperature", "negatives", "time_shift", "set"),
    },
}
FLAGS = {
    "plan": {"trials", "folds", "repeats", "workers", "cpus_per_worker", "gpus_per_worker", "concurrent", "address"},
    "sweep": {
        *(
            "trials",
            "folds",
            "repeats",
            "held_out",
            "seed",
            "metric",
            "time_budget",
            "gpu_hours",
            "workers",
            "cpus_per_worker",
        ),
        *(
            "gpus_per_worker",
            "concurrent",
            "address",
            "storage",
            "prune",
            "grace",
            "reduction",
            "stem",
            "stack",
            "track",
        ),
    },
    "resume": {"trials", "time_budget", "gpu_hours", "workers", "address"},
    "rerun": {"time_budget", "gpu_hours", "workers", "address"},
    "pretrain": {
        *("folds", "held_out", "seed", "serves", "fold_wise", "probe_every", "tuned_probe", "micro_batch", "workers"),
        *("cpus_per_worker", "gpus_per_worker", "address"),
    },
}


def options(verb: str) -> dict:
    """The options of a verb by name, without its arguments and --help."""
    command = typer.main.get_command(app.app).commands[verb]
    return {param.name: param for param in command.params if param.param_type_name == "option"}


@pytest.mark.parametrize("verb", FLAGS)
def test_the_flags_of_a_verb(verb):
    assert set(options(verb)) - {"help"} == OWN[verb] | FLAGS[verb]


def test_every_option_of_a_sweep_is_a_flag():
    assert FLAGS["sweep"] == set(SweepOptions.model_fields)
    assert FLAGS["pretrain"] == set(PretrainOptions.model_fields)


@pytest.mark.parametrize("verb", FLAGS)
def test_help_and_default_are_those_of_the_option(verb):
    for name in FLAGS[verb]:
        flag = options(verb)[name]
        model = PretrainOptions if verb == "pretrain" else SweepOptions
        assert flag.help == help_of(model, name) and flag.rich_help_panel == flag_of(model, name).group
        kept = verb == "resume" or (verb == "rerun" and name in ("workers", "address"))
        assert flag.default == (None if kept else model.model_fields[name].default)


def test_other_names_and_forms():
    flags = options("sweep")
    assert flags["prune"].secondary_opts == ["--no-prune"] and not options("pretrain")["fold_wise"].secondary_opts
    assert flags["address"].envvar == "RAY_ADDRESS"
    assert all(flags[name].opts == [f"--{name.replace('_', '-')}"] for name in flags)


def test_given_flags_reach_the_sweep(monkeypatch):
    given = {}
    monkeypatch.setattr("raypipe.search.sweep.sweep", lambda *_, **options: given.update(options) or pytest.skip())
    words = "--held-out 0.3 --time-budget 2h --track mlflow --track wandb --concurrent 3 --no-prune --stem direct"
    with pytest.raises(pytest.skip.Exception):
        app.main(["sweep", "space.py", "--data", "store", "--run", "run", *words.split()])
    chosen = parse_options({name: value for name, value in given.items() if name in SweepOptions.model_fields})
    assert (chosen.held_out, chosen.time_budget, chosen.track) == (0.3, 7200.0, ["mlflow", "wandb"])
    assert (chosen.concurrent, chosen.prune, chosen.stem, chosen.trials) == (3, False, "direct", 20)
