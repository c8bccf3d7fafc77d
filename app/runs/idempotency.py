"""Requests that can be repeated safely: the result of one with an ``Idempotency-Key`` is recorded for 24 hours.

A record is a file below ``idempotency`` in the home. It names the runs that were started, and is valid only while all of
them exist. The note of ``app.runs.starting`` has both key and runs, so that a killed server leaves both or neither.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from app.errors import Conflict, Refused
from trainer.config import FieldProblem
from trainer.files import DamagedFile, read_sealed, write_sealed
from trainer.i18n import _

KEPT_SECONDS = 24 * 3600.0
LONGEST = 255
FIELD = "Idempotency-Key"
_locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
_lock_of_locks = Lock()


@dataclass(frozen=True)
class KeyedRequest:
    """A request with a key: the name of its record, the hash of its content, and its time."""

    name: str
    request: str
    at: float

    @classmethod
    def of(cls, key: str, asked: Any) -> KeyedRequest:
        """The request with the content ``asked``, a JSON value. Raises ``Refused`` for a key that can't be used."""
        if not re.fullmatch(r"[ -~]+", key) or len(key) > LONGEST:
            message = _("Give a key of 1 to {limit} printable ASCII characters, such as a UUID.").format(limit=LONGEST)
            raise Refused.fields([FieldProblem(field=FIELD, message=message)])
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return cls(_hash(key), _hash(text), time.time())

    def values(self) -> dict[str, Any]:
        """The fields as JSON, for the note and the record."""
        return {"name": self.name, "request": self.request, "at": self.at}

    def path(self, home: Path) -> Path:
        """The file of the record."""
        return home / "idempotency" / f"{self.name}.json"


@dataclass(frozen=True)
class Record:
    """The result of a request: its runs in the order in which they start, and the response, if there was one."""

    runs: list[str]
    sweep: str | None
    answer: Any


def answering(keyed: KeyedRequest) -> Lock:
    """The lock to hold from the look-up of a key's record until it is written. Requests with other keys do not wait."""
    with _lock_of_locks:
        return _locks.setdefault(keyed.name, Lock())


def record(home: Path, keyed: KeyedRequest, runs: Sequence[str], sweep: str | None, answer: Any = None) -> None:
    """Write the result of a request. Raises ``OSError``."""
    path = keyed.path(home)
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, {**keyed.values(), "runs": list(runs), "sweep": sweep, "answer": answer})


def forget(home: Path, keyed: KeyedRequest) -> None:
    """Remove the record of a request that was refused."""
    keyed.path(home).unlink(missing_ok=True)


def find(home: Path, keyed: KeyedRequest) -> Record | None:
    """The result of the same request in the last 24 hours; None if its key is new.

    Raises ``Refused`` if the key was used for another request, and ``Conflict`` if the record is damaged.
    """
    try:
        values = read_sealed(keyed.path(home))
    except DamagedFile:
        raise Conflict(_("The record of this Idempotency-Key is damaged. Use a new key.")) from None
    if values is None or _is_old(values["at"]) or not all(_exists(home, run_id) for run_id in values["runs"]):
        return None
    if values["request"] != keyed.request:
        message = _("This key was used for another request. Use a new key for each request.")
        raise Refused.fields([FieldProblem(field=FIELD, message=message)])
    return Record(values["runs"], values["sweep"], values["answer"])


def purge(home: Path) -> None:
    """Remove the records of keys that were used more than 24 hours ago."""
    for path in (home / "idempotency").glob("*.json"):
        with suppress(OSError):
            if _is_old(path.stat().st_mtime):
                path.unlink()


def _is_old(at: float) -> bool:
    return time.time() - at > KEPT_SECONDS


def _exists(home: Path, run_id: str) -> bool:
    return any((home / folder / run_id).is_dir() for folder in ("runs", "trash"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
