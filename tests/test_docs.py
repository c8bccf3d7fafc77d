"""Docs that lie fail here: generated tables, links, names of files, commands, targets, settings, events and statuses."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from typer.main import get_command

from app.cli.commands import app as commands
from app.compare.shapes import Pair, Recipe
from app.main import create_app
from app.schemas import Status
from app.settings import Settings
from trainer import events
from trainer.environment import Environment
from trainer.events import TERMINAL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette asks for another client library
    from starlette.testclient import TestClient

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DOCS: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {name for line in re.findall(r"^([a-z]+(?: [a-z]+)*):", MAKEFILE, re.M) for name in line.split()}

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def spoken_code(page: Path) -> Iterator[str]:
    """What a page sets as code: spans in backticks and lines of fenced blocks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def rows_of(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


@each_page
def test_generated_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert DOCS["filled"](text) == text, "run: python scripts/make_docs.py"


def test_every_table_that_can_be_generated_is_in_the_docs() -> None:
    used = {found["name"] for page in PAGES for found in DOCS["BLOCK"].finditer(page.read_text(encoding="utf-8"))}
    assert used == set(DOCS["MAKERS"])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    inside = [link.split("#")[0] for link in links if not link.startswith("https://")]
    assert [link for link in inside if link and not (page.parent / link).exists()] == []


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    }
    assert [page.name for page in PAGES if page.resolve() not in linked and page.name != "README.md"] == []


@each_page
def test_named_files_exist(page: Path) -> None:
    """Every path that begins with a folder of the repository, whether in code, in a link or in plain text."""
    folders = r"(?:app|trainer|tests|scripts|static|templates|docs|benchmarks|\.ci)"
    text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
    named = {path.rstrip("./") for path in re.findall(rf"(?<![\w./-]){folders}/[\w./-]*\w/?", text)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_architecture_names_every_module() -> None:
    """Each module and package directly below ``app`` and ``trainer``, with its path."""
    parts = [part for package in ("app", "trainer") for part in (ROOT / package).iterdir()]
    modules = [part for part in parts if part.suffix == ".py" and part.name != "__init__.py"]
    packages = [part for part in parts if (part / "__init__.py").exists()]
    text = text_of("docs/architecture.md")
    names = [str(module.relative_to(ROOT)) for module in modules]
    names += [f"{package.relative_to(ROOT)}/" for package in packages]
    missing = [name for name in sorted(names) if f"`{name}`" not in text]
    assert missing == [], "add these to the tables of docs/architecture.md"


@each_page
def test_make_targets_exist(page: Path) -> None:
    named = {target for code in spoken_code(page) for target in re.findall(r"\bmake ([a-z]+)", code)}
    assert named <= TARGETS


def test_the_readme_shows_how_to_start_and_test() -> None:
    blocks = re.findall(r"^```\n(.*?)\n```", text_of("README.md"), re.M | re.S)
    assert blocks[:2] == ["make demo", "make test"]


def test_every_make_target_is_documented() -> None:
    documented = {row[0].removeprefix("`make ").removesuffix("`") for row in rows_of(text_of("docs/command-line.md"))}
    assert documented & TARGETS == TARGETS


@each_page
def test_settings_exist(page: Path) -> None:
    named = set(re.findall(r"\bRUNOFF_([A-Z_]+)", page.read_text(encoding="utf-8")))
    assert named <= {name.upper() for name in Settings.model_fields}


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    known = {" ".join(path): command for path, command in DOCS["leaves"](get_command(commands), [])}
    for code in spoken_code(page):
        for words in re.findall(r"(?:^|[ /])runoff ((?:datasets )?[a-z]+)((?: [^ ].*)?)$", code):
            if words[0] in known or "docker" not in code:
                assert words[0] in known, code
                options = {option for parameter in known[words[0]].params for option in parameter.opts}
                assert set(re.findall(r"--[a-z-]+", words[1])) <= options | {"--help"}, code


@each_page
def test_routes_exist(page: Path) -> None:
    paths = re.findall(r"`[A-Z]+ (/\S+)`", DOCS["made"]("routes"))
    known = {re.sub(r"\{\w+\}", "*", path) for path in paths} | {"/api/v1"}
    named = {
        path
        for code in spoken_code(page)
        for path in re.findall(r"(?:^| )(/(?:api/v1|healthz)[\w/{}]*(?:\.csv)?)", code)
    }
    assert {re.sub(r"\{\w+\}", "*", path) for path in named} <= known


# Statuses and files --------------------------------------------------------------------------------------------------


def test_statuses_change_as_documented() -> None:
    rows = [row for row in rows_of(text_of("docs/statuses.md")) if row[0] in get_args(Status)]
    assert {(source, to) for source, to, _who in rows} == set(_arrows_in_the_code())
    assert {status for row in rows for status in row[:2]} == set(get_args(Status))


def _arrows_in_the_code() -> Iterator[tuple[str, str]]:
    """(from, to) of each transition in app/runs/lifecycle.py, and of the events that end a run."""
    yield from (("running", ending) for ending in TERMINAL)
    for call in ast.walk(ast.parse(text_of("app/runs/lifecycle.py"))):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id in ("_transition", "_requeue")
        ):
            names = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            to = [
                word.value.value for word in call.keywords if word.arg == "to" and isinstance(word.value, ast.Constant)
            ]
            yield from ((str(name), str(to[0]) if to else "queued") for name in names)


