"""The whole story in a real browser: form, live curves, images, a second run, the comparison, on real data."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser

_NUM_POINTS = """() => Math.max(0, ...[...document.querySelectorAll('#figure-loss .js-plotly-plot, #figure-loss')]
    .flatMap((el) => (el.data || []).map((trace) => (trace.x || []).length)))"""


def start_run(page: Page, model: str, epochs: int) -> str:
    """Fill the form and start; returns the run's id once its page is shown."""
    page.goto("/runs/new")
    page.locator("input[name=dataset][value=digits]").check()
    page.locator(f"input[name=model][value={model}]").check()
    page.locator("#epochs").fill(str(epochs))
    expect(page.locator("#summary")).to_contain_text(f"{epochs} epochs")
    page.locator("#summary button[type=submit]").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-z]{10}$"))
    return page.url.rsplit("/", 1)[1]


def until(page: Page, script: str, holds: Callable[[Any], bool], seconds: float = 60.0) -> None:
    """Wait for a value of the page (Playwright's own wait needs eval, which the policy forbids)."""
    deadline = time.monotonic() + seconds
    while not holds(value := page.evaluate(script)):
        assert time.monotonic() < deadline, f"{script}: {value}"
        page.wait_for_timeout(50)


def test_from_the_form_to_the_comparison(page: Page, server: Server) -> None:
    page.goto("/")
    expect(page.locator("h1")).to_have_text("Runs")
    first = start_run(page, "cnn", 20)

    expect(page.locator("#run-header .badge")).to_contain_text("Running")
    until(page, _NUM_POINTS, lambda count: count >= 2)
    before = page.evaluate(_NUM_POINTS)
    until(page, _NUM_POINTS, lambda count: count > before)  # the curve grows without a reload
    expect(page.locator("#run-header .badge")).to_contain_text("Finished")
    page.locator("#answers .tile .px").first.scroll_into_view_if_needed()
    until(page, "document.querySelector('#answers .tile .px')?.naturalWidth > 0", bool)
    page.locator("#tab-train").click()
    expect(page.locator("#answers")).to_contain_text("as the net sees")

    second = start_run(page, "fc", 3)
    run = server.wait_for(second, "finished", "failed")
    assert run["status"] == "finished", run["error"]

    page.goto("/runs")
    for run_id in (first, second):
        page.locator(f"#run-{run_id} .c-tick input").check()
    page.locator(".actionbar").get_by_text("Compare", exact=True).click()
    page.wait_for_url("**/compare?**")
    expect(page.locator("#verdict")).to_contain_text(re.compile("better than|Too close|Too small|too small|Identical"))
    until(page, "document.querySelectorAll('#curves .scatterlayer .trace').length", lambda count: count >= 2)
    counts = server.api.get("/compare", params={"run": [first, second]}).json()["pairs"][0]
    assert counts["both_correct"] + counts["only_a_correct"] + counts["only_b_correct"] + counts["both_wrong"] == 360


def test_errors_stay_at_their_field(page: Page) -> None:
    page.goto("/runs/new")
    page.locator("#batch_size").fill("0")
    expect(page.locator("#batch_size-error")).to_have_text("Must be at least 1. You typed 0.")
    page.locator("#epochs").fill("1.5")
    expect(page.locator("#epochs-error")).to_contain_text("whole number")
    expect(page.locator("#batch_size")).to_have_value("0")
    page.locator("#batch_size").fill("32")
    expect(page.locator("#batch_size-error")).to_have_count(0)


def test_seven_tabs_of_a_live_run_leave_room_for_others(context: BrowserContext, server: Server) -> None:
    body = {"dataset": "digits", "model": "cnn", "epochs": 500, "seed": 7}
    run_id = server.api.post("/runs", json=body).raise_for_status().json()["id"]
    server.wait_for(run_id, "running")
    tabs = [context.new_page() for _i in range(7)]  # a browser opens six connections to a host
    for tab in tabs:
        tab.goto(f"/runs/{run_id}", wait_until="domcontentloaded")
    last = tabs[-1]
    shown = last.locator("#run-header .prog").inner_text()
    expect(last.locator("#run-header .prog")).not_to_have_text(shown)
    assert last.evaluate("fetch('/healthz').then((answer) => answer.status)") == 200
    assert server.api.post(f"/runs/{run_id}/cancel").status_code == 202
    server.wait_for(run_id, "cancelled")
    expect(last.locator("#run-header .badge")).to_contain_text("Cancelled")


def test_the_cost_of_an_accuracy_is_asked_for_on_the_page(page: Page, server: Server) -> None:
    run_id = _finished_runs(server, 1)[0]
    page.goto(f"/runs/{run_id}?tab=matrix")
    field = page.get_by_label("To a test accuracy of")
    field.fill("99.99")
    field.press("Enter")
    row = page.locator("#to-accuracy").get_by_role("row", name="99.99 % not reached")
    expect(row).to_be_visible()
    assert page.url.endswith(f"/runs/{run_id}?tab=matrix&to=99.99")
    page.go_back()
    expect(row).to_have_count(0)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_no_page_scrolls_sideways(context: BrowserContext, server: Server, scheme: Any, width: int) -> None:
    run_id, other = _finished_runs(server, 2)
    both = f"run={run_id}&run={other}"
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    for path in (
        "/runs",
        "/runs/new",
        f"/runs/{run_id}",
        "/compare",
        f"/compare?{both}",
        f"/api/v1/compare/report?{both}",
        "/datasets",
        "/patterns",
        "/api",
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def _finished_runs(server: Server, count: int) -> list[str]:
    """Ids of finished runs; those that are missing are trained."""
    found = server.api.get("/runs", params={"status": "finished", "limit": count}).json()["runs"]
    ids = [str(run["id"]) for run in found]
    for seed in range(count - len(ids)):
        body = {"dataset": "digits", "model": "fc", "seed": seed}
        ids.append(str(server.api.post("/runs", json=body).raise_for_status().json()["id"]))
        assert server.wait_for(ids[-1], "finished", "failed")["status"] == "finished"
    return ids
