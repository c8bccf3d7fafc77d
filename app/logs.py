"""The server's log: what repeats is written once a minute. A failure that happens at every tick would fill a disk."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import DatabaseError

from trainer.files import is_full

_EVERY_SECONDS = 60.0
_MOST_KEYS = 1000


class OncePerMinute(logging.Filter):
    """Drops a record like one of the last minute; the next one that passes says how many were dropped.

    Records are alike if they have the same logger, text and exception.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}  # -> when it was written, how many were dropped since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        error = repr(record.exc_info[1]) if record.exc_info else ""
        key, now = (record.name, record.getMessage(), error), time.monotonic()
        with self._lock:
            written_at, dropped = self._seen.get(key, (-_EVERY_SECONDS, 0))
            if now - written_at < _EVERY_SECONDS:
                self._seen[key] = (written_at, dropped + 1)
                return False
            if len(self._seen) >= _MOST_KEYS:
                self._seen.clear()
            self._seen[key] = (now, 0)
        if dropped:
            record.msg, record.args = f"{record.getMessage()} ({dropped:,} more times since it was last written)", ()
        return True


class NotCancelled(logging.Filter):
    """Drops records of requests that were cancelled because the server ends: these are not failures."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def log_failure(logger: logging.Logger, text: str, error: BaseException) -> None:
    """Log an error with its traceback, or in one line if the disk or the database failed: there a traceback does not help."""
    cause: BaseException | None = error
    while cause is not None and not is_full(cause) and "disk is full" not in str(cause):  # how SQLite reports it
        cause = cause.__context__
    if cause is not None or isinstance(error, OSError | DatabaseError):
        cause = cause or error
        logger.error("%s %s", text, getattr(cause, "orig", None) or cause)
    else:
        logger.error(text, exc_info=error)


def uvicorn_config(defaults: dict[str, Any]) -> dict[str, Any]:
    """uvicorn's configuration of logging, with our filters on its handlers, also for the loggers of Runoff."""
    config = copy.deepcopy(defaults)
    config["filters"] = {"once": {"()": OncePerMinute}, "not cancelled": {"()": NotCancelled}}
    for handler in config["handlers"].values():
        handler["filters"] = ["not cancelled", "once"]
    config["root"] = {"handlers": ["default"], "level": "WARNING"}
    return config
