"""Background work on data sets: imports, downloads, caches. One thread each, relaying the progress of a child process."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from app.errors import Conflict
from app.schemas import DatasetWork
from trainer.datasets import worker
from trainer.datasets.errors import DatasetError
from trainer.events import Progress
from trainer.i18n import _

Make = Callable[..., Iterator[Progress]]  # takes on_start
logger = logging.getLogger(__name__)


class Imports:
    """All data set work of this server. ``version`` grows with every change, for conditional requests."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.version = 0
        self._work: dict[str, DatasetWork] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def active(self) -> list[DatasetWork]:
        """What goes on or has failed, in order of its begin, as it stands now."""
        with self._lock:
            return [work.model_copy() for work in self._work.values()]

    def find(self, name: str) -> DatasetWork | None:
        """The work on one data set, if there is any."""
        return next((work for work in self.active() if work.name == name), None)

    def is_active(self, name: str) -> bool:
        """Whether work on the data set goes on."""
        with self._lock:
            return name in self._work and self._work[name].error is None

    def start_import(self, name: str, source: Path, size: int = 64) -> None:
        """Import an uploaded archive, which is removed afterwards with its folder. Raises ``Conflict`` while busy."""
        make = partial(worker.import_images, self.home, name, source, size=size)
        self._begin(DatasetWork(name=name, what="import"), make, source)

    def start_prepare(self, name: str) -> None:
        """Download and cache a known data set. Raises ``Conflict`` while the name is busy."""
        self._begin(DatasetWork(name=name, what="download", unit="bytes"), partial(worker.prepare, self.home, name))

    def _begin(self, work: DatasetWork, make: Make, source: Path | None = None) -> None:
        with self._lock:
            before = self._work.get(work.name)
            if before is not None and before.error is None:
                raise Conflict(
                    _("{name} is being prepared already. Wait for it, or stop it first.").format(name=work.name)
                )
            self._work[work.name] = work
            self.version += 1
        threading.Thread(
            target=self._follow, args=(work, make, source), name=f"data set {work.name}", daemon=True
        ).start()

    def _follow(self, work: DatasetWork, make: Make, source: Path | None) -> None:
        error = None
        try:
            for event in make(on_start=partial(self._children.__setitem__, work.name)):
                work.what, work.done, work.total, work.unit = event.what, event.done, event.total, event.unit
                self.version += 1
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
            self.version += 1

    def cancel(self, name: str) -> None:
        """Stop the work; its child process removes what it has begun."""
        with self._lock:
            if name in self._work:
                self._work[name].cancelled = True
            if name in self._children:
                self._children[name].terminate()

    def end(self, patience_seconds: float = 5.0) -> None:
        """Stop all work, and wait for its child processes: the server ends."""
        children = [*self._children.items()]
        for name, _child in children:
            self.cancel(name)
        for _name, child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience_seconds)

    def dismiss(self, name: str) -> None:
        """Forget a failed work."""
        with self._lock:
            if name in self._work and self._work[name].error is not None:
                del self._work[name]
                self.version += 1
