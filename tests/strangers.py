"""A folder of a student's own files whose names are those of Runoff's packages and of libraries."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "app",
    "trainer",
    "runoff",
    "json",
    "multiprocessing",
    "numpy",
    "random",
    "socket",
    "statistics",
    "torch",
    "uvicorn",
)


def fill(folder: Path) -> Path:
    """Put a file of each name into ``folder``. Whatever imports one fails, and says which."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('a stranger was imported: {name}.py')\n")
    return folder
