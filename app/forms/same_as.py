"""The command and the API call that do the same as the form of a new run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from app.forms.read import text_of, values_of
from app.schemas import SweepIn
from trainer.config import FIELDS
from trainer.presets import PRESETS, Preset


@dataclass(frozen=True)
class SameAs:
    """The request of the form, as a command and as an API call."""

    command: str
    call: str


def same_as(sweep: SweepIn, preset_name: str | None) -> SameAs:
    """Both name only what differs from the preset, or without one from the defaults."""
    short = shortened(sweep, PRESETS.get(preset_name or ""))
    return SameAs(_command(short), _call(short))


def shortened(sweep: SweepIn, preset: Preset | None) -> SweepIn:
    """The sweep without the values of its preset and the defaults.

    The preset is left out too where the sweep has not all values of its grid: an option can't take them back.
    """
    if preset is not None and any(sweep.grid.get(name) != values for name, values in preset.grid.items()):
        preset = None
    start = {name: info.default for name, info in FIELDS.items() if not info.is_required()}
    start |= preset.base if preset else {}
    base = {name: value for name, value in sweep.base.items() if name not in start or start[name] != value}
    if preset is not None:
        changed = {name for name in preset.base if start[name] != FIELDS[name].get_default()}
        for name in changed - sweep.base.keys() - sweep.grid.keys():
            if not FIELDS[name].is_required():
                base[name] = FIELDS[name].default
    grid = {name: values for name, values in sweep.grid.items() if preset is None or name not in preset.grid}
    return sweep.model_copy(update={"base": base, "grid": grid, "preset": preset.name if preset else None})


def _command(sweep: SweepIn) -> str:
    """The command in lines of about 40 characters."""
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
    """A value as an option. The space after a comma stays only where the text would be ambiguous without it."""
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
    """Whether the form starts a single run, which needs no sweep."""
    return not sweep.grid and sweep.repeats == 1


def _call(sweep: SweepIn) -> str:
    labels: dict[str, Any] = {key: value for key, value in (("name", sweep.name), ("tags", sweep.tags)) if value}
    start = {"preset": sweep.preset} if sweep.preset else {}
    if is_one_run(sweep):
        return f"POST /api/v1/runs\n{_json({**start, **sweep.base, **labels})}"
    body = {**start, "base": sweep.base, "grid": sweep.grid, "repeats": sweep.repeats, **labels}
    body = {key: value for key, value in body.items() if value not in ({}, [])}
    return f"POST /api/v1/sweeps\n{_json(body)}"


def _json(body: dict[str, Any]) -> str:
    """JSON with one field a line, narrow enough for the card of the form."""
    lines = []
    for key, value in body.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and len(text) > 30:
            inner = [f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
            text = "{\n" + ",\n".join(inner) + "}"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "}" if lines else "{}"
