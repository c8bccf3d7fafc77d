"""The parts of a running server. Every request finds them as ``request.app.state.runoff``.

The parts are typed by what others ask of them. So nothing here depends on how they are built (``app.main.make_state``),
and they can depend on this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from typing import Any, BinaryIO, Protocol

from sqlalchemy import Engine

from app.schemas import DatasetWork, IndexProgress
from app.settings import Settings
from trainer.run_folder import RunFolder


class TrainerHost(Protocol):
    """Handles requests that need torch; see ``app.runs.executors.Executor``."""

    def ensure_host(self) -> None: ...
    def ready(self) -> bool: ...
    def devices(self) -> list[dict[str, Any]]: ...
    def known_devices(self) -> list[dict[str, Any]]: ...
    def describe(self, config: dict[str, Any], image_shape: list[int], num_classes: int) -> dict[str, Any]: ...
    def force_stop(self, folder: RunFolder, attempt: int) -> bool: ...
    def close(self) -> None: ...
    def __hash__(self) -> int: ...  # answers are remembered for each host


class Index(Protocol):
    """Keeps the database up to date with the run folders; see ``app.runs.indexer.Indexer``."""

    progress: IndexProgress | None

    def tick(self) -> bool: ...
    def rebuild(self) -> int: ...
    def end(self) -> None: ...
    def suspect(self) -> None: ...
    def read_again(self, run_id: str) -> None: ...


class HomePresence(Protocol):
    """Whether the home is there; see ``app.runs.presence.Presence``."""

    def problem(self) -> str: ...


class Queue(Protocol):
    """Starts queued runs; see ``app.runs.scheduler.Scheduler``."""

    @property
    def waits_for(self) -> str: ...

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def wake(self) -> None: ...


class DatasetJobs(Protocol):
    """Imports and downloads data sets in the background; see ``app.datasets.Imports``."""

    def resume(self) -> None: ...
    def active(self) -> list[DatasetWork]: ...
    def find(self, name: str) -> DatasetWork | None: ...
    def is_active(self, name: str) -> bool: ...
    def begin_import(self, file: BinaryIO, file_name: str, name: str, size: int) -> None: ...
    def start_prepare(self, name: str) -> None: ...
    def cancel(self, name: str) -> None: ...
    def dismiss(self, name: str) -> None: ...
    def end(self) -> None: ...


class HomeChecks(Protocol):
    """Checks the home in the background, and repairs damaged runs; see ``app.runs.checking.Checks``."""

    last_repair: Any

    def latest(self) -> Any: ...
    def start(self, *, full: bool) -> Any: ...
    def restore(self, run_id: str) -> Any: ...
    def end(self) -> None: ...


@dataclass
class Runoff:
    """The parts of a running server."""

    settings: Settings
    engine: Engine
    presence: HomePresence
    executor: TrainerHost
    indexer: Index
    scheduler: Queue
    imports: DatasetJobs
    checks: HomeChecks
    ending: Event = field(default_factory=Event)  # set when the server is asked to end, so that streams end

    def run_folder(self, run_id: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.settings.runs / run_id)
