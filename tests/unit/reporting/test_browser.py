"""The report in a browser: complete, from one file, in both colour schemes and at both widths.

Runs in the chromium of this machine: on the PATH, or where RAYPIPE_CHROMIUM says.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from raypipe.reporting.report import write_report
from tests.support.programs import missing_program, need_program

pytestmark = pytest.mark.browser

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
MIN_CONTRAST = 4.5
"""Contrast of text (WCAG 2.2, 1.4.3)."""
SECTIONS = [
    "Result",
    "The data",
    "Search",
    "Held-out subjects",
    "Reliability",
    "Ensemble",
    "Filters",
    "Parameter importance",
    "Successive halving",
    "Timeline",
    "Trial outcomes",
    "Time",
    "Next steps",
    "Provenance",
]

# Contrast of every element that holds text of its own, against the nearest background behind it.
CONTRASTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim()))
    .map(e => {
      const [a, b] = [numbers(getComputedStyle(e).color), behind(e)].map(luminance);
      const name = e.tagName.toLowerCase() + (e.className ? '.' + e.className : '');
      return [name, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""

# Colour and contrast of every text of a plot against the page; texts are drawn as uses of glyphs.
PLOT_TEXTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = colour => { const [r, g, b] = numbers(colour).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('.plot use')]
    .filter(e => e.getAttribute('xlink:href').includes('DejaVu'))
    .map(e => getComputedStyle(e).fill)
    .map(fill => [fill, (Math.max(luminance(fill), page) + 0.05) / (Math.min(luminance(fill), page) + 0.05)]);
}"""


