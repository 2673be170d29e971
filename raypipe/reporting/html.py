"""Building blocks of the report's page: escaped text, tables, figures and the style sheet."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from raypipe.core.errors import first_line
from raypipe.reporting.figures import svg_uri

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


Panel = tuple[Callable[[], "Figure"], str]
"""Draws a figure; the words that stand in for it where it cannot be seen."""

BROAD = 480
"""Pixels of width beyond which a phone scrolls a picture instead of shrinking it."""


def picture(draw: Callable[[], Figure], title: str, caption: str) -> str:
    """A figure inside the page, with its caption; `title` stands in for it where it cannot be seen."""
    return pictures([(draw, title)], caption)


def pictures(panels: Sequence[Panel], caption: str) -> str:
    """Figures side by side, or one below the other where there is no room, with one caption.

    One that cannot be drawn leaves a line that says so: the rest of the page does not hang on it.
    """
    images, lines = [], []
    for draw, title in panels:
        try:
            made = draw()
            uri = svg_uri(made)
        except Exception as error:
            why = f"{title}: this picture could not be drawn ({type(error).__name__}: {first_line(error)})."
            lines.append(f'<p class="note">{text(why)}</p>')
            continue
        width, height = (round(96 * inches) for inches in made.get_size_inches())
        image = f'<img src="{uri}" alt="{text(title)}" width="{width}" height="{height}" style="--natural: {width}px">'
        images.append((width > BROAD, image))
    if not images:
        return "".join(lines)
    papers = "".join(f'<div class="paper{" broad" if broad else ""}">{image}</div>' for broad, image in images)
    hint = '<span class="hint">Scroll it sideways to see all. </span>' if any(broad for broad, _ in images) else ""
    caption = f"<figcaption>{hint}{text(caption)}</figcaption>"
    return f'<figure><div class="panels">{papers}</div>{caption}</figure>{"".join(lines)}'


def folded(summary: str, inner: str) -> str:
    """HTML that is shown when its summary is clicked, and in print."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


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
  --head: #9aa0aa; --blue: #0072B2; --said: #f2f7fb; --grey: #8a8f98; --open: #f5f6f8; --code: #eef0f4;
  --orange: #D55E00; --bad: #fdf4ee; --shade: #0003; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171c; --ink: #e3e6eb; --soft: #a8b0bd;
  --rule: #363c47; --line: #262b34; --head: #6c7482; --blue: #56B4E9; --said: #17242f; --grey: #8a8f98;
  --open: #1d2128; --code: #262c36; --orange: #E69F00; --bad: #2c2118; --shade: #fff4; }
  .paper { border-radius: 6px; } }
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
.verdict { border-left: 4px solid var(--grey); background: var(--open); padding: .2rem 1.1rem; margin: 0 0 1.2rem; }
.verdict.good { border-color: var(--blue); background: var(--said); }
.verdict.bad { border-color: var(--orange); background: var(--bad); }
.verdict p { margin: .7rem 0; font-size: 1.08rem; }
.wide, .paper { overflow-x: auto; --under: var(--page); --shadow: var(--shade); background-color: transparent;
  background-image: linear-gradient(to right, var(--under) 30%, transparent), linear-gradient(to left, var(--under) 30%,
  transparent), linear-gradient(to right, var(--shadow), transparent), linear-gradient(to left, var(--shadow),
  transparent); background-position: 0 0, 100% 0, 0 0, 100% 0; background-repeat: no-repeat;
  background-size: 2.5rem 100%, 2.5rem 100%, .9rem 100%, .9rem 100%;
  background-attachment: local, local, scroll, scroll; }
.paper { --under: #fff; --shadow: #0004; background-color: #fff; isolation: isolate; width: fit-content;
  max-width: 100%; }
.broad img { mix-blend-mode: multiply; }
.panels { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: flex-start; }
.hint { display: none; font-weight: 600; }
.columns { columns: 8rem; list-style: none; padding: 0; font-size: .86rem; }
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
  .broad img { max-width: none; width: min(var(--natural), 40rem); } .hint { display: inline; }
  th, td { padding-right: .55rem; } td:first-child, .number { white-space: normal; } table { font-size: .8rem; } }
@media print { :root { color-scheme: light; } body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, tr, .verdict { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide, .paper { overflow: visible;
  background-image: none; }
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
