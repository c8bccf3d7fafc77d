"""The whole story of a comparison by keyboard alone: not one click, and only the first address is typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser
_MOST_STOPS = 60  # of the Tab key on the way to something
_FOCUS = """() => {
    const at = document.activeElement;
    const style = at && getComputedStyle(at);
    const box = at?.getBoundingClientRect();
    return {
        inPage: Boolean(at) && at !== document.body && at !== document.documentElement,
        seen: Boolean(at) && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 && box.width > 0,
        words: at ? `${at.tagName} ${at.id} ${at.className} ${at.textContent.trim().slice(0, 40)}` : "",
    };
}"""


@pytest.fixture
def pair(server: Server) -> tuple[str, str]:
    """Two nets that differ in several fields, one seed each."""
    bodies = [
        {"dataset": "digits", "model": "cnn", "epochs": 2, "learning_rate": 0.05, "tags": ["keys"]},
        {"dataset": "digits", "model": "fc", "epochs": 2, "batch_size": 32, "tags": ["keys"]},
    ]
    first, second = (str(server.api.post("/runs", json=body).raise_for_status().json()["id"]) for body in bodies)
    for run_id in (first, second):
        assert server.wait_for(run_id, "finished", "failed")["status"] == "finished"
    return first, second


def has_focus(page: Page, selector: str) -> None:
    """What matches the selector has the focus, and shows it."""
    expect(page.locator(f"{selector}:focus")).to_have_count(1)
    focus = page.evaluate(_FOCUS)
    assert focus["seen"], focus["words"]


def tab_to(page: Page, selector: str, key: str = "Tab") -> None:
    """Press Tab until what matches the selector has the focus; each stop must be in the page and show its focus."""
    passed = []
    for _stop in range(_MOST_STOPS):
        page.keyboard.press(key)
        focus = page.evaluate(_FOCUS)
        passed.append(focus["words"])
        assert focus["inPage"], passed
        assert focus["seen"], passed
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
    raise AssertionError(f"{selector} was not reached: {passed}")


def test_the_story_of_a_comparison_by_keyboard(page: Page, server: Server, pair: tuple[str, str]) -> None:
    page.goto("/runs")
    _find_and_compare(page, pair)
    _repeat_both(page, server)
    _walk_the_walls(page)
    _read_the_matrix(page)
    _step_through_differences(page)
    _take_the_report(page)
    _choose_another_epoch(page)


def _find_and_compare(page: Page, pair: tuple[str, str]) -> None:
    page.keyboard.press("/")
    page.keyboard.type("tag:keys and (model=cnn or model=fc)")
    expect(page.locator("[data-row]")).to_have_count(2)
    page.keyboard.press("Escape")  # leaves the field, keeps the words
    expect(page.locator("#search")).to_have_value("tag:keys and (model=cnn or model=fc)")
    for key in ("j", "x", "j", "x"):
        page.keyboard.press(key)
    has_focus(page, "[data-row]:nth-of-type(2) a.strong")
    expect(page.locator("[data-count]")).to_have_text("2 selected")
    page.keyboard.press("c")
    page.wait_for_url("**/compare?**")
    assert all(run_id in page.url for run_id in pair)
    expect(page.locator("#verdict")).to_contain_text(re.compile("better than|Too close|oo small"))


def _repeat_both(page: Page, server: Server) -> None:
    """The first stop of the page skips what all pages share; the button that answers the other question follows."""
    page.keyboard.press("Tab")
    has_focus(page, "a.skip")
    page.keyboard.press("Enter")
    tab_to(page, "form[action='/compare/repeats'] button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?**#recipes")  # not another page: what comes of them appears here
    summary = page.locator("#recipes")
    expect(summary).to_contain_text(re.compile(r"\d of 5 finished"))
    expect(summary).to_contain_text(re.compile("is the better recipe|recipes are|Too close"))
    expect(summary).to_contain_text("5 seeds")
    assert server.api.get("/runs", params={"tag": "keys", "status": "finished"}).json()["total"] == 10


def _walk_the_walls(page: Page) -> None:
    tab_to(page, "[role=tab][aria-selected=true]")
    page.keyboard.press("End")
    has_focus(page, "#side-all")
    expect(page).to_have_url(re.compile("side=all"))
    expect(page.locator("#images")).to_contain_text("30 of 360")

    page.keyboard.press("Tab")
    has_focus(page, "#true-class")
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile("label=0"))
    expect(page.locator("#images")).not_to_contain_text("30 of 360")
    has_focus(page, "#true-class")
    assert set(page.locator(".tile > span:not(.ans)").all_inner_texts()) == {"true 0"}
    page.keyboard.press("ArrowUp")
    expect(page.locator("#images")).to_contain_text("30 of 360")

    page.keyboard.press("Tab")  # the wall is one stop
    has_focus(page, ".tile:nth-child(1)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    has_focus(page, ".tile:nth-child(3)")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    has_focus(page, "#detail")
    opened = page.locator("#detail-title").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-title")).not_to_have_text(opened)
    has_focus(page, "#detail")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#detail-title")).to_have_text(opened)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_have_count(0)
    has_focus(page, ".tile:nth-child(2)")

    page.keyboard.press("Tab")
    has_focus(page, "[data-more]")
    page.keyboard.press("Enter")
    has_focus(page, ".tile:nth-child(31)")


def _read_the_matrix(page: Page) -> None:
    tab_to(page, ".cm a")
    number = page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("ArrowDown")
    has_focus(page, ".cm a")
    assert page.evaluate("document.activeElement.getAttribute('href')") != number
    page.keyboard.press("Enter")
    expect(page.locator(".cm a[aria-current]")).to_have_count(1)
    has_focus(page, ".cm a[aria-current]")
    tab_to(page, "#images form > span > a", "Shift+Tab")  # "predicted as ...": it goes away with its choice
    page.keyboard.press("Enter")
    expect(page.locator(".cm a[aria-current]")).to_have_count(0)
    has_focus(page, "#images")


def _step_through_differences(page: Page) -> None:
    tab_to(page, "#config [data-step='1']")
    page.keyboard.press("Enter")
    has_focus(page, "#config-model")
    page.keyboard.press("n")
    has_focus(page, "#config tr[data-differs]:nth-of-type(2)")
    page.keyboard.press("p")
    has_focus(page, "#config-model")
    tab_to(page, "#config [data-step='-1']", "Shift+Tab")
    page.keyboard.press("Enter")
    has_focus(page, "#config tr[data-differs]:last-of-type")


def _take_the_report(page: Page) -> None:
    tab_to(page, "#export a")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    path = download.value.path()
    assert download.value.suggested_filename == "runoff-report.html"
    assert page.locator("#verdict").inner_text() in Path(path).read_text(encoding="utf-8")


def _choose_another_epoch(page: Page) -> None:
    """A list that is not open chooses with each arrow; only Enter goes on."""
    tab_to(page, "select[name=at]", "Shift+Tab")
    address = page.url
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.value") == "1"
    assert page.url == address
    page.keyboard.press("Tab")
    expect(page.locator("select[name=at]")).to_have_value("last")  # left without Enter: taken back
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("at=1"))
    expect(page.locator("#verdict-card")).to_contain_text("after epoch 1")
