"""Building blocks of the report's page: escaped text, tables, figures and the style sheet."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from raypipe.errors import first_line
from raypipe.pictures import svg_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text(value: object) -> str:
    """Escape anything for HTML."""
    return html.escape(str(value))


def signs(words: str) -> str:
    """Put minus signs where hyphens stand before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", words)


def section(title: str, *blocks: str) -> str:
    """A heading and what is below it, in HTML already."""
    anchor = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{text(title)}</h2>{"".join(blocks)}</section>'


def picture(draw: Callable[[], Figure], title: str, caption: str) -> str:
    """A figure inside the page, with its caption; `title` stands in for it where it cannot be seen.

    One that cannot be drawn leaves a line that says so: the rest of the page does not hang on it.
    """
    try:
        made = draw()
        uri = svg_uri(made)
    except Exception as error:
        why = f"{title}: this picture could not be drawn ({type(error).__name__}: {first_line(error)})."
        return f'<p class="note">{text(why)}</p>'
    width, height = (round(96 * inches) for inches in made.get_size_inches())
    image = f'<img src="{uri}" alt="{text(title)}" width="{width}" height="{height}" style="--natural: {width}px">'
    return f'<figure><div class="paper">{image}</div><figcaption>{text(caption)}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Iterable[int] = (0,)) -> str:
    """A table; columns in `words` hold text, the others numbers."""
    left = set(words)

    def cell(tag: str, place: int, inner: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kind = "" if place in left else ' class="number"'
        return f"<{tag}{scope}{kind}>{text(inner)}</{tag}>"

    top = "".join(cell("th", place, inner) for place, inner in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", place, inner) for place, inner in enumerate(row)) + "</tr>" for row in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{head_row}<tbody>{body}</tbody></table></div>'


def number(value: float, sign: bool = False) -> str:
    """A score with three decimals."""
    return "undefined" if np.isnan(value) else f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def span(low: float, high: float, sign: bool = False) -> str:
    """An interval."""
    return "none" if np.isnan(low) else f"{number(low, sign)} to {number(high, sign)}"


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1f2430; --soft: #535a67; --rule: #d9dce2; --line: #eceef2;
  --head: #9aa0aa; --blue: #0072B2; --said: #f2f7fb; --grey: #8a8f98; --open: #f5f6f8; --code: #eef0f4; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171c; --ink: #e3e6eb; --soft: #a8b0bd;
  --rule: #363c47; --line: #262b34; --head: #6c7482; --blue: #56B4E9; --said: #17242f; --grey: #8a8f98;
  --open: #1d2128; --code: #262c36; } .paper { background: #fff; border-radius: 6px; padding: .5rem; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
.about, .note, figcaption { color: var(--soft); font-size: .9rem; }
.about { margin: 0; }
.note { margin: .5rem 0; max-width: 46rem; }
.verdict { border-left: 4px solid var(--blue); background: var(--said); padding: .2rem 1.1rem; margin: 0 0 1.2rem; }
.verdict.open { border-color: var(--grey); background: var(--open); }
.verdict p { margin: .7rem 0; font-size: 1.08rem; }
.wide, .paper { overflow-x: auto; }
.paper { width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font: .86rem/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans",
  sans-serif; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 1.5px solid var(--head); vertical-align: bottom; }
th, td { padding: .32rem 1.3rem .32rem 0; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
td:not(.number) { min-width: 7.5rem; overflow-wrap: anywhere; }
td:first-child { min-width: 0; }
.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
td:first-child { white-space: nowrap; overflow-wrap: normal; }
section:first-of-type tbody tr:first-child td { font-weight: 600; }
figure { margin: 1.2rem 0 1.8rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .35rem; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: var(--code); padding: .1em .35em;
  border-radius: 3px; overflow-wrap: anywhere; }
pre { font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: var(--open);
  padding: .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media screen and (max-width: 44rem) { main { padding: 1.4rem .9rem 3rem; } h1 { font-size: 1.5rem; }
  figure img { max-width: none; width: min(var(--natural), 40rem); } th, td { padding-right: .9rem; } }
@media print { :root { color-scheme: light; } body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, tr, .verdict { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide, .paper { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; } }
</style>
</head>
<body>
<main>
<header><h1>$heading</h1><p class="about">$about</p></header>
$body
</main>
</body>
</html>
""")
