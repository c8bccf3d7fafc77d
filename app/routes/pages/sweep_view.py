"""What the page of a sweep shows: its address, the best run, and the numbers of its rows, in words and links."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.compare.load import MAX_COMPARED
from app.compare.sweep_ranking import Best
from app.draw.small import Scale
from app.draw.svg import Drawing, ResponsiveDrawing
from app.forms.read import text_of
from app.runs.rows import GroupRow, Row, seconds_of, validation_of
from app.runs.sweeps import Factor, Level
from app.store.tables import ACTIVE, Run
from app.words import number, statuses_in_words
from trainer.i18n import _, ngettext

DEFAULT_SORT = "-accuracy"
FIRST_ROWS, MORE_ROWS, MOST_ROWS = 50, 200, 10_000
_NO_VALUE = "none"  # null as a filter in the address


class SweepQuery(BaseModel):
    """What of the sweep is shown; it stands in the URL, beside one value for each field that is filtered by."""

    sort: str = DEFAULT_SORT
    apart: bool = False  # repeats as single rows
    shown: int = Field(FIRST_ROWS, ge=1, le=MOST_ROWS)  # rows of the table


@dataclass(frozen=True)
class FactorPlot:
    """One field: the accuracies of its values."""

    factor: Factor
    levels: list[Level]
    chart: Drawing
    balanced: bool


@dataclass(frozen=True)
class Choice:
    """One value of a filter."""

    text: str  # as in the address
    label: str


@dataclass(frozen=True)
class SweepPage:
    """Variables of sweep.html."""

    id: str
    query: SweepQuery
    filters: dict[str, str]  # field -> the value shown, as in the address
    runs: list[Run]
    name: str
    factors: list[Factor]
    rows: list[Row]  # all of them; the table shows the first ``query.shown``
    scale: Scale
    best: Best | None
    best_group: GroupRow | None  # by the mean over seeds, where there are any
    plots: list[FactorPlot]
    parallel: ResponsiveDrawing | None  # None where at most one field varies
    compared: list[str]  # the best ones
    answered: list[str]  # tested on the same images, best first
    num_shown: int

    @property
    def path(self) -> str:
        return f"/sweeps/{self.id}"

    @property
    def title(self) -> str:
        count = len(self.runs)
        return self.name or ngettext("Sweep of {n} run", "Sweep of {n} runs", count).format(n=number(count))

    @property
    def counts(self) -> Counter[str]:
        return Counter(run.status for run in self.runs)

    @property
    def num_active(self) -> int:
        return sum(run.status in ACTIVE for run in self.runs)

    @property
    def has_repeats(self) -> bool:
        return len({run.group for run in self.runs}) < len(self.runs)

    @property
    def num_test_sets(self) -> int:
        return len({run.test_fingerprint for run in self.runs if run.test_fingerprint})

    @property
    def fraction(self) -> float:
        """Of all epochs, 0..1."""
        done = sum(run.epochs if run.status not in ACTIVE else run.epochs_done for run in self.runs)
        return done / max(sum(run.epochs for run in self.runs), 1)

    @property
    def states(self) -> str:
        """ "7 of 12 finished, 1 running, 4 queued" """
        return statuses_in_words(run.status for run in self.runs)

    @property
    def grid_words(self) -> str:
        """ "4 values of Learning rate × 3 seeds" """
        parts = [
            ngettext("{n} value of {field}", "{n} values of {field}", len(factor.values)).format(
                n=len(factor.values), field=factor.title
            )
            for factor in self.factors
        ]
        seeds = len({run.seed for run in self.runs})
        return " × ".join([*parts, *([_("{n} seeds").format(n=seeds)] if seeds > 1 else [])])

    def url(self, **changes: Any) -> str:
        """The address with the sort, the folding or one filter changed, from the first rows on."""
        changes = {"shown": FIRST_ROWS} | changes
        query = self.query.model_copy(update={k: v for k, v in changes.items() if k in SweepQuery.model_fields})
        filters = self.filters | {k: v for k, v in changes.items() if k not in SweepQuery.model_fields}
        pairs = [
            (k, str(v).lower() if isinstance(v, bool) else v)
            for k, v in query.model_dump(exclude_defaults=True).items()
        ]
        pairs += [(field, text) for field, text in filters.items() if text]
        return self.path + ("?" + urlencode(pairs) if pairs else "")

    def sorted_by(self, name: str) -> str:
        """``ascending``, ``descending`` or ``none``, as aria-sort wants it."""
        if self.query.sort.removeprefix("-") != name:
            return "none"
        return "descending" if self.query.sort.startswith("-") else "ascending"

    def sort_url(self, name: str) -> str:
        """Sort by the column; once sorted by it, the other way round."""
        first = "-" + name if name in ("accuracy", "validation", "seconds") else name
        turned = first.removeprefix("-") if first.startswith("-") else "-" + first
        return self.url(sort=turned if self.query.sort == first else first)

    @property
    def by_validation(self) -> bool:
        """Whether runs are chosen by images that their test accuracy does not rest on."""
        return self.best is not None and self.best.by_validation

    def seconds(self, row: Row) -> float | None:
        """Training seconds of one run of the row, on average."""
        return seconds_of(row)

    def validation(self, row: Row) -> float | None:
        """Validation accuracy of the row's runs, on average."""
        return validation_of(row)

    def choices(self, factor: Factor) -> list[Choice]:
        return [Choice(text_in_address(value), factor.words(value)) for value in factor.values]

    @property
    def kept_fields(self) -> list[tuple[str, str]]:
        """What the form of filters sends along unseen, as name and value."""
        fields = {
            "sort": self.query.sort if self.query.sort != DEFAULT_SORT else "",
            "apart": "true" if self.query.apart else "",
        }
        return [(name, value) for name, value in fields.items() if value]

    @property
    def shown_words(self) -> str:
        """How many runs the table is about."""
        total = len(self.runs)
        if self.num_shown < total:
            return _("{shown} of {total}").format(shown=number(self.num_shown), total=number(total))
        return ngettext("{n} run", "{n} runs", total).format(n=number(total))

    def is_best(self, run: Run) -> bool:
        """Whether the row of the run says that it is the best."""
        return self.best is not None and self.best.num_candidates > 1 and run.id == self.best.run.id

    @property
    def no_best_words(self) -> str:
        """Why there is no best run."""
        if self.num_active:
            return _("The best run appears when the first one has finished.")
        return _("No run of this sweep has finished.")

    @property
    def more_url(self) -> str:
        return self.url(shown=self.query.shown + self.num_more)

    @property
    def num_more(self) -> int:
        """How many rows the table can show further at once."""
        return min(MORE_ROWS, max(len(self.rows) - self.query.shown, 0))

    @property
    def compare_url(self) -> str:
        """The best runs side by side; empty where there are fewer than two."""
        return "/compare?" + urlencode([("run", run_id) for run_id in self.compared]) if len(self.compared) > 1 else ""

    @property
    def difficulty_url(self) -> str:
        """The images that are hard for all of its runs; empty where fewer than two have answers."""
        if len(self.answered) < 2:
            return ""
        return "/difficulty?" + urlencode([("run", run_id) for run_id in self.answered[:MAX_COMPARED]])


def text_in_address(value: Any) -> str:
    """A value of a field as a filter in the address."""
    return _NO_VALUE if value is None else text_of(value)
