"""The event log of a run, ``events.jsonl``: one JSON object per line, each with a checksum.

The last member of a line is ``"crc":"8 hex digits"``, the CRC-32 of the bytes before ``,"crc"``. Logs that were begun
before checksums have none on any line, and stay so. Imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.events import TERMINAL, TYPES, Event, payload
from trainer.files import checksum, now, write_bytes
from trainer.i18n import _, ngettext

_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n$')
_MOST_LINES_NAMED = 5


class EventLogChanged(Exception):
    """The file is no continuation of what was read before: read it again from the start."""


class EventLogDamaged(ValueError):
    """The log can't be continued without losing what it says; the text is a sentence for people."""


# Lines ---------------------------------------------------------------------------------------------------------------


def line_of(values: dict[str, Any], *, sealed: bool) -> bytes:
    """An event as a line of the log, with its checksum if ``sealed``."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
    if not sealed:
        return text + b"\n"
    return text[:-1] + b',"crc":"' + checksum(text[:-1]).encode() + b'"}\n'


def parse_line(line: bytes, *, sealed: bool = False) -> dict[str, Any] | None:
    """The event in a complete line; None if the line is not what was written.

    A checksum must hold where there is one, and there must be one if ``sealed``.
    """
    seal = _SEAL.search(line)
    if seal is None and sealed:
        return None
    if seal is not None and checksum(line[: seal.start()]).encode() != seal.group(1):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("seq"), int) or not isinstance(event.get("type"), str):
        return None
    event.pop("crc", None)
    return event if line.endswith(b"\n") else None


# Reading all of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventLog:
    """What a log holds: its intact events, what is wrong with it, and where a torn last line begins."""

    events: list[dict[str, Any]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # the byte offset after each event
    damage: list[str] = field(default_factory=list)  # sentences
    torn_at: int | None = None  # a last line without its newline, as a crash leaves it
    is_sealed: bool = True  # whether its lines have checksums

    @property
    def last(self) -> dict[str, Any] | None:
        return self.events[-1] if self.events else None

    @property
    def end(self) -> int:
        """The byte offset after the last intact event."""
        return self.ends[-1] if self.ends else 0

    @property
    def has_end(self) -> bool:
        """Whether the last event says how the run ended."""
        return self.last is not None and self.last["type"] in TERMINAL

    @property
    def epochs(self) -> list[int]:
        """The epochs that have a line, in order."""
        return sorted({event["epoch"] for event in self.events if event["type"] == "epoch"})


def read_log(path: Path) -> EventLog:
    """Read a whole log. Intact lines count even after a damaged one. A missing file is an empty log."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return EventLog()
    except OSError as error:
        return EventLog(damage=[_("events.jsonl can't be read: {why}.").format(why=error.strerror)])
    *lines, rest = data.split(b"\n")
    sealed = any(_SEAL.search(line + b"\n") for line in lines)
    log = EventLog(torn_at=len(data) - len(rest) if rest else None, is_sealed=sealed or not lines)
    offset, seq, num_bad = 0, 0, 0
    bad: list[int] = []
    for number, line in enumerate(lines, start=1):
        offset += len(line) + 1
        event = parse_line(line + b"\n", sealed=sealed)
        if event is None or event["seq"] <= seq:
            bad.append(number)
            num_bad += 1
            continue
        if event["seq"] != seq + 1 + num_bad:
            log.damage.append(_("Lines are missing before line {number} of events.jsonl.").format(number=number))
        seq, num_bad = event["seq"], 0
        log.events.append(event)
        log.ends.append(offset)
    if bad:
        shown = ", ".join(map(str, bad[:_MOST_LINES_NAMED])) + (", ..." if len(bad) > _MOST_LINES_NAMED else "")
        message = ngettext(
            "Line {numbers} of events.jsonl is damaged.", "Lines {numbers} of events.jsonl are damaged.", len(bad)
        )
        log.damage.append(message.format(numbers=shown))
    if log.torn_at is not None and log.last is not None and log.last["type"] == "finished":
        log.damage.append(_("events.jsonl has a torn line after the end of the run."))
    unknown = sorted({event["type"] for event in log.events} - TYPES)
    if unknown:
        message = _("events.jsonl has events that this version of Runoff does not know: {types}.")
        log.damage.append(message.format(types=", ".join(unknown)[:80]))
    return log


# Following a live log ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Complete lines read from an event log, and where to go on."""

    events: list[dict[str, Any]]
    offset: int  # bytes, after the last newline


def read_events(path: Path, offset: int = 0, seq: int = 0) -> Chunk:
    """The events after byte ``offset``, whose last read event had ``seq``; stops at the last newline.

    Raises ``EventLogChanged`` if the file can't be a continuation of what was read, or a new line is damaged.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if size < offset:
        raise EventLogChanged
    if size == offset:
        return Chunk([], offset)
    with path.open("rb") as file:
        first = file.readline()
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    sealed = any(_SEAL.search(line) for line in (first, data[:end]))
    events = []
    for line in data[:end].split(b"\n")[:-1]:
        event = parse_line(line + b"\n", sealed=sealed)
        if event is None or event["seq"] != seq + 1:
            raise EventLogChanged
        seq += 1
        events.append(event)
    return Chunk(events, offset + end)


def iter_valid_events(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each event with the byte offset after it, up to the first line that is torn, damaged or out of order."""
    log = read_log(path)
    for number, (event, end) in enumerate(zip(log.events, log.ends, strict=True), start=1):
        if event["seq"] != number:
            return
        yield event, end


# Writing -------------------------------------------------------------------------------------------------------------


class EventWriter:
    """Appends one attempt's events to a log. A torn last line is cut off first and kept in ``events.torn-ATTEMPT``."""

    def __init__(self, path: Path, attempt: int) -> None:
        """Raises ``EventLogDamaged`` if the log holds more than intact lines and a torn last one."""
        log = read_log(path)
        if log.damage:
            raise EventLogDamaged(" ".join(log.damage))
        self.attempt = attempt
        self.seq: int = log.last["seq"] if log.last else 0
        self._sealed = log.is_sealed
        if log.torn_at is not None:
            with path.open("rb") as file:
                file.seek(log.torn_at)
                write_bytes(path.with_name(f"events.torn-{attempt}"), file.read())
        self._file = path.open("ab")
        if log.torn_at is not None:
            self._file.truncate(log.torn_at)

    def write(self, event: Event, **extra: Any) -> dict[str, Any]:
        """Append the event with seq, time and attempt; epochs and ends are on the disk when this returns."""
        self.seq += 1
        values = {"seq": self.seq, "time": now(), "attempt": self.attempt, **payload(event), **extra}
        self._file.write(line_of(values, sealed=self._sealed))
        self._file.flush()
        if event.type not in ("step", "progress"):
            os.fsync(self._file.fileno())
        return values

    def close(self) -> None:
        self._file.close()
