"""The search language: turns ``model=vgg and test_accuracy > 97% and tag:final`` into an SQL condition on runs.

    any      = all, { "or", all }
    all      = single, { [ "and" ], single }
    single   = "not", single | "(", any, ")" | field, operator, value | word
    operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~" (contains) | ":" (like "=", right after the field)
    value    = number | percent | text | "null" | "true" | "false"

A word is searched for in name, notes, tags, id, model and data set. Quotes allow spaces and signs in it. The fields are
those of ``app.store.fields``. User input reaches SQL only as bound values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, or_, select
from sqlmodel import col

from app.store.fields import Field, closest, fields, unknown_field
from app.store.tables import Run
from trainer.i18n import _

LONGEST = 500  # characters
MOST_CONDITIONS = 40  # every run is tested against each of them
DEEPEST = 20  # nested brackets and nots
_NUMBERS = ("number", "accuracy")


class SearchError(ValueError):
    """An invalid expression: a message, and the position of the problem in the text, counted from 0."""

    def __init__(self, problem: str, position: int) -> None:
        self.problem, self.position = problem, position
        super().__init__(_("Character {n}: {problem}").format(n=position + 1, problem=problem))


# The parser ----------------------------------------------------------------------------------------------------------

_FIELD = re.compile(r"([^\s()=<>~!\"':]+)(?:\s*(?=[!=<>~])|(?=:[^\s()]))(==|!=|<=|>=|[=<>~:])")
_STRAY = re.compile(r"==|!=|<=|>=|[=<>~]")
_QUOTED = re.compile(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")
_WORD = re.compile(r"[^\s()=<>~]+")
_VALUE = re.compile(r"[^\s()]+")
_KEYWORD = re.compile(r"(and|or|not)(?=[\s()]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_PERCENT = re.compile(r"\s+%(?=[\s)]|$)")  # with a space before it, as in 97 %
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d{1,3})?)?)?Z?)?)?)?")


def condition(text: str) -> ColumnElement[bool] | None:
    """Parse ``text`` into a condition on runs; None if it is empty. Raises ``SearchError``."""
    if len(text) > LONGEST:
        raise SearchError(_("A search can have at most {limit} characters.").format(limit=LONGEST), LONGEST)
    if not text.strip():
        return None
    return _Parser(text).whole()


@dataclass(frozen=True)
class _Value:
    """A value as typed, and its position in the text."""

    text: str
    is_quoted: bool
    position: int


class _Parser:
    """A recursive descent parser without a tokenizer. Its conditions are true or false for every run, never NULL."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = self.num_conditions = 0

    def whole(self) -> ColumnElement[bool]:
        condition = self._any()
        if self.position < len(self.text):
            raise SearchError(_("This bracket was never opened."), self.position)
        return condition

    def _any(self) -> ColumnElement[bool]:
        parts = [self._all()]
        while self._keyword("or"):
            parts.append(self._all())
        return or_(*parts)

    def _all(self) -> ColumnElement[bool]:
        parts = [self._single()]
        while self._keyword("and") or self._more():
            parts.append(self._single())
        return and_(*parts)

    def _single(self) -> ColumnElement[bool]:
        self._skip()
        start = self.position
        if self._keyword("not"):
            return not_(self._inside(self._single, start))
        if self._character("("):
            condition = self._inside(self._any, start)
            if not self._character(")"):
                raise SearchError(_("This bracket is never closed."), start)
            return condition
        self._count(start)
        compared = self._comparison()
        return self._words(start) if compared is None else compared

    def _comparison(self) -> ColumnElement[bool] | None:
        match = _FIELD.match(self.text, self.position)
        if match is None or (match[2] == ":" and not match[1][0].isalpha()):  # "12:30" is a word, not a field
            return None
        field = fields().get(match[1].lower())
        if field is None:
            raise SearchError(unknown_field(match[1]), self.position)
        self.position = match.end()
        value = self._value(match.start(2))
        is_percent = field.kind in _NUMBERS and self._take(_PERCENT) is not None
        return _compare(field, {"==": "=", ":": "="}.get(match[2], match[2]), value, is_percent)

    def _words(self, start: int) -> ColumnElement[bool]:
        if stray := _STRAY.match(self.text, self.position):
            message = _("A field is missing before {sign}, as in test_accuracy > 97%.")
            raise SearchError(message.format(sign=stray[0]), self.position)
        if keyword := _KEYWORD.match(self.text, self.position):
            message = _("A condition is missing before {word}. Use quotes to search for it as a word.")
            raise SearchError(message.format(word=keyword[0]), self.position)
        word = self._quoted() or self._take(_WORD)
        if word is None:
            raise SearchError(_("A search term is missing here."), start)
        return _mentions(word.text)

    def _value(self, operator_at: int) -> _Value:
        self._skip()
        value = self._quoted() or self._take(_VALUE)
        if value is None:
            sign = self.text[operator_at : self.position].strip()
            raise SearchError(_("A value is missing after {sign}.").format(sign=sign), operator_at)
        return value

    def _quoted(self) -> _Value | None:
        quoted = self._take(_QUOTED)
        if quoted is None:
            if self.text[self.position : self.position + 1] in ('"', "'"):
                raise SearchError(_("This quote is never closed."), self.position)
            return None
        return _Value(re.sub(r"\\(.)", r"\1", quoted.text[1:-1]), True, quoted.position)

    # characters

    def _skip(self) -> None:
        while self.text[self.position : self.position + 1].isspace():
            self.position += 1

    def _take(self, pattern: re.Pattern[str]) -> _Value | None:
        match = pattern.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return _Value(match[0], False, match.start())

    def _character(self, wanted: str) -> bool:
        self._skip()
        is_there = self.text.startswith(wanted, self.position)
        self.position += len(wanted) if is_there else 0
        return is_there

    def _keyword(self, wanted: str) -> bool:
        self._skip()
        match = _KEYWORD.match(self.text, self.position)
        if match is None or match[1].lower() != wanted:
            return False
        self.position = match.end()
        return True

    def _more(self) -> bool:
        """Whether another condition follows without a keyword between them, which means "and"."""
        self._skip()
        keyword = _KEYWORD.match(self.text, self.position)
        return (
            self.position < len(self.text)
            and self.text[self.position] != ")"
            and not (keyword and keyword[1].lower() == "or")
        )

    # limits

    def _inside(self, read: Callable[[], ColumnElement[bool]], start: int) -> ColumnElement[bool]:
        self.depth += 1
        if self.depth > DEEPEST:
            message = _("Brackets and nots can be nested at most {limit} deep.")
            raise SearchError(message.format(limit=DEEPEST), start)
        condition = read()
        self.depth -= 1
        return condition

    def _count(self, start: int) -> None:
        self.num_conditions += 1
        if self.num_conditions > MOST_CONDITIONS:
            message = _("A search can have at most {limit} conditions.")
            raise SearchError(message.format(limit=MOST_CONDITIONS), start)


