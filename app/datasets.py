"""Data sets: finding and removing them, and imports and downloads in the background."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sqlmodel import Session, col, select

from app.errors import Conflict, NotFound, Refused
from app.schemas import DatasetWork
from app.store.tables import ACTIVE, Run
from trainer.config import FieldProblem
from trainer.datasets import catalogue, worker
from trainer.datasets.errors import DatasetError, UnknownDataset
from trainer.events import Progress
from trainer.i18n import _

Job = Callable[..., Iterator[Progress]]  # takes on_start
logger = logging.getLogger(__name__)


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


def _safe_file_name(given: str) -> str:
    """The last part of an uploaded file's name in harmless characters, with its ending: that tells the kind of archive."""
    kept = "".join(c if c.isalnum() or c in " ._-()" else "_" for c in Path(given).name[-60:])
    return kept.lstrip(".") or "archive"


class Imports:
    """All imports and downloads of this server, each in a thread that relays the progress of a child process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._work: dict[str, DatasetWork] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def active(self) -> list[DatasetWork]:
        """The work that is in progress or has failed, oldest first."""
        with self._lock:
            return [work.model_copy() for work in self._work.values()]

    def find(self, name: str) -> DatasetWork | None:
        """The work on one data set, if there is any."""
        return next((work for work in self.active() if work.name == name), None)

    def is_active(self, name: str) -> bool:
        """Whether work on the data set is in progress."""
        with self._lock:
            return name in self._work and self._work[name].error is None

    def begin_import(self, file: BinaryIO, file_name: str, name: str, size: int) -> None:
        """Keep an uploaded archive under HOME and import it; images of other sizes become ``size`` pixels per side.

        Raises ``Refused`` at the field ``name``, and ``Conflict`` for a name that is taken.
        """
        self._check_new_name(name)
        folder = self.home / "uploads" / secrets.token_hex(8)
        folder.mkdir(parents=True)
        path = folder / _safe_file_name(file_name)
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
            job = partial(worker.import_images, self.home, name, path, size=size)
            self._begin(DatasetWork(name=name, what="import"), job, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _check_new_name(self, name: str) -> None:
        if any(d.name == name and d.status != "damaged" for d in catalogue.list_datasets(self.home)):
            message = _("There is already a data set named {name}. Choose another name.").format(name=name)
            raise Conflict(message, [FieldProblem(field="name", message=message)])
        try:
            worker.check_name(name)
        except DatasetError as error:
            message = f"{error.message} {error.advice}".strip()
            raise Refused.fields([FieldProblem(field="name", message=message)]) from None

    def start_prepare(self, name: str) -> None:
        """Download and cache a known data set. Raises ``Conflict`` while the name is busy."""
        self._begin(DatasetWork(name=name, what="download", unit="bytes"), partial(worker.prepare, self.home, name))

    def _begin(self, work: DatasetWork, job: Job, source: Path | None = None) -> None:
        with self._lock:
            before = self._work.get(work.name)
            if before is not None and before.error is None:
                message = _("{name} is already being prepared. Wait for it, or stop it first.")
                raise Conflict(message.format(name=work.name))
            self._work[work.name] = work
        threading.Thread(
            target=self._follow, args=(work, job, source), name=f"data set {work.name}", daemon=True
        ).start()

    def _follow(self, work: DatasetWork, job: Job, source: Path | None) -> None:
        error = None
        try:
            for event in job(on_start=partial(self._children.__setitem__, work.name)):
                work.what, work.done, work.total, work.unit = event.what, event.done, event.total, event.unit
        except DatasetError as problem:
            error = {"message": problem.message, "advice": problem.advice}
        except Exception as problem:
            logger.exception("Work on data set %s failed.", work.name)
            error = {"message": str(problem), "advice": _("See the server's log.")}
        finally:
            if source is not None:
                shutil.rmtree(source.parent, ignore_errors=True)
        with self._lock:
            self._children.pop(work.name, None)
            if error is None or work.cancelled:
                self._work.pop(work.name, None)
            else:
                work.error = error

    def cancel(self, name: str) -> None:
        """Stop the work; its child process removes what it has written."""
        with self._lock:
            if name in self._work:
                self._work[name].cancelled = True
            if name in self._children:
                self._children[name].terminate()

    def end(self, patience_seconds: float = 5.0) -> None:
        """Stop all work and wait for its child processes, before the server ends."""
        children = [*self._children.items()]
        for name, _child in children:
            self.cancel(name)
        for _name, child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience_seconds)

    def dismiss(self, name: str) -> None:
        """Forget work that has failed."""
        with self._lock:
            if name in self._work and self._work[name].error is not None:
                del self._work[name]
