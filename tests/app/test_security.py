"""Hosts, origins, the token, and the headers of every answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings, SettingsError, load_settings
from app.web.security import HEADERS, POLICY

TOKEN = "a secret"


@pytest.fixture
def locked(home: Path) -> Iterator[TestClient]:
    settings = Settings(home=home, token=TOKEN, allowed_hosts="lab.example")
    with TestClient(create_app(settings, train=False), base_url="http://localhost", follow_redirects=False) as client:
        yield client


PATHS = [
    "/api/v1/runs",
    "/api/v1/nothing",
    "/runs",
    "/nothing",
    "/static/css/base.css",
    "/static/no.css",
    "/healthz",
    "/",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_every_answer_carries_the_headers(api: TestClient, path: str, accept: str) -> None:
    answer = api.get(path, headers={"accept": accept})
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_a_broken_route_answers_with_a_sentence(
    api: TestClient, site_app: FastAPI, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a secret detail")

    site_app.add_api_route("/broken", broken)
    answer = api.get("/broken", headers={"accept": accept})
    assert answer.status_code == 500
    assert "Something went wrong in Runoff" in answer.text
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"] == POLICY
    assert "ZeroDivisionError" in caplog.text


def test_a_full_disk_is_503(api: TestClient, site_app: FastAPI) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    site_app.add_api_route("/full", full)
    answer = api.get("/full")
    assert (answer.status_code, "No space left" in answer.json()["detail"]) == (503, True)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("lab.example", 421),
    ],
)
def test_only_known_names_are_answered(api: TestClient, host: str, status: int) -> None:
    answer = api.get("/api/v1/models", headers={"host": host})
    assert answer.status_code == status
    if status == 421:
        assert "RUNOFF_ALLOWED_HOSTS" in answer.json()["detail"]


def test_a_further_name_can_be_allowed(locked: TestClient) -> None:
    assert locked.get("/healthz", headers={"host": "lab.example:80"}).status_code == 200
    assert locked.get("/healthz", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
    ],
)
def test_writes_from_other_sites_are_refused(api: TestClient, headers: dict[str, str], status: int) -> None:
    assert api.post("/api/v1/reindex", headers=headers).status_code == status
    assert api.get("/api/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer   {TOKEN} "}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic " + TOKEN}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"cookie": f'runoff_token="{TOKEN}"'}, 200),
        ({"cookie": "runoff_token=wrong"}, 401),
        ({"cookie": "\x80=;;;="}, 401),
    ],
)
def test_the_token_is_asked_for(locked: TestClient, headers: dict[str, str], status: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/api/v1/runs", "/runs", "/api", "/api/v1/runs/x/files/log.txt"):
        got = locked.get(path, headers=encoded).status_code
        assert (got == 401) == (status == 401), path
    assert locked.get("/healthz").status_code == 200
    assert locked.get("/login").status_code == 200


def test_signing_in_sets_a_cookie_that_opens_the_pages(locked: TestClient) -> None:
    assert locked.post("/login", data={"token": "wrong"}).status_code == 401
    answer = locked.post("/login", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert locked.get("/runs").status_code == 200


def test_signing_in_where_no_token_is_needed(api: TestClient) -> None:
    answer = api.post("/login", data={"token": "💥"})
    assert (answer.status_code, answer.headers.get("set-cookie")) == (303, None)


def test_an_open_address_needs_a_token(home: Path) -> None:
    home.mkdir()
    (home / "token").write_text("")  # left by a crash: must not open the server
    settings = Settings(home=home, host="0.0.0.0")
    token = settings.required_token()
    assert token
    assert len(token) > 20
    assert settings.required_token() == token
    assert settings.token_path.stat().st_mode & 0o777 == 0o600
    assert Settings(home=home).required_token() is None


@pytest.mark.parametrize(("name", "value"), [("PORT", "0"), ("PORT", "x"), ("SLOTS", "0")])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"RUNOFF_{name}", value)
    with pytest.raises(SettingsError, match=f"RUNOFF_{name} can't be used"):
        load_settings()


@pytest.mark.slow
def test_the_server_never_imports_torch() -> None:
    code = "import app.main, app.cli, sys; sys.exit(bool({'torch', 'scipy.stats', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
