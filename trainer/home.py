"""Where things lie on disk, from the environment: ``RUNOFF_HOME`` and ``RUNOFF_DATASETS``."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds everything Runoff writes; default ``~/.runoff``."""
    return Path(os.environ.get("RUNOFF_HOME") or "~/.runoff").expanduser().resolve()


def datasets_root() -> Path | None:
    """A torchvision root that is read first and never written, or None where ``RUNOFF_DATASETS`` is not set."""
    value = os.environ.get("RUNOFF_DATASETS")
    return Path(value).expanduser().resolve() if value else None
