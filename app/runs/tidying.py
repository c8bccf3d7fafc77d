"""Removes what is kept for some time only: deleted runs after 30 days, records of keys after one."""

from __future__ import annotations

import logging
from pathlib import Path

from app.runs import idempotency, trash

logger = logging.getLogger(__name__)


def tidy(home: Path) -> None:
    """Remove what has been kept long enough."""
    idempotency.purge(home)
    for path in trash.purge(home):
        logger.warning("The deleted run %s was removed after %s days.", path.name, trash.DAYS_KEPT)
