"""What is wrong with a field, as a sentence for the person who filled it in. Imports neither torch nor numpy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.i18n import _


def sentences_of(items: Iterable[Mapping[str, Any]], known: list[str]) -> dict[str, str]:
    """One sentence for each field, from the items of pydantic's ``ValidationError.errors()``.

    ``known`` are the names of the fields there are, to suggest one for a misspelt name.
    """
    sentences: dict[str, str] = {}
    for item in items:
        path = item["loc"][1:] if item["loc"][:1] in (("body",), ("query",), ("path",), ("header",)) else item["loc"]
        field = _printable(".".join(str(part)[:80] for part in path)) or "body"
        if item["type"] == "json_invalid":  # its path is a position
            field = "body"
        sentences.setdefault(field, _sentence(item, known))
    return sentences


def plain(value: object) -> str:
    """A value as a person typed it, shortened."""
    if value is None or isinstance(value, bool):
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = f"{value:g}" if isinstance(value, float) else _printable(str(value))
    return text if len(text) <= 40 else text[:37] + "..."


def _printable(text: str) -> str:
    """Text that every encoder takes: JSON may carry halves of characters, which no answer could repeat."""
    return text.encode("utf-8", "replace").decode()


def _sentence(item: Mapping[str, Any], known: list[str]) -> str:
    kind, context, typed = item["type"], item.get("ctx", {}), plain(item.get("input"))
    numbers = {key: value for key, value in context.items() if isinstance(value, int | float)}
    limit = {key: f"{value:,}" if isinstance(value, int) else f"{value:g}" for key, value in numbers.items()}
    match kind:
        case "missing":
            return _("Required, but not given.")
        case "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            if close:
                return _("Unknown field. Did you mean {name}?").format(name=close[0])
            return _("Unknown field. Known fields: {names}.").format(names=", ".join(known))
        case "greater_than_equal":
            return _("Must be at least {limit}. You typed {typed}.").format(limit=limit["ge"], typed=typed)
        case "greater_than":
            return _("Must be more than {limit}. You typed {typed}.").format(limit=limit["gt"], typed=typed)
        case "less_than_equal":
            return _("Must be at most {limit}. You typed {typed}.").format(limit=limit["le"], typed=typed)
        case "less_than":
            return _("Must be less than {limit}. You typed {typed}.").format(limit=limit["lt"], typed=typed)
        case "finite_number":
            return _("Must be a finite number. You typed {typed}.").format(typed=typed)
        case "literal_error" | "enum":
            expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
            return _("Must be one of {values}. You typed {typed}.").format(values=expected, typed=typed)
        case "string_too_long":
            length = len(item["input"]) if isinstance(item.get("input"), str) else 0
            return _("Must be at most {limit} characters. You typed {length}.").format(
                limit=limit["max_length"], length=f"{length:,}"
            )
        case "string_too_short" | "too_short":
            return _("Must not be empty.")
        case "too_long":
            return _("Too many values: at most {limit}.").format(limit=limit["max_length"])
        case "string_pattern_mismatch" if item["loc"][-1] == "device":
            return _("Must be auto, cpu, cuda, cuda:0 and so on, or mps. You typed {typed}.").format(typed=typed)
        case "string_pattern_mismatch":
            return _(
                "Must be lowercase letters, digits and hyphens, at most 64, and begin with a letter or digit. You typed {typed}."
            ).format(typed=typed)
    if kind.startswith("int"):
        return _("Must be a whole number. You typed {typed}.").format(typed=typed)
    if kind.startswith("float") or (kind == "value_error" and isinstance(item.get("input"), bool)):
        return _("Must be a number. You typed {typed}.").format(typed=typed)
    if kind.startswith("bool"):
        return _("Must be true or false. You typed {typed}.").format(typed=typed)
    if kind.startswith("string"):
        return _("Must be text. You typed {typed}.").format(typed=typed)
    if kind.startswith(("dict", "model")):
        return _("Must be an object with named fields.")
    if kind.startswith("list"):
        return _("Must be a list.")
    if kind == "json_invalid":
        return _("The body is not valid JSON.")
    return str(item["msg"]).removeprefix("Value error, ")
