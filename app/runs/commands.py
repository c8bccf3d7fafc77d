"""The commands on runs: start, repeat, cancel, resume, change, delete.

What must survive the database goes into the run's folder first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from app.errors import Conflict, NotFound, Problem
from app.runs import lifecycle, starting, sweeps, trash
from app.runs.idempotency import KeyedRequest
from app.runs.ingest import add_new, ingest
from app.runs.plan import Plan, PlannedRun, plan
from app.schemas import RunChange, SweepIn
from app.state import Runoff
from app.store.database import reading, writing
from app.store.queries import get_run, next_version, runs_of_groups, sweep_runs
from app.store.tables import ACTIVE, Run
from trainer.config import group_hash
from trainer.i18n import _
from trainer.run_folder import RunFolder, new_id, now

logger = logging.getLogger(__name__)
_TICK_SECONDS = 0.0002  # a fraction of the millisecond in which times are written


# Starting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The runs of a plan, now queued, in the order in which they start. ``sweep`` is None for a single run."""

    runs: list[Run]
    sweep: str | None
    warnings: list[str]


def start(state: Runoff, planned: Plan, sweep: str | None = None, keyed: KeyedRequest | None = None) -> Started:
    """Start all runs of a plan, or none, and record the key of the request with them.

    With ``sweep`` they join that sweep, otherwise a plan of a sweep starts a new one. Raises ``Problem`` if the disk
    fails.
    """
    if not planned.is_sweep:
        return Started(_create(state, planned, planned.runs, None, keyed), None, planned.warnings)
    sweep = sweep or new_id()
    order = sweeps.spread_order([group_hash(run.config) for run in planned.runs], sweep)
    rows = _create(state, planned, [planned.runs[i] for i in order], sweep, keyed)
    return Started(rows, sweep, planned.warnings)


def _create(
    state: Runoff, planned: Plan, runs: Sequence[PlannedRun], sweep: str | None, keyed: KeyedRequest | None
) -> list[Run]:
    """Write the folders of the runs, then their rows; after a failure no folder is left.

    A folder becomes a run by its run.json. The rows of a sweep are stored in one transaction, so that nobody sees only
    some of its runs. Raises ``Problem`` if the disk fails.
    """
    folders: list[RunFolder] = []
    name = new_id()
    try:
        for run in runs:
            folders.append(RunFolder.claim(state.settings.runs, run.config))
        announced = []
        for folder, run, created_at in zip(folders, runs, _increasing_times(), strict=False):
            labels = {"name": run.name, "tags": planned.tags, "notes": planned.notes, "warnings": run.warnings}
            announced.append((folder, {**labels, "sweep": sweep, "created_at": created_at}))
        starting.announce(state.settings.home, name, announced, keyed)
        rows = add_new(state.engine, folders)
    except BaseException as error:
        starting.take_back(state.settings.home, name, folders, keyed)
        if not isinstance(error, OSError):
            raise
        message = _("The run could not be written: {reason}. Free some space in {home} and try again.")
        raise Problem(message.format(reason=error.strerror, home=state.settings.home), status=503) from error
    starting.settle(state.settings.home, name)
    state.scheduler.wake()
    return rows


def _increasing_times() -> Iterator[str]:
    """The current time, again and again, never the same twice: runs leave the queue in the order of their times."""
    last = ""
    while True:
        while (time_now := now()) <= last:
            time.sleep(_TICK_SECONDS)
        yield (last := time_now)


# Repeating -----------------------------------------------------------------------------------------------------------

choosing_seeds = Lock()  # held from reading which seeds are used until the runs with other seeds are written


def add_repeats(state: Runoff, group: str, count: int) -> Started:
    """Start ``count`` more repeats of a group, with seeds that none of its runs has used. Raises ``NotFound``.

    They join the sweep of the group's runs if all belong to the same one. The seeds of failed and cancelled runs count as
    used: leaving out seeds that fail would make the rest look better.
    """
    with choosing_seeds:
        with reading(state.engine) as session:
            members = runs_of_groups(session, [group])
        if not members:
            raise NotFound(_("There is no group {id}. Its runs may have been deleted.").format(id=group[:40]))
        sweep_ids = {run.sweep for run in members}
        sweep = sweep_ids.pop() if len(sweep_ids) == 1 else None
        return repeat(state, members[-1], sweeps.next_seeds({run.seed for run in members}, count), sweep)


