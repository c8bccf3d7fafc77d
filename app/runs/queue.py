"""The queue: the order in which runs start, and how long a run waits after its process ended unexpectedly."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlmodel import Session, col, select

from app.store.tables import Run
from trainer.i18n import _

RESTART_SECONDS = (0.0, 10.0)  # after the first and the second unexpected end of a process without a new epoch
_ORDER = (col(Run.queued_at), col(Run.created_at), col(Run.seed), col(Run.id))


def queued_runs(session: Session) -> list[Run]:
    """The queued runs in the order in which they start."""
    return list(session.exec(select(Run).where(Run.status == "queued").order_by(*_ORDER)).all())


def queued_ids(session: Session) -> list[str]:
    """The ids of the queued runs in the order in which they start."""
    return list(session.exec(select(Run.id).where(Run.status == "queued").order_by(*_ORDER)).all())


def running_runs(session: Session) -> list[Run]:
    """The running runs, in no particular order."""
    return list(session.exec(select(Run).where(Run.status == "running")).all())


def failed_runs(session: Session) -> list[Run]:
    """The failed runs, in no particular order."""
    return list(session.exec(select(Run).where(Run.status == "failed")).all())


def place_in_queue(session: Session, run: Run) -> int:
    """The position of a run in the queue: 1 for the run that starts next, 0 for a run that is not queued."""
    if run.status != "queued":
        return 0
    ids = queued_ids(session)
    return ids.index(run.id) + 1 if run.id in ids else 0


def restart_in(run: Run) -> float:
    """Seconds until a queued run may start again after its process ended unexpectedly; 0 for any other run.

    The wait is there because the cause, such as a lack of memory, may last for a while. It is over at once if the clock
    was set back.
    """
    if run.status != "queued" or not run.fruitless_attempts or not run.queued_at:
        return 0.0
    wait = RESTART_SECONDS[min(run.fruitless_attempts, len(RESTART_SECONDS)) - 1]
    passed = (datetime.now(UTC) - datetime.fromisoformat(run.queued_at)).total_seconds()
    return max(0.0, wait - passed) if passed >= 0 else 0.0


def restart_words(run: Run) -> str:
    """Why a queued run waits even if it is first in the queue; empty for any other run."""
    seconds = restart_in(run)
    if not seconds:
        return ""
    return _("its process ended unexpectedly; starts again in {seconds} s").format(seconds=round(seconds) or 1)
