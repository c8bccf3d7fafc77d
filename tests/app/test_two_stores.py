"""A change is in the run folder first and in the index second: what was refused was not done, what was done holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from app.main import create_app
from app.runs import commands, starting, trash
from app.runs.plan import plan
from app.schemas import SweepIn
from app.server import make_state
from app.settings import Settings
from trainer.run_folder import RunFolder

SWEEP = {"base": {"dataset": "digits", "model": "fc"}, "grid": {"seed": [0, 1, 2]}}


@pytest.fixture
def site(home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as client:
        yield client


@contextmanager
def failing_commits(site: TestClient) -> Iterator[None]:
    """Every commit fails as it does on a full disk."""
    engine = site.app.state.runoff.engine  # type: ignore[attr-defined]

    def fail(_connection: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("database or disk is full"))

    event.listen(engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(engine, "commit", fail)


def begin(site: TestClient, **fields: Any) -> str:
    answer = site.post("/api/v1/runs", json={"dataset": "digits", "model": "fc", **fields})
    assert answer.status_code == 201
    return str(answer.json()["id"])


def row(site: TestClient, run_id: str) -> dict[str, Any]:
    values: dict[str, Any] = site.get(f"/api/v1/runs/{run_id}").json()
    return values


CHANGES: dict[str, tuple[Callable[[TestClient, str], Any], Callable[[dict[str, Any]], bool]]] = {
    "rename": (
        lambda site, run: site.patch(f"/api/v1/runs/{run}", json={"name": "new"}),
        lambda values: values["name"] == "new",
    ),
    "cancel": (
        lambda site, run: site.post(f"/api/v1/runs/{run}/cancel"),
        lambda values: values["status"] == "cancelled",
    ),
    "delete": (lambda site, run: site.delete(f"/api/v1/runs/{run}"), lambda values: values.get("status") == 404),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_folder_has_holds(site: TestClient, change: str) -> None:
    run = begin(site)
    do, is_done = CHANGES[change]
    with failing_commits(site):
        assert do(site, run).status_code in (200, 202, 204)
    site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
    assert is_done(row(site, run))
    site.post("/api/v1/reindex")
    assert is_done(row(site, run))


@pytest.mark.parametrize("change", ["rename", "cancel"])
def test_a_change_that_the_folder_could_not_take_is_not_done(
    site: TestClient, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(site)
    do, is_done = CHANGES[change]

    def refuse(_folder: RunFolder, _values: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_run", refuse)
        assert do(site, run).status_code == 503
    assert not is_done(row(site, run))
    site.post("/api/v1/reindex")
    assert not is_done(row(site, run))


def test_a_start_that_is_refused_leaves_no_run(site: TestClient, home: Path) -> None:
    with failing_commits(site):
        assert site.post("/api/v1/sweeps", json=SWEEP).status_code == 503
    site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
    assert site.get("/api/v1/runs").json()["total"] == 0
    assert [*(home / "runs").iterdir(), *(home / "starting").iterdir()] == []


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_sweep_is_whole_after_a_kill(home: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int) -> None:
    """The process ends while it writes the run.json of one run after the other."""

    class Killed(BaseException):
        pass

    real, written = RunFolder.announce, 0

    def announce(folder: RunFolder, **labels: Any) -> None:
        nonlocal written
        if written == killed_after:
            raise Killed
        written += 1
        real(folder, **labels)

    state = make_state(Settings(home=home))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "announce", announce)
        patch.setattr(starting, "take_back", lambda *_arguments: None)  # a killed process does nothing more
        with pytest.raises(Killed) if killed_after < 3 else nullcontext():
            commands.start(state, plan(home, SweepIn.model_validate(SWEEP)))
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as site:
        site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        runs = site.get("/api/v1/runs").json()["runs"]
        assert [run["seed"] for run in sorted(runs, key=lambda run: run["seed"])] == [0, 1, 2]
        assert len({run["sweep"] for run in runs}) == 1
        assert {run["status"] for run in runs} == {"queued"}
    assert list((home / "starting").glob("*")) == []


def test_folders_that_were_claimed_long_ago_are_removed(home: Path) -> None:
    for name in ("old", "young"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "config.json").write_text("{}")
    os.utime(home / "runs" / "old", (time.time() - 3600,) * 2)
    starting.complete(home)
    assert [path.name for path in (home / "runs").iterdir()] == ["young"]


def test_a_deleted_run_is_taken_back(site: TestClient, home: Path) -> None:
    run = begin(site, seed=3)
    site.patch(f"/api/v1/runs/{run}", json={"name": "kept", "tags": ["one"]})
    before = row(site, run)
    assert site.delete(f"/api/v1/runs/{run}").status_code == 204
    assert [path.name for path in (home / "trash").iterdir()] == [run]
    assert row(site, run)["status"] == 404
    answer = site.post(f"/api/v1/runs/{run}/restore")
    assert answer.status_code == 200
    assert row(site, run) == before
    assert site.post(f"/api/v1/runs/{run}/restore").status_code == 404


def test_undo_in_the_table_of_runs(site: TestClient) -> None:
    runs = [begin(site, seed=seed) for seed in (1, 2)]
    headers = {"HX-Request": "true", "HX-Target": "div#toasts", "Sec-Fetch-Site": "same-origin"}
    answer = site.post("/runs/selected", data={"action": "delete", "run": runs}, headers=headers)
    assert "2 runs deleted" in answer.text
    assert 'hx-post="/runs/deleted"' in answer.text
    assert site.get("/api/v1/runs").json()["total"] == 0
    assert "2 runs restored" in site.post("/runs/deleted", data={"run": runs}, headers=headers).text
    assert site.get("/api/v1/runs").json()["total"] == 2


@pytest.mark.parametrize("name", ["..", ".", "nothere", "..%2Fruns"])
def test_only_what_is_in_the_trash_is_taken_back(site: TestClient, name: str) -> None:
    begin(site)
    assert site.post(f"/api/v1/runs/{name}/restore").status_code in (404, 405)


def test_the_trash_is_emptied_after_30_days(site: TestClient, home: Path) -> None:
    old, young = begin(site, seed=1), begin(site, seed=2)
    for run in (old, young):
        site.delete(f"/api/v1/runs/{run}")
    os.utime(home / "trash" / old, (time.time() - 31 * 24 * 3600,) * 2)
    assert [path.name for path in trash.purge(home)] == [old]
    assert [path.name for path in (home / "trash").iterdir()] == [young]


def test_a_run_that_came_back_by_itself_is_not_replaced(site: TestClient, home: Path) -> None:
    run = begin(site)
    site.delete(f"/api/v1/runs/{run}")
    (home / "runs" / run).mkdir()
    assert site.post(f"/api/v1/runs/{run}/restore").status_code == 409
    assert (home / "trash" / run / "run.json").exists()


def test_a_change_that_the_index_missed_is_found_at_the_start(home: Path) -> None:
    """The power was cut between the two stores."""
    settings = Settings(home=home)
    with TestClient(create_app(settings, train=False), base_url="http://localhost") as site:
        run, other = begin(site, seed=1), begin(site, seed=2)
    folder = RunFolder(home / "runs" / run)
    folder.write_run((folder.read_run() or {}) | {"name": "new"})
    unchanged = RunFolder(home / "runs" / other)
    unchanged.write_run((unchanged.read_run() or {}) | {"name": "older than the index"})
    os.utime(home / "runs" / other / "run.json", (1, 1))
    os.utime(settings.database, (time.time() - 10,) * 2)
    with TestClient(create_app(settings, train=False), base_url="http://localhost") as site:
        site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        assert (row(site, run)["name"], row(site, other)["name"]) == ("new", "FC on digits")
