"""The form of a new run, made from ``RunConfig``: text that a person typed becomes a sweep, and a config becomes text.

Here live the controls with their values, lists and ranges in fields, and what the form equals as a command and as an API
call. Whether a configuration is accepted is decided by ``app.runs.plan``; pages live in ``app.routes.pages.new``.
"""

from __future__ import annotations

import json
import re
import shlex
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from app.schemas import RunLabels, SweepIn
from trainer.config import FIELDS, MODELS, ConfigError, FieldProblem, parse_config, problems_of
from trainer.i18n import _, ngettext
from trainer.presets import PRESETS, Preset

MOST_WITHOUT_QUESTION = 20  # more runs than this need a tick
FROM_RUN = "run"  # stands for a preset where the form begins as an earlier run
MOST_VALUES = 1000
OWN_FIELDS = ("repeats", "name", "tags")  # of the form, beside those of RunConfig
Kind = Literal["int", "float", "bool", "choice", "text"]
_COMPARED = {
    "dataset",
    "model",
    "permute_pixels",
    "permutation_seed",
    "seed",
}  # what one compares rather than chooses by


def kind_of(name: str) -> Kind:
    """What a field of ``RunConfig`` takes."""
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


def extra(name: str, key: str) -> Any:
    """What ``RunConfig`` notes of a field for people: group, unit, labels."""
    noted = FIELDS[name].json_schema_extra
    return noted[key] if isinstance(noted, dict) else None


def text_of(value: Any) -> str:
    """A value as the form shows it; several values with commas between; null as nothing."""
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


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed:
    """What a person has typed and ticked: one text per field, and where the form came from."""

    values: dict[str, str]  # field of RunConfig or of OWN_FIELDS -> text
    preset: str | None = None
    origin: str | None = None  # id of the run that the form began with
    several: frozenset[str] = frozenset()  # choice fields that show boxes to tick instead of one choice
    confirmed: str = ""  # the number of runs that was ticked as meant


def read(data: Mapping[str, str], lists: Mapping[str, list[str]]) -> Typed:
    """From a sent form; ``lists`` holds all values of each name. A box that was not ticked is false."""
    several = frozenset(lists.get("several", [])) & FIELDS.keys()
    values = {name: _sent(name, data, lists, several) for name in (*FIELDS, *OWN_FIELDS)}
    preset = data.get("preset", "")
    return Typed(
        values=values, preset=preset if preset in PRESETS or preset == FROM_RUN else None,
        origin=data.get("origin") or None, several=several, confirmed=data.get("confirmed", ""),
    )  # fmt: skip


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
    """Whether a field is chosen from given values rather than typed."""
    return name == "dataset" or (name in FIELDS and kind_of(name) in ("choice", "bool"))


def default_text(name: str) -> str:
    """What an untouched field shows."""
    if name == "repeats":
        return "1"
    if name not in FIELDS or FIELDS[name].is_required():
        return ""
    return text_of(FIELDS[name].default)


def from_preset(preset: Preset) -> Typed:
    """The form that a preset fills in."""
    values = {name: default_text(name) for name in (*FIELDS, *OWN_FIELDS)}
    values |= {name: text_of(value) for name, value in (preset.base | preset.grid).items()}
    values["repeats"] = str(preset.repeats)
    several = frozenset(name for name in preset.grid if is_chosen(name))
    return Typed(values, preset=preset.name, several=several)


def from_run(config: Mapping[str, Any], *, run_id: str, name: str, tags: Iterable[str]) -> Typed:
    """The form that an earlier run fills in: all its choices, the name kept."""
    values = {field: text_of(config.get(field)) or _when_null(field) for field in FIELDS}
    values |= {"repeats": "1", "name": name, "tags": ", ".join(tags)}
    return Typed(values, preset=FROM_RUN, origin=run_id)


def _when_null(name: str) -> str:
    """A field that did not apply to the run shows its default, so that it is right once it applies."""
    return default_text(name)


def with_query(typed: Typed, query: Mapping[str, str]) -> Typed:
    """The form with fields from the page's URL in place: ``?repeats=4&seed=5``."""
    given = {name: text for name, text in query.items() if name in typed.values}
    several = {name for name, text in given.items() if is_chosen(name) and "," in text}
    return replace(typed, values=typed.values | given, several=typed.several | several)