def test_only_the_lifecycle_changes_a_status() -> None:
    changing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "app").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _assigns_status(node) or _updates_runs(node)
    }
    assert changing == {"app/runs/lifecycle.py"}


def _assigns_status(node: ast.AST) -> bool:
    """Whether this is ``run.status = ...``, whatever the run is called."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == "status"
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    )


def _updates_runs(node: ast.AST) -> bool:
    """Whether this is ``update(Run)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "update"
        and any(isinstance(argument, ast.Name) and argument.id == "Run" for argument in node.args)
    )


def test_events_are_documented_with_all_their_fields() -> None:
    documented = {row[0].strip("`"): set(re.findall(r"\w+", _code_in(row[1]))) for row in rows_of(_events_section())}
    for kind in get_args(events.Event):
        fields = {field.name for field in dataclasses.fields(kind)} - {"state", "predictions"}
        assert documented[kind.type] == fields


def _events_section() -> str:
    return text_of("docs/run-folder.md").split("## events.jsonl")[1].split("\n## ")[0]


def _code_in(cell: str) -> str:
    """The first code of a cell; the words of further spans too, where they name fields."""
    return " ".join(code for code in re.findall(r"`([^`]+)`", cell) if re.fullmatch(r"[a-z_ ]+", code))


def test_the_environment_is_documented_with_all_its_fields() -> None:
    cell = next(row[2] for row in rows_of(text_of("docs/run-folder.md")) if row[0] == "`environment.json`")
    assert set(_code_in(cell).split()) - {"auto"} == {field.name for field in dataclasses.fields(Environment)}


# The README's script -------------------------------------------------------------------------------------------------


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[TestClient]:
    app: FastAPI = create_app(Settings(home=tmp_path / "home"), train=False)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


class Answer:
    """An answer with this JSON."""

    def __init__(self, body: Any) -> None:
        self.json: Callable[[], Any] = lambda: body


class Api:
    """The real API, except that runs have ended at once and the comparison names every field with its type's sample."""

    def __init__(self, rest: TestClient, base_url: str) -> None:
        self.rest, self.prefix = rest, base_url.removeprefix("http://127.0.0.1:8000")
        self.compared: list[str] = []

    def post(self, path: str, json: Any) -> Any:
        return self.rest.post(self.prefix + path, json=json).raise_for_status()

    def get(self, path: str, params: Any = None) -> Any:
        if path == "/compare":
            self.compared = params["run"]
            sample = {
                kind: [dict.fromkeys((field.name for field in dataclasses.fields(kind)), "")] for kind in (Pair, Recipe)
            }
            return Answer({"pairs": sample[Pair], "recipes": sample[Recipe]})
        return Answer(self.rest.get(self.prefix + path).raise_for_status().json() | {"status": "finished"})


def test_the_script_in_the_readme_works(rest: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    script = re.search(r"^```python\n(.*?)^```", text_of("README.md"), re.M | re.S)
    assert script is not None
    apis: list[Api] = []

    def client(base_url: str) -> Api:
        apis.append(Api(rest, base_url))
        return apis[-1]

    httpx = types.ModuleType("httpx")
    httpx.Client = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "httpx", httpx)
    exec(compile(script[1], "README.md", "exec"), {})
    assert len(apis[0].compared) == rest.get("/api/v1/runs").json()["total"] == 6


def test_make_help_names_the_targets() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", said, re.M)) == TARGETS - {"help", "clean"}
