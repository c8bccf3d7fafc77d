"""The runs table in a real browser: a search that points at its mistake, chosen columns, kept views, rows by keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser


@pytest.fixture
def run_ids(server: Server) -> list[str]:
    """Two finished runs."""
    bodies = [{"dataset": "digits", "model": "fc", "width": width, "tags": ["table"]} for width in (5, 6)]
    started = [server.api.post("/runs", json=body).raise_for_status().json()["id"] for body in bodies]
    for run_id in started:
        assert server.wait_for(run_id, "finished", "failed")["status"] == "finished"
    return [str(run_id) for run_id in started]


def test_search_columns_views_and_keys(page: Page, run_ids: list[str]) -> None:
    page.goto("/runs?tag=table")
    rows = page.locator("[data-row]")
    expect(rows).to_have_count(2)

    page.keyboard.press("/")
    page.keyboard.type("widht=5")
    expect(page.locator("#search-problem")).to_contain_text("Character 1: There is no field widht. Did you mean width?")
    expect(page.locator("#search-problem .caret")).to_contain_text("widht=5")
    assert "q=" not in page.url
    expect(rows).to_have_count(2)
    page.locator("#search").fill("width=5")
    expect(rows).to_have_count(1)
    expect(page.locator("#search-problem")).to_be_empty()
    expect(page).to_have_url(re.compile("q=width%3D5"))
    page.locator("#search").fill("width>=5 and not model=cnn")
    expect(rows).to_have_count(2)

    page.get_by_role("button", name="Columns").click()
    for name, wanted in (("width", True), ("test_loss", True), ("images_per_second", False)):
        page.locator(f"#columns-form [value={name}]").set_checked(wanted)
    page.get_by_role("button", name="Show columns").click()
    head = page.locator("table.runs thead")
    expect(head).to_contain_text("Width")
    expect(head).not_to_contain_text("Images/s")
    expect(page.locator("#columns-dialog")).to_be_hidden()

    page.get_by_role("button", name="Views").click()
    page.get_by_label("Save the current view as").fill("wide ones")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Close").click()
    page.goto("/runs")
    expect(page.locator("table.runs thead")).to_contain_text("Width")  # remembered
    page.get_by_role("button", name="Views").click()
    page.get_by_role("link", name="wide ones").click()
    expect(page).to_have_url(re.compile("q=width"))
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Views").click()
    page.get_by_role("button", name="Remove the view wide ones").click()
    expect(page.locator("#no-views")).to_be_visible()
    page.keyboard.press("Escape")

    for key in ("j", "x", "j", "x"):
        page.keyboard.press(key)
    expect(page.locator("[data-count]")).to_have_text("2 selected")
    page.keyboard.press("c")
    page.wait_for_url("**/compare?**")
    assert all(run_id in page.url for run_id in run_ids)


def test_an_action_can_take_all_that_match(page: Page, run_ids: list[str], server: Server) -> None:
    page.goto("/runs?tag=table&apart=true")
    page.evaluate("document.querySelector('[data-matching]').dataset.matching = 101")  # as if there were another page
    page.locator("#select-all").check()
    page.get_by_role("button", name="Select all 101 that match").click()
    matching = server.api.get("/runs", params={"tag": "table"}).json()["total"]
    expect(page.locator("[data-count]")).to_have_text(f"{matching} selected")
    page.get_by_role("button", name="Archive", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text(f"{matching} runs archived")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#toasts")).to_contain_text(f"{matching} runs unarchived")
    page.locator("#select-all").check()
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()
