"""The page of checks and its API: what is damaged is named, and files can be restored from intact copies."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.runs.check import Checked
from app.runs.indexer import Indexer
from tests.app.run_folders import finish, new_run
from tests.app.test_damage import cut
from trainer.run_folder import RunFolder


@pytest.fixture
def damaged(site: TestClient, site_app: Any) -> RunFolder:
    """A finished run whose config.json is cut, found damaged by the index."""
    state = site_app.state.runoff
    folder = finish(new_run(state.settings.runs))
    indexer: Indexer = state.indexer
    indexer.tick()
    cut(folder.config_path)
    indexer.rebuild()
    return folder


def checked(site: TestClient, *, full: bool = False) -> dict[str, Any]:
    """A check, when it has ended."""
    assert site.post("/api/v1/checks", json={"full": full}).status_code == 202
    for _try in range(500):
        check: dict[str, Any] = site.get("/api/v1/checks/latest").json()
        if check["seconds"] is not None:
            return check
        time.sleep(0.02)
    raise AssertionError("the check does not end")


def test_nothing_was_checked_yet(site: TestClient) -> None:
    answer = site.get("/api/v1/checks/latest")
    assert (answer.status_code, "Start a check first" in answer.json()["detail"]) == (404, True)
    assert "Check now" in site.get("/check").text


def test_a_whole_home(site: TestClient, site_app: Any) -> None:
    finish(new_run(site_app.state.runoff.settings.runs))
    check = checked(site, full=True)
    assert (check["damaged"], check["failed"], check["done"]) == ([], "", 1)
    assert "nothing is damaged" in site.get("/check").text


def test_the_page_says_what_is_read_after_the_runs(
    site: TestClient, site_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(new_run(site_app.state.runoff.settings.runs))
    shown: list[str] = []

    def check_index(*_arguments: object, **_options: object) -> Checked:
        shown.append(site.get("/check").text)
        return Checked("runoff.sqlite3", [])

    monkeypatch.setattr("app.runs.check._check_index", check_index)
    checked(site)
    assert "1 of 1 run checked. Reading the index." in shown[0]


def test_a_damaged_run_is_named_and_restored_from_the_page(site: TestClient, damaged: RunFolder) -> None:
    check = checked(site)
    assert [thing["name"] for thing in check["damaged"]] == [damaged.id]
    assert check["damaged"][0]["remedies"] == ["config.json can be restored from the index."]
    page = site.get("/check").text
    assert f'action="/check/{damaged.id}"' in page
    assert "config.json can be restored from the index." in page
    assert site.post(f"/check/{damaged.id}", follow_redirects=False).status_code == 303
    assert "nothing is damaged" in site.get("/check").text
    assert site.get(f"/api/v1/runs/{damaged.id}").json()["status"] == "finished"


def test_the_button_on_the_page_of_the_run(site: TestClient, damaged: RunFolder) -> None:
    assert f"/runs/{damaged.id}/repair" in site.get(f"/runs/{damaged.id}").text
    assert site.post(f"/runs/{damaged.id}/repair", follow_redirects=False).status_code == 303
    assert site.get(f"/api/v1/runs/{damaged.id}").json()["status"] == "finished"


def test_a_repair_says_what_it_did(site: TestClient, damaged: RunFolder) -> None:
    answer = site.post(f"/api/v1/runs/{damaged.id}/repair").json()
    assert (answer["done"], answer["problems"]) == (["config.json was restored from the index."], [])
    assert answer["run"]["status"] == "finished"


@pytest.mark.parametrize("address", ["/check/digits", "/api/v1/runs/nothere/repair", "/runs/nothere/repair"])
def test_only_runs_can_be_restored(site: TestClient, address: str) -> None:
    assert site.post(address, follow_redirects=False).status_code == 404


def test_labels_of_a_damaged_record_can_not_be_changed(site: TestClient, damaged: RunFolder) -> None:
    """A new run.json would replace what can still be restored."""
    cut(damaged.path / "run.json")
    before = (damaged.path / "run.json").read_bytes()
    answer = site.patch(f"/api/v1/runs/{damaged.id}", json={"name": "other"})
    assert (answer.status_code, "run.json is damaged" in answer.json()["detail"]) == (409, True)
    assert (damaged.path / "run.json").read_bytes() == before


def test_the_page_says_what_a_repair_has_done(site: TestClient, damaged: RunFolder) -> None:
    answer = site.post(f"/runs/{damaged.id}/repair", follow_redirects=False)
    assert answer.headers["location"] == "/check"
    assert "config.json was restored from the index." in site.get("/check").text


@pytest.mark.parametrize("name", ["x" * 300, "..", ".deleted-x", "%00"])
def test_odd_ids_are_not_found(site: TestClient, name: str) -> None:
    for address in (f"/check/{name}", f"/api/v1/runs/{name}/repair", f"/api/v1/runs/{name}/restore"):
        assert site.post(address).status_code in (404, 405)
