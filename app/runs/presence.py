"""Whether the home is still the folder with which the server started. It may have been unmounted, moved or removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.home import home_id, known_home_id
from trainer.i18n import _

Check = Callable[[], str]  # a sentence if the home is not there, otherwise an empty string


def unchecked() -> str:
    """A check for code that runs without a server: the home is always there."""
    return ""


@dataclass(frozen=True)
class Presence:
    """A home: its id, and device and inode of the home and of its folder of runs."""

    home: Path
    id: str
    folders: Mapping[Path, tuple[int, int]]

    @classmethod
    def of(cls, home: Path) -> Presence:
        """The home as it is now. Raises ``OSError``."""
        runs = home / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        return cls(home, home_id(home), {path: _identity(path) for path in (home, runs)})

    def problem(self) -> str:
        """A sentence if the home is not there; empty if it is."""
        try:
            is_same = all(_identity(path) == known for path, known in self.folders.items())
            is_there = is_same and known_home_id(self.home) == self.id
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError as error:
            return _("{home} can't be used: {reason}.").format(home=self.home, reason=error.strerror)
        if is_there:
            return ""
        text = _(
            "The home {home} or its folder of runs is missing or was replaced, for example because a disk is not mounted. "
            "Nothing is started or changed until it is back. To use what is there now, restart the server."
        )
        return text.format(home=self.home)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
