"""While the home is not there, nothing is created, started or removed. When it is back, the server continues."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.runs.executors import ExecutorUnavailable
from app.runs.presence import Presence
from app.server import make_state
from app.settings import Settings
from app.store.database import IndexUnusable, open_index
from trainer.home import id_paths

RUN: dict[str, Any] = {"dataset": "digits", "model": "fc"}
CHANGES = [
    ("POST", "/api/v1/runs", {"json": RUN}),
    ("POST", "/api/v1/sweeps", {"json": {"base": RUN, "repeats": 2}}),
    ("POST", "/api/v1/reindex", {}),
    ("PATCH", "/api/v1/runs/{run}", {"json": {"name": "new"}}),
    ("DELETE", "/api/v1/runs/{run}", {}),
    ("POST", "/api/v1/runs/{run}/cancel", {}),
    ("POST", "/runs/selected", {"data": {"action": "delete", "run": "{run}"}}),
]
PAGES = ["/runs", "/runs/new", "/datasets", "/check", "/runs/{run}", "/api/v1/runs", "/api/v1/devices", "/healthz"]


@pytest.fixture
def site(home: Path) -> Any:
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("part", [".", "runs"])
@pytest.mark.parametrize("place", ["empty", "gone"])
def test_nothing_is_done_without_the_home(site: TestClient, home: Path, tmp_path: Path, part: str, place: str) -> None:
    run = site.post("/api/v1/runs", json=RUN).json()["id"]
    state = site.app.state.runoff  # type: ignore[attr-defined]
    missing = home / part
    missing.rename(tmp_path / "away")
    if place == "empty":  # the mount point
        missing.mkdir()
    for method, path, options in CHANGES:
        answer = site.request(method, path.format(run=run), **options)
        assert answer.status_code == 503, path
        assert answer.headers["retry-after"] == "2"
        assert "missing or was replaced" in answer.text
    for path in PAGES:
        answer = site.get(path.format(run=run), headers={"Accept": "text/html"})
        assert answer.status_code in (200, 503), path
        if not path.startswith(("/api/", "/healthz")):
            assert "missing or was replaced" in answer.text, path
    assert site.get("/healthz").json() == {"status": "degraded"}
    system = site.get("/api/v1/system").json()
    assert system["status"] == "degraded"
    assert "missing or was replaced" in system["problems"][0]
    assert state.scheduler.tick() is False
    assert state.indexer._remove_rows([run]) is False
    with pytest.raises(ExecutorUnavailable, match="missing or was replaced"):
        state.executor.ensure_host()
    assert list(missing.iterdir()) == [] if place == "empty" else not missing.exists()
    if place == "empty":
        missing.rmdir()
    (tmp_path / "away").rename(missing)
    assert site.get("/healthz").json() == {"status": "ok"}
    assert site.get(f"/api/v1/runs/{run}").json()["status"] == "queued"
    assert site.patch(f"/api/v1/runs/{run}", json={"name": "new"}).json()["name"] == "new"


def test_rows_stay_while_the_folder_of_runs_is_an_empty_mount_point(
    site: TestClient, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be unmounted at any moment of a tick."""
    site.post("/api/v1/runs", json=RUN)
    indexer = site.app.state.runoff.indexer  # type: ignore[attr-defined]
    (home / "runs").rename(tmp_path / "away")
    (home / "runs").mkdir()
    indexer.discover()
    assert site.get("/api/v1/runs").json()["total"] == 1
    assert indexer.rebuild() == 0
    assert site.get("/api/v1/runs").json()["total"] == 1
    assert "is removed" not in caplog.text


def test_another_home_in_its_place_is_not_used(tmp_path: Path) -> None:
    presence = Presence.of(tmp_path / "home")
    assert presence.problem() == ""
    for path in id_paths(tmp_path / "home"):
        path.unlink()
    assert "missing or was replaced" in presence.problem()
    Presence.of(tmp_path / "home")
    assert "missing or was replaced" in presence.problem()


def test_a_missing_index_is_not_made_by_a_reader(home: Path) -> None:
    state = make_state(Settings(home=home))
    state.settings.database.unlink()
    with pytest.raises(Exception, match="the file is missing"):
        state.engine.connect()
    assert not state.settings.database.exists()


def test_a_path_that_is_too_long_for_the_index_is_named(tmp_path: Path) -> None:
    home = tmp_path.joinpath(*["x" * 200] * 3)
    home.mkdir(parents=True)
    with pytest.raises(IndexUnusable, match=re.escape("too long for SQLite")):
        open_index(home / "runoff.sqlite3")
