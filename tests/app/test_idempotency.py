"""A request that is repeated with its Idempotency-Key starts nothing twice, whatever happened to the first one."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from starlette.testclient import TestClient

import trainer.files
from app.main import create_app
from app.routes.api import runs, sweeps
from app.runs import idempotency, starting
from app.schemas import SweepIn
from app.server import make_state
from app.settings import Settings

RUN: dict[str, Any] = {"dataset": "digits", "model": "fc"}
SWEEP: dict[str, Any] = {"base": RUN, "grid": {"seed": [0, 1, 2]}}
REQUESTS: dict[str, tuple[dict[str, Any], int]] = {"/api/v1/runs": (RUN, 1), "/api/v1/sweeps": (SWEEP, 3)}


def serve(home: Path) -> TestClient:
    return TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost")


def post(site: TestClient, path: str, body: dict[str, Any], key: str = "a key") -> Any:
    return site.post(path, json=body, headers={"Idempotency-Key": key})


def total(site: TestClient) -> int:
    site.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
    return int(site.get("/api/v1/runs").json()["total"])


@pytest.mark.parametrize("path", REQUESTS)
def test_the_same_request_gets_the_first_answer(home: Path, path: str) -> None:
    body, count = REQUESTS[path]
    with serve(home) as site:
        first = post(site, path, body)
        for run in site.get("/api/v1/runs").json()["runs"]:
            site.post(f"/api/v1/runs/{run['id']}/cancel")
        again = post(site, path, dict(reversed(body.items())))
        assert (again.status_code, again.json()) == (first.status_code, first.json()) == (201, first.json())
        assert again.headers["location"] == first.headers["location"]
        assert post(site, path, body, "another key").json() != first.json()
        assert total(site) == 2 * count
    with serve(home) as site:
        assert post(site, path, body).json() == first.json()
        assert total(site) == 2 * count


def test_another_request_with_the_same_key_is_refused(home: Path) -> None:
    with serve(home) as site:
        post(site, "/api/v1/runs", RUN)
        for path, body in (("/api/v1/runs", {**RUN, "seed": 1}), ("/api/v1/sweeps", SWEEP)):
            answer = post(site, path, body)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
        assert total(site) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9".encode(), b"a\x7fb", b"a\tb"])
def test_a_key_that_cannot_be_used_is_refused(home: Path, key: str | bytes) -> None:
    with serve(home) as site:
        answer = site.post("/api/v1/runs", json=RUN, headers={"Idempotency-Key": key})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
        assert post(site, "/api/v1/runs", RUN, "../../" + "x" * 249).status_code == 201
        assert total(site) == 1


def test_a_refused_request_leaves_its_key_free(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with serve(home) as site:
        assert post(site, "/api/v1/runs", {**RUN, "epochs": 0}).status_code == 422
        for name in ("record", "announce"):
            with monkeypatch.context() as patch:
                patch.setattr(idempotency if name == "record" else starting, name, refuse)
                assert post(site, "/api/v1/sweeps", SWEEP).status_code == 503
        assert total(site) == 0
        assert post(site, "/api/v1/runs", RUN).status_code == 201
        assert total(site) == 1


def test_two_requests_at_once_start_one_run(home: Path) -> None:
    with serve(home) as site, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _number: post(site, "/api/v1/runs", RUN).json(), range(4)))
        assert len({answer["id"] for answer in answers}) == 1
        assert total(site) == 1


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("path", REQUESTS)
def test_a_retry_after_a_kill_starts_nothing_twice(home: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed before each change of a file in turn, and the client sends the request again."""
    body, count = REQUESTS[path]
    outcomes = set()
    for point in range(100):
        is_done, was_started = kill_at(point, home / str(point), path, body, monkeypatch)
        outcomes.add(was_started)
        with serve(home / str(point)) as site:
            assert total(site) == (count if was_started else 0), point
            answer = post(site, path, body)
            assert answer.status_code == 201
            assert post(site, path, body).json() == answer.json()
            assert total(site) == count, point
        if is_done:
            break
    assert outcomes == {True, False}
    assert 5 <= point < 100


def kill_at(
    point: int, home: Path, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, bool]:
    """Send a request and end at a change of a file; whether there was an answer, and whether its runs are to be."""
    left = point
    real_write, real_unlink = trainer.files.write_bytes, Path.unlink

    def step() -> None:
        nonlocal left
        if left <= 0:
            raise Killed
        left -= 1

    def write(target: Path, data: bytes) -> None:
        step()
        real_write(target, data)

    def unlink(target: Path, missing_ok: bool = False) -> None:
        if target.suffix == ".json":
            step()
        real_unlink(target, missing_ok)

    state = make_state(Settings(home=home))
    is_done = False
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(trainer.files, "write_bytes", write)
        patch.setattr(Path, "unlink", unlink)
        patch.setattr(starting, "take_back", lambda *_arguments: None)  # a killed process does nothing more
        if path.endswith("runs"):
            runs.start_run(state, Response(), body, "a key")
        else:
            sweeps.start_sweep(state, Response(), SweepIn(**body), "a key")
        is_done = True
    return is_done, any((home / "starting").glob("*.json")) or any((home / "runs").glob("*/run.json"))


def test_a_key_is_free_after_a_day(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(home) as site:
        first = post(site, "/api/v1/runs", RUN).json()
        later = time.time() + idempotency.KEPT_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr("app.runs.idempotency.time.time", lambda: later)
            assert post(site, "/api/v1/runs", RUN).json()["id"] != first["id"]
    [record] = (home / "idempotency").iterdir()
    idempotency.purge(home)
    assert record.exists()
    os.utime(record, (time.time() - idempotency.KEPT_SECONDS - 1,) * 2)
    with serve(home):
        assert not record.exists()


def test_a_damaged_record_starts_nothing(home: Path) -> None:
    with serve(home) as site:
        post(site, "/api/v1/runs", RUN)
        [record] = (home / "idempotency").iterdir()
        record.write_bytes(record.read_bytes()[:50])
        assert post(site, "/api/v1/runs", RUN).status_code == 409
        assert total(site) == 1


def test_the_key_of_a_deleted_run_starts_no_second_one(home: Path) -> None:
    with serve(home) as site:
        first = post(site, "/api/v1/runs", RUN).json()
        site.delete(f"/api/v1/runs/{first['id']}")
        assert post(site, "/api/v1/runs", RUN).json() == first
        assert total(site) == 0
