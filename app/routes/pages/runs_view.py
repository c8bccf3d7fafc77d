"""The view of the runs page: its URL parameters, its filters, and the rows of its table as HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from markupsafe import Markup
from pydantic import BaseModel, Field

from app.compare.load import MAX_COMPARED
from app.draw.small import Scale, scale_of
from app.runs.columns import DEFAULT_COLUMNS, Column, all_columns
from app.runs.rows import GroupRow, Row
from app.runs.table import MOST_AT_ONCE, PAGE_SIZE, RunTable
from app.store.fields import fields
from app.store.queries import RunFilter
from app.store.search import SearchError
from app.store.tables import STATUSES
from app.web import templating
from app.words import STATUS_WORDS, number
from trainer.i18n import _, ngettext

DEFAULT_SORT = "-created_at"
_BEFORE_CARET = 60  # most characters shown before the caret


class RunsQuery(BaseModel):
    """The URL parameters of the runs page: filters, order, columns and open groups."""

    q: str = ""
    status: str = ""
    dataset: str = ""
    model: str = ""
    tag: str = ""
    sweep: str = ""
    group: str = ""
    archived: bool = False
    apart: bool = False  # whether repeats are shown as single rows
    sort: str = DEFAULT_SORT
    columns: list[str] = []  # names of fields, possibly several per text, separated by commas; none for the defaults
    open: list[str] = []  # groups whose repeats are shown
    page: int = Field(1, ge=1, le=1_000_000)
    until: str | None = None

    def url(self, **changes: Any) -> str:
        """The URL with some parameters changed. A change of the rows goes back to the first page."""
        if not changes.keys() <= {"open", "page", "columns"}:
            changes = {"page": 1, "open": [], **changes}
        pairs = []
        for name, default in _defaults().items():
            value = changes.get(name, getattr(self, name))
            if name == "columns":
                value = self._joined(value)
            if value and value != default:
                pairs.append((name, "true" if value is True else value))
        return "/runs" + ("?" + urlencode(pairs, doseq=True) if pairs else "")

    def _joined(self, columns: list[str]) -> str:
        joined = ",".join(column for column in columns if column)
        return "" if joined == ",".join(DEFAULT_COLUMNS) else joined

    @property
    def chosen_columns(self) -> str:
        """The columns, separated by commas; empty for the defaults."""
        return self._joined(self.columns)

    @property
    def cleared_url(self) -> str:
        """The URL without filters."""
        return RunsQuery(columns=self.columns).url()

    @property
    def is_filtered(self) -> bool:
        """Whether any filter is set."""
        return any((self.q, self.status, self.dataset, self.model, self.tag, self.sweep, self.group, self.archived))

    def filter(self) -> RunFilter:
        """The filter for the database."""
        return RunFilter(
            status=self.status or None,
            dataset=self.dataset or None,
            model=self.model or None,
            tag=self.tag or None,
            group=self.group or None,
            sweep=self.sweep or None,
            q=self.q or None,
            archived=self.archived,
            sort=self.sort,
        )


@cache
def _defaults() -> dict[str, Any]:
    """The defaults of all URL parameters, except ``until``, which only polls send."""
    return {name: field.get_default() for name, field in RunsQuery.model_fields.items() if name != templating.UNTIL}


@dataclass(frozen=True)
class Nothing:
    """The message in place of an empty table, with a link that helps."""

    title: str
    text: str
    href: str
    action: str


@dataclass(frozen=True)
class StatusLink:
    """A link of the choice between statuses."""

    words: str
    count: int
    href: str
    is_current: bool


@dataclass(frozen=True)
class Select:
    """A filter: a select element with its values. ``title`` is the label for no filter."""

    name: str
    title: str
    values: list[str]
    chosen: str


@dataclass(frozen=True)
class RunsPage:
    """Variables of runs.html."""

    query: RunsQuery
    table: RunTable
    columns: list[Column]
    choices: dict[str, list[str]]
    has_any: bool  # whether there is any run at all, archived ones included
    num_archived: int
    problem: SearchError | None = None  # why the search could not run

    most_at_once = MOST_AT_ONCE
    most_compared = MAX_COMPARED

    @cached_property
    def scale(self) -> Scale:
        """The scale of the accuracies, which all rows share."""
        return scale_of(self.table.intervals)

    @property
    def name_column(self) -> Column:
        return Column(fields()["name"])

    @property
    def parts(self) -> list[tuple[str, list[Column]]]:
        """All columns that can be chosen, by group."""
        words = {"": _("Default"), "result": _("Results"), "run": _("Run"), "config": _("Configuration")}
        groups: dict[str, list[Column]] = {part: [] for part in words}
        for column in all_columns():
            groups["" if column.name in DEFAULT_COLUMNS else column.field.part].append(column)
        return [(words[part], columns) for part, columns in groups.items()]

    def is_usual(self, column: Column) -> bool:
        return column.name in DEFAULT_COLUMNS

    @property
    def kept_fields(self) -> list[tuple[str, str]]:
        """The hidden fields of the filter form, as (name, value)."""
        query = self.query
        fields = {
            "status": query.status,
            "sweep": query.sweep,
            "group": query.group,
            "archived": "true" if query.archived else "",
            "apart": "true" if query.apart else "",
            "sort": query.sort if query.sort != DEFAULT_SORT else "",
            "columns": query.chosen_columns,
        }
        return [(name, value) for name, value in fields.items() if value]

    @property
    def status_links(self) -> list[StatusLink]:
        """Links to all runs and to each status, with the number of runs; to damaged ones only if there are any."""
        counts = [("", _("All"), self.num_all)]
        shown = [status for status in STATUSES if status != "damaged" or self.table.counts[status]]
        counts += [(status, _(STATUS_WORDS[status]), self.table.counts[status]) for status in shown]
        return [
            StatusLink(words, count, self.query.url(status=status), status == self.query.status)
            for status, words, count in counts
        ]

    @property
    def selects(self) -> list[Select]:
        """The filters. A value from the URL is listed even if no run has it."""
        lists = [
            ("dataset", _("Data set"), self.choices["datasets"], self.query.dataset),
            ("model", _("Model"), self.choices["models"], self.query.model),
            ("tag", _("Tag"), self.choices["tags"], self.query.tag),
        ]
        selects = [
            Select(name, title, values if not chosen or chosen in values else [*values, chosen], chosen)
            for name, title, values, chosen in lists
        ]
        return [select for select in selects if select.values or select.name != "tag"]

    @property
    def offers_archived(self) -> bool:
        """Whether the switch to archived runs is shown."""
        return bool(self.num_archived or self.query.archived)

    @property
    def matching_words(self) -> str:
        """How many runs are listed, as a text beside the title."""
        if self.problem:
            return ""
        count = self.table.num_matching
        if not self.query.is_filtered or self.query.archived:
            return ngettext("{n} run", "{n} runs", count).format(n=number(count))
        if self.query.status:
            return _("{n} of {total} runs").format(n=number(count), total=number(self.num_all))
        return ngettext("{n} run matches", "{n} runs match", count).format(n=number(count))

    @property
    def nothing(self) -> Nothing | None:
        """The message in place of an empty table; None if it has rows."""
        query = self.query
        if self.problem:
            text = _("Fix the search expression, or clear it.")
            return Nothing(_("The search could not run"), text, query.url(q=""), _("Clear the search"))
        if self.table.rows:
            return None
        if query.is_filtered or query.page > 1:
            wishes = self.wishes
            text = _("No run has {wishes}.").format(wishes=wishes) if wishes else _("There are no runs on this page.")
            return Nothing(_("No run matches"), text, query.cleared_url, _("Clear filters"))
        text = _("Archived runs are kept, but hidden from this list.")
        return Nothing(_("All runs are archived"), text, query.url(archived=True), _("Show archived runs"))

    @property
    def pointed(self) -> str:
        """The search expression, with a caret below the character of the error."""
        assert self.problem is not None
        shown = "".join(character if character.isprintable() else " " for character in self.query.q)
        start = max(0, self.problem.position - _BEFORE_CARET)
        return f"{'…' if start else ''}{shown[start:]}\n{' ' * (self.problem.position - start + bool(start))}^"

    @property
    def examples(self) -> list[tuple[str, str]]:
        """Examples of the search language, as (expression, meaning)."""
        return [
            ("cnn permuted", _("words in name, notes, tags, id, model or data set; all must match")),
            ('"two words"', _("quotes search for a phrase with spaces or signs")),
            ("model=vgg and test_accuracy > 97%", _("fields of the configuration and results: = != < <= > >=")),
            ("tag:final or not name ~ test", _("or, not, brackets; ~ means contains")),
            ("early_stopping_patience = null", _("null for missing values; true and false")),
            ("created_at >= 2026-03-01", _("times in UTC, as exact as you like")),
        ]

    @property
    def folds_matching(self) -> bool:
        """Whether the mean of a group may lack repeats that do not match the filters."""
        return bool(self.query.q or self.query.status) and any(row.is_group for row in self.table.rows)

    @property
    def num_all(self) -> int:
        return sum(self.table.counts.values())

    @property
    def first(self) -> int:
        return (self.query.page - 1) * PAGE_SIZE + 1

    @property
    def last(self) -> int:
        return self.first + len(self.table.rows) - 1

    @property
    def previous_url(self) -> str:
        return self.query.url(page=self.query.page - 1) if self.query.page > 1 else ""

    @property
    def next_url(self) -> str:
        return self.query.url(page=self.query.page + 1) if self.last < self.table.num_rows else ""

    @property
    def wishes(self) -> str:
        """The filters in words, for the sentence that no run matches."""
        query = self.query
        named = {
            _("the status {value}"): _(STATUS_WORDS.get(query.status, "")).lower(),
            _("the data set {value}"): query.dataset,
            _("the model {value}"): query.model,
            _("the tag {value}"): query.tag,
            _("the sweep {value}"): query.sweep,
            _("the group {value}"): query.group,
            _("the words {value}"): query.q,
        }
        wishes = [words.format(value=value) for words, value in named.items() if value]
        return _(" and ").join(wishes)

    def sorted_by(self, column: Column) -> str:
        """The value of aria-sort: ``ascending``, ``descending`` or ``none``."""
        if self.query.sort.removeprefix("-") != column.name:
            return "none"
        return "descending" if self.query.sort.startswith("-") else "ascending"

    def sort_url(self, column: Column) -> str:
        """The URL that sorts by the column, then in reverse, then by the default again."""
        first, second = column.name, "-" + column.name
        if column.descending_first:
            first, second = second, first
        following = {first: second, second: DEFAULT_SORT}.get(self.query.sort, first)
        return self.query.url(sort=following)

    def drawn(self, row: Row) -> Markup:
        """The HTML of a row, with the repeats of an open group."""
        toggle_url = self.toggle_url(row.group) if isinstance(row, GroupRow) else ""
        draw = _drawn if row.has_ended else _draw  # live runs keep changing
        return draw(row, toggle_url, self._view)

    @cached_property
    def _view(self) -> _View:
        address = self.query.url(page=1, open=[])
        return _View(address, self.scale, templating.language(), self.query, self.columns)

    def toggle_url(self, group: str) -> str:
        """The URL that shows or hides the repeats of a group."""
        is_open = group in self.query.open
        return self.query.url(open=[g for g in self.query.open if g != group] if is_open else [*self.query.open, group])


_KEPT_VIEWS = 8  # of a row: one for each choice of columns, order and filters


@dataclass(frozen=True)
class _View:
    """Everything that the HTML of a row depends on, except the row itself and the link that opens it."""

    address: str  # filters, order and columns, without the page and the open groups
    scale: Scale
    language: str
    query: RunsQuery = field(compare=False)  # ``address`` is enough to compare
    columns: list[Column] = field(compare=False)


_html: WeakKeyDictionary[Row, dict[tuple[str, _View], Markup]] = WeakKeyDictionary()  # it goes with the row


def _draw(row: Row, toggle_url: str, view: _View) -> Markup:
    macros: Any = templating.environment().get_template("macros/runs.html").module
    return Markup(macros.unit(row, view.scale, toggle_url, view.query, view.columns))


def _drawn(row: Row, toggle_url: str, view: _View) -> Markup:
    known = _html.setdefault(row, {})
    html = known.get((toggle_url, view))
    if html is None:
        html = _draw(row, toggle_url, view)
        if len(known) >= _KEPT_VIEWS:
            known.clear()
        known[toggle_url, view] = html
    return html
