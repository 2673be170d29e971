"""Write the tables of search-spaces.md, sweeps.md and pretraining.md: `python docs/parameters.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raypipe.core.config import SECTIONS, TrialConfig
from raypipe.core.options import PretrainOptions, SweepOptions, default_of, flag_of, help_of

DOCS = Path(__file__).parent
LIMITS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def parameter_table() -> str:
    """Return the parameters of a trial: name, default, values, description."""
    lines = ["| name | default | values | what it does |", "|---|---|---|---|"]
    for name, field in TrialConfig.model_fields.items():
        inner = field.annotation
        if name in SECTIONS:
            for config in SECTIONS[name]:
                kind = f", `{config.model_fields['name'].default}`" if name == "model" else ""
                lines += _section(name, config, kind) if config is not SECTIONS[name][-1] else _own_rows(name, config)
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += _section(name, inner)
        else:
            lines.append(_row(name, field))
    return "\n".join(lines)


def _section(name: str, config: type[BaseModel], kind: str = "") -> list[str]:
    """Return the rows of a section's configuration; `kind` is the model that it is of."""
    heading = f"| **{name}/**{kind} | | | {_plain(config.__doc__ or '')} |"
    return [heading, *(_row(f"{name}/{own}", each) for own, each in config.model_fields.items())]


def _own_rows(section: str, config: type[BaseModel]) -> list[str]:
    """Return the rows of users' code."""
    rows = [f"| **{section}/**, your own | | | {_plain(config.__doc__ or '')} |"]
    for name, field in config.model_fields.items():
        text = _plain(field.description or "")
        if name == "name":
            rows.append(f"| `{section}/name` | `file.py:Name` | text | {text} |")
        elif name == "args":
            rows.append(f"| `{section}/args` | `none` | text, numbers, True, False, None, lists | {text} |")
        elif name != "code":
            rows.append(_row(f"{section}/{name}", field))
    return rows


def _row(name: str, field: FieldInfo) -> str:
    default = field.default if isinstance(field.default, str | float | int) else list(field.default)
    shown = default if default != "" else "none"
    return f"| `{name}` | `{shown}` | {_values(field)} | {_plain(field.description or '')} |"


def _values(field: FieldInfo) -> str:
    """Return the values that a parameter may have, in words."""
    if not isinstance(field.default, str | float | int):
        return "two numbers from 0, < 1"
    names = [f"`{value}`" for value in get_args(field.annotation) if isinstance(value, str)]
    if names:
        return ", ".join(names)
    kind = {"bool": "True or False", "float": "number", "int": "whole number", "str": "a name of --data"}[
        field.annotation.__name__
    ]
    limits = (
        f"{sign} {_number(limit)}"
        for rule in field.metadata
        for key, sign in LIMITS
        if (limit := getattr(rule, key, None)) is not None
    )
    return f"{kind} {', '.join(limits)}".strip()


def _number(limit: float) -> str:
    """Write a limit: whole numbers with all digits."""
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def option_table(options: type[BaseModel]) -> str:
    """Return options: flag, default, description."""
    lines = ["| option | default | what it does |", "|---|---|---|"]
    group = ""
    for name in options.model_fields:
        flag = flag_of(options, name)
        if flag.group != group:
            group = flag.group
            lines.append(f"| **{group}** | | |")
        spelled = f"`--{name.replace('_', '-')}`" + (f" (`{flag.envvar}`)" if flag.envvar else "")
        lines.append(f"| {spelled} | {_plain(default_of(options, name))} | {_plain(help_of(options, name))} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


KEYWORDS = 'In Python these are keyword arguments: `--held-out R5` is `held_out="R5"`.\n'
PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "search-spaces.md": ("## Parameters\n", parameter_table),
    "sweeps.md": (KEYWORDS, partial(option_table, SweepOptions)),
    "pretraining.md": (KEYWORDS, partial(option_table, PretrainOptions)),
}
"""Line after which each page's table stands, to its end."""


def page(name: str) -> str:
    """Return a page with the table as it should be."""
    heading, table = PAGES[name]
    return (DOCS / name).read_text().partition(heading)[0] + heading + "\n" + table() + "\n"


if __name__ == "__main__":
    for each in PAGES:
        (DOCS / each).write_text(page(each))
