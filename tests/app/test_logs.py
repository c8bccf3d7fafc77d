"""What repeats is logged once a minute, with how often it happened."""

from __future__ import annotations

import logging

import pytest
from fastapi.testclient import TestClient

from app.logs import OncePerMinute


def record(text: str = "The disk is full.", error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error is not None else None
    return logging.LogRecord("app.runs", logging.ERROR, "x.py", 1, text, (), exc_info)


def test_a_failure_that_repeats_is_written_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("app.logs.time.monotonic", lambda: now)
    once = OncePerMinute()
    assert [once.filter(record()) for _time in range(300)] == [True] + 299 * [False]
    assert once.filter(record("Another text."))
    assert once.filter(record(error=OSError("an error")))
    assert not once.filter(record(error=OSError("an error")))
    now += 61
    last = record()
    assert once.filter(last)
    assert last.getMessage() == "The disk is full. (299 more times since it was last written)"


def test_information_is_never_dropped() -> None:
    once = OncePerMinute()
    told = logging.LogRecord("uvicorn", logging.INFO, "x.py", 1, "GET /runs", (), None)
    assert all(once.filter(told) for _time in range(5))


def test_a_server_short_of_space_says_so(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.get("/healthz").json() == {"status": "ok"}
    assert site.get("/api/v1/system").json()["problems"] == []
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("app.runs.room.shutil.disk_usage", lambda _path: usage)
    assert site.get("/healthz").json() == {"status": "degraded"}
    [problem] = site.get("/api/v1/system").json()["problems"]
    assert "Only 1 MB are free" in problem
    assert problem in site.get("/runs").text
