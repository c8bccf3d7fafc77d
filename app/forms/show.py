"""The form of a new run as a page shows it: its controls, and what it asks for in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from app.forms.read import (
    Kind,
    Typed,
    default_text,
    form_field,
    is_chosen,
    kind_of,
    may_be_empty,
    not_applying,
    note_of,
    value_of,
)
from app.schemas import SweepIn
from trainer.config import FIELDS, MODELS, FieldProblem
from trainer.i18n import _, ngettext

MOST_UNCONFIRMED = 20  # runs that start without a ticked box
_COMPARED = {"dataset", "model", "permute_pixels", "permutation_seed", "seed"}  # fields that are compared, not tuned


# Controls ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One value of a choice field."""

    value: str
    label: str
    chosen: bool = False
    summary: str = ""


@dataclass(frozen=True)
class Control:
    """All that a template needs to show one field."""

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


def controls(
    typed: Typed, problems: Iterable[FieldProblem] = (), devices: Mapping[str, str] | None = None
) -> dict[str, Control]:
    """The controls of all fields of ``RunConfig``, by name, in its order.

    ``devices`` are name and title of what this machine has, to choose from.
    """
    unused = _unused_fields(typed)
    sentences: dict[str, list[str]] = {}
    for problem in problems:
        sentences.setdefault(form_field(problem.field), []).append(problem.message)
    shown = {
        name: _control(name, typed, applies=name not in unused, problems=sentences.get(name, [])) for name in FIELDS
    }
    choices = _device_choices(shown["device"].text, devices or {})
    return shown | {"device": replace(shown["device"], kind="choice", choices=choices)} if choices else shown


def _device_choices(text: str, devices: Mapping[str, str]) -> list[Choice]:
    """The devices and ``auto``; empty where none is known, or something else was typed."""
    if not devices:
        return []
    best = next((title for name, title in devices.items() if name != "cpu"), next(iter(devices.values())))
    labels = {"auto": _("auto ({device})").format(device=best), **devices}
    return [Choice(name, label, name == text) for name, label in labels.items()] if text in labels else []


def _unused_fields(typed: Typed) -> set[str]:
    """The fields that have no effect; none while a field that decides it can't be read."""
    try:
        return not_applying(typed)
    except ValueError:
        return set()


def _control(name: str, typed: Typed, *, applies: bool, problems: list[str]) -> Control:
    text, kind = typed.values.get(name, ""), kind_of(name)
    several = name in typed.several or (is_chosen(name) and "," in text)
    info = FIELDS[name]
    return Control(
        name=name,
        title=_(info.title or name),
        help=_(info.description or ""),
        kind=kind,
        text=text,
        unit=_unit(name, typed),
        placeholder=_placeholder(name, typed),
        optional=may_be_empty(name),
        applies=applies,
        several=several,
        choices=_choices(name, text),
        problems=list(dict.fromkeys(problems)),
    )


def _model(typed: Typed) -> str:
    return typed.values.get("model", "")


def _unit(name: str, typed: Typed) -> str:
    if name == "width" and _model(typed) in MODELS:
        return _(MODELS[_model(typed)].width_unit)
    unit = note_of(name, "unit")
    return _(unit) if unit else ""


def _placeholder(name: str, typed: Typed) -> str:
    if name == "width" and _model(typed) in MODELS:
        return str(MODELS[_model(typed)].default_width)
    return _("off") if may_be_empty(name) and name != "width" else ""


def _choices(name: str, text: str) -> list[Choice]:
    chosen = [part.strip() for part in text.split(",")]
    if kind_of(name) == "bool":
        labels = {"false": _("no"), "true": _("yes")}
    elif kind_of(name) == "choice":
        labels = {value: _(label) for value, label in note_of(name, "labels").items()}
    else:
        return []
    summaries = {key: _(model.summary) for key, model in MODELS.items()} if name == "model" else {}
    return [Choice(v, label, v in chosen, summaries.get(v, "")) for v, label in labels.items()]


def in_group(shown: Mapping[str, Control], group: str) -> list[Control]:
    """The controls of one group of ``RunConfig``, in its order."""
    return [control for name, control in shown.items() if note_of(name, "group") == group]


# In words ------------------------------------------------------------------------------------------------------------


def varying(sweep: SweepIn) -> dict[str, list[Any]]:
    """The fields with several values."""
    return {name: values for name, values in sweep.grid.items() if len(values) > 1}


def sentence(sweep: SweepIn) -> str:
    """What will start: ``3 learning rates × 2 seeds, cosine, 5 epochs each.``"""
    fields = sorted(varying(sweep).items(), key=lambda item: item[0] == "permute_pixels")
    factors = [_factor(name, len(values)) for name, values in fields]
    if sweep.repeats > 1:
        factors.append(ngettext("{n} seed", "{n} seeds", sweep.repeats).format(n=f"{sweep.repeats:,}"))
    rest = []
    if "schedule" not in sweep.grid and (schedule := sweep.base.get("schedule", "constant")) != "constant":
        rest.append(_(note_of("schedule", "labels").get(schedule, str(schedule))))
    epochs = sweep.base.get("epochs", 1)
    if isinstance(epochs, int) and "epochs" not in sweep.grid:
        each = (
            ngettext("{n} epoch each", "{n} epochs each", epochs)
            if factors
            else ngettext("{n} epoch", "{n} epochs", epochs)
        )
        rest.append(each.format(n=f"{epochs:,}"))
    text = ", ".join([" × ".join(factors), *rest] if factors else [_single_run(sweep), *rest])
    return text + "."


def _single_run(sweep: SweepIn) -> str:
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
    """Which seeds will be used; empty while that is unknown."""
    first, repeats = value_of("int", typed.values["seed"]), value_of("int", typed.values["repeats"])
    if not isinstance(first, int) or not isinstance(repeats, int) or not 1 <= repeats <= 1000:
        return ""
    if repeats == 1:
        return _("Seed {n} will be used.").format(n=first)
    if repeats == 2:
        return _("Seeds {a} and {b} will be used.").format(a=first, b=first + 1)
    return _("Seeds {a} to {b} will be used.").format(a=first, b=first + repeats - 1)


def choosing_by_test(sweep: SweepIn) -> int:
    """How many configurations would be chosen from by their test accuracy, for lack of validation images; 0 for none.

    The best of them will look better than it is.
    """
    if any(name not in _COMPARED for name in varying(sweep)) and not sweep.base.get("validation_fraction"):
        count = 1
        for name, values in varying(sweep).items():
            count *= len(values) if name not in _COMPARED else 1
        return count if "validation_fraction" not in sweep.grid else 0
    return 0
