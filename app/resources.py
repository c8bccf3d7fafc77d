"""The folders that are shipped with the code but are not Python: templates, static files, docs."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder of this name: inside the package where Runoff was installed from a wheel, else in the repository."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
