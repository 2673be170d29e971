"""Render HTML pages with tables and figures from the templates in ``templates/``. Every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raypipe.core.errors import first_line
from raypipe.reporting.plotting import inline_svg
from raypipe.storage.files import Folder, open_folder
from raypipe.storage.local_path import local_file
from raypipe.storage.remote import without_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_FILE = "report.html"
_UNITS = "%|Hz|ms|s|min|h|d|dB|µV|uV|MB|GB|MiB|GiB|kB|seconds|minutes|hours|years|people|windows"
"""Units that stay on the line of their number."""
NO_BREAK = "\u00a0"
WIDE_PIXELS = 480
"""Width above which a narrow screen scrolls a figure instead of shrinking it."""


class Panel(NamedTuple):
    """One plot of a figure, drawn when the page is rendered."""

    draw: Callable[[], Figure]
    alt: str
    """Alternative text, for readers who cannot see the plot."""


@dataclass(frozen=True)
class Image:
    """A drawn plot."""

    svg: Markup
    width: int
    """Pixels."""

    @property
    def wide(self) -> bool:
        """Return whether a narrow screen scrolls it."""
        return self.width > WIDE_PIXELS


@dataclass(frozen=True)
class FigureBlock:
    """Plots side by side with one caption, and a line for each plot that could not be drawn."""

    images: list[Image]
    caption: str
    failures: list[str]

    @property
    def wide(self) -> bool:
        """Return whether a narrow screen scrolls one of the plots."""
        return any(image.wide for image in self.images)


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    head: Sequence[str]
    """Column titles; all empty for a table without a head."""
    rows: Sequence[Sequence[str]]
    text_columns: Collection[int] = (0,)
    """Columns of text; the others hold numbers and are aligned to the right."""
    as_cards: bool = False
    """Narrow screens show each row as a block, with the titles of its columns."""


def draw_figure(panels: Sequence[Panel | tuple[Callable[[], Figure], str]], caption: str) -> FigureBlock:
    """Draw plots for one figure; a plot that raises an error becomes a line that names the error."""
    images, failures = [], []
    for draw, alt in panels:
        try:
            figure = draw()
            svg = inline_svg(figure, alt)
        except Exception as error:
            failures.append(f"{alt}: this plot could not be drawn ({type(error).__name__}: {first_line(error)}).")
            continue
        images.append(Image(svg, round(96 * figure.get_size_inches()[0])))
    return FigureBlock(images, caption, failures)


def render_template(name: str, **values: object) -> Markup:
    """Render the template ``templates/NAME.html.j2``; values other than `Markup` are escaped."""
    return Markup(_environment().get_template(f"{name}.html.j2").render(**values))


def encode_page(html: str) -> bytes:
    """Return a page as UTF-8; what cannot be encoded, as in names of files that are no UTF-8, becomes an escape."""
    return keep_together(html).encode(errors="backslashreplace")


def keep_together(html: str) -> str:
    """Return a page in which no line breaks within the name of an option, or between a number and its unit."""
    parts = re.split(r"(<(?:style|pre|title)\b.*?</(?:style|pre|title)>|<[^>]*>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<") else _keep_together(part) for part in parts)


def _keep_together(text: str) -> str:
    text = re.sub(rf"(?<=\d) (?=(?:{_UNITS})(?![\w/]))", "\N{NO-BREAK SPACE}", text)
    return re.sub(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*", r'<span class="whole">\g<0></span>', text)


def save_page(html: str, folder: Folder, out: str | Path | None) -> str:
    """Write a page as ``report.html`` in a folder, or to the file `out`; return its path or URI."""
    if out is None:
        folder.write(PAGE_FILE, encode_page(html))
        return f"{without_settings(folder.where)}/{PAGE_FILE}"
    target = report_file(out).absolute()
    open_folder(target.parent).write(target.name, encode_page(html))
    return str(target)


def report_file(out: str | Path) -> Path:
    """Return the path of a report that is written outside its run; raises UserError if it is a URI or a folder."""
    instead = "name a file here, or none: a run behind a URI has its report there"
    return local_file(out, "a report is written", PAGE_FILE, instead)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("raypipe.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def use_minus_signs(text: str) -> str:
    """Replace hyphens before numbers by minus signs."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def format_score(value: float, sign: bool = False) -> str:
    """Return a score with three decimals, with its sign if asked for; ``undefined`` for NaN."""
    return "undefined" if np.isnan(value) else f"{value:{'+' if sign else ''}z.3f}".replace("-", "−")


def format_interval(low: float, high: float, sign: bool = False) -> str:
    """Return an interval of scores as ``LOW to HIGH``; ``no interval`` for NaN."""
    return "no interval" if np.isnan(low) else f"{format_score(low, sign)} to {format_score(high, sign)}"


def score_with_interval(value: float, low: float, high: float, sign: bool = False) -> str:
    """Return a score, and its interval in a second line that no narrow screen breaks."""
    return f"{format_score(value, sign)}\n{format_interval(low, high, sign)}".replace(" ", NO_BREAK)


def format_share(part: float, whole: float) -> str:
    """Return `part` in percent of `whole`; empty where `whole` is 0."""
    return f"{100 * part / whole:.0f} %" if whole else ""
