"""Measures this machine while nobody trains: what the newest finished runs would have liked to know before they began.

Only asks: a child of the trainer's host measures and records (see ``trainer.measurements``), and is ended when a run
starts.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import col, select

from app.runs.executors import Executor, ExecutorUnavailable, Interrupted, Refused
from app.store.database import reading
from app.store.tables import Run
from trainer import measurements
from trainer.datasets import catalogue
from trainer.run_folder import RunFolder
from trainer.wire import Measure

logger = logging.getLogger(__name__)
IDLE_SECONDS = 30.0  # without a queued or running run before anything is measured
_NUM_RUNS = 20  # the newest ones that are looked at


class Measuring:
    """One measurement at a time, each in a thread that waits for it; ``tick`` never waits."""

    def __init__(self, engine: Engine, home: Path, executor: Executor, idle_seconds: float = IDLE_SECONDS) -> None:
        self._engine = engine
        self._home = home
        self._executor = executor
        self._idle_seconds = idle_seconds
        self._idle_since: float | None = None
        self._is_complete = False  # nothing was missing since the last run
        self._asked: set[tuple[str, str]] = set()  # (section, key), whatever came of it
        self._thread: threading.Thread | None = None
        self._has_ended = False

    def tick(self, *, busy: bool) -> None:
        """Begin a measurement where one is missing and there was no run for some time; ``busy``: there is one now."""
        if busy:
            self._idle_since, self._is_complete = None, False
            return
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        is_early = time.monotonic() - self._idle_since < self._idle_seconds
        if is_early or self._is_complete or self._is_at_work() or not self._executor.ready():
            return
        request = self._next()
        if request is None:
            self._is_complete = True
            return
        self._thread = threading.Thread(target=self._measure, args=(request,), name="measuring", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Nothing more is begun or said; a measurement under way ends when the executor is closed."""
        self._has_ended = True

    def _is_at_work(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _measure(self, request: Measure) -> None:
        """Ask, and note that it was asked for: what failed is not tried again before the next start of the server."""
        try:
            self._executor.measure(request)
        except Interrupted:
            self._idle_since = None  # waits anew
            return
        except (ExecutorUnavailable, Refused) as problem:
            if not self._has_ended:
                logger.warning("%s was not measured: %s", request.key, problem)
        except Exception:
            logger.exception("%s was not measured.", request.key)
        self._asked.add((request.section, request.key))

    def _next(self) -> Measure | None:
        """The first measurement that a finished run lacks, the newest run first."""
        known = measurements.read(self._home)
        with reading(self._engine) as session:
            newest = select(Run).where(Run.status == "finished").order_by(col(Run.finished_at).desc())
            runs = session.exec(newest.limit(_NUM_RUNS)).all()
        for run in runs:
            for request in self._wishes(run):
                is_known = request.key in known[request.section]
                if not is_known and (request.section, request.key) not in self._asked:
                    return request
        return None

    def _wishes(self, run: Run) -> list[Measure]:
        """What should be known for runs like this one; nothing where its folder or its data set is not whole."""
        folder = RunFolder(self._home / "runs" / run.id)
        try:
            config, environment = folder.read_config(), folder.read_environment() or {}
            shape = catalogue.get_dataset(self._home, config.dataset).image_shape or ()
            net: dict[str, Any] = {
                "image_shape": list(shape),
                "num_classes": len(run.class_names),
                "num_threads": environment["num_threads"],
                "device": environment["device"],
            }
            fields = config.model_dump()
            wishes = []
            if config.precision == "auto":
                key = measurements.precision_key(config, shape, environment)
                wishes.append(Measure(section="precision", key=key, config=fields, **net))
            fixed = fields | {"precision": environment["precision"]}
            wishes.append(Measure(section="matmul", key=measurements.matmul_key(environment), config=fixed, **net))
        except (OSError, ValueError, LookupError):
            return []
        return wishes
