"""Write the tables of docs/ that are generated from the code: ``python scripts/make_docs.py``.

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest of a page is written by hand. A test fails
while a page differs from what this script would write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from app.cli.commands import app as commands
from app.main import create_app
from app.settings import Settings
from app.store.fields import fields as search_language
from app.store.files import FILES
from trainer.config import FIELDS, GROUPS, MODELS, RunConfig
from trainer.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [[*head], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(value: Any) -> str:
    """A default as one writes it in JSON."""
    words = {None: "null", True: "true", False: "false"}
    return (
        words[value]
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# Configuration -------------------------------------------------------------------------------------------------------


def fields() -> str:
    """Every field of ``RunConfig``, in the order of the form."""
    properties = RunConfig.model_json_schema()["properties"]
    rows = []
    for name, info in FIELDS.items():
        default = "required" if info.is_required() else plain(info.default)
        schema = properties[name]
        rows.append([f"`{name}`", default, values(schema, info.metadata), f"{info.description} {unit_of(schema)}"])
    return table(["field", "default", "values", "what it does"], rows)


def unit_of(schema: dict[str, Any]) -> str:
    """The unit and the group of the form, in brackets."""
    words = [schema["unit"], GROUPS[schema["group"]]]
    return f"({', '.join(word for word in words if word)})"


def values(schema: dict[str, Any], bounds: Iterable[Any]) -> str:
    """The values that a field takes; ``bounds`` are the field's ``Ge``, ``Lt`` and so on."""
    kinds = {"integer": "whole number", "number": "number", "boolean": "true, false", "null": "null", "string": "text"}
    found = []
    for option in schema.get("anyOf", [schema]):
        if "enum" in option:
            found.append(", ".join(f"`{value}`" for value in option["enum"]))
        else:
            found.append(kinds[option["type"]])
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below", "pattern": "matching"}
    limits = [
        f"{word} {_limit(bound, name)}" for name, word in words.items() for bound in bounds if hasattr(bound, name)
    ]
    return " ".join([found[0], *limits]) + "".join(f" or {other}" for other in found[1:])


def _limit(bound: Any, name: str) -> str:
    value = getattr(bound, name)
    return f"`{value}`" if isinstance(value, str) else f"{value:,.0f}" if value >= 1_000 else f"{value:g}"


def models() -> str:
    """The nets."""
    rows = [
        [f"`{name}`", info.title, info.summary, f"{info.default_width} {info.width_unit}", str(info.smallest_image)]
        for name, info in MODELS.items()
    ]
    return table(["model", "title", "description", "default width", "smallest image (pixels per side)"], rows)


def presets() -> str:
    """The presets."""
    rows = [[f"`{preset.name}`", preset.title, preset.summary] for preset in PRESETS.values()]
    return table(["preset", "title", "what it starts"], rows)


def settings() -> str:
    """Every environment variable."""
    rows = []
    for name, info in Settings.model_fields.items():
        default = f"`{info.default}`" if info.default not in (None, "") else "not set"
        rows.append([f"`RUNOFF_{name.upper()}`", default, info.description or ""])
    return table(["variable", "default", "meaning"], rows)


# Interfaces ----------------------------------------------------------------------------------------------------------


def routes() -> str:
    """Every route of the REST API, in the order of the code, with its query parameters."""
    paths = create_app(Settings(token="any"), train=False).openapi()["paths"]
    rows = []
    for path, methods in paths.items():
        for method, route in methods.items():
            query = " ".join(f"`{p['name']}`" for p in route.get("parameters", []) if p["in"] == "query")
            first = " ".join(route["description"].split("\n\n")[0].split()).replace("``", "`")
            rows.append([f"`{method.upper()} {path}`", first, query])
    return table(["call", "does", "query"], rows)


def files() -> str:
    """What ``GET /api/v1/runs/{run_id}/files/{name}`` gives."""
    return table(["name", "what"], ([f"`{name}`", text] for name, text in FILES.items()))


def search_fields() -> str:
    """What the search language knows beside the fields of the configuration."""
    kinds = {
        "accuracy": "fraction or percent",
        "number": "number",
        "text": "text",
        "time": "time in UTC",
        "tags": "a tag",
    }
    rows = [
        [f"`{field.name}`", field.title, ", ".join(field.values) or kinds[field.kind]]
        for field in search_language().values()
        if field.part != "config"
    ]
    return table(["field", "what", "values"], rows)


def command_line() -> str:
    """Every command with its arguments and options; those that come from ``RunConfig`` are only counted."""
    return "\n\n".join(_command(["runoff", *path], command) for path, command in leaves(get_command(commands), []))


def leaves(command: Any, path: list[str]) -> Iterable[tuple[list[str], Any]]:
    """The commands that do something, with their names."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, one in command.commands.items():
        yield from leaves(one, [*path, name])


def _command(path: list[str], command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name in FIELDS and path[-1] == "train":
            continue
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
        rows.append([f"`{name}`", parameter.help or ""])
    text = [f"### `{' '.join(path)}`", " ".join((command.help or "").replace("<", "&lt;").split())]
    if rows:
        text.append(table(["argument or option", "what it does"], rows))
    if path[-1] == "train":
        text.append(
            f"And one option for each of the {len(FIELDS)} [fields of a configuration](configuration.md), with hyphens: "
            "`--learning-rate`."
        )
    return "\n\n".join(text)


MAKERS: dict[str, Callable[[], str]] = {
    "fields": fields,
    "models": models,
    "presets": presets,
    "settings": settings,
    "routes": routes,
    "files": files,
    "search-fields": search_fields,
    "command-line": command_line,
}


@cache
def made(name: str) -> str:
    """The generated part of this name."""
    return MAKERS[name]()


def filled(text: str) -> str:
    """A page with its generated parts made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{made(found['name'])}\n{found[3]}", text)


def pages() -> list[Path]:
    """The pages that may hold generated parts."""
    return sorted((ROOT / "docs").rglob("*.md"))


def main() -> None:
    """Rewrite the pages that differ, and name them."""
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
