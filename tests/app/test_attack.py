"""Odd requests to every route of the API: never a 5xx (but 503 with a sentence), never half a run, always a problem in JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.errors import Problem
from app.main import create_app
from app.runs.plan import plan_run
from app.settings import Settings
from app.web.security import LARGEST_BODY
from tests.app.run_folders import finish, new_run
from trainer.config import FIELDS

BASE = {"dataset": "digits", "model": "fc"}
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "x" * 10_000,
    "../../etc/passwd",
    "..",
    "'; DROP TABLE run; --",
    "%",
    "\n",
    "NaN",
    "²",
    "<script>",
    "💥",
    "a\u202eb",
    "-1",
    "1e999",
    "9" * 5_000,
    "null",
]
ODD_VALUES: list[Any] = [
    *ODD_TEXTS,
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    -(10**300),
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"a": {"b": [1]}},
    [None] * 50,
    {"\ud800": 1},
]

pytestmark = pytest.mark.slow


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@cache
def paths_of_api() -> dict[str, list[str]]:
    """Each path of the API with its methods. All applications have the same, and describing them takes a while."""
    return {path: [*methods] for path, methods in create_app(Settings(), train=False).openapi()["paths"].items()}


@pytest.fixture
def calls(api: TestClient, site_app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path of the API, with the id of a finished run where one belongs."""
    folder = finish(new_run(site_app.state.runoff.settings.runs))
    site_app.state.runoff.indexer.tick()
    return [(m.upper(), p.replace("{run_id}", folder.id)) for p, methods in paths_of_api().items() for m in methods]


@pytest.fixture
def sane(api: TestClient, calls: object, site_app: FastAPI) -> Iterator[TestClient]:
    """The client; afterwards the server is well and nothing is half-written."""
    yield api
    assert api.get("/healthz").json() == {"status": "ok"}
    state = site_app.state.runoff
    for path in state.settings.runs.iterdir():
        assert (path / "run.json").is_file(), path
        assert (path / "config.json").is_file(), path
    listed = api.get("/api/v1/runs", params={"limit": 1000})
    assert listed.status_code == 200
    state.indexer.rebuild()
    assert api.get("/api/v1/runs", params={"limit": 1000}).json()["total"] == listed.json()["total"]


def check(answer: Any) -> None:
    """Success, or a problem with a sentence; every answer has the policy."""
    assert answer.headers["content-security-policy"], answer.request.url
    if answer.status_code < 400:
        return
    assert answer.headers["content-type"] == "application/problem+json", (answer.request.url, answer.text)
    problem = answer.json()
    assert answer.status_code < 500 or answer.status_code == 503, (answer.request.url, problem)
    assert problem["status"] == answer.status_code
    assert problem["detail"].strip()
    assert all(error["field"] and error["message"] for error in problem["errors"]), problem


def post(client: TestClient, method: str, path: str, body: Any, content_type: str = "application/json") -> Any:
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.request(method, path, content=content, headers={"content-type": content_type})


