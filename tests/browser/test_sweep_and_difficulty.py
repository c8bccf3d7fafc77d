"""The pages of a sweep and of difficulty in a real browser, on a small sweep of real runs."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser
_SEEN = """() => [...document.querySelectorAll('svg.chart')].filter((chart) => chart.getBoundingClientRect().width > 100)
    .map((chart) => chart.querySelectorAll('circle, polyline').length)"""


def _sweep(server: Server, epochs: int, **fields: object) -> tuple[str, list[str]]:
    """A sweep of four runs: its id and its runs."""
    base = {"dataset": "digits", "model": "fc", "epochs": epochs, **fields}
    body = {"base": base, "grid": {"learning_rate": [0.003, 0.1], "batch_size": [32, 64]}}
    runs = server.api.post("/sweeps", json=body).raise_for_status().json()["runs"]
    return str(runs[0]["sweep"]), [str(run["id"]) for run in runs]


def test_a_sweep_and_its_hard_images(page: Page, server: Server) -> None:
    sweep, runs = _sweep(server, 1)
    for run_id in runs:
        assert server.wait_for(run_id, "finished", "failed")["status"] == "finished"
    page.goto(f"/sweeps/{sweep}")
    expect(page.locator("#sweep-header")).to_contain_text("4 of 4 finished")
    drawn = page.evaluate(_SEEN)
    assert len(drawn) == 3  # two fields, and all together
    assert all(count >= 4 for count in drawn), drawn

    rates = page.locator("#table tbody td:nth-last-child(3)")
    page.locator("#table").get_by_role("link", name="Learning rate").click()
    expect(page.locator("#table [aria-sort=ascending]")).to_contain_text("Learning rate")
    assert rates.all_inner_texts() == ["0.003", "0.003", "0.1", "0.1"]
    page.locator("#table select[name=learning_rate]").select_option(label="0.1")
    expect(page.locator("#table tbody tr")).to_have_count(2)
    expect(page).to_have_url(re.compile("learning_rate=0.1"))
    assert page.locator(".chart.wide polyline.off").count() == 2  # the others' lines step back
    page.go_back()
    expect(page.locator("#table tbody tr")).to_have_count(4)

    page.get_by_role("link", name="Images that are hard for all").click()
    expect(page.locator("h1")).to_have_text("Difficulty over 4 runs")
    page.locator("#side-disputed").click()
    expect(page).to_have_url(re.compile("side=disputed"))
    tile = page.locator(".tile").first
    tile.click()
    expect(page.locator("#detail")).to_be_focused()
    expect(page.locator("#detail")).to_contain_text("2 of 4 runs")
    opened = page.locator("#detail-title").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-title")).not_to_have_text(opened)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")  # before the answer to the arrow is here: the last key counts
    expect(page.locator("#detail")).to_have_count(0)
    expect(page.locator(".tile").nth(1)).to_be_focused()
    page.get_by_role("link", name="Compare these runs").click()
    page.wait_for_url("**/compare?**")
    expect(page.locator("#pairs")).to_be_visible()


def test_cancel_and_resume_are_clicked(page: Page, server: Server) -> None:
    sweep, runs = _sweep(server, 5_000, seed=3)
    page.goto(f"/sweeps/{sweep}")
    page.get_by_role("button", name=re.compile("Cancel the remaining")).click()
    for run_id in runs:
        server.wait_for(run_id, "cancelled")
    expect(page.locator("#sweep-header")).to_contain_text("4 cancelled")
    expect(page.get_by_role("button", name=re.compile("Cancel the remaining"))).to_have_count(0)

    page.goto(f"/runs/{runs[0]}")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#run-header .badge")).to_contain_text("Running")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#run-header .badge")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert server.wait_for(runs[0], "cancelled")["attempt"] >= 1


def test_an_upload_is_stopped(page: Page, server: Server) -> None:
    """A slow line: the bytes leave slowly enough for the button to be pressed."""
    page.goto("/datasets")
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000},
    )
    page.locator("#import-file").set_input_files(
        {"name": "Slow Pictures.zip", "mimeType": "application/zip", "buffer": bytes(4_000_000)}
    )
    expect(page.locator("#import-name")).to_have_value("slow-pictures")
    page.locator("form[data-upload] [type=submit]").click()
    stop = page.locator("form[data-upload] [data-abort]")
    stop.click()
    expect(stop).to_be_hidden()
    expect(page.locator("form[data-upload] [data-progress]")).to_be_hidden()
    expect(page.locator("form[data-upload] [type=submit]")).to_be_enabled()
    names = [dataset["name"] for dataset in server.api.get("/datasets").json()["datasets"]]
    assert "slow-pictures" not in names
