"""The form of a new run, from text to a sweep: what was typed in each field, its values, and what can't be read.

Whether a configuration is accepted is decided by ``app.runs.plan``. ``app.forms.show`` turns the same text into controls.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from app.schemas import SweepIn
from trainer.config import FIELDS, ConfigError, FieldProblem, parse_config, problems_of
from trainer.i18n import _
from trainer.presets import PRESETS, Preset

FROM_RUN = "run"  # in place of a preset's name, where the form starts as a copy of an earlier run
MOST_VALUES = 1000  # in one field
EXTRA_FIELDS = ("repeats", "name", "tags")  # fields of the form that are not in RunConfig
Kind = Literal["int", "float", "bool", "choice", "text"]


def kind_of(name: str) -> Kind:
    """The kind of values that a field of ``RunConfig`` takes."""
    annotation = FIELDS[name].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for option in options:
        base = get_args(option)[0] if get_origin(option) not in (None, Literal) else option
        if get_origin(base) is Literal:
            return "choice"
        for kind, cls in (("bool", bool), ("int", int), ("float", float)):
            if base is cls:
                return kind  # type: ignore[return-value]
    return "text"


def note_of(name: str, key: str) -> Any:
    """How a field of ``RunConfig`` is presented: its group, its unit and the labels of its values."""
    notes = FIELDS[name].json_schema_extra
    return notes[key] if isinstance(notes, dict) else None


def text_of(value: Any) -> str:
    """A value as the form shows it: several values with commas between, null as an empty text."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value).removesuffix(".0")
        case list() | tuple():
            return ", ".join(text_of(item) for item in value)
    return str(value)


# What was typed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed:
    """What was typed and ticked: one text for each field, and what the form started from."""

    values: dict[str, str]  # field of RunConfig or of EXTRA_FIELDS -> text
    preset: str | None = None
    origin: str | None = None  # id of the run that the form copies
    several: frozenset[str] = frozenset()  # choice fields with a box for each value
    confirmed: str = ""  # the number of runs that the ticked box names


def read_form(data: Mapping[str, str], lists: Mapping[str, list[str]]) -> Typed:
    """From a form that was sent; ``lists`` has all values of each name. A box that was not ticked is false."""
    several = frozenset(lists.get("several", [])) & FIELDS.keys()
    values = {name: _sent(name, data, lists, several) for name in (*FIELDS, *EXTRA_FIELDS)}
    preset = data.get("preset", "")
    return Typed(
        values=values,
        preset=preset if preset in PRESETS or preset == FROM_RUN else None,
        origin=data.get("origin") or None,
        several=several,
        confirmed=data.get("confirmed", ""),
    )


def _sent(name: str, data: Mapping[str, str], lists: Mapping[str, list[str]], several: frozenset[str]) -> str:
    if not is_chosen(name):
        return data.get(name, default_text(name)).strip()
    ticked = [value.strip() for value in lists.get(name, []) if value.strip()]
    if kind_of(name) == "bool":
        if name in several:
            return "false, true"
        return "true" if ticked == ["true"] else "false"
    return ", ".join(ticked if name in several else ticked[:1]) or default_text(name)


def is_chosen(name: str) -> bool:
    """Whether the value is chosen from a list rather than typed."""
    return name == "dataset" or (name in FIELDS and kind_of(name) in ("choice", "bool"))


def default_text(name: str) -> str:
    """The default text of a field."""
    if name == "repeats":
        return "1"
    if name not in FIELDS or FIELDS[name].is_required():
        return ""
    return text_of(FIELDS[name].default)


def from_preset(preset: Preset) -> Typed:
    """The form with the values of a preset."""
    values = {name: default_text(name) for name in (*FIELDS, *EXTRA_FIELDS)}
    values |= {name: text_of(value) for name, value in (preset.base | preset.grid).items()}
    values["repeats"] = str(preset.repeats)
    several = frozenset(name for name in preset.grid if is_chosen(name))
    return Typed(values, preset=preset.name, several=several)


def from_run(config: Mapping[str, Any], *, run_id: str, name: str, tags: Iterable[str]) -> Typed:
    """The form as a copy of an earlier run. Fields that did not apply to it show their defaults."""
    values = {field: text_of(config.get(field)) or default_text(field) for field in FIELDS}
    values |= {"repeats": "1", "name": name, "tags": ", ".join(tags)}
    return Typed(values, preset=FROM_RUN, origin=run_id)


def with_query(typed: Typed, query: Mapping[str, str]) -> Typed:
    """The form with the values that the URL of the page gives: ``?repeats=4&seed=5``."""
    given = {name: text for name, text in query.items() if name in typed.values}
    several = {name for name, text in given.items() if is_chosen(name) and "," in text}
    return replace(typed, values=typed.values | given, several=typed.several | several)


def values_of(name: str, text: str) -> list[Any]:
    """The values in a field: one, several with commas between, or a range such as ``0..4``. What can't be read stays text.

    Raises ``ValueError`` with a sentence for the user where the text is ambiguous or has too many values.
    """
    kind = kind_of(name)
    if kind in ("int", "float"):
        _refuse_ambiguous(kind, text)
    parts = [part.strip() for part in re.split("[,，、;]", text)]
    parts = [part for part in parts if part] or [""]
    values: list[Any] = []
    for part in parts:
        values += _expand(kind, part)
        if len(values) > MOST_VALUES:
            raise ValueError(_("A field takes at most {n} values.").format(n=f"{MOST_VALUES:,}"))
    return list(dict.fromkeys(values)) if len(values) > 1 else values


