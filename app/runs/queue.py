"""The queue: in which order runs start."""

from __future__ import annotations

from sqlmodel import Session, col, select

from app.store.tables import Run

_ORDER = (col(Run.queued_at), col(Run.created_at), col(Run.seed), col(Run.id))


def queued_runs(session: Session) -> list[Run]:
    """The queued runs, the one that starts next first."""
    return list(session.exec(select(Run).where(Run.status == "queued").order_by(*_ORDER)).all())


def queued_ids(session: Session) -> list[str]:
    """The ids of the queued runs, the one that starts next first."""
    return list(session.exec(select(Run.id).where(Run.status == "queued").order_by(*_ORDER)).all())


def running_runs(session: Session) -> list[Run]:
    """The running runs, in no particular order."""
    return list(session.exec(select(Run).where(Run.status == "running")).all())


def place_in_queue(session: Session, run: Run) -> int:
    """1 for the run that starts next, 2 for the one after it; 0 for a run that is not queued."""
    if run.status != "queued":
        return 0
    ids = queued_ids(session)
    return ids.index(run.id) + 1 if run.id in ids else 0