def repeat(state: Runoff, run: Run, seeds: list[int], sweep: str | None = None) -> Started:
    """Start a run's config again with each of these seeds, as a new sweep or as part of one."""
    base = {name: value for name, value in run.config.items() if value is not None and name != "seed"}
    request = SweepIn(base=base, grid={"seed": seeds}, name=sweeps.without_seed(run.name), tags=run.tags)
    return start(state, plan(state.settings.home, request), sweep)


# Ending and resuming -------------------------------------------------------------------------------------------------


def cancel(state: Runoff, run_id: str) -> Run:
    """Cancel a queued run at once; ask a running one to stop at its next step. Raises ``Conflict`` for an ended one."""
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        lifecycle.cancel(session, state.run_folder(run_id), run)
        _commit(state, session, run_id)
    state.scheduler.wake()
    return run


def stop_now(state: Runoff, run_id: str) -> Run:
    """End a running run by force. It keeps its last completed epoch and is cancelled.

    Raises ``Conflict`` for a run that is not running, and ``Problem`` if its process does not end.
    """
    folder = state.run_folder(run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        lifecycle.ask_to_stop(session, folder, run)
        _commit(state, session, run_id)
    has_ended = state.executor.force_stop(folder, run.attempt)
    state.scheduler.wake()
    if not has_ended:
        message = _("The process of the run can't be ended from here. End it on its machine: it holds {path}.")
        raise Problem(message.format(path=folder.lock_path), status=503)
    return run


def cancel_sweep(state: Runoff, sweep_id: str) -> int:
    """Cancel every run of a sweep that is queued or running. Returns how many. Raises ``NotFound``."""
    with reading(state.engine) as session:
        active = [run for run in sweep_runs(session, sweep_id) if run.status in ACTIVE]
    count = 0
    for run in sorted(
        active, key=lambda run: run.status != "queued"
    ):  # queued ones first, so that none starts in the meantime
        with contextlib.suppress(Conflict, NotFound):  # it has ended since, or was deleted
            cancel(state, run.id)
            count += 1
    return count


def resume(state: Runoff, run_id: str) -> Run:
    """Queue a failed or cancelled run again, to continue from its last checkpoint. Raises ``Conflict`` for any other."""
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        lifecycle.resume(session, state.run_folder(run_id), run)
        _commit(state, session, run_id)
    state.scheduler.wake()
    return run


# Changing and deleting -----------------------------------------------------------------------------------------------


def change(state: Runoff, run_id: str, wanted: RunChange) -> Run:
    """Change name, tags, notes or archived. The config never changes. Raises ``Conflict`` if run.json is damaged."""
    values = wanted.model_dump(exclude_none=True)
    if "tags" in values:
        values["tags"] = list(dict.fromkeys(values["tags"]))
    folder = state.run_folder(run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        record = folder.read_run()
        if record is None:
            message = _(
                "Nothing was changed, because run.json is damaged. Restore it first: runoff check --restore {id}"
            )
            raise Conflict(message.format(id=run_id))
        for name, value in values.items():
            setattr(run, name, value)
        run.version = next_version(session)
        session.add(run)
        session.flush()  # refused here if the index can't be written, before the folder is changed
        folder.write_run(record | values)
        _commit(state, session, run_id)
    return run


def delete(state: Runoff, run_id: str) -> None:
    """Move a run to the trash, where it is kept for 30 days. Raises ``Conflict`` while it is running."""
    folder = state.run_folder(run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        if run.status == "running" or folder.is_alive():
            raise Conflict(_("The run is running. Cancel it first, then delete it."))
        session.delete(run)
        session.flush()
        if folder.path.exists():
            trash.put(folder)
        _commit(state, session, run_id)


def restore(state: Runoff, run_id: str) -> Run:
    """Undelete a run. One that was queued is queued again. Raises ``NotFound`` and ``Conflict``."""
    with writing(state.engine) as session:
        session.connection()
        folder = trash.take_back(state.settings.home, run_id)
        try:
            run = ingest(session, folder)
            if run is None:
                raise NotFound(_("The folder of run {id} is empty.").format(id=run_id[:40]))
        except BaseException:
            trash.put(folder)
            raise
        _commit(state, session, run_id)
    state.scheduler.wake()
    return run


def _commit(state: Runoff, session: Session, run_id: str) -> None:
    """Commit a change that is already in the run's folder.

    It is final there, so it is not refused if the index can't be written: the row is made from the folder later.
    """
    session.flush()
    session.expunge_all()  # the caller shows the run, whatever comes of the commit
    try:
        session.commit()
    except DatabaseError as error:
        logger.warning("A change of run %s will be read into the index later: %s", run_id, error.orig)
        session.rollback()
        state.indexer.read_again(run_id)
