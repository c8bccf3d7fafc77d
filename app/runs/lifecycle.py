"""Every change of a run's status. docs/statuses.md draws them.

What a person or the scheduler decides is one guarded UPDATE: a run that has another status by then is left as it is, and
``Conflict`` is raised. It is also written to run.json, where a rebuilt index finds it. What a run's process reports
comes as events, from the indexer.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col

from app.errors import Conflict
from app.runs.vanished import vanished_error
from app.store.queries import next_version
from app.store.tables import ACTIVE, Run, RunColumns
from trainer.events import TERMINAL
from trainer.home import home_id
from trainer.i18n import _
from trainer.run_folder import RunFolder, now

MAX_FRUITLESS_ATTEMPTS = 3
_AT_REST: dict[str, Any] = {
    "cancel_requested": False,
    "hanging_since": None,
    "queue_reason": "",
    "seconds_left": None,
    "phase": None,
}  # of a run without a process


def _transition(session: Session, run: Run, *sources: str, to: str, **values: Any) -> None:
    """Change the status by one guarded UPDATE. Raises ``Conflict`` for a run with none of the ``sources``' statuses."""
    changed = session.connection().execute(
        update(Run)
        .where(col(Run.id) == run.id, col(Run.status).in_(sources))
        .values(status=to, version=next_version(session), **values)
    )
    session.refresh(run)
    if changed.rowcount != 1:
        message = _("The run is already {status}. Reload the page.")
        raise Conflict(message.format(status=run.status))


def _record(folder: RunFolder, run: Run, **values: Any) -> None:
    """Write what was decided to run.json, with the attempts so far."""
    counts = {"after_attempt": run.attempt, "fruitless_attempts": run.fruitless_attempts}
    folder.write_run((folder.read_run() or record_of(run)) | counts | values)


def record_of(run: Run) -> dict[str, Any]:
    """run.json from the row, for a folder that has lost it."""
    names = ("id", "name", "tags", "notes", "archived", "sweep", "warnings", "created_at")
    return {name: getattr(run, name) for name in names}


# What a user decides -------------------------------------------------------------------------------------------------


def cancel(session: Session, folder: RunFolder, run: Run) -> None:
    """Cancel a queued run. Ask a running one to stop at its next step. Raises ``Conflict`` for a run that has ended."""
    if run.status == "queued":
        ended_at = now()
        _transition(session, run, "queued", to="cancelled", finished_at=ended_at, **_AT_REST)
        _record(folder, run, status="cancelled", ended_at=ended_at)
    elif run.status == "running":
        ask_to_stop(session, folder, run)
    else:
        message = _("The run is already {status}; only queued and running runs can be cancelled.")
        raise Conflict(message.format(status=run.status))


def ask_to_stop(session: Session, folder: RunFolder, run: Run) -> None:
    """Note that a running run is to be ended by force, so that it counts as cancelled. Raises ``Conflict``."""
    if run.status != "running":
        raise Conflict(_("The run is {status}; only a running run can be stopped.").format(status=run.status))
    run.cancel_requested, run.version = True, next_version(session)
    session.add(run)
    session.flush()  # refused here if the index can't be written, before the folder is changed
    folder.request_stop()


def note_silence(session: Session, run: Run, since: str | None) -> None:
    """Note since when a running run has given no sign of life; None if it does."""
    run.hanging_since, run.version = since, next_version(session)
    session.add(run)


def resume(session: Session, folder: RunFolder, run: Run) -> None:
    """Queue a failed or cancelled run again. Raises ``Conflict`` for any other run."""
    if run.status not in ("failed", "cancelled"):
        message = _("The run is {status}; only failed and cancelled runs can be resumed.")
        raise Conflict(message.format(status=run.status))
    own = {"id": folder.id, "home": home_id(folder.home)} if folder.is_imported() else {}  # a run of this home now
    _requeue(session, folder, run, "failed", "cancelled", fruitless_attempts=0, **own)


def _requeue(
    session: Session, folder: RunFolder, run: Run, *sources: str, fruitless_attempts: int, **record: Any
) -> None:
    queued_at = now()
    _transition(
        session,
        run,
        *sources,
        to="queued",
        queued_at=queued_at,
        finished_at=None,
        error=None,
        fruitless_attempts=fruitless_attempts,
        imported=False,
        **_AT_REST,
    )
    folder.clear_stop()
    values = {"queued_at": queued_at, "error": None, "fruitless_attempts": fruitless_attempts, **record}
    _record(folder, run, status="queued", **values)


# What the scheduler decides ------------------------------------------------------------------------------------------


def begin_attempt(session: Session, folder: RunFolder, run: Run, device: str) -> None:
    """Start the next attempt of a queued run on ``device``. Raises ``Conflict``."""
    if not folder.is_alive():  # otherwise these files belong to a process that is already training
        folder.clear_stop()
        folder.heartbeat_path.unlink(missing_ok=True)
    values = _AT_REST | {"cancel_requested": folder.stop_requested()}
    _transition(session, run, "queued", to="running", attempt=run.attempt + 1, device=device, **values)


def note_queue_reason(session: Session, reason: str) -> None:
    """Note why the queued runs wait: ``disk``, ``slot`` or ``host``."""
    waiting = (col(Run.status) == "queued") & (col(Run.queue_reason) != reason)
    values = {"queue_reason": reason, "version": next_version(session)}
    session.connection().execute(update(Run).where(waiting).values(**values))