@pytest.fixture(scope="module")
def browser():
    if find_spec("playwright") is None:
        missing_program("playwright", "pip install -c constraints.txt -e '.[dev]'")
    from playwright import sync_api

    named = os.environ.get("RAYPIPE_CHROMIUM") or shutil.which("chromium-browser")
    found = need_program("chromium", "apt-get install chromium", named)
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(full_run, tmp_path_factory) -> Path:
    return Path(write_report(full_run.run, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def show(browser, report):
    """Opens the report, and records its requests and messages."""
    contexts = []

    def shown(width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.messages = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("requestfailed", lambda request: page.messages.append(f"failed: {request.url[:80]}"))

        def gate(route) -> None:
            page.requests.append(route.request.url)
            here = route.request.url.startswith(("data:", report.as_uri()))
            route.continue_() if here else route.abort()

        context.route("**/*", gate)
        page.goto(report.as_uri(), wait_until="load")
        return page

    yield shown
    for context in contexts:
        context.close()


def open_details(page) -> None:
    """Open all details, as a reader would."""
    for summary in page.locator("summary").all():
        summary.click()


def test_every_section_is_there_and_headings_are_in_order(show):
    page = show()
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.locator("h1").count() == 1 and page.locator("html").get_attribute("lang") == "en"
    levels = page.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    labels = page.eval_on_selector_all("[aria-labelledby]", "all => all.map(e => e.getAttribute('aria-labelledby'))")
    assert labels and set(labels) <= set(ids)


def test_nothing_is_requested_and_no_error_is_reported(show, report):
    page = show()
    page.mouse.wheel(0, 10_000)
    open_details(page)
    assert page.messages == []
    outside = [url for url in page.requests if url != report.as_uri() and not url.startswith("data:")]
    assert outside == [] and report.as_uri() in page.requests


def test_a_request_would_be_noticed(show):
    page = show()
    page.evaluate(
        "new Promise(done => { const i = new Image(); i.onerror = done; i.src = 'https://example.org/x.png'; })"
    )
    assert "https://example.org/x.png" in page.requests and page.messages


def test_every_plot_is_drawn_and_has_an_alternative_text(show):
    page = show()
    read = "all => all.map(i => [i.ariaLabel, i.role, i.getBoundingClientRect().width])"
    images = page.eval_on_selector_all("svg", read)
    assert len(images) == 18
    assert all(alt.strip() and role == "img" and width > 100 for alt, role, width in images)
    assert len({alt for alt, *_ in images}) == len(images)
    assert page.get_by_text("could not be").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_no_wider_than_the_window(show, width, scheme):
    page = show(width, scheme)
    open_details(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.eval_on_selector_all(
        "main *", "all => all.filter(e => !e.closest('.table, .plot')).map(e => e.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
    wide = page.eval_on_selector_all(
        "main *",
        """all => all
            .filter(e => e.scrollWidth > e.clientWidth + 1 && !e.closest('.table, .plot'))
            .filter(e => getComputedStyle(e).overflowX === 'visible' && getComputedStyle(e).display !== 'inline')
            .map(e => e.outerHTML.slice(0, 80))""",
    )
    assert wide == []


def test_on_a_phone_plots_keep_a_readable_size(show):
    page = show(400)
    sizes = page.eval_on_selector_all(
        "svg", "all => all.map(i => [i.getBoundingClientRect().width, i.width.baseVal.value])"
    )
    assert all(width >= 0.75 * natural for width, natural in sizes)
    wide = page.locator(".plot.wide").all()
    assert wide and all(
        each.locator("xpath=ancestor::figure//span[@class='scroll-hint']").is_visible() for each in wide
    )
    others = "all => all.map(e => e.scrollWidth - e.clientWidth)"
    assert max(page.eval_on_selector_all(".plot:not(.wide)", others)) <= 0, "only wide plots have to be scrolled"
    assert not show(1280).locator(".scroll-hint").first.is_visible()
    scrolls = "all => all.map(e => getComputedStyle(e).overflowX)"
    assert set(page.eval_on_selector_all(".table, .plot", scrolls)) == {"auto"}


def test_on_a_phone_the_scores_are_seen_without_scrolling(show):
    page = show(400)
    for title in ("Result", "Time"):
        tables = page.locator("section", has=page.get_by_role("heading", name=title, exact=True)).locator(".table")
        cut = tables.evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)")
        assert cut and max(cut) <= 0, title


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_enough_contrast(show, scheme):
    page = show(scheme=scheme)
    open_details(page)
    found = page.evaluate(CONTRASTS)
    names = {name for name, _ in found}
    assert {"p", "p.note", "figcaption", "td", "th", "h2", "code", "pre", "summary", "p.subtitle"} <= names
    assert [(name, round(contrast, 2)) for name, contrast in found if contrast < MIN_CONTRAST] == []


def test_the_dark_scheme_is_dark_and_so_are_its_plots(show):
    colours = {
        scheme: show(scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor") for scheme in SCHEMES
    }
    assert colours["light"] == "rgb(255, 255, 255)" and colours["dark"] != colours["light"]
    backgrounds = show(scheme="dark").eval_on_selector_all(
        ".plot, .plot svg", "all => all.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert set(backgrounds) == {"rgba(0, 0, 0, 0)"}


@pytest.mark.parametrize("scheme", [*SCHEMES, "print"])
def test_text_in_plots_has_enough_contrast(show, scheme):
    page = show(scheme="dark" if scheme == "print" else scheme)
    open_details(page)
    if scheme == "print":
        page.emulate_media(media="print", color_scheme="dark")
    found = page.evaluate(PLOT_TEXTS)
    assert len(found) > 100
    on_cells = {"rgb(31, 36, 49)", "rgb(254, 254, 254)"}
    assert [(c, round(ratio, 2)) for c, ratio in found if ratio < MIN_CONTRAST and c not in on_cells] == []


def test_print_is_black_on_white_in_both_schemes(show):
    page = show(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 36, 48)"
    assert page.evaluate("getComputedStyle(document.querySelector('.table')).overflowX") == "visible"
    assert page.pdf(format="A4").startswith(b"%PDF")
