"""A check of the whole home in the background: one at a time, with its progress and its result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Engine

from app.errors import Conflict, NotFound
from app.runs.check import Checked, check_home
from app.runs.repair import Repaired, repair
from app.settings import Settings
from trainer.files import now
from trainer.i18n import _
from trainer.run_folder import RunFolder, is_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """A check, running or ended. ``done`` and ``total`` count runs; ``failed`` says why it could not be completed."""

    full: bool
    started_at: str
    done: int = 0
    total: int = 0
    reading: str = ""  # what is read after the runs, as a sentence
    num_checked: int = 0  # things of all kinds
    damaged: tuple[Checked, ...] = ()
    seconds: float | None = None  # None while it is running
    failed: str = ""


class Checks:
    """The latest check. It is forgotten when the server ends."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._lock = threading.Lock()
        self._latest: Check | None = None
        self._has_ended = False
        self.last_repair: Repaired | None = None

    def latest(self) -> Check | None:
        """The check that is running, else the last one; None if there was none since the server started."""
        return self._latest

    def start(self, *, full: bool) -> Check:
        """Begin a check. Raises ``Conflict`` while one is running."""
        with self._lock:
            if self._latest is not None and self._latest.seconds is None:
                raise Conflict(_("A check is already running. Wait until it ends."))
            self._latest = check = Check(full=full, started_at=now())
        threading.Thread(target=self._work, args=(full,), name="check", daemon=True).start()
        return check

    def end(self) -> None:
        """Stop a running check after the run or data set that it is reading."""
        self._has_ended = True

    def restore(self, run_id: str, backups: Sequence[Path] = ()) -> Repaired:
        """Restore damaged files of a run from intact copies. Raises ``NotFound``, and ``Conflict`` for a running run."""
        folder = RunFolder(self._settings.runs / run_id)
        if not is_id(run_id) or not folder.path.is_dir():
            raise NotFound(_("There is no run {id}.").format(id=run_id[:40]))
        result = repair(self._engine, folder, backups)
        self.last_repair = result
        self._update_damaged(result)
        return result

    def _work(self, full: bool) -> None:
        begin = time.monotonic()
        found: list[Checked] = []
        failed = ""
        try:
            for checked in check_home(self._settings, full=full, progress=self._note_progress):
                found.append(checked)
                if self._has_ended:
                    return
        except Exception as error:
            logger.exception("The check could not be completed.")
            failed = str(error) or type(error).__name__
        damaged = tuple(checked for checked in found if checked.problems)
        self._change(num_checked=len(found), damaged=damaged, failed=failed, seconds=time.monotonic() - begin)

    def _note_progress(self, done: int, total: int, reading: str) -> None:
        self._change(done=done, total=total, reading=reading)

    def _change(self, **values: object) -> None:
        with self._lock:
            assert self._latest is not None
            self._latest = replace(self._latest, **values)  # type: ignore[arg-type]

    def _update_damaged(self, result: Repaired) -> None:
        """Let the last check say what is wrong with a run now."""
        with self._lock:
            if self._latest is not None and self._latest.seconds is not None:
                others = [checked for checked in self._latest.damaged if checked.name != result.run_id]
                others += [Checked(result.run_id, result.problems)] if result.problems else []
                self._latest = replace(self._latest, damaged=tuple(sorted(others, key=lambda checked: checked.name)))
