"""Removes deleted runs after 30 days, and records of idempotency keys after 24 hours."""

from __future__ import annotations

import logging
from pathlib import Path

from app.runs import idempotency, trash

logger = logging.getLogger(__name__)


def tidy(home: Path) -> None:
    """Remove old deleted runs and old records of idempotency keys. Raises ``OSError``."""
    idempotency.purge(home)
    for path in trash.purge(home):
        logger.warning("The deleted run %s was removed after %s days.", path.name, trash.DAYS_KEPT)
