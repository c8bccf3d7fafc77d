"""The search field's language: ``model=vgg and test_accuracy > 97% and tag:final`` becomes a condition on runs.

    any      = all, { "or", all }
    all      = one, { [ "and" ], one }
    one      = "not", one | "(", any, ")" | field, operator, value | word
    operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~" (contains) | ":" (like "=", right behind the field)
    value    = number | per cent | text | "null" | "true" | "false"

A word stands in name, notes, tags, id, model or data set; quotes keep spaces and signs together. Also the table of all
fields, which sorting and chosen columns use. What is typed reaches SQL as bound values only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, not_, or_, select
from sqlmodel import col

from app.store.tables import STATUSES, Run
from trainer.config import FIELDS as CONFIG_FIELDS
from trainer.config import RunConfig
from trainer.i18n import N_, _

LONGEST = 500  # characters
MOST_CONDITIONS = 40  # each is looked for in every run
DEEPEST = 20  # brackets and nots inside each other
_NUMBERS = ("number", "accuracy")
Kind = Literal["number", "accuracy", "text", "choice", "flag", "time", "tags"]


class SearchError(ValueError):
    """An expression that can't be read: a sentence, and the place in the text, counted from 0."""

    def __init__(self, problem: str, position: int) -> None:
        self.problem, self.position = problem, position
        super().__init__(_("Character {n}: {problem}").format(n=position + 1, problem=problem))


# Fields --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """Something known of every run: a column of the index, or a field of its config."""

    name: str
    title: str
    kind: Kind
    part: Literal["run", "result", "config"]
    values: tuple[str, ...] = ()  # of a choice

    @property
    def in_config(self) -> bool:
        """Whether it lies in the config and not in a column of its own."""
        return self.part == "config" and self.name not in Run.model_fields

    @property
    def column(self) -> ColumnElement[Any]:
        """It in SQL; NULL where it is missing."""
        if self.in_config:
            return func.json_extract(Run.config, f"$.{self.name.removeprefix(_CONFIG)}")
        column: ColumnElement[Any] = getattr(Run, self.name)
        return column

    def of(self, run: Run) -> Any:
        """Its value for a run; None where it is missing."""
        return run.config.get(self.name.removeprefix(_CONFIG)) if self.in_config else getattr(run, self.name)


_CONFIG = "config."  # in front of a field that the run has too, as what "auto" became
_RESULTS: dict[str, tuple[str, Kind]] = {
    "test_accuracy": (N_("Test accuracy"), "accuracy"), "test_loss": (N_("Test loss"), "number"),
    "train_accuracy": (N_("Training accuracy"), "accuracy"), "train_loss": (N_("Training loss"), "number"),
    "validation_accuracy": (N_("Validation accuracy"), "accuracy"),
    "best_test_accuracy": (N_("Best test accuracy"), "accuracy"), "best_epoch": (N_("Best epoch"), "number"),
    "test_correct": (N_("Right answers"), "number"), "test_total": (N_("Answers"), "number"),
    "epochs_done": (N_("Epochs done"), "number"), "train_seconds": (N_("Training time, s"), "number"),
    "evaluation_seconds": (N_("Evaluation time, s"), "number"), "images_per_second": (N_("Images/s"), "number"),
    "flops": (N_("Training FLOPs"), "number"), "num_parameters": (N_("Parameters"), "number"),
    "num_train": (N_("Training images"), "number"), "num_test": (N_("Test images"), "number"),
}  # fmt: skip
_OF_RUN: dict[str, tuple[str, Kind]] = {
    "name": (N_("Name"), "text"), "id": (N_("Id"), "text"), "status": (N_("Status"), "choice"),
    "tag": (N_("Tags"), "tags"), "notes": (N_("Notes"), "text"), "group": (N_("Group"), "text"),
    "sweep": (N_("Sweep"), "text"), "config_hash": (N_("Config hash"), "text"),
    "created_at": (N_("Created"), "time"), "started_at": (N_("Started"), "time"), "finished_at": (N_("Finished"), "time"),
    "attempt": (N_("Attempt"), "number"), "device": (N_("Device used"), "text"),
    "precision": (N_("Precision used"), "text"),
}  # fmt: skip


class _Tags(Field):
    @property
    def column(self) -> ColumnElement[Any]:
        column: ColumnElement[Any] = getattr(Run, "tags")  # noqa: B009
        return column

    def of(self, run: Run) -> Any:
        return ", ".join(run.tags)


