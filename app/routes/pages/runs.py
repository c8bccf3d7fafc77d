"""The runs page: a table that filters, sorts and folds by its address, and the actions on the runs that are ticked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from markupsafe import Markup
from pydantic import BaseModel, Field, ValidationError

from app.draw.small import Scale
from app.errors import Conflict, NotFound, Problem, Refused
from app.runs import commands as runs
from app.runs.table import (
    DEFAULT_COLUMNS,
    KEPT_ROWS,
    MOST_AT_ONCE,
    PAGE_SIZE,
    Column,
    GroupRow,
    Row,
    RunTable,
    all_columns,
    columns_of,
    load_table,
    matching_ids,
)
from app.schemas import RunChange
from app.state import Runoff
from app.store import queries, search
from app.store.database import reading
from app.store.search import SearchError
from app.store.tables import STATUSES, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from app.words import STATUS_WORDS, number
from trainer.config import FieldProblem
from trainer.i18n import _, ngettext

router = APIRouter()
DEFAULT_SORT = "-created_at"
_BEFORE_CARET = 60  # characters that are shown in front of the caret
Action = Literal["archive", "restore", "delete", "tag", "untag", "cancel", "resume"]


class RunsQuery(BaseModel):
    """The address of the runs page: filters, order, what is open."""

    q: str = ""
    status: str = ""
    dataset: str = ""
    model: str = ""
    tag: str = ""
    sweep: str = ""
    group: str = ""
    archived: bool = False
    apart: bool = False  # repeats as single rows
    sort: str = DEFAULT_SORT
    columns: list[str] = []  # names of fields, several with commas between; none for the usual ones
    open: list[str] = []  # groups whose repeats are shown
    page: int = Field(1, ge=1, le=1_000_000)
    until: str | None = None

    def url(self, **changes: Any) -> str:
        """The address with some of it changed; whatever changes the rows begins at the first page again."""
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
        """The columns with commas between; empty for the usual ones."""
        return self._joined(self.columns)

    @property
    def cleared_url(self) -> str:
        """The address without filters."""
        return RunsQuery(columns=self.columns).url()

    @property
    def is_filtered(self) -> bool:
        """Whether rows may be missing that have nothing to do with paging."""
        return any((self.q, self.status, self.dataset, self.model, self.tag, self.sweep, self.group, self.archived))

    def filter(self) -> queries.RunFilter:
        """What the database is asked."""
        return queries.RunFilter(
            status=self.status or None, dataset=self.dataset or None, model=self.model or None, tag=self.tag or None,
            group=self.group or None, sweep=self.sweep or None, q=self.q or None, archived=self.archived, sort=self.sort,
        )  # fmt: skip


@cache
def _defaults() -> dict[str, Any]:
    """What the address does not say, by field; the time up to which a poll sees is in none."""
    return {name: field.get_default() for name, field in RunsQuery.model_fields.items() if name != templating.UNTIL}


@dataclass(frozen=True)
class Nothing:
    """Why the table has no rows, and what to do about it."""

    title: str
    text: str
    href: str
    action: str


@dataclass(frozen=True)
class StatusLink:
    """One part of the choice between statuses."""

    words: str
    count: int
    href: str
    is_current: bool


@dataclass(frozen=True)
class Select:
    """A list of values to filter by; ``title`` stands for all of them."""

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
    problem: SearchError | None = None  # why nothing was searched

    most_at_once = MOST_AT_ONCE

    @property
    def name_column(self) -> Column:
        return Column(search.fields()["name"])

    @property
    def parts(self) -> list[tuple[str, list[Column]]]:
        """All columns in groups, as they are offered."""
        words = {"": _("Usual"), "result": _("Results"), "run": _("Run"), "config": _("Configuration")}
        found: dict[str, list[Column]] = {part: [] for part in words}
        for column in all_columns():
            found["" if column.name in DEFAULT_COLUMNS else column.field.part].append(column)
        return [(words[part], columns) for part, columns in found.items()]

    def is_usual(self, column: Column) -> bool:
        return column.name in DEFAULT_COLUMNS

    @property
    def kept_fields(self) -> list[tuple[str, str]]:
        """What the form of filters sends along unseen, as name and value."""
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
        """All runs, then each status with how many runs it has."""
        found = [("", _("All"), self.num_all)]
        found += [(status, _(STATUS_WORDS[status]), self.table.counts[status]) for status in STATUSES]
        return [
            StatusLink(words, count, self.query.url(status=status), status == self.query.status)
            for status, words, count in found
        ]

    @property
    def selects(self) -> list[Select]:
        """The lists to filter by. What was asked for is offered even where no run has it."""
        found = [
            ("dataset", _("Data set"), self.choices["datasets"], self.query.dataset),
            ("model", _("Model"), self.choices["models"], self.query.model),
            ("tag", _("Tag"), self.choices["tags"], self.query.tag),
        ]
        selects = [
            Select(name, title, values if not chosen or chosen in values else [*values, chosen], chosen)
            for name, title, values, chosen in found
        ]
        return [select for select in selects if select.values or select.name != "tag"]

    @property
    def offers_archived(self) -> bool:
        """Whether the switch to archived runs is shown."""
        return bool(self.num_archived or self.query.archived)

    @property
    def matching_words(self) -> str:
        """How many runs are listed, beside the title."""
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
        """What stands where the table would be, where it has no rows."""
        query = self.query
        if self.problem:
            text = _("Mend the expression in the search field, or clear it.")
            return Nothing(_("Nothing was searched"), text, query.url(q=""), _("Clear the search"))
        if self.table.rows:
            return None
        if query.is_filtered or query.page > 1:
            wishes = self.wishes
            text = _("Nothing has {wishes}.").format(wishes=wishes) if wishes else _("Nothing is on this page.")
            return Nothing(_("No run matches"), text, query.cleared_url, _("Clear filters"))
        text = _("Archived runs are kept, but left out of this list.")
        return Nothing(_("All runs are archived"), text, query.url(archived=True), _("Show archived runs"))

    @property
    def pointed(self) -> str:
        """What was typed, with a caret under the character where reading it ended."""
        assert self.problem is not None
        shown = "".join(character if character.isprintable() else " " for character in self.query.q)
        start = max(0, self.problem.position - _BEFORE_CARET)
        return f"{'…' if start else ''}{shown[start:]}\n{' ' * (self.problem.position - start + bool(start))}^"

    @property
    def examples(self) -> list[tuple[str, str]]:
        """What can be typed into the search field."""
        return [
            ("cnn permuted", _("words in name, notes, tags, id, model or data set; all of them")),
            ('"two words"', _("quotes keep spaces and signs together")),
            ("model=vgg and test_accuracy > 97%", _("fields of the configuration and results: = != < <= > >=")),
            ("tag:final or not name ~ test", _("or, not, brackets; ~ means contains")),
            ("early_stopping_patience = null", _("null is what is missing; true and false")),
            ("created_at >= 2026-03-01", _("times in UTC, as far as you write them")),
        ]

    @property
    def folds_matching(self) -> bool:
        """Whether a mean may leave out repeats that the search left out."""
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
        """What the filters ask for, in words, for the sentence that nothing matches."""
        query, wishes = self.query, []
        named = {
            _("the status {value}"): _(STATUS_WORDS.get(query.status, "")).lower(),
            _("the data set {value}"): query.dataset, _("the model {value}"): query.model, _("the tag {value}"): query.tag,
            _("the sweep {value}"): query.sweep, _("the group {value}"): query.group, _("the words {value}"): query.q,
        }  # fmt: skip
        wishes = [words.format(value=value) for words, value in named.items() if value]
        return _(" and ").join(wishes)

    def sorted_by(self, column: Column) -> str:
        """``ascending``, ``descending``, or ``none``, as aria-sort wants it."""
        if self.query.sort.removeprefix("-") != column.name:
            return "none"
        return "descending" if self.query.sort.startswith("-") else "ascending"

    def sort_url(self, column: Column) -> str:
        """Sort by the column; once sorted by it, the other way round, then as at first."""
        first, second = column.name, "-" + column.name
        if column.descending_first:
            first, second = second, first
        following = {first: second, second: DEFAULT_SORT}.get(self.query.sort, first)
        return self.query.url(sort=following)

    def drawn(self, row: Row) -> Markup:
        """The HTML of a row, with the repeats of an open group."""
        toggle_url = self.toggle_url(row.group) if isinstance(row, GroupRow) else ""
        draw = _drawn if row.has_ended else _drawn.__wrapped__  # the row of a live run is another one each time
        return draw(row, toggle_url, self._view)

    @cached_property
    def _view(self) -> _View:
        address = self.query.url(page=1, open=[])
        return _View(address, self.table.scale, templating.language(), self.query, self.columns)

    def toggle_url(self, group: str) -> str:
        """Open or close the repeats of a group."""
        is_open = group in self.query.open
        return self.query.url(open=[g for g in self.query.open if g != group] if is_open else [*self.query.open, group])


@dataclass(frozen=True)
class _View:
    """All that the HTML of rows depends on beside the rows and their links to open them."""

    address: str  # without page and open groups: filters, order, columns
    scale: Scale
    language: str
    query: RunsQuery = field(compare=False)  # the address stands for both
    columns: list[Column] = field(compare=False)


@lru_cache(maxsize=KEPT_ROWS)
def _drawn(row: Row, toggle_url: str, view: _View) -> Markup:
    macros: Any = templating.environment().get_template("macros/runs.html").module
    return Markup(macros.unit(row, view.scale, toggle_url, view.query, view.columns))


@router.get("/")
def home() -> RedirectResponse:
    """The runs page is the home page."""
    return RedirectResponse("/runs", 303)


@router.get("/runs")
def runs_page(request: Request, state: State, session: Reading, query: Annotated[RunsQuery, Query()]) -> Response:
    """The table of runs."""
    version = queries.data_version(session)
    if same := templating.unchanged(request, version):
        return same
    problem = _problem(query.q)
    wanted = query.filter()
    table = load_table(
        session, state.settings.runs, replace(wanted, q=None) if problem else wanted, fold=not query.apart,
        open_groups=query.open, page=query.page, until=query.until,
    )  # fmt: skip
    if problem:
        table = replace(table, rows=[], num_matching=0, num_rows=0, num_newer=0)
    counts = queries.counts_by_archived(session)
    num_archived = sum(counts[True].values())
    page = RunsPage(
        query, table, columns_of(query.columns), queries.distinct_values(session),
        bool(num_archived + sum(counts[False].values())), num_archived, problem,
    )  # fmt: skip
    header = header_from(state, counts[False])
    asked_by_page = "HX-Request" in request.headers
    status_code = 422 if problem and not asked_by_page else 200
    answer = templating.render(request, "runs.html", page, version=version, header=header, status_code=status_code)
    if problem and asked_by_page:  # the rows stay as they are; only the complaint goes into the page
        place = "#search-problem"
        answer.headers.update(
            {"HX-Retarget": place, "HX-Reselect": place, "HX-Reswap": "outerHTML", "HX-Push-Url": "false"}
        )
    return answer


def _problem(q: str) -> SearchError | None:
    try:
        search.condition(q)
    except SearchError as error:
        return error
    return None


@router.get("/runs/matching")
def matching(session: Reading, query: Annotated[RunsQuery, Query()]) -> JSONResponse:
    """The ids of all runs that the address shows, over all pages, for an action on them."""
    ids = matching_ids(session, query.filter())
    if len(ids) > MOST_AT_ONCE:
        message = _("{n} runs match; one action takes at most {limit}. Narrow the search.")
        raise Refused(message.format(n=f"{len(ids):,}", limit=f"{MOST_AT_ONCE:,}"))
    return JSONResponse(ids)


# Actions on ticked runs --------------------------------------------------------------------------------------------------


@router.post("/runs/selected")
def act(
    request: Request,
    state: State,
    action: Annotated[Action, Form()],
    run: Annotated[list[str], Form()],
    tag: Annotated[str, Form()] = "",
) -> Response:
    """Do one thing to all ticked runs; ``run`` holds ids, several with commas between. Answers with a line for the corner."""
    ids = list(dict.fromkeys(run_id for value in run for run_id in value.split(",") if run_id))
    if len(ids) > MOST_AT_ONCE:
        message = _("One action takes at most {limit} runs; you chose {n}.")
        raise Refused(message.format(n=f"{len(ids):,}", limit=f"{MOST_AT_ONCE:,}"))
    done, problems = [], []
    for run_id in ids:
        try:
            _ACTIONS[action](state, _find(state, run_id), tag.strip())
            done.append(run_id)
        except (Conflict, NotFound) as problem:
            problems.append(problem)
    if problems and not done:
        raise problems[0] if len(ids) == 1 else Conflict(_rest(problems))
    if "HX-Request" not in request.headers:
        return RedirectResponse("/runs", 303)
    message = _DONE[action](len(done)).format(n=len(done), tag=tag.strip())
    undo = {"archive": "restore", "restore": "archive"}.get(action)
    return templating.toast(
        _ICONS[action], f"{message} {_rest(problems)}".strip(),
        undo=("/runs/selected", {"action": undo, "run": done}) if undo else None,
    )  # fmt: skip


def _find(state: Runoff, run_id: str) -> Run:
    """The run, read in a session that is closed before anything is written: an open one would block the writer."""
    with reading(state.engine) as session:
        return queries.get_run(session, run_id)


def _rest(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    words = ngettext("{n} run stays as it was: {why}", "{n} runs stay as they were: {why}", len(problems))
    return words.format(n=len(problems), why=problems[0].detail)


def _change(state: Runoff, run: Run, **values: Any) -> None:
    try:
        wanted = RunChange(**values)
    except ValidationError:
        message = _("A tag has 1 to 40 characters, and a run has at most 20 tags.")
        raise Refused.fields([FieldProblem(field="tag", message=message)]) from None
    runs.change(state, run.id, wanted)


_ACTIONS: dict[str, Callable[[Runoff, Run, str], object]] = {
    "archive": lambda state, run, tag: _change(state, run, archived=True),
    "restore": lambda state, run, tag: _change(state, run, archived=False),
    "delete": lambda state, run, tag: runs.delete(state, run.id),
    "tag": lambda state, run, tag: _change(state, run, tags=list(dict.fromkeys([*run.tags, tag]))),
    "untag": lambda state, run, tag: _change(state, run, tags=[other for other in run.tags if other != tag]),
    "cancel": lambda state, run, tag: runs.cancel(state, run.id),
    "resume": lambda state, run, tag: runs.resume(state, run.id),
}
_ICONS = {
    "archive": "archive", "restore": "archive", "delete": "trash", "tag": "tag", "untag": "tag", "cancel": "ban",
    "resume": "play",
}  # fmt: skip
_DONE: dict[str, Callable[[int], str]] = {
    "archive": lambda n: ngettext("{n} run archived", "{n} runs archived", n),
    "restore": lambda n: ngettext("{n} run is back in the list", "{n} runs are back in the list", n),
    "delete": lambda n: ngettext("{n} run deleted", "{n} runs deleted", n),
    "tag": lambda n: ngettext("{n} run tagged {tag}", "{n} runs tagged {tag}", n),
    "untag": lambda n: ngettext("Tag {tag} removed from {n} run", "Tag {tag} removed from {n} runs", n),
    "cancel": lambda n: ngettext("{n} run is being cancelled", "{n} runs are being cancelled", n),
    "resume": lambda n: ngettext("{n} run is in the queue again", "{n} runs are in the queue again", n),
}  # fmt: skip
