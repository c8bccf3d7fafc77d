"""Data sets: finding and removing them, and imports and downloads in the background."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sqlmodel import Session, col, select

from app import uploads
from app.errors import Conflict, InsufficientStorage, NotFound, Refused
from app.schemas import DatasetWork
from app.store.tables import ACTIVE, Run
from app.uploads import Upload
from trainer.config import FieldProblem
from trainer.datasets import catalogue, worker
from trainer.datasets.errors import DatasetError, DiskFull, Interrupted, UnknownDataset
from trainer.events import Progress
from trainer.files import is_full, to_iso
from trainer.i18n import _

logger = logging.getLogger(__name__)
FAILED_KEPT_SECONDS = 24 * 3600.0  # how long the message about a failed import stays
MOST_INTERRUPTIONS = 3  # of one import: one that uses up all memory must not end every server that is started
_POLL_SECONDS = 2.0  # between two checks of the free space
_LONGEST_PAUSE_SECONDS = 60.0
_PASSING = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # what a process lacks for some time only
_ENDING_SECONDS = 5.0  # within which a server ends if its child process was asked to


def find_dataset(home: Path, name: str) -> catalogue.Dataset:
    """One data set. Raises ``NotFound``."""
    try:
        return catalogue.get_dataset(home, name)
    except UnknownDataset as error:
        raise NotFound(str(error)) from None


def remove_dataset(home: Path, session: Session, name: str) -> None:
    """Remove an imported data set. Raises ``Conflict`` for a built-in one, and while a queued or running run uses it."""
    users = session.exec(select(Run.name).where(Run.dataset == name, col(Run.status).in_(ACTIVE))).all()
    if users:
        message = _("{name} is in use by {run}. Wait for it, or cancel it first.")
        raise Conflict(message.format(name=name, run=users[0] or _("a run")))
    try:
        catalogue.remove_dataset(home, name)
    except DatasetError as error:
        raise Conflict(f"{error.message} {error.advice}".strip()) from None


@dataclass
class _Job:
    """Work on one data set, its child process, and the upload that it imports."""

    work: DatasetWork
    upload: Upload | None = None
    child: subprocess.Popen[bytes] | None = None
    thread: threading.Thread | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Ask the work to end. The upload of an import is kept unless the work is cancelled."""
        self.stop.set()
        if self.child is not None:
            self.child.terminate()

    def started(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        if self.stop.is_set():
            child.terminate()


class Imports:
    """All imports and downloads of this server, each in a thread that relays the progress of a child process.

    ``reserve`` bytes of the disk are kept free.
    """

    def __init__(self, home: Path, reserve: int = 0) -> None:
        self.home = home
        self._reserve = reserve
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()

    def active(self) -> list[DatasetWork]:
        """The work that is in progress or has failed, oldest first."""
        with self._lock:
            return [job.work.model_copy() for job in self._jobs.values()]

    def find(self, name: str) -> DatasetWork | None:
        """The work on one data set, if there is any."""
        return next((work for work in self.active() if work.name == name), None)

    def is_active(self, name: str) -> bool:
        """Whether work on the data set is in progress."""
        with self._lock:
            return name in self._jobs and self._jobs[name].work.error is None

    # Beginning

    def resume(self) -> None:
        """Import again what an earlier server did not finish, and remove its other leftovers."""
        try:
            worker.remove_leftovers(self.home)
            for upload in uploads.stored(self.home):
                self._resume(upload)
        except OSError as error:
            logger.warning("Not all interrupted imports could be continued: %s", error)

    def _resume(self, upload: Upload) -> None:
        if upload.about.error is None and upload.about.interruptions >= MOST_INTERRUPTIONS:
            message = _("The server ended unexpectedly {count} times during this import, so it was not started again.")
            advice = _("It may need more memory than this machine has. Import fewer or smaller images.")
            upload = upload.fail({"message": message.format(count=upload.about.interruptions), "advice": advice})
        if upload.about.error is not None and upload.about.failed_at < _a_day_ago():
            upload.remove()
            return
        job = self._claim(DatasetWork(name=upload.name, what="import", error=upload.about.error))
        job.upload = upload
        if upload.about.error is None:
            self._begin(job)

    def begin_import(self, file: BinaryIO, file_name: str, name: str, size: int) -> None:
        """Keep an uploaded archive under HOME and import it; images of other sizes become ``size`` pixels per side.

        Raises ``Refused`` at the field ``name``, ``Conflict`` for a name that is taken, and
        ``InsufficientStorage`` if the disk is full.
        """
        self._check_new_name(name)
        self._forget_old()
        job = self._claim(DatasetWork(name=name, what="import"))
        try:
            self._check_space(file)
            job.upload = uploads.store(self.home, name, file, file_name, size)
        except BaseException as error:
            self._forget(job)
            if is_full(error):
                message = _("The disk is full, so the upload was not kept. Free some space, then upload it again.")
                raise InsufficientStorage(message) from None
            raise
        self._begin(job)

    def _check_space(self, file: BinaryIO) -> None:
        """Raises ``OSError`` if a copy of the file would not leave the reserve of the disk free."""
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if shutil.disk_usage(self.home).free - num_bytes < self._reserve:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _check_new_name(self, name: str) -> None:
        if any(d.name == name and d.status != "damaged" for d in catalogue.list_datasets(self.home)):
            message = _("There is already a data set named {name}. Choose another name.").format(name=name)
            raise Conflict(message, [FieldProblem(field="name", message=message)])
        try:
            worker.check_name(name)
        except DatasetError as error:
            message = f"{error.message} {error.advice}".strip()
            raise Refused.fields([FieldProblem(field="name", message=message)]) from None

    def _forget_old(self) -> None:
        """Remove the messages about imports that failed more than a day ago."""
        with self._lock:
            failed = [job.upload for job in self._jobs.values() if job.work.error is not None]
        for upload in failed:
            if upload is not None and upload.about.failed_at < _a_day_ago():
                self.dismiss(upload.name)

    def start_prepare(self, name: str) -> None:
        """Download and cache a known data set. Raises ``Conflict`` while the name is busy."""
        self._begin(self._claim(DatasetWork(name=name, what="download", unit="bytes")))

    def _claim(self, work: DatasetWork) -> _Job:
        """Reserve the name; work on it that failed is forgotten. Raises ``Conflict`` while other work on it is in progress."""
        with self._lock:
            before = self._jobs.get(work.name)
            if before is not None and before.work.error is None:
                message = _("{name} is already being prepared. Wait for it, or stop it first.").format(name=work.name)
                raise Conflict(message, [FieldProblem(field="name", message=message)])
            self._jobs[work.name] = job = _Job(work)
        return job

    def _forget(self, job: _Job) -> None:
        with self._lock:
            self._jobs.pop(job.work.name, None)

    # Work

    def _begin(self, job: _Job) -> None:
        job.thread = threading.Thread(target=self._follow, args=(job,), name=f"data set {job.work.name}", daemon=True)
        try:
            job.thread.start()
        except RuntimeError as error:  # too many threads
            self._forget(job)
            if job.upload is not None:
                job.upload.remove()
            raise OSError(errno.EAGAIN, str(error)) from None

    def _follow(self, job: _Job) -> None:
        """Work until the job is done, has failed or is stopped. Then remove its upload, or keep it for the next server."""
        is_done, error = False, None
        try:
            is_done = self._work_until_stopped(job)
        except DatasetError as problem:
            if not job.stop.is_set():
                error = {"message": problem.message, "advice": problem.advice}
        except Exception as problem:
            logger.exception("Work on data set %s failed.", job.work.name)
            error = {"message": str(problem), "advice": _("See the server's log.")}
        try:
            if job.upload is not None:
                job.upload = _settled(job.upload, error, is_over=is_done or job.work.cancelled)
        except OSError as problem:
            logger.warning("The upload of data set %s could not be changed: %s", job.work.name, problem)
        if error is None or job.work.cancelled:
            self._forget(job)
        else:
            job.work.error = error

    def _work_until_stopped(self, job: _Job) -> bool:
        """Work until the job is done (True) or stopped (False), and wait while the disk is full. Raises ``DatasetError``."""
        pause = _POLL_SECONDS
        while not job.stop.is_set():
            try:
                self._work(job)
            except DiskFull as problem:
                self._wait_for_space(job, problem, pause)
                if not problem.needed:  # with a quota, the free space does not show when there is enough
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except OSError as problem:
                if problem.errno not in _PASSING:
                    raise
                job.work.waiting = _("It could not be started ({reason}) and is tried again.").format(
                    reason=problem.strerror
                )
                job.stop.wait(pause)
                job.work.waiting, pause = "", min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Interrupted:
                # A service manager signals all processes at once, and this server may get its signal a moment later.
                may_retry = job.upload is not None and job.upload.about.interruptions < MOST_INTERRUPTIONS
                if not job.stop.wait(_ENDING_SECONDS) and not may_retry:
                    raise
            else:
                return True
        return False

    def _work(self, job: _Job) -> None:
        name, work = job.work.name, job.work
        if job.upload is None:
            events: Iterator[Progress] = worker.prepare(self.home, name, on_start=job.started)
        else:
            job.upload = _changed(job.upload, interruptions=job.upload.about.interruptions + 1)
            path, size = job.upload.path, job.upload.about.size
            events = worker.import_images(self.home, name, path, size=size, reserve=self._reserve, on_start=job.started)
        for event in events:
            work.what, work.done, work.total, work.unit = event.what, event.done, event.total, event.unit

    def _wait_for_space(self, job: _Job, problem: DiskFull, pause: float) -> None:
        """Wait for ``pause`` seconds, and then until the disk has enough space or the job is stopped."""
        if job.upload is not None:
            job.upload = _changed(job.upload, interruptions=0)
        job.work.waiting = f"{problem.message} {_('It continues automatically when there is enough space.')}"
        job.work.done = job.work.total = 0
        needed = max(problem.needed, self._reserve)
        while not job.stop.wait(pause):
            pause = _POLL_SECONDS
            with suppress(OSError):
                if shutil.disk_usage(self.home).free >= needed:
                    break
        job.work.waiting = ""

    # Ending

    def cancel(self, name: str) -> None:
        """Stop the work; its child process removes what it has written, and an upload is removed."""
        with self._lock:
            job = self._jobs.get(name)
            if job is not None and job.work.error is None:
                job.work.cancelled = True
                job.end()

    def end(self, patience_seconds: float = 5.0) -> None:
        """Stop all work before the server ends. The next server continues what was being imported."""
        with self._lock:
            jobs = [*self._jobs.values()]
        for job in jobs:
            job.end()
        deadline = time.monotonic() + patience_seconds
        for job in jobs:
            if job.thread is not None:
                job.thread.join(max(deadline - time.monotonic(), 0.0))

    def dismiss(self, name: str) -> None:
        """Forget work that has failed."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None or job.work.error is None:
                return
            if job.upload is not None:
                job.upload.remove()
            del self._jobs[name]


def _settled(upload: Upload, error: dict[str, str] | None, *, is_over: bool) -> Upload:
    """The upload after the work on it: removed, failed, or kept as it is because the server ends."""
    if is_over:
        upload.remove()
        return upload
    return upload.fail(error) if error is not None else upload.change(interruptions=0)


def _changed(upload: Upload, interruptions: int) -> Upload:
    """The upload with this count of interruptions, written unless the disk is full."""
    if upload.about.interruptions == interruptions:
        return upload
    try:
        return upload.change(interruptions=interruptions)
    except OSError:
        return upload


def _a_day_ago() -> str:
    return to_iso(time.time() - FAILED_KEPT_SECONDS)