@cache
def fields() -> dict[str, Field]:
    """All fields by name: of the run, results, of the config. ``config.device`` is what was chosen, ``device`` was used."""
    found: list[Field] = []
    for name, (title, kind) in _OF_RUN.items():
        values = STATUSES if name == "status" else ()
        found.append((_Tags if kind == "tags" else Field)(name, title, kind, "run", values))
    found += [Field(name, title, kind, "result") for name, (title, kind) in _RESULTS.items()]
    for name, schema in RunConfig.model_json_schema()["properties"].items():
        option = schema.get("anyOf", [schema])[0]
        kinds: dict[str, Kind] = {"integer": "number", "number": "number", "boolean": "flag", "string": "text"}
        title = CONFIG_FIELDS[name].title or name
        key = _CONFIG + name if name in _OF_RUN else name
        kind = "choice" if "enum" in option else kinds[option["type"]]
        found.append(Field(key, title, kind, "config", tuple(option.get("enum", ()))))
    return {field.name: field for field in found}


def unknown_field(name: str) -> str:
    """The sentence for a field that does not exist, with the one that was probably meant."""
    meant = _closest(name.lower(), fields())
    if meant:
        return _("There is no field {name}. Did you mean {meant}?").format(name=name[:40], meant=meant)
    message = _(
        "There is no field {name}. Fields are those of a configuration, such as learning_rate, and results, such as "
        "test_accuracy. Quotes search for it as text."
    )
    return message.format(name=name[:40])


def _closest(typed: str, names: Any) -> str | None:
    """The name most like what was typed, or the one with these initials: ``lr`` for learning_rate."""
    close = difflib.get_close_matches(typed, names, 1, cutoff=0.65)
    initials = [name for name in names if "".join(part[0] for part in re.split(r"[_.]", name)) == typed]
    return next(iter([*close, *initials]), None)


# The parser ----------------------------------------------------------------------------------------------------------

_FIELD = re.compile(r"([^\s()=<>~!\"':]+)(?:\s*(?=[!=<>~])|(?=:[^\s()]))(==|!=|<=|>=|[=<>~:])")
_STRAY = re.compile(r"==|!=|<=|>=|[=<>~]")
_QUOTED = re.compile(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")
_WORD = re.compile(r"[^\s()=<>~]+")
_VALUE = re.compile(r"[^\s()]+")
_KEYWORD = re.compile(r"(and|or|not)(?=[\s()]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_PER_CENT = re.compile(r"\s+%(?=[\s)]|$)")  # apart from its number, as in 97 %
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d{1,3})?)?)?Z?)?)?)?")


def condition(text: str) -> ColumnElement[bool] | None:
    """What ``text`` asks of a run; None where it asks nothing. Raises ``SearchError``."""
    if len(text) > LONGEST:
        raise SearchError(_("At most {limit} characters can be searched for.").format(limit=LONGEST), LONGEST)
    if not text.strip():
        return None
    return _Parser(text).whole()


@dataclass(frozen=True)
class _Value:
    """A value as it was typed, and where."""

    text: str
    is_quoted: bool
    position: int


