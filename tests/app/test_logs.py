"""What repeats is logged once a minute, with how often it happened."""

from __future__ import annotations

import errno
import logging
import sqlite3

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from app.logs import OncePerMinute, log_failure


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


def test_a_full_disk_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The log may be on the same disk."""
    errors: list[BaseException] = [
        OSError(errno.ENOSPC, "No space left on device"),
        OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full")),
    ]
    try:
        try:
            raise errors[1]
        except OperationalError:
            raise OperationalError("ROLLBACK", {}, sqlite3.OperationalError("no such savepoint")) from None
    except OperationalError as error:
        errors.append(error)
    for each in errors:
        log_failure(logging.getLogger("app"), "It was not written.", each)
    assert [line.exc_info for line in caplog.records] == [None, None, None]
    assert caplog.messages[2] == "It was not written. database or disk is full"
    log_failure(logging.getLogger("app"), "It was not written.", ZeroDivisionError())
    assert caplog.records[-1].exc_info


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