def requeue_after_full_disk(session: Session, folder: RunFolder, run: Run) -> None:
    """Queue a run again that failed because the disk was full. Raises ``Conflict``.

    This counts as an attempt without a new epoch until there is one, so that a run can't fail and continue forever.
    """
    if run.fruitless_attempts < MAX_FRUITLESS_ATTEMPTS:
        _requeue(session, folder, run, "failed", fruitless_attempts=run.fruitless_attempts + 1)


def refuse_imported(session: Session, run: Run) -> None:
    """A queued run that was copied here is not started; the process that had trained it elsewhere has ended."""
    _transition(session, run, "queued", to="failed", error=_not_finished_error(run), **_AT_REST)


def take_back_attempt(session: Session, folder: RunFolder, run: Run) -> None:
    """The executor could not start the attempt: back to the queue as if there had been none, or cancelled if asked to."""
    if run.cancel_requested:
        end_vanished_attempt(session, folder, run)
    else:
        _transition(session, run, "running", to="queued", attempt=run.attempt - 1)


def end_vanished_attempt(session: Session, folder: RunFolder, run: Run) -> None:
    """The process of a running run is gone without a last event.

    The run is cancelled if that was asked for, failed after three such attempts without a new epoch, else queued again.
    An imported run is not queued.
    """
    fruitless = run.fruitless_attempts + 1
    if run.imported:
        _transition(session, run, "running", to="failed", error=_not_finished_error(run), **_AT_REST)
    elif run.cancel_requested:
        ended_at = now()
        _transition(session, run, "running", to="cancelled", finished_at=ended_at, **_AT_REST)
        _record(folder, run, status="cancelled", ended_at=ended_at)
    elif fruitless < MAX_FRUITLESS_ATTEMPTS:
        _requeue(session, folder, run, "running", fruitless_attempts=fruitless)
    else:
        error = vanished_error(folder.read_exit(run.attempt) or {}, MAX_FRUITLESS_ATTEMPTS)
        _fail(session, folder, run, error)


def _fail(session: Session, folder: RunFolder, run: Run, error: dict[str, str]) -> None:
    ended_at = now()
    _transition(session, run, "queued", "running", to="failed", finished_at=ended_at, error=error, **_AT_REST)
    _record(folder, run, status="failed", error=error, ended_at=ended_at)


def _not_finished_error(run: RunColumns) -> dict[str, str]:
    """Why an imported run without an end is not continued."""
    message = _("The run was copied here before it had ended, after {epochs} of {total} epochs.")
    return {
        "error": "ImportedUnfinished",
        "message": message.format(epochs=run.epochs_done, total=run.epochs),
        "advice": _("Resume it to train the rest here."),
    }


# What the folder proves ------------------------------------------------------------------------------------------------


def mark_damaged(session: Session, run: Run, problems: list[str]) -> None:
    """The folder of a run that is not at rest is damaged: the run is shown, and nothing starts or rewrites it."""
    _transition(session, run, "queued", "running", to="damaged", error=damaged_error(problems), **_AT_REST)


def damaged_error(problems: list[str]) -> dict[str, str]:
    """What is wrong with a run folder, as the error of the run."""
    return {
        "error": "RunDamaged",
        "message": " ".join(problems),
        "advice": _(
            "What is intact is shown, and nothing is trained or deleted. Restore files replaces damaged files by "
            "intact copies. To use a backup, run runoff check --restore ID --backup FOLDER."
        ),
    }


# What the run's process reports ----------------------------------------------------------------------------------------


def apply_started(run: RunColumns, event: dict[str, Any]) -> None:
    """An attempt has started to train (event ``started``), no matter who started it."""
    run.status, run.error, run.finished_at, run.phase = "running", None, None, None
    run.started_at = run.started_at or event["time"]


def apply_ended(run: RunColumns, event: dict[str, Any]) -> None:
    """The run has ended (event ``finished``, ``failed`` or ``cancelled``)."""
    run.status, run.finished_at = event["type"], event["time"]
    if event["type"] == "failed":
        run.error = {key: event[key] for key in ("error", "message", "advice")}
    _set_at_rest(run)


def restore(run: RunColumns, folder: RunFolder, last_event: dict[str, Any] | None, problems: list[str]) -> None:
    """Give a row that was made from its folder, events applied, the status that the folder proves.

    Where the server decided something after the last event (queued again, cancelled in the queue, could not start), its
    record in run.json holds. Else the last event does, and a run without an end is running until the scheduler finds its
    process gone; an imported one has failed. A damaged folder proves nothing but that: ``problems`` says what is wrong
    with it.
    """
    if problems:
        run.status, run.error = "damaged", damaged_error(problems)
        _set_at_rest(run)
        return
    record = folder.read_run() or {}
    last_attempt = last_event["attempt"] if last_event else 0
    if record.get("status") and record.get("after_attempt", 0) >= last_attempt:
        run.status, run.error = record["status"], record.get("error")
        run.finished_at = None if run.status == "queued" else record.get("ended_at") or run.finished_at
        _set_at_rest(run)
        has_begun = not run.imported and (folder.stop_requested() or folder.is_alive())
        if run.status == "queued" and has_begun:  # its attempt has written nothing yet
            run.status, run.attempt = "running", run.attempt + 1
            run.cancel_requested = folder.stop_requested()
    elif last_event is None or last_event["type"] not in TERMINAL:
        run.status = "running"
        run.cancel_requested = folder.stop_requested()
    if run.imported and run.status in ACTIVE and not folder.is_alive():
        run.status, run.error = "failed", _not_finished_error(run)
        _set_at_rest(run)


def _set_at_rest(run: RunColumns) -> None:
    for name, value in _AT_REST.items():
        setattr(run, name, value)
