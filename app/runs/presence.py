"""Whether the home is still the folder with which the server started. It may have been unmounted, moved or removed."""

from __future__ import annotations

from collections.abc import Callable
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
    """A home: its id, and the inode of its folder of runs.

    A disk that is mounted again may have another device number, so that says nothing.
    """

    home: Path
    id: str
    inode: int

    @classmethod
    def of(cls, home: Path) -> Presence:
        """The home as it is now. Raises ``OSError``."""
        runs = home / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        return cls(home, home_id(home), runs.stat().st_ino)

    def problem(self) -> str:
        """A sentence if the home is not there; empty if it is."""
        try:
            is_same = (self.home / "runs").stat().st_ino == self.inode
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
