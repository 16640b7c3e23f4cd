"""The desk in a browser: keyboard, Content Security Policy, and two screen sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Message, Review
from finetune_pipeline.review import verdict_store

from .conftest import PASSWORD
from .sample_tasks import example, make

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
CHROMIUM = (
    os.environ.get("CHROMIUM")
    or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None)
    or shutil.which("chromium")
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (set $CHROMIUM to one): no browser tests"),
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


STEPS_FIT = """[...document.querySelectorAll(".step-name, .step-state")].every(
    name => name.offsetWidth <= name.closest(".step").clientWidth)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A signed-in page that records console messages and requests."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(90_000)
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{url}/login")
        self.page.fill("#name", "anna")
        self.page.fill("#password", PASSWORD)
        self.page.click("text=Sign in >> nth=-1")
        self.page.wait_for_url(f"{url}/")

    def goto(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page


def verdicts() -> list[Review]:
    task, store = open_task("parcels")
    sample = store.current("review_sample")
    assert sample is not None
    return verdict_store.load(store, task, sample)


def press(page: Page, key: str) -> None:
    """Press a key that leads to another page."""
    with page.expect_navigation():
        page.keyboard.press(key)


def test_a_sample_is_reviewed_by_keyboard(browser: Browser, desk_url: str) -> None:
    make("parcels")
    visit = Visit(browser, desk_url)
    page = visit.goto("/tasks/parcels/review")
    for _ in range(2):
        press(page, "a")
    page.keyboard.press("r")
    page.keyboard.type("a rash answer")  # letters in a note are not shortcuts
    press(page, "Enter")
    press(page, "e")
    page.select_option("[name='field:priority']", label="high")
    with page.expect_navigation():
        page.click("text=Save the correction")
    press(page, "s")
    assert page.locator("text=Row 6").count() == 1
    press(page, "b")
    assert page.locator("text=Row 5").count() == 1
    press(page, "a")
    press(page, "u")
    page.wait_for_selector("[role=status] >> text=Undone")  # a live region gets its text with a delay
    for _ in range(8):
        press(page, "a")
    page.wait_for_selector("text=The review is complete")
    reviews = {review.id: review for review in verdicts()}
    assert len(reviews) == 12
    assert [reviews[example(n).id].decision for n in range(5)] == ["approve", "approve", "reject", "edit", "approve"]
    assert reviews[example(2).id].note == "a rash answer"
    assert '"priority": "high"' in (reviews[example(3).id].completion or "")
    assert visit.console == []
    assert all(url.startswith(desk_url) for url in visit.requests)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_rejected_answer_is_beside_the_chosen_one_or_below_it_on_a_phone(
    browser: Browser, desk_url: str, width: int
) -> None:
    better = example(1).messages[-1].content
    make("parcels", rows=[replace(example(n), rejected=better) for n in range(30)])
    visit = Visit(browser, desk_url, viewport={"width": width, "height": 900})
    page = visit.goto("/tasks/parcels/review")
    chosen, rejected = (page.locator(f"#{name}").bounding_box() for name in ("chosen", "rejected"))
    assert chosen and rejected
    assert (rejected["x"] > chosen["x"] + 100) is (width > 600)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    press(page, "p")
    page.wait_for_selector("[role=status] >> text=Corrected row 1")
    assert [(review.decision, review.completion) for review in verdicts()] == [("edit", better)]
    assert visit.console == []


def test_a_held_key_approves_one_row_only(browser: Browser, desk_url: str) -> None:
    make("parcels")
    page = Visit(browser, desk_url).goto("/tasks/parcels/review")
    page.keyboard.down("a")
    page.wait_for_selector("text=1 of 12 reviewed")
    for _ in range(5):
        page.keyboard.down("a")  # without releasing it: the browser marks these events as repeated
    page.wait_for_timeout(300)
    assert len(verdicts()) == 1


def test_an_invalid_edit_focuses_the_field_with_its_error(browser: Browser, desk_url: str) -> None:
    make("parcels")
    page = Visit(browser, desk_url).goto(f"/tasks/parcels/review?row={example(0).id}&edit=1")
    page.fill("[name='field:order']", "12")
    page.click("text=Save the correction")
    page.wait_for_selector(".error")
    assert "does not match" in page.inner_text(".error")
    assert page.evaluate("document.activeElement.name") == "field:order"
    assert verdicts() == []
    press(page, "Escape")
    assert page.locator("text=Exact text").count() == 1


def test_single_key_shortcuts_can_be_switched_off(browser: Browser, desk_url: str) -> None:
    make("parcels")
    page = Visit(browser, desk_url, viewport={"width": 400, "height": 800}).goto("/tasks/parcels/review")
    with page.expect_navigation():
        page.click("text=Switch them off")
    page.wait_for_selector("[role=status] >> text=shortcuts are off")
    for key in ("a", "r", "e", "s", "u"):
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert page.locator("text=Row 1").count() >= 1
    assert not page.locator("details.reject[open]").count()
    page = Visit(browser, desk_url).goto("/tasks/parcels/review")  # another browser, the same user
    page.keyboard.press("a")
    page.wait_for_timeout(300)
    assert verdicts() == []


def test_arabic_and_hebrew_are_right_to_left(browser: Browser, desk_url: str) -> None:
    text = "أين طلبي؟\nWhere is my order?"
    rows = [replace(example(n), messages=(Message("user", text), example(n).messages[-1])) for n in range(30)]
    make("parcels", rows=rows)
    page = Visit(browser, desk_url).goto("/tasks/parcels/review")
    assert page.evaluate("getComputedStyle(document.querySelector('.prompt')).direction") == "rtl"
    page = Visit(browser, desk_url).goto(f"/tasks/parcels/review?row={rows[0].id}&edit=1")
    page.fill("[name=note]", "שלום")
    assert page.evaluate("getComputedStyle(document.querySelector('[name=note]')).direction") == "rtl"


def test_it_works_without_javascript(browser: Browser, desk_url: str) -> None:
    make("parcels")
    page = Visit(browser, desk_url, java_script_enabled=False).goto("/tasks/parcels/review")
    page.click("button:has-text('Approve')")
    page.click("summary:has-text('Reject')")
    page.fill("#why", "no")
    page.click("text=Reject this row")
    page.wait_for_selector("text=2 of 12 reviewed")
    assert [review.decision for review in verdicts()] == ["approve", "reject"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (900, "light"), (400, "dark")])
def test_every_page_fits_the_screen_without_external_requests(
    browser: Browser, desk_url: str, width: int, scheme: str
) -> None:
    make("parcels", until="registered_model")
    visit = Visit(browser, desk_url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in ("", "/quality", "/ledger", "/review", f"/review?row={example(0).id}", "/reports/release_decision"):
        page = visit.goto(f"/tasks/parcels{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.locator("h1").count() >= 1, path
        assert page.evaluate(STEPS_FIT), path
    visit.goto("/")
    assert visit.console == []
    assert all(url.startswith(desk_url) for url in visit.requests)


def test_scripts_in_reports_do_not_run(browser: Browser, desk_url: str) -> None:
    make("parcels", until="registered_model")
    visit = Visit(browser, desk_url)
    assert visit.goto("/tasks/parcels/reports/eval_report/report.html").title() == "Report"
    page = visit.goto("/tasks/parcels/reports/data_quality/report.html")
    assert page.title() == "Data quality"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"
    page = visit.goto("/tasks/parcels/reports/eval_report")
    frame = page.frame_locator("iframe.report")
    assert "130 test rows" in frame.locator("body").inner_text()
