"""The header of every page: how many runs are active, and the devices of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from app.runs.room import Room
from app.state import Runoff
from app.store import queries
from app.store.database import reading
from trainer.i18n import _


@dataclass(frozen=True)
class Header:
    """What the header of every page shows about the server."""

    num_running: int = 0
    num_queued: int = 0
    device: str = ""
    known: bool = False  # False on an error page, which must not touch the database
    problem: str = ""  # why runs can't start, as sentences
    notice: str = ""  # what the server is reading, as a sentence


def header_of(request: Request) -> Header:
    """The header for a page that has not read the counts itself: one small query."""
    state = cast(Runoff, request.app.state.runoff)
    with reading(state.engine) as session:
        counts = queries.status_counts(session)
    return header_from(state, counts)


def header_from(state: Runoff, counts: Mapping[str, int]) -> Header:
    """The header from counts that were read already.

    A second connection could wait for a writer that waits for the first one.
    """
    return Header(
        counts["running"],
        counts["queued"],
        device_title(state),
        known=True,
        problem=" ".join(problems_of(state)),
        notice=_notice_of(state),
    )


def problems_of(state: Runoff) -> list[str]:
    """Why runs can't start, as sentences: the home is not there, the disk is full, or the trainer can't start."""
    if missing := state.presence.problem():
        return [missing]
    try:
        room = Room.of(state.settings.home, state.settings.reserve).sentence
    except OSError as error:
        room = _("{home} can't be used: {reason}.").format(home=state.settings.home, reason=error.strerror)
    return [problem for problem in (room, state.scheduler.waits_for) if problem]


def _notice_of(state: Runoff) -> str:
    """How far the index is, as a sentence; empty unless many run folders are being read."""
    progress = state.indexer.progress
    if progress is None:
        return ""
    text = _(
        "Run folders are being read into the index: {done} of {total}. Until all are read, lists may be incomplete."
    )
    return text.format(done=f"{progress.done:,}", total=f"{progress.total:,}")


def device_title(state: Runoff) -> str:
    """The GPUs of this machine, else its CPU; empty until the trainer host has named them. Never waits for it."""
    titles = [str(device["title"]) for device in state.executor.known_devices()]
    gpus = [title for title in titles if not title.startswith("CPU")]
    return ", ".join(gpus) or next(iter(titles), "")
