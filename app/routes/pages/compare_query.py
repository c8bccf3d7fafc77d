"""The address of the compare page: what is compared, and what of it is shown."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote_plus

from pydantic import BaseModel, Field

from app.compare import curves, walls
from app.compare.shapes import DEFAULT_MARGIN
from app.draw.figures import Axis
from trainer.i18n import _

TILES = walls.Steps(first=30)
_SMALLEST_MARGIN = 0.0001  # points


class CompareQuery(BaseModel):
    """What is compared and shown; it stands in the URL. ``margin`` is in points here."""

    run: list[str] = []
    base: str = ""
    at: str = "last"
    margin: str = "0.5"
    pair: str = ""  # the two runs in focus, "ID.ID"
    x: Axis = "epoch"
    smooth: float = Field(0.0, ge=0, le=curves.LARGEST_SMOOTHING)
    loss: Literal["linear", "log"] = "linear"
    over: Literal["runs", "seeds"] = "runs"
    value: Literal["last", "best"] = "last"  # the epoch whose values stand beside the names of the curves
    config: Literal["different", "all"] = "different"  # the fields listed
    to: str = ""  # the accuracy whose cost is shown, as ``typed_accuracy`` reads it
    side: Literal["a", "b", "wrong", "right", "all"] = "a"
    label: int | None = Field(None, ge=0, le=65_535)
    predicted: int | None = Field(None, ge=0, le=65_535)
    shown: int = Field(TILES.first, ge=1, le=TILES.most)
    image: int | None = Field(None, ge=0)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(run for run in self.run if run))

    @property
    def margin_or_problem(self) -> tuple[float, str]:
        """The margin as a fraction, and what is wrong with what was typed."""
        try:
            points = float(self.margin.replace("−", "-"))
        except ValueError:
            message = _("The margin must be a number. You typed {typed}.")
            return DEFAULT_MARGIN, message.format(typed=self.margin[:20])
        if not _SMALLEST_MARGIN <= points <= 50:
            message = _("The margin must be at least 0.0001 and at most 50 points. You typed {typed}.")
            return DEFAULT_MARGIN, message.format(typed=self.margin[:20])
        return points / 100, ""

    @property
    def view(self) -> curves.View:
        return curves.View(self.x, self.smooth, self.loss == "log")

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """The fields of the URL that are not at their defaults, as (name, value)."""
        values = self.model_copy(update={"run": self.ids, **changes}).model_dump(exclude_none=True)
        defaults = {name: info.get_default() for name, info in type(self).model_fields.items()}
        kept = {name: value for name, value in values.items() if name == "run" or value != defaults[name]}
        return [(n, str(one)) for n, value in kept.items() for one in (value if isinstance(value, list) else [value])]

    def url(self, **changes: Any) -> str:
        """The address with some of it changed."""
        found = "&".join(f"{name}={_quoted(value)}" for name, value in self.pairs(**changes))
        return "/compare" + ("?" + found if found else "")


_quoted = lru_cache(maxsize=1024)(quote_plus)  # a page of 50 runs has 140 addresses with all of their ids
