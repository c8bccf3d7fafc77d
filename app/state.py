"""What one server holds while it runs, handed to every request as ``request.app.state.runoff``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from app.settings import Settings

if TYPE_CHECKING:
    from app.datasets import Imports
    from app.runs.executors.local import LocalExecutor
    from app.runs.scheduler import Scheduler
    from app.store.indexer import Indexer


@dataclass
class Runoff:
    """The parts of a running server."""

    settings: Settings
    engine: Engine
    executor: LocalExecutor
    indexer: Indexer
    scheduler: Scheduler
    imports: Imports
