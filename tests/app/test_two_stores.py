"""A change is in the run folder first and in the index second: what was refused was not done, what was done holds."""

from __future__ import annotations

import errno
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
from app.runs import commands, lifecycle, starting, trash
from app.runs.idempotency import KeyedRequest
from app.runs.plan import plan
from app.schemas import SweepIn
from app.server import make_state
from app.settings import Settings
from app.store.database import reading, writing
from app.store.tables import Run
from tests.app.run_folders import CANCELLED, epoch, say, started
from trainer import files
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


def test_others_read_and_write_while_a_sweep_is_written_and_see_none_of_it(
    site: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.05)
    other = begin(site, seed=9)
    real, seen = RunFolder.announce, []

    def announce(folder: RunFolder, **labels: Any) -> None:
        real(folder, **labels)
        assert site.patch(f"/api/v1/runs/{other}", json={"notes": folder.id}).status_code == 200
        site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        seen.append(site.get("/api/v1/runs").json()["total"])

    monkeypatch.setattr(RunFolder, "announce", announce)
    assert site.post("/api/v1/sweeps", json=SWEEP).status_code == 201
    assert seen == [1, 1, 1]
    assert site.get("/api/v1/runs").json()["total"] == 4


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_refused_sweep_is_gone_after_a_kill(home: Path, monkeypatch: pytest.MonkeyPatch, removed: int) -> None:
    """The index refuses the rows, and the process ends while it removes one folder after the other."""

    class Killed(BaseException):
        pass

    real, left = starting._remove, removed

    def remove(folder: RunFolder) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        real(folder)

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    state = make_state(Settings(home=home))
    with monkeypatch.context() as patch:
        patch.setattr(commands, "add_new", refuse)
        patch.setattr(starting, "_remove", remove)
        with pytest.raises(Killed):
            commands.start(state, plan(home, SweepIn.model_validate(SWEEP)))
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as site:
        site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        assert site.get("/api/v1/runs").json()["total"] == 0
    assert [*(home / "starting").iterdir(), *(home / "runs").iterdir()] == []


def test_folders_that_were_claimed_long_ago_are_removed(home: Path) -> None:
    for name in ("old", "young"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "config.json").write_text("{}")
    os.utime(home / "runs" / "old", (time.time() - 3600,) * 2)
    (home / "starting").mkdir()
    (home / "starting" / ".sweep.json.1.tmp").touch()
    starting.complete(home)
    assert [path.name for path in (home / "runs").iterdir()] == ["young"]
    assert list((home / "starting").iterdir()) == []


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
    assert "2 runs undeleted" in site.post("/runs/deleted", data={"run": runs}, headers=headers).text
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