# Conditions ----------------------------------------------------------------------------------------------------------


def _compare(field: Field, operator: str, value: _Value, is_percent: bool = False) -> ColumnElement[bool]:
    """The condition of one comparison. A missing value equals only null, and is never less or greater than a value."""
    if value.text.lower() == "null" and not value.is_quoted:
        return _is_missing(field, operator, value)
    if field.kind in _NUMBERS:
        return _order(field.column, operator, _number(field, operator, value, is_percent))
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


def _number(field: Field, operator: str, value: _Value, is_percent: bool) -> float:
    digits = value.text.removesuffix("%")
    is_percent = is_percent or digits != value.text
    if operator == "~" or not _NUMBER.fullmatch(digits):
        message = _("{field} is a number, as in {field} >= 0.9. You typed {typed}.")
        typed = "~" if operator == "~" else value.text[:40]
        raise SearchError(message.format(field=field.name, typed=typed), value.position)
    number = float(Decimal(digits) / (100 if is_percent else 1))
    if field.kind == "accuracy" and number > 1 and not is_percent:
        message = _("{field} is a fraction from 0 to 1. Did you mean {meant}%?")
        raise SearchError(message.format(field=field.name, meant=digits[:20]), value.position)
    return number


def _flag(field: Field, operator: str, value: _Value) -> int:
    flag = {"true": 1, "yes": 1, "false": 0, "no": 0}.get(value.text.lower())
    if flag is None or operator == "~":
        message = _("{field} is true or false, as in {field}=true. You typed {typed}.")
        raise SearchError(message.format(field=field.name, typed=value.text[:40]), value.position)
    return flag


def _time(field: Field, operator: str, value: _Value) -> ColumnElement[bool]:
    """Compare with a year, month, day or hour in UTC: ``<=`` includes all of it, ``>`` starts after it."""
    if operator == "~" or not _TIME.fullmatch(value.text):
        message = _("{field} is a time in UTC, as in {field} >= 2026-03-01. You typed {typed}.")
        typed = "~" if operator == "~" else value.text[:40]
        raise SearchError(message.format(field=field.name, typed=typed), value.position)
    begin = value.text.removesuffix("Z")
    end = begin + "~"  # sorts after every time that starts with ``begin``
    column = field.column
    within = and_(column.is_not(None), column >= begin, column < end)
    compared = {"<": column < begin, "<=": column < end, ">": column >= end, ">=": column >= begin}
    if operator in ("=", "!="):
        return within if operator == "=" else not_(within)
    return and_(column.is_not(None), compared[operator])


def _unknown_choice(field: Field, typed: str) -> str:
    meant = closest(typed.lower(), field.values)
    if meant:
        message = _("{typed} is not a value of {field}. Did you mean {meant}?")
        return message.format(field=field.name, typed=typed[:40], meant=meant)
    message = _("{field} is one of {values}. You typed {typed}.")
    return message.format(field=field.name, values=", ".join(field.values), typed=typed[:40])


def has_tag(tag: str) -> ColumnElement[bool]:
    """The condition that a run has exactly this tag."""
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
    """The condition that a word occurs in name, notes, id, model, data set or a tag."""
    columns = (Run.name, Run.notes, Run.id, Run.model, Run.dataset)
    return or_(*(col(column).like(_like(word), escape="\\") for column in columns), _tag_contains(word))