def values_of(name: str, text: str) -> list[Any]:
    """The values in a field, ``text`` being numbers with commas or a range ``0..4``; what can't be read stays text.

    Raises ``ValueError`` with a sentence where the text can be read in two ways.
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
            raise ValueError(_("At most {n} values fit in a field.").format(n=f"{MOST_VALUES:,}"))
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
    """One item of a list as values: several for a range of whole numbers."""
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
    return [_value(kind, text)]


def _value(kind: Kind, text: str) -> Any:
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
class Wish:
    """What the form asks for: a sweep, unless something typed can't be read at all."""

    sweep: SweepIn | None
    problems: list[FieldProblem]


def wish(typed: Typed) -> Wish:
    """Turn text into a sweep. Whether each combination is accepted is decided by ``app.runs.plan.plan``."""
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
        elif not _may_be_empty(name):
            problems.append(FieldProblem(field=name, message=_missing(name)))
    own: dict[str, Any] = {
        "repeats": _value("int", typed.values["repeats"]) or 0, "name": typed.values["name"],
        "tags": [tag for part in typed.values["tags"].split(",") if (tag := part.strip())],
    }  # fmt: skip
    try:
        sweep = SweepIn(base=base, grid=grid, **own)
    except ValidationError as error:
        problems += [FieldProblem(field=form_field(p.field), message=p.message) for p in problems_of(error)]
        sweep = None
    return Wish(None if problems else sweep, problems)


def _may_be_empty(name: str) -> bool:
    return not FIELDS[name].is_required() and FIELDS[name].default is None


def _missing(name: str) -> str:
    if name == "dataset":
        return _("Choose a data set.")
    if name == "model":
        return _("Choose a model.")
    default = default_text(name)
    return _("Must not be empty. The usual value is {default}.").format(default=default)


def not_applying(typed: Typed) -> set[str]:
    """Fields that mean nothing under what is chosen, such as momentum under adam. None where that can't be told."""
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
    """One value of each choice field at a time, so that a field counts as unused only if no value uses it."""
    names = [n for n in FIELDS if kind_of(n) == "choice" or n == "permute_pixels"]
    lists = {n: values_of(n, typed.values.get(n, "")) for n in names if n != "model"}
    longest = max(len(values) for values in lists.values())
    return [
        {n: values[i % len(values)] for n, values in lists.items() if values[0] is not None} for i in range(longest)
    ]


def form_field(path: str) -> str:
    """The field of the form that a problem is about: ``grid.learning_rate[2]`` and ``base.epochs`` name theirs."""
    name = re.sub(r"^(base|grid)\.", "", path)
    return re.split(r"[.\[]", name)[0]


# Showing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One value of a choice field."""

    value: str
    label: str
    chosen: bool = False
    summary: str = ""


