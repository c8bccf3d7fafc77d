"""The columns of the runs table: which there are, and what each shows of a run or of repeats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import Refused
from app.runs.rows import Row, RunRow, members_of
from app.store.fields import Field, fields, unknown_field
from app.words import compact, number, percent, seconds, value_words
from trainer.config import FieldProblem
from trainer.i18n import N_, _, ngettext

DEFAULT_COLUMNS = (
    "model",
    "epochs",
    "test_accuracy",
    "best_test_accuracy",
    "train_loss",
    "train_seconds",
    "images_per_second",
)
MOST_COLUMNS = 30
_FIXED = ("status", "name")  # always shown
_SHORT_TITLES = {
    "test_accuracy": N_("Test accuracy, %"),
    "best_test_accuracy": N_("Best"),
    "train_loss": N_("Training loss"),
    "train_seconds": N_("Time"),
}
_HINTS = {
    "test_accuracy": N_("after the last epoch, with its 95 % interval"),
    "best_test_accuracy": N_("optimistic where it was chosen on the test images themselves"),
    "train_seconds": N_("training only, without evaluation and saving"),
    "images_per_second": N_("training images per second"),
}
_DIGITS = 4


@dataclass(frozen=True)
class Column:
    """A column of the table: a field of a run. Some have their own macro in templates/macros/runs.html."""

    field: Field

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def title(self) -> str:
        if self.name in _SHORT_TITLES:
            return _(_SHORT_TITLES[self.name])
        title = _(self.field.title)
        return f"{title}, %" if self.field.kind == "accuracy" else title

    @property
    def hint(self) -> str:
        return _(_HINTS.get(self.name, ""))

    @property
    def kind(self) -> str:
        """The CSS classes of its cells."""
        if self.name not in DEFAULT_COLUMNS:
            return "num extra" if self.field.kind in ("number", "accuracy") else "extra"
        numbers = ("best_test_accuracy", "train_seconds", "images_per_second")
        return {"model": "opt", "train_loss": "opt", **dict.fromkeys(numbers, "num opt")}.get(self.name, "")

    @property
    def descending_first(self) -> bool:
        """Whether the first click sorts the largest values to the top."""
        return self.field.part == "result" and not self.name.endswith("_loss")

    def text(self, row: Row) -> str:
        """The value of a run, or of the repeats of a group together; empty if there is none."""
        if self.name == "train_seconds":
            return seconds(row.train_seconds or None)
        if self.name == "images_per_second":
            rate = row.images_per_second or None
            return number(round(rate, -1) if rate is not None and rate >= 100 else rate)
        return self._text_of(members_of(row))

    def _text_of(self, rows: Sequence[RunRow]) -> str:
        """The value of one run. Of repeats: their common value, the mean of results, or how many values there are."""
        if self.field.in_config or self.name == "notes":
            rows = rows[:1]  # the same for all repeats, or long
        values = [value for row in rows if (value := self.field.of(row.run)) is not None]
        if not values:
            return ""
        distinct = list(dict.fromkeys(values))
        if len(distinct) > 1 and self.field.part == "result":
            return _("mean {value}").format(value=self._words(sum(values) / len(values)))
        if len(distinct) > 1:
            return ngettext("{n} value", "{n} values", len(distinct)).format(n=len(distinct))
        return self._words(distinct[0])

    def _words(self, value: Any) -> str:
        if self.field.kind == "accuracy":
            return percent(value)
        if self.field.kind == "time":
            return str(value)[:16].replace("T", " ")
        if self.field.part == "result":
            return number(value) if float(value).is_integer() else compact(value, _DIGITS)
        return value_words(value)


def columns_of(names: Iterable[str]) -> list[Column]:
    """The columns with these names (a name may be a list with commas), or the default ones. Raises ``Refused``."""
    wanted = list(dict.fromkeys(name for value in names for name in value.split(",") if name)) or [*DEFAULT_COLUMNS]
    known = {column.name: column for column in all_columns()}
    for name in wanted:
        if name not in known:
            raise Refused.fields([FieldProblem(field="columns", message=unknown_field(name))])
    if len(wanted) > MOST_COLUMNS:
        message = _("At most {limit} columns can be shown.").format(limit=MOST_COLUMNS)
        raise Refused.fields([FieldProblem(field="columns", message=message)])
    return [known[name] for name in wanted]


def all_columns() -> list[Column]:
    """Every column that can be chosen, in the order in which they are offered."""
    known = fields()
    others = [name for name in known if name not in (*_FIXED, *DEFAULT_COLUMNS)]
    return [Column(known[name]) for name in (*DEFAULT_COLUMNS, *others)]