def failing_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes a rename, but not the sync of its folder."""

    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sync_folder", fail)
    monkeypatch.setattr(trash, "sync_folder", fail)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_not_refused_where_only_the_sync_fails(
    site: TestClient, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(site)
    do, is_done = CHANGES[change]
    with monkeypatch.context() as patch:
        failing_syncs(patch)
        assert do(site, run).status_code in (200, 202, 204)
    assert is_done(row(site, run))
    site.post("/api/v1/reindex")
    assert is_done(row(site, run))


def test_a_run_is_restored_where_only_the_sync_fails(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(site)
    site.delete(f"/api/v1/runs/{run}")
    with monkeypatch.context() as patch:
        failing_syncs(patch)
        assert site.post(f"/api/v1/runs/{run}/restore").status_code == 200
    assert row(site, run)["status"] == "queued"


def test_a_file_that_was_replaced_needs_no_tidying_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, **_options: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", fail)
    files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_run_that_waits_for_nothing_gives_no_reason(site: TestClient) -> None:
    run = begin(site)
    state = site.app.state.runoff  # type: ignore[attr-defined]
    with writing(state.engine) as session:
        lifecycle.note_queue_reason(session, "slot")
        session.commit()
    assert row(site, run)["queue_reason"] == "slot"
    site.post(f"/api/v1/runs/{run}/cancel")
    assert row(site, run)["queue_reason"] == ""


def run_without_an_event(site: TestClient) -> RunFolder:
    """A run whose process has begun, but has written nothing yet."""
    state = site.app.state.runoff  # type: ignore[attr-defined]
    folder = RunFolder(state.settings.runs / begin(site))
    with writing(state.engine) as session:
        lifecycle.begin_attempt(session, folder, session.get_one(Run, folder.id), "cpu")
        session.commit()
    return folder


def test_a_stop_holds_where_the_index_cannot_follow(site: TestClient) -> None:
    folder = run_without_an_event(site)
    with failing_commits(site):
        assert site.post(f"/api/v1/runs/{folder.id}/stop").status_code == 202
    site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
    assert row(site, folder.id)["cancel_requested"]


def test_a_cancel_outlives_the_index(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a rebuild nor the start of the attempt that goes on forgets it."""
    folder = run_without_an_event(site)
    site.post(f"/api/v1/runs/{folder.id}/cancel")
    site.post("/api/v1/reindex")
    found = row(site, folder.id)
    assert (found["status"], found["cancel_requested"], found["attempt"]) == ("running", True, 1)
    monkeypatch.setattr(RunFolder, "is_alive", lambda _folder: True)
    state = site.app.state.runoff  # type: ignore[attr-defined]
    with writing(state.engine) as session:
        run = session.get_one(Run, folder.id)
        run.status = "queued"
        session.flush()
        lifecycle.begin_attempt(session, folder, run, "cpu")
        session.commit()
    assert row(site, folder.id)["cancel_requested"]


def test_a_cancel_that_the_index_missed_is_found_at_the_start(home: Path) -> None:
    settings = Settings(home=home)
    with TestClient(create_app(settings, train=False), base_url="http://localhost") as site:
        folder = run_without_an_event(site)
    os.utime(folder.path / "run.json", (1, 1))
    os.utime(settings.database, (time.time() - 10,) * 2)
    folder.request_stop()
    with TestClient(create_app(settings, train=False), base_url="http://localhost") as site:
        site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        assert row(site, folder.id)["cancel_requested"]


def test_a_rebuild_counts_attempts_without_an_epoch_as_before(site: TestClient) -> None:
    folder = run_without_an_event(site)
    state = site.app.state.runoff  # type: ignore[attr-defined]
    say(folder, [started()])
    state.indexer.tick()
    with writing(state.engine) as session:
        lifecycle.end_vanished_attempt(session, folder, session.get_one(Run, folder.id))
        session.commit()
    say(folder, [started(), CANCELLED], attempt=2)
    state.indexer.tick()
    for _rebuild in range(2):
        with reading(state.engine) as session:
            run = session.get_one(Run, folder.id)
            assert (run.status, run.fruitless_attempts) == ("cancelled", 1)
        state.indexer.rebuild()


def test_an_epoch_ends_the_count_of_attempts_without_one_after_a_rebuild_too(site: TestClient) -> None:
    """The process ends unexpectedly twice, the second time after an epoch and when it was asked to stop."""
    folder = run_without_an_event(site)
    state = site.app.state.runoff  # type: ignore[attr-defined]
    for attempt, events in ((1, [started()]), (2, [started(), epoch(1)])):
        say(folder, events, attempt=attempt)
        state.indexer.tick()
        with writing(state.engine) as session:
            run = session.get_one(Run, folder.id)
            run.attempt, run.cancel_requested = attempt, attempt == 2
            lifecycle.end_vanished_attempt(session, folder, run)
            session.commit()
    for _rebuild in range(2):
        with reading(state.engine) as session:
            run = session.get_one(Run, folder.id)
            assert (run.status, run.fruitless_attempts) == ("cancelled", 0)
        state.indexer.rebuild()


