"""What one server holds while it runs, handed to every request as ``request.app.state.runoff``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from app.settings import Settings

if TYPE_CHECKING:
    from app.executors.local import LocalExecutor
    from app.imports import Imports
    from app.indexer import Indexer
    from app.scheduler import Scheduler


@dataclass
class Runoff:
    """The parts of a running server."""

    settings: Settings
    engine: Engine
    executor: LocalExecutor
    indexer: Indexer
    scheduler: Scheduler
    imports: Imports