@dataclass(frozen=True)
class Control:
    """All that a template needs to draw one field."""

    name: str
    title: str
    help: str
    kind: Kind
    text: str
    unit: str = ""
    placeholder: str = ""
    optional: bool = False
    applies: bool = True
    several: bool = False  # boxes to tick instead of one choice
    choices: list[Choice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def at_default(self) -> bool:
        return self.text == default_text(self.name)

    @property
    def checked(self) -> bool:
        return self.text == "true"


def healed(typed: Typed, problems: Iterable[FieldProblem]) -> Typed:
    """The form with its faulty fields at their defaults: what the rest of it asks for can then still be shown."""
    faulty = {form_field(problem.field) for problem in problems}
    return replace(typed, values=typed.values | {name: default_text(name) for name in faulty if name in typed.values})


def controls(typed: Typed, problems: Iterable[FieldProblem] = ()) -> dict[str, Control]:
    """The controls of all fields of ``RunConfig``, by name, in its order."""
    unused = not_applying(typed) if not _unreadable(typed) else set()
    sentences: dict[str, list[str]] = {}
    for problem in problems:
        sentences.setdefault(form_field(problem.field), []).append(problem.message)
    return {
        name: _control(name, typed, applies=name not in unused, problems=sentences.get(name, [])) for name in FIELDS
    }


def _unreadable(typed: Typed) -> bool:
    try:
        not_applying(typed)
    except ValueError:
        return True
    return False


def _control(name: str, typed: Typed, *, applies: bool, problems: list[str]) -> Control:
    text, kind = typed.values.get(name, ""), kind_of(name)
    several = name in typed.several or (is_chosen(name) and "," in text)
    info = FIELDS[name]
    return Control(
        name=name, title=_(info.title or name), help=_(info.description or ""), kind=kind, text=text,
        unit=_unit(name, typed), placeholder=_placeholder(name, typed), optional=_may_be_empty(name),
        applies=applies, several=several, choices=_choices(name, text), problems=list(dict.fromkeys(problems)),
    )  # fmt: skip


def _model(typed: Typed) -> str:
    return typed.values.get("model", "")


def _unit(name: str, typed: Typed) -> str:
    if name == "width" and _model(typed) in MODELS:
        return _(MODELS[_model(typed)].width_unit)
    unit = extra(name, "unit")
    return _(unit) if unit else ""


def _placeholder(name: str, typed: Typed) -> str:
    if name == "width" and _model(typed) in MODELS:
        return str(MODELS[_model(typed)].default_width)
    return _("off") if _may_be_empty(name) and name != "width" else ""


def _choices(name: str, text: str) -> list[Choice]:
    chosen = [part.strip() for part in text.split(",")]
    if kind_of(name) == "bool":
        labels = {"false": _("no"), "true": _("yes")}
    elif kind_of(name) == "choice":
        labels = {value: _(label) for value, label in extra(name, "labels").items()}
    else:
        return []
    summaries = {key: _(model.summary) for key, model in MODELS.items()} if name == "model" else {}
    return [Choice(v, label, v in chosen, summaries.get(v, "")) for v, label in labels.items()]


def in_group(shown: Mapping[str, Control], group: str) -> list[Control]:
    """The controls of one group of ``RunConfig``, in its order."""
    return [control for name, control in shown.items() if extra(name, "group") == group]


# In words ------------------------------------------------------------------------------------------------------------


def varying(sweep: SweepIn) -> dict[str, list[Any]]:
    """The fields of the grid that have several values."""
    return {name: values for name, values in sweep.grid.items() if len(values) > 1}


def sentence(sweep: SweepIn) -> str:
    """What will start: "3 learning rates × 2 seeds, cosine, 5 epochs each."."""
    fields = sorted(varying(sweep).items(), key=lambda item: item[0] == "permute_pixels")
    factors = [_factor(name, len(values)) for name, values in fields]
    if sweep.repeats > 1:
        factors.append(ngettext("{n} seed", "{n} seeds", sweep.repeats).format(n=f"{sweep.repeats:,}"))
    rest = []
    if "schedule" not in sweep.grid and (schedule := sweep.base.get("schedule", "constant")) != "constant":
        rest.append(_(extra("schedule", "labels").get(schedule, str(schedule))))
    epochs = sweep.base.get("epochs", 1)
    if isinstance(epochs, int) and "epochs" not in sweep.grid:
        each = (
            ngettext("{n} epoch each", "{n} epochs each", epochs)
            if factors
            else ngettext("{n} epoch", "{n} epochs", epochs)
        )
        rest.append(each.format(n=f"{epochs:,}"))
    text = ", ".join([" × ".join(factors), *rest] if factors else [_what(sweep), *rest])
    return text + "."


def _what(sweep: SweepIn) -> str:
    model, dataset = str(sweep.base.get("model", "")), str(sweep.base.get("dataset", ""))
    title = _(MODELS[model].title) if model in MODELS else model
    return _("{model} on {dataset}").format(model=title, dataset=dataset)


def _factor(name: str, count: int) -> str:
    n = f"{count:,}"
    match name:
        case "learning_rate":
            return ngettext("{n} learning rate", "{n} learning rates", count).format(n=n)
        case "model":
            return ngettext("{n} model", "{n} models", count).format(n=n)
        case "seed":
            return ngettext("{n} seed", "{n} seeds", count).format(n=n)
        case "dataset":
            return ngettext("{n} data set", "{n} data sets", count).format(n=n)
        case "permute_pixels":
            return _("plain and permuted")
    return _("{n} values of {field}").format(n=n, field=_(FIELDS[name].title or name))


def seeds_sentence(typed: Typed) -> str:
    """Which seeds will be used, or "" where that is not known yet."""
    first, repeats = _value("int", typed.values["seed"]), _value("int", typed.values["repeats"])
    if not isinstance(first, int) or not isinstance(repeats, int) or not 1 <= repeats <= 1000:
        return ""
    if repeats == 1:
        return _("Seed {n} will be used.").format(n=first)
    if repeats == 2:
        return _("Seeds {a} and {b} will be used.").format(a=first, b=first + 1)
    return _("Seeds {a} to {b} will be used.").format(a=first, b=first + repeats - 1)


def choosing_by_test(sweep: SweepIn) -> int:
    """How many configurations compete without validation images: the best of them will look too good; 0 for none."""
    if any(name not in _COMPARED for name in varying(sweep)) and not sweep.base.get("validation_fraction"):
        count = 1
        for name, values in varying(sweep).items():
            count *= len(values) if name not in _COMPARED else 1
        return count if "validation_fraction" not in sweep.grid else 0
    return 0


# The same elsewhere --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SameAs:
    """What the form would send, as a command and as an API call."""

    command: str
    call: str


def same_as(sweep: SweepIn, preset_name: str | None) -> SameAs:
    """Only what differs from the preset (or, without one, from the defaults)."""
    short = shortened(sweep, PRESETS.get(preset_name or ""))
    return SameAs(_command(short), _call(short))


def shortened(sweep: SweepIn, preset: Preset | None) -> SweepIn:
    """The sweep without what its preset and the defaults say anyway; the preset only where nothing of it is undone."""
    if preset is not None and any(sweep.grid.get(name) != values for name, values in preset.grid.items()):
        preset = None
    start = {name: info.default for name, info in FIELDS.items() if not info.is_required()}
    start |= preset.base if preset else {}
    base = {name: value for name, value in sweep.base.items() if name not in start or start[name] != value}
    if preset is not None:
        given = {n for n in preset.base if start[n] != FIELDS[n].get_default()}
        base |= {
            n: FIELDS[n].default for n in given - sweep.base.keys() - sweep.grid.keys() if not FIELDS[n].is_required()
        }
    grid = {name: values for name, values in sweep.grid.items() if preset is None or name not in preset.grid}
    return sweep.model_copy(update={"base": base, "grid": grid, "preset": preset.name if preset else None})


def _command(sweep: SweepIn) -> str:
    """Lines of about 40 characters, joined by backslashes."""
    words = ["runoff train"]
    if sweep.preset:
        words.append(f"--preset {sweep.preset}")
    for name, value in {**sweep.base, **sweep.grid}.items():
        words.append(f"--{name.replace('_', '-')} {_shell(_argument(name, value))}")
    if sweep.repeats > 1:
        words.append(f"--repeats {sweep.repeats}")
    if sweep.name:
        words.append(f"--name {_shell(sweep.name)}")
    words += [f"--tag {_shell(tag)}" for tag in sweep.tags]
    return _wrapped(words)


def _argument(name: str, value: Any) -> str:
    """A value as an option; the space after a comma stays only where the text could else be read in two ways."""
    text = text_of(value)
    short = text.replace(", ", ",")
    try:
        return short if values_of(name, short) == values_of(name, text) else text
    except ValueError:
        return text


def _wrapped(words: list[str]) -> str:
    lines = [words[0]]
    for number, word in enumerate(words[1:]):
        if number and len(lines[-1]) + len(word) > 36:
            lines.append("  " + word)
        else:
            lines[-1] += " " + word
    return " \\\n".join(lines)


def _shell(text: str) -> str:
    if re.fullmatch(r"[\w.,:=+%@/-]+", text, re.ASCII):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def is_one_run(sweep: SweepIn) -> bool:
    return not sweep.grid and sweep.repeats == 1


def labels_of(sweep: SweepIn) -> RunLabels:
    return RunLabels(name=sweep.name, tags=sweep.tags, notes=sweep.notes)


def _call(sweep: SweepIn) -> str:
    labels: dict[str, Any] = {key: value for key, value in (("name", sweep.name), ("tags", sweep.tags)) if value}
    start = {"preset": sweep.preset} if sweep.preset else {}
    if is_one_run(sweep):
        return f"POST /api/v1/runs\n{_json({**start, **sweep.base, **labels})}"
    body = {**start, "base": sweep.base, "grid": sweep.grid, "repeats": sweep.repeats, **labels}
    body = {key: value for key, value in body.items() if value not in ({}, [])}
    return f"POST /api/v1/sweeps\n{_json(body)}"


def _json(body: dict[str, Any]) -> str:
    """Valid JSON, one field a line, short enough for the card."""
    lines = []
    for key, value in body.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and len(text) > 30:
            inner = [f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
            text = "{\n" + ",\n".join(inner) + "}"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "}" if lines else "{}"