@pytest.mark.parametrize("command", ["cancel", "stop"])
def test_a_stop_that_the_index_refuses_is_not_asked_for(site: TestClient, command: str) -> None:
    folder = run_without_an_event(site)
    engine = site.app.state.runoff.engine  # type: ignore[attr-defined]

    def fail(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("UPDATE"):
            raise OperationalError(statement, {}, Exception("database or disk is full"))

    event.listen(engine, "before_cursor_execute", fail)
    assert site.post(f"/api/v1/runs/{folder.id}/{command}").status_code == 503
    event.remove(engine, "before_cursor_execute", fail)
    assert not folder.stop_requested()


def test_what_is_left_of_an_old_deleted_run_is_not_taken_back(
    site: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(site)
    site.delete(f"/api/v1/runs/{run}")
    os.utime(home / "trash" / run, (time.time() - 31 * 24 * 3600,) * 2)
    with monkeypatch.context() as patch:
        patch.setattr(
            "app.runs.trash.shutil.rmtree", lambda *_arguments, **_options: None
        )  # as an error of the disk has it
        list(trash.purge(home))
    assert site.post(f"/api/v1/runs/{run}/restore").status_code == 404
    list(trash.purge(home))
    assert list((home / "trash").iterdir()) == []


def test_what_is_left_of_a_run_that_could_not_start_is_no_run(
    site: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, failing_commits(site):
        patch.setattr("app.runs.starting.shutil.rmtree", lambda *_arguments, **_options: None)
        assert site.post("/api/v1/runs", json={"dataset": "digits", "model": "fc"}).status_code == 503
    site.post("/api/v1/reindex")
    assert site.get("/api/v1/runs").json()["total"] == 0


def test_a_run_that_has_written_nothing_keeps_its_slot_after_a_rebuild(
    site: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = run_without_an_event(site), begin(site, seed=1)
    monkeypatch.setattr(RunFolder, "is_alive", lambda each: each.id == folder.id)
    site.post("/api/v1/reindex")
    assert [row(site, run)["status"] for run in (folder.id, other)] == ["running", "queued"]
    assert row(site, folder.id)["attempt"] == 1


def test_old_temporary_files_are_removed_at_the_start(home: Path) -> None:
    home.mkdir()
    for name in (".server.json.1.tmp", ".server.json.2.tmp"):
        (home / name).touch()
    os.utime(home / ".server.json.1.tmp", (time.time() - 3600,) * 2)
    with TestClient(create_app(Settings(home=home), train=False)):
        assert [path.name for path in home.glob(".*.tmp")] == [".server.json.2.tmp"]


def test_a_sweep_that_was_noted_on_a_full_disk_starts_when_there_is_space(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was killed after its note, and the next one started on a full disk."""

    class Killed(BaseException):
        pass

    def kill(*_arguments: object, **_labels: object) -> None:
        raise Killed

    def fail(*_arguments: object, **_labels: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    keyed = KeyedRequest.of("a key", ["sweeps", SWEEP])
    state = make_state(Settings(home=home))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "announce", kill)
        patch.setattr(starting, "take_back", lambda *_arguments: None)
        with pytest.raises(Killed):
            commands.start(state, plan(home, SweepIn.model_validate(SWEEP)), keyed=keyed)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "announce", fail)
        client = TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost")
        site = client.__enter__()
    try:
        assert starting.is_noted(home, keyed)
        assert site.post("/api/v1/sweeps", json=SWEEP, headers={"Idempotency-Key": "a key"}).status_code == 503
        scheduler: Any = site.app.state.runoff.scheduler  # type: ignore[attr-defined]
        scheduler._began_at = time.time() + 1
        scheduler._complete_starts()
        scheduler.indexer.tick()
        assert site.get("/api/v1/runs").json()["total"] == 3
    finally:
        client.__exit__(None, None, None)


def test_what_cannot_be_removed_from_the_trash_stops_no_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = home / "trash" / "abc"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", fail)
    assert list(trash.purge(home)) == []
    assert old.is_dir()