BODIES: list[str | bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"1",
    b'"a"',
    b"\xff\xfe",
    b"{}",
    b"[{}]",
    deep(100),
    deep(900),
    deep(50_000),
    b'{"a":' * 500,
    '{"dataset": ' + deep(900) + "}",
    '{"seed": ' + "9" * 4_200 + "}",
    '{"seed": ' + "9" * 5_000 + "}",
    '{"a": 1, "a": 2}',
    '{"\\ud800": 1, "model": "\\udfff", "dataset": "\\ud800", "name": "\\ud800"}',
    '{"learning_rate": NaN, "epochs": Infinity}',
    '{"dataset":"digits","model":"fc","name":"\\u0000","tags":["\\u0000"],"notes":"\\ud800"}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:16]))
def test_odd_bodies(sane: TestClient, calls: list[tuple[str, str]], body: str | bytes) -> None:
    for method, path in calls:
        if method != "GET" and "{" not in path and "reindex" not in path and method != "DELETE":
            for kind in ("application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
                check(post(sane, method, path, body, kind))


def test_odd_fields(sane: TestClient, site_app: FastAPI) -> None:
    for name in [*FIELDS, "preset", "nonsense"]:
        for value in ODD_VALUES:
            with contextlib.suppress(Problem):
                plan_run(site_app.state.runoff.settings.home, {**BASE, name: value})
    for name in ("name", "tags", "notes", "preset", "seed", "dataset"):
        for value in ODD_VALUES:
            check(post(sane, "POST", "/api/v1/runs", {**BASE, name: value}))


def test_odd_sweeps(sane: TestClient) -> None:
    for value in [*ODD_VALUES[::2], "\ud800"]:
        for sweep in (
            {"base": value},
            {"base": BASE, "grid": value},
            {"base": BASE, "grid": {"epochs": value}},
            {"base": BASE, "grid": {"epochs": [value]}},
            {"base": BASE, "repeats": value},
            {"base": BASE, "tags": value},
            {"base": {**BASE, "seed": value}, "repeats": 2},
            {"base": BASE, "preset": value, "dataset": value},
            {"base": BASE, "name": value},
            {"base": BASE, "grid": {str(value): [1]}},
            {"base": {**BASE, str(value): 1}},
        ):
            check(post(sane, "POST", "/api/v1/sweeps", sweep))


def test_odd_addresses(sane: TestClient, calls: list[tuple[str, str]]) -> None:
    for method, path in calls:
        if "/{" in path or "/runs/" in path:
            for text in ODD_TEXTS:
                odd = quote(text[:1_000].encode("utf-8", "surrogatepass"), safe="")
                for part in ("{name}", "{sweep_id}", path.split("/")[4] if path.count("/") > 3 else "{none}"):
                    if part in path and not part.startswith("events"):
                        check(post(sane, method, path.replace(part, odd or "%20", 1).replace("{name}", odd), b"{}"))


def test_odd_queries(sane: TestClient) -> None:
    run_id = sane.get("/api/v1/runs").json()["runs"][0]["id"]
    for path, methods in sane.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        for parameter in methods.get("get", {}).get("parameters", []):
            if parameter["in"] == "query":
                for text in ODD_TEXTS:
                    odd = quote(text.encode("utf-8", "surrogatepass"))
                    check(sane.get(f"{path.replace('{run_id}', run_id)}?run={run_id}&{parameter['name']}={odd}"))


def test_a_long_search_is_refused(sane: TestClient) -> None:
    assert sane.get("/api/v1/runs", params={"q": "a" * 480}).status_code == 200
    assert sane.get("/api/v1/runs", params={"q": "a" * 2000}).status_code == 422


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "x", "1.5", ""])
def test_odd_last_event_ids(sane: TestClient, calls: list[tuple[str, str]], number: str) -> None:
    [path] = [path for _method, path in calls if path.endswith("/events")]
    answer = sane.get(path, headers={"Last-Event-ID": number.encode("latin-1")})
    assert answer.status_code == 200
    assert answer.text.startswith("event: ") or number == "9" * 5000


@pytest.mark.parametrize(
    "name", ["../../x.zip", "a\0b.zip", "\ud800.zip", "x" * 5000 + ".zip", "", "..", "/etc/passwd"]
)
def test_odd_upload_names(sane: TestClient, site_app: FastAPI, name: str) -> None:
    files = {"file": (name.encode("utf-8", "replace").decode(), b"not an archive")}
    answer = sane.post("/api/v1/datasets", files=files, data={"name": "mine"})
    check(answer)
    home = site_app.state.runoff.settings.home
    assert not [path for path in home.parent.iterdir() if path != home]


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(sane: TestClient, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _number in range(50):
            yield b" " * 2**20

    for path in ("/api/v1/runs", "/api/v1/sweeps", "/api/v1/describe", "/runs/new", "/login"):
        body = chunks() if chunked else b" " * (LARGEST_BODY + 1)
        kind = "application/json" if path.startswith("/api/") else "application/x-www-form-urlencoded"
        answer = sane.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == 413, path
        check(answer)
    body = chunks() if chunked else b" " * (LARGEST_BODY + 1)
    answer = sane.post("/api/v1/runs", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
field_names = st.sampled_from([*FIELDS, "name", "tags", "notes", "preset", "base", "grid", "repeats"]) | st.text(
    max_size=8
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["runs", "sweeps", "describe"]), body=st.dictionaries(field_names, json_values, max_size=5))
def test_any_json(sane: TestClient, path: str, body: dict[str, Any]) -> None:
    check(post(sane, "POST", f"/api/v1/{path}", {**BASE, **body} if path != "sweeps" else {"base": BASE, **body}))
