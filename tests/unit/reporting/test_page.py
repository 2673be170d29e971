"""Pages from templates: escaping, tables, figures, number formats."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from raypipe.reporting import page
from raypipe.reporting.page import Panel, Table, draw_figure, keep_together, render_template
from raypipe.reporting.plotting import new_figure

HOSTILE = '<script>alert("x")</script>&\''
ESCAPED = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;&#39;"


def macro(name: str, *given: object) -> str:
    return getattr(page._environment().get_template("macros.html.j2").module, name)(*given)


def test_cells_are_escaped_and_numbers_are_marked():
    html = macro("table", Table(["name", HOSTILE], [[HOSTILE, "1.0"]]))
    assert "<script" not in html and html.count(ESCAPED) == 2
    assert f'<th scope="col">name</th><th scope="col" class="number">{ESCAPED}</th>' in html
    assert f'<td>{ESCAPED}</td><td class="number">1.0</td>' in html
    assert "<thead>" not in macro("table", Table(["", ""], [["a", "b"]]))


def test_plots_have_a_size_and_escaped_texts():
    block = draw_figure([Panel(lambda: new_figure(5.0, 2.0)[0], HOSTILE)], f"caption {HOSTILE}")
    html = macro("figure", block)
    assert (
        f'width="480" height="192" role="img" aria-label="{ESCAPED}"' in html
        and f"caption {ESCAPED}</figcaption>" in html
    )
    assert "<script" not in html and "scroll-hint" not in html
    wide = macro("figure", draw_figure([Panel(lambda: new_figure(5.1, 2.0)[0], "a")], "b"))
    assert 'class="plot wide"' in wide and "scroll-hint" in wide


def test_an_error_of_a_plot_is_escaped_and_the_others_are_shown():
    def fail():
        raise ValueError(HOSTILE)

    html = macro("figure", draw_figure([Panel(fail, "a plot"), Panel(lambda: new_figure(2.0, 2.0)[0], "b")], "c"))
    assert f"a plot: this plot could not be drawn (ValueError: {ESCAPED})." in html and html.count("<svg") == 1
    assert macro("figure", draw_figure([Panel(fail, "a plot")], "c")).strip().startswith('<p class="note">')


def test_only_rendered_html_is_left_as_it_is():
    values = {"target": HOSTILE, "run": HOSTILE, "spec": HOSTILE, "ended": 1, "trials": 2, "written": "today"}
    html = render_template("report", **values, sections=[HOSTILE, Markup("<hr>")])
    assert "<hr>" in html and "<script" not in html and html.count(ESCAPED) == 6


def test_every_template_escapes_and_misses_no_value():
    environment = page._environment()
    assert environment.autoescape is True and environment.undefined is jinja2.StrictUndefined
    folder = Path(page.__file__).parent / "templates"
    assert {path.name for path in folder.iterdir()} == set(environment.list_templates())
    for name in environment.list_templates():
        source = (folder / name).read_text()
        assert "|safe" not in source.replace(" ", "") and "autoescape" not in source, name
    with pytest.raises(jinja2.UndefinedError):
        render_template("result_unfitted")


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.12345, False, "0.123"),
        (-1, True, "−1.000"),
        (1, True, "+1.000"),
        (float("nan"), False, "undefined"),
        (-0.0004, False, "0.000"),
        (-0.0004, True, "+0.000"),
    ],
)
def test_scores(value, sign, text):
    assert page.format_score(value, sign) == text


def test_minus_signs_stand_before_numbers_only():
    assert page.use_minus_signs("-0.3 (-1 to 2), out-of-fold, run-3, 1-2") == "−0.3 (−1 to 2), out-of-fold, run-3, 1-2"


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<p>over 12.5 Hz</p>", "<p>over 12.5\N{NO-BREAK SPACE}Hz</p>"),
        ("<p>95 % of 7 people</p>", "<p>95\N{NO-BREAK SPACE}% of 7\N{NO-BREAK SPACE}people</p>"),
        ("<p>7 some</p>", "<p>7 some</p>"),
        ("<code>x --held-out 1</code>", '<code>x <span class="whole">--held-out</span> 1</code>'),
        ("<p>well-known a--b -- c</p>", "<p>well-known a--b -- c</p>"),
        ('<img alt="1 Hz --a">', '<img alt="1 Hz --a">'),
        ("<style>a { --cover: 1 s }</style>", "<style>a { --cover: 1 s }</style>"),
        ("<pre>--a-b 1 s <b>2 s</b></pre>", "<pre>--a-b 1 s <b>2 s</b></pre>"),
    ],
)
def test_options_and_numbers_with_units_are_kept_together(html, kept):
    assert keep_together(html) == kept