class _Parser:
    """Recursive descent over the characters of one expression. Every condition that it makes is true or false, never NULL."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.depth = self.num_conditions = 0

    def whole(self) -> ColumnElement[bool]:
        found = self._any()
        if self.at < len(self.text):
            raise SearchError(_("This bracket was never opened."), self.at)
        return found

    def _any(self) -> ColumnElement[bool]:
        parts = [self._all()]
        while self._keyword("or"):
            parts.append(self._all())
        return or_(*parts)

    def _all(self) -> ColumnElement[bool]:
        parts = [self._one()]
        while self._keyword("and") or self._more():
            parts.append(self._one())
        return and_(*parts)

    def _one(self) -> ColumnElement[bool]:
        self._skip()
        start = self.at
        if self._keyword("not"):
            return not_(self._inside(self._one, start))
        if self._character("("):
            found = self._inside(self._any, start)
            if not self._character(")"):
                raise SearchError(_("This bracket is never closed."), start)
            return found
        self._count(start)
        compared = self._comparison()
        return self._words(start) if compared is None else compared

    def _comparison(self) -> ColumnElement[bool] | None:
        match = _FIELD.match(self.text, self.at)
        if match is None or (match[2] == ":" and not match[1][0].isalpha()):  # a time is a word
            return None
        field = fields().get(match[1].lower())
        if field is None:
            raise SearchError(unknown_field(match[1]), self.at)
        self.at = match.end()
        value = self._value(match.start(2))
        per_cent = field.kind in _NUMBERS and self._take(_PER_CENT) is not None
        return _compare(field, {"==": "=", ":": "="}.get(match[2], match[2]), value, per_cent)

    def _words(self, start: int) -> ColumnElement[bool]:
        if stray := _STRAY.match(self.text, self.at):
            message = _("There is no field in front of {sign}, as in test_accuracy > 97%.")
            raise SearchError(message.format(sign=stray[0]), self.at)
        if keyword := _KEYWORD.match(self.text, self.at):
            message = _("Something must stand in front of {word}. Quotes search for it as a word.")
            raise SearchError(message.format(word=keyword[0]), self.at)
        word = self._quoted() or self._take(_WORD)
        if word is None:
            raise SearchError(_("Something to look for is missing here."), start)
        return _mentions(word.text)

    def _value(self, operator_at: int) -> _Value:
        self._skip()
        found = self._quoted() or self._take(_VALUE)
        if found is None:
            sign = self.text[operator_at : self.at].strip()
            raise SearchError(_("A value is missing behind {sign}.").format(sign=sign), operator_at)
        return found

    def _quoted(self) -> _Value | None:
        found = self._take(_QUOTED)
        if found is None:
            if self.text[self.at : self.at + 1] in ('"', "'"):
                raise SearchError(_("This quote is never closed."), self.at)
            return None
        return _Value(re.sub(r"\\(.)", r"\1", found.text[1:-1]), True, found.position)

    # characters

    def _skip(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _take(self, pattern: re.Pattern[str]) -> _Value | None:
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return _Value(match[0], False, match.start())

    def _character(self, wanted: str) -> bool:
        self._skip()
        found = self.text.startswith(wanted, self.at)
        self.at += found
        return found

    def _keyword(self, wanted: str) -> bool:
        self._skip()
        match = _KEYWORD.match(self.text, self.at)
        if match is None or match[1].lower() != wanted:
            return False
        self.at = match.end()
        return True

    def _more(self) -> bool:
        """Whether another condition follows with nothing in between, which means "and"."""
        self._skip()
        keyword = _KEYWORD.match(self.text, self.at)
        return self.at < len(self.text) and self.text[self.at] != ")" and not (keyword and keyword[1].lower() == "or")

    # limits

    def _inside(self, read: Callable[[], ColumnElement[bool]], start: int) -> ColumnElement[bool]:
        self.depth += 1
        if self.depth > DEEPEST:
            message = _("At most {limit} brackets and nots can stand inside each other.")
            raise SearchError(message.format(limit=DEEPEST), start)
        found = read()
        self.depth -= 1
        return found

    def _count(self, start: int) -> None:
        self.num_conditions += 1
        if self.num_conditions > MOST_CONDITIONS:
            message = _("At most {limit} conditions can be searched for at once.")
            raise SearchError(message.format(limit=MOST_CONDITIONS), start)


# Conditions ----------------------------------------------------------------------------------------------------------


def _compare(field: Field, operator: str, value: _Value, per_cent: bool = False) -> ColumnElement[bool]:
    """One comparison. Missing is equal to nothing but null, and neither smaller nor larger than anything."""
    if value.text.lower() == "null" and not value.is_quoted:
        return _is_missing(field, operator, value)
    if field.kind in _NUMBERS:
        return _order(field.column, operator, _number(field, operator, value, per_cent))
    if operator in ("<", "<=", ">", ">=") and field.kind != "time":
        message = _("{field} is not a number: it takes =, != and ~ (contains).")
        raise SearchError(message.format(field=field.name), value.position)
    if field.kind == "time":
        return _time(field, operator, value)
    if field.kind == "flag":
        return _equality(field.column, operator, _flag(field, operator, value))
    if operator == "~":
        return _contains(field, value.text)
    if field.kind == "choice" and value.text not in field.values:
        raise SearchError(_unknown_choice(field, value.text), value.position)
    if field.kind == "tags":
        return not_(has_tag(value.text)) if operator == "!=" else has_tag(value.text)
    return _equality(field.column, operator, value.text)


def _is_missing(field: Field, operator: str, value: _Value) -> ColumnElement[bool]:
    if operator not in ("=", "!="):
        raise SearchError(_("null can only be compared with = and !=."), value.position)
    missing = func.json_array_length(Run.tags) == 0 if field.kind == "tags" else field.column.is_(None)
    return missing if operator == "=" else not_(missing)


def _equality(column: ColumnElement[Any], operator: str, value: Any) -> ColumnElement[bool]:
    return column.is_not_distinct_from(value) if operator == "=" else column.is_distinct_from(value)


def _order(column: ColumnElement[Any], operator: str, value: Any) -> ColumnElement[bool]:
    if operator in ("=", "!="):
        return _equality(column, operator, value)
    compared = {"<": column < value, "<=": column <= value, ">": column > value, ">=": column >= value}[operator]
    return and_(column.is_not(None), compared)


def _number(field: Field, operator: str, value: _Value, per_cent: bool) -> float:
    digits = value.text.removesuffix("%")
    per_cent = per_cent or digits != value.text
    if operator == "~" or not _NUMBER.fullmatch(digits):
        message = _("{field} is a number, as in {field} >= 0.9. You typed {typed}.")
        typed = "~" if operator == "~" else value.text[:40]
        raise SearchError(message.format(field=field.name, typed=typed), value.position)
    number = float(Decimal(digits) / (100 if per_cent else 1))
    if field.kind == "accuracy" and number > 1 and not per_cent:
        message = _("{field} is a fraction from 0 to 1. Did you mean {meant}%?")
        raise SearchError(message.format(field=field.name, meant=digits[:20]), value.position)
    return number


def _flag(field: Field, operator: str, value: _Value) -> int:
    found = {"true": 1, "yes": 1, "false": 0, "no": 0}.get(value.text.lower())
    if found is None or operator == "~":
        message = _("{field} is true or false, as in {field}=true. You typed {typed}.")
        raise SearchError(message.format(field=field.name, typed=value.text[:40]), value.position)
    return found


def _time(field: Field, operator: str, value: _Value) -> ColumnElement[bool]:
    """A year, month, day, hour ... in UTC stands for all of it: ``<=`` includes its end and ``>`` begins behind it."""
    if operator == "~" or not _TIME.fullmatch(value.text):
        message = _("{field} is a time in UTC, as in {field} >= 2026-03-01. You typed {typed}.")
        typed = "~" if operator == "~" else value.text[:40]
        raise SearchError(message.format(field=field.name, typed=typed), value.position)
    begin = value.text.removesuffix("Z")
    end = begin + "~"  # sorts behind all that begins with it
    column = field.column
    within = and_(column.is_not(None), column >= begin, column < end)
    compared = {"<": column < begin, "<=": column < end, ">": column >= end, ">=": column >= begin}
    if operator in ("=", "!="):
        return within if operator == "=" else not_(within)
    return and_(column.is_not(None), compared[operator])


def _unknown_choice(field: Field, typed: str) -> str:
    meant = _closest(typed.lower(), field.values)
    if meant:
        message = _("{field} is never {typed}. Did you mean {meant}?")
        return message.format(field=field.name, typed=typed[:40], meant=meant)
    message = _("{field} is one of {values}. You typed {typed}.")
    return message.format(field=field.name, values=", ".join(field.values), typed=typed[:40])


def has_tag(tag: str) -> ColumnElement[bool]:
    """Whether a run has exactly this tag."""
    tags = func.json_each(Run.tags).table_valued("value")
    return select(tags.c.value).where(tags.c.value == tag).exists()


def _like(text: str) -> str:
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def _contains(field: Field, text: str) -> ColumnElement[bool]:
    if field.kind == "tags":
        return _tag_contains(text)
    return and_(field.column.is_not(None), field.column.like(_like(text), escape="\\"))


def _tag_contains(text: str) -> ColumnElement[bool]:
    tags = func.json_each(Run.tags).table_valued("value")
    return select(tags.c.value).where(tags.c.value.like(_like(text), escape="\\")).exists()


def _mentions(word: str) -> ColumnElement[bool]:
    """Whether a word stands in name, notes, id, model, data set or a tag."""
    columns = (Run.name, Run.notes, Run.id, Run.model, Run.dataset)
    return or_(*(col(column).like(_like(word), escape="\\") for column in columns), _tag_contains(word))
