"""The live page in chromium while a sweep runs, its driver is killed, and the next one goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
from importlib.util import find_spec

import pytest

from raypipe import Run
from raypipe.storage.files import open_folder
from raypipe.storage.lease import read_lease
from raypipe.storage.requests import read_requests
from raypipe.storage.run_store import RunStore
from tests.support.programs import missing_program, need_program
from tests.support.sweeps import Driver, Gate, epochs_of
from tests.support.waiting import MAX_WAIT_SECONDS

pytestmark = [pytest.mark.ray, pytest.mark.browser]

WAIT = 1000 * MAX_WAIT_SECONDS
WIDTHS = (1280, 400)


@pytest.fixture
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


@pytest.fixture
def watch(browser):
    """Watches a run, in a page of each width; returns the server and the pages."""
    servers = []

    def opened(run):
        server = Driver("watch", run)
        servers.append(server)
        found = server.wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", server.output()), "its URL")
        pages = []
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(WAIT)
            page.messages = []
            page.on("console", lambda message, page=page: page.messages.append(message.text))
            page.on("pageerror", lambda error, page=page: page.messages.append(str(error)))
            page.goto(found[0])
            pages.append(page)
        return server, pages

    yield opened
    for server in servers:
        server.end()


def shows(page, text, place="#driver"):
    page.locator(place, has_text=text).first.wait_for()


@pytest.mark.long  # the page's parts have unit tests
def test_the_page_goes_on_while_a_driver_is_killed_and_acts_on_the_next(watch, alone, command, tmp_path):
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 2, 3, 4)
    alone.hooks.set(gate.hooks)
    words = command(4, workers=1)
    driver = alone.drive(*words)
    driver.wait_until(lambda: epochs_of(run) == 1, "the first epoch")
    server, pages = watch(run)
    wide, narrow = pages
    for page in pages:
        shows(page, "running")
        page.locator("#plot svg").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert wide.locator("tbody tr").count() == 1 and "1/4" in wide.locator("tbody tr").inner_text()
    shows(wide, re.compile(r"In use\s*1 of \d+ cores"), "#facts")

    driver.kill()
    driver.finish()
    for page in pages:
        shows(page, re.compile(r"driver gone\s+since .*: its driver died; continue with: raypipe resume"))
    assert wide.locator("#end").is_disabled() and wide.locator("tbody").get_by_text("interrupted").count() == 1
    # Asked for while no driver runs: the next one answers.
    narrow.locator("#point").fill("optim/lr=0.5 sam/name=none")
    narrow.get_by_role("button", name="Enqueue").click()
    shows(narrow, "Refused: the point: ", "#said")
    narrow.locator("#point").fill("optim/lr=0.0071 sam/name=none")
    narrow.get_by_role("button", name="Enqueue").click()
    shows(narrow, "asked to enqueue", "#said")
    shows(wide, "no answer yet", "#requests")
    alone.settle()

    following = alone.drive(*words)
    for page in pages:
        shows(page, "running")
        shows(page, "enqueued as trial 1", "#requests")
    wide.get_by_role("button", name="Stop").click()
    shows(wide, "stop trial 0: no answer yet", "#requests")
    beats = set()
    following.wait_until(lambda: len(beats.add(read_lease(open_folder(run)).beat) or beats) > 2, "a look at requests")
    gate.open(2)
    shows(wide, "stop trial 0: trial 0 ended: stopped (stopped by request)", "#requests")
    gate.open(3)  # in which the worker is, an epoch ahead
    following.wait_until(lambda: epochs_of(run, 1) == 3, "an epoch of the enqueued trial")
    wide.on("dialog", lambda dialog: dialog.accept())
    wide.locator("#end").click()
    shows(wide, "end the sweep: the sweep ends", "#requests")
    gate.open(4)
    following.finish_interrupted()
    for page in pages:
        shows(page, "stopped; continue with: raypipe resume")
        assert page.messages == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"] * (
            page is narrow
        )
    assert RunStore.open(run).config(1).optim.lr == 0.0071 and epochs_of(run) == 2
    asked = read_requests(RunStore.open(run))
    assert [(one.request.kind, bool(one.answer)) for one in asked] == [
        ("enqueue", True),
        ("stop-trial", True),
        ("end", True),
    ]
    server.child.send_signal(signal.SIGINT)
    out = server.finish()
    assert server.child.returncode == 0 and "Traceback" not in out and out.count("\n") == 1
    assert Run(run).trials.loc[0, ["state", "reason"]].tolist() == ["stopped", "stopped by request"]