def _refuse_ambiguous(kind: Kind, text: str) -> None:
    if kind == "float" and re.fullmatch(r"\d+,\d+", text):
        whole, part = text.split(",")
        raise ValueError(
            _('"{text}" can be read in two ways. Write {point} for one number, or "{list}" for two.').format(
                text=text, point=f"{whole}.{part}", list=f"{whole}, {part}"
            )
        )
    if kind == "int" and re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        raise ValueError(
            _('"{text}" can be read in two ways. Write {plain} for one number, or "{list}" for several.').format(
                text=text, plain=text.replace(",", ""), list=text.replace(",", ", ")
            )
        )


def _expand(kind: Kind, text: str) -> list[Any]:
    """The values of one item of a list: several where it is a range of whole numbers."""
    if kind == "int" and (match := re.fullmatch(r"(\d{1,10})\s*(?:\.\.|…|–)\s*(\d{1,10})", text)):
        low, high = int(match[1]), int(match[2])
        if high - low >= 1000:
            raise ValueError(_("A range may hold at most 1,000 values. You typed {text}.").format(text=text))
        if high < low:
            raise ValueError(
                _("The range {text} is empty. Write the smaller number first: {other}.").format(
                    text=text, other=f"{high}..{low}"
                )
            )
        return list(range(low, high + 1))
    return [value_of(kind, text)]


def value_of(kind: Kind, text: str) -> Any:
    """The value that a text means; None for an empty one, the text itself where it means none."""
    if text == "":
        return None
    if kind == "bool":
        return {"true": True, "false": False}.get(text, text)
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        pass
    return text


@dataclass(frozen=True)
class SweepRequest:
    """The sweep that the form asks for; None where something typed can't be read, with one sentence for each such field."""

    sweep: SweepIn | None
    problems: list[FieldProblem]


def request_of(typed: Typed) -> SweepRequest:
    """Turn the texts into a sweep. ``app.runs.plan`` says whether its configurations are accepted."""
    base: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    problems: list[FieldProblem] = []
    unused = not_applying(typed)
    for name in FIELDS:
        if name in unused:
            continue
        try:
            values = values_of(name, typed.values.get(name, ""))
        except ValueError as error:
            problems.append(FieldProblem(field=name, message=str(error)))
            continue
        if len(values) > 1:
            grid[name] = values
        elif values[0] is not None:
            base[name] = values[0]
        elif not may_be_empty(name):
            problems.append(FieldProblem(field=name, message=_missing(name)))
    extra = {
        "repeats": value_of("int", typed.values["repeats"]) or 0,
        "name": typed.values["name"],
        "tags": [tag for part in typed.values["tags"].split(",") if (tag := part.strip())],
    }
    try:
        sweep = SweepIn.model_validate({"base": base, "grid": grid, **extra})
    except ValidationError as error:
        problems += [FieldProblem(field=form_field(p.field), message=p.message) for p in problems_of(error)]
        sweep = None
    return SweepRequest(None if problems else sweep, problems)


def may_be_empty(name: str) -> bool:
    """Whether an empty field is accepted, because null means something for it."""
    return not FIELDS[name].is_required() and FIELDS[name].default is None


def _missing(name: str) -> str:
    if name == "dataset":
        return _("Choose a data set.")
    if name == "model":
        return _("Choose a model.")
    default = default_text(name)
    return _("Must not be empty. The usual value is {default}.").format(default=default)


def not_applying(typed: Typed) -> set[str]:
    """The fields that have no effect with what is chosen, such as momentum with adam; none where that is unknown."""
    unused: set[str] | None = None
    for chosen in _combinations(typed):
        try:
            config, _warnings = parse_config({"dataset": "any", "model": "fc", **chosen})
        except ConfigError:
            return set()
        nulls = {n for n, info in FIELDS.items() if getattr(config, n) is None and info.default is not None}
        unused = nulls if unused is None else unused & nulls
    return unused or set()


def _combinations(typed: Typed) -> Iterable[dict[str, Any]]:
    """Combinations in which each value of each choice field occurs: a field is unused only if none of them uses it."""
    names = [n for n in FIELDS if kind_of(n) == "choice" or n == "permute_pixels"]
    lists = {n: values_of(n, typed.values.get(n, "")) for n in names if n != "model"}
    longest = max(len(values) for values in lists.values())
    return [
        {n: values[i % len(values)] for n, values in lists.items() if values[0] is not None} for i in range(longest)
    ]


def form_field(path: str) -> str:
    """The field of the form that a problem is about: ``learning_rate`` for ``grid.learning_rate[2]``."""
    name = re.sub(r"^(base|grid)\.", "", path)
    return re.split(r"[.\[]", name)[0]


def without_faults(typed: Typed, problems: Iterable[FieldProblem]) -> Typed:
    """The form with its faulty fields at their defaults, to show what the rest of it asks for."""
    faulty = {form_field(problem.field) for problem in problems}
    return replace(typed, values=typed.values | {name: default_text(name) for name in faulty if name in typed.values})
