"""Free space on the disk of the home. Below a reserve, no run is started and uploads are refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.i18n import _

_ENOUGH = 1.2  # times the reserve must be free before work that stopped for lack of space begins again


@dataclass(frozen=True)
class Room:
    """Free bytes on the disk of a home, and how many are kept free."""

    home: Path
    free: int
    reserve: int

    @classmethod
    def of(cls, home: Path, reserve: int) -> Room:
        """The room now. Raises ``OSError`` if the home is gone."""
        return cls(home, shutil.disk_usage(home).free, reserve)

    @property
    def is_short(self) -> bool:
        return self.free < self.reserve

    @property
    def is_ample(self) -> bool:
        """Whether there is enough more than the reserve, so that starting and stopping do not alternate."""
        return self.free >= _ENOUGH * self.reserve

    def has_place_for(self, num_bytes: int) -> bool:
        """Whether the reserve is still free after ``num_bytes`` are written."""
        return self.free - num_bytes >= self.reserve

    @property
    def sentence(self) -> str:
        """What is wrong and what to do; empty while there is room."""
        if not self.is_short:
            return ""
        text = _(
            "Only {free} MB are free in {home}, so no run is started. Free some space; runs then continue automatically."
        )
        return text.format(free=f"{self.free / 1e6:,.0f}", home=self.home)
