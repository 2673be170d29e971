"""The table of parameters in search-spaces.md, from `TrialConfig` itself: `python docs/parameters.py` rewrites it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from raypipe.core.config import TrialConfig

PAGE = Path(__file__).with_name("search-spaces.md")
HEADING = "## Parameters\n"


def table() -> str:
    """One line a parameter: its name, its default, what it may be, what it does."""
    lines = ["| name | default | values | what it does |", "|---|---|---|---|"]
    for name, field in TrialConfig.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines.append(f"| **{name}/** | | | {_plain(inner.__doc__ or '')} |")
            lines += [_line(f"{name}/{own}", each) for own, each in inner.model_fields.items()]
        else:
            lines.append(_line(name, field))
    return "\n".join(lines)


def _line(name: str, field: object) -> str:
    limits = ", ".join(
        f"{sign} {value:g}"
        for rule in field.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if (value := getattr(rule, key, None)) is not None
    )
    values = get_args(field.annotation)
    kind = getattr(field.annotation, "__name__", "").replace("float", "number").replace("int", "whole number")
    kind = {"bool": "True or False"}.get(kind, kind)
    shown = ", ".join(f"`{value}`" for value in values if isinstance(value, str)) or f"{kind} {limits}".strip()
    if not isinstance(field.default, str | float | int):
        shown = "two numbers from 0, < 1"
    default = field.default if isinstance(field.default, str | float | int) else list(field.default)
    return f"| `{name}` | `{default}` | {shown} | {_plain(field.description or '')} |"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def page(text: str) -> str:
    """The page with the table as it should be."""
    return text.partition(HEADING)[0] + HEADING + "\n" + table() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
