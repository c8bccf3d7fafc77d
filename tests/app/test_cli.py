"""The command line: its flags come from ``RunConfig``, its errors are one sentence."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.cli import client
from app.cli import commands as cli
from app.settings import Settings
from trainer.config import FIELDS


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Status, stdout and stderr of ``runoff ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["runoff", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(cli.app, ["--help"]).output
    for command in [
        "serve",
        "demo",
        "train",
        "runs",
        "watch",
        "compare",
        "datasets",
        "reindex",
        "token",
        "backup",
        "restore",
    ]:
        assert command in text


def test_help_of_train_names_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "250"}).output
    for name in [*FIELDS, "preset", "repeats", "name", "tag", "local", "detach"]:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "digits", "--model", "fc", "--epochs", "0"], "epochs: Must be at least 1. You typed 0.\n"),
        (["--dataset", "digits"], "model: Required, but not given.\n"),
        (["--preset", "zzz"], "preset: Unknown preset."),
        (["--dataset", "digits", "--model", "fc", "--repeats", "0"], "repeats: Must be at least 1. You typed 0.\n"),
    ],
)
def test_a_wrong_field_is_one_sentence_and_status_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    status, _out, err = run_main(monkeypatch, capsys, "train", "--local", *arguments)
    assert status == 2
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert not (home / "runs").exists() or not [*(home / "runs").iterdir()]


def test_without_a_server_the_sentence_says_how_to_start_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _out, err = run_main(monkeypatch, capsys, "runs")
    assert (status, "runoff serve" in err) == (1, True)


def test_reindex_and_token_without_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, capsys, "reindex")[:2] == (0, "0 runs indexed.\n")
    first = run_main(monkeypatch, capsys, "token")[1]
    assert run_main(monkeypatch, capsys, "token")[1] == first
    assert len(first.strip()) > 20


def test_a_wrong_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RUNOFF_PORT", "99999")
    status, _out, err = run_main(monkeypatch, capsys, "reindex")
    assert (status, err.startswith("RUNOFF_PORT can't be used")) == (1, True)


@pytest.fixture
def through(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> client.Client:
    """A client whose requests go to the server in this process."""
    found = client.Client("http://localhost")
    found.close()
    api.base_url = "http://localhost/api/v1/"
    found._http = api
    monkeypatch.setattr(client, "find_server", lambda _settings: found)
    return found


def test_train_on_the_server(
    through: client.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--detach", "--dataset", "digits", "--model", "fc,cnn", "--seed", "0..2", "--tag", "x"]
    status, out, err = run_main(monkeypatch, capsys, *arguments)
    assert (status, len(out.splitlines())) == (0, 6)
    listed = through.runs(tag="x", limit=1000)
    ids, [sweep] = [line.split()[0] for line in out.splitlines()], {run["sweep"] for run in listed["runs"]}
    compared = "&".join(f"run={run_id}" for run_id in ids)
    assert err == f"All together: http://localhost/sweeps/{sweep}\nCompared: http://localhost/compare?{compared}\n"
    assert {(run["model"], run["seed"]) for run in listed["runs"]} == {(m, s) for m in ("fc", "cnn") for s in range(3)}
    status, out, _err = run_main(monkeypatch, capsys, "runs", "seed=1", "--model", "fc")
    assert (status, "1 run" in out) == (0, True)


def test_links_of_one_run_and_of_more_than_can_be_compared(
    through: client.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["train", "--detach", "--dataset", "digits", "--model", "fc"]
    assert run_main(monkeypatch, capsys, *one)[2] == ""
    _status, out, err = run_main(monkeypatch, capsys, *one, "--seed", "0..50")
    assert len(out.splitlines()) == 51
    assert (err.count("\n"), "/sweeps/" in err, "compare" in err) == (1, True, False)


def test_the_servers_refusal_is_the_same_sentence(
    through: client.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--dataset", "digits", "--model", "fc", "--epochs", "1,0"]
    status, _out, err = run_main(monkeypatch, capsys, *arguments)
    assert (status, err) == (2, "grid.epochs[1]: Must be at least 1. You typed 0.\n")


def test_the_client_tells_errors(through: client.Client) -> None:
    with pytest.raises(client.ClientError, match="There is no run nothing") as caught:
        through.run("nothing")
    assert caught.value.status == 404
    run = through.start_run(dataset="digits", model="fc")
    assert through.run(run["id"])["status"] == "queued"
    with pytest.raises(client.ClientError) as caught:
        through.start_sweep(base={"dataset": "digits", "model": "fc"}, grid={"epochs": [0]})
    assert [item["field"] for item in caught.value.errors] == ["grid.epochs[0]"]


def test_a_dead_server_is_not_found(home: Path) -> None:
    home.mkdir(parents=True)
    assert client.find_server(Settings(home=home)) is None
    (home / "server.json").write_text('{"url": "http://127.0.0.1:1"}')
    assert client.find_server(Settings(home=home)) is None
    gone: Any = client.Client("http://127.0.0.1:1")
    with pytest.raises(client.ClientError, match="does not respond"):
        gone.run("x")
    gone.close()


def test_a_server_that_reloads_protects_its_child(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr(
        "uvicorn.run", lambda _app, **options: served.update(options, safe=os.environ["PYTHONSAFEPATH"])
    )
    monkeypatch.setattr("app.cli.serve.signal.signal", lambda *_arguments: None)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    assert run_main(monkeypatch, capsys, "serve", "--port", str(free_port()), "--reload")[0] == 0
    assert served["safe"] == "1"
    assert [Path(folder).name for folder in served["reload_dirs"]] == ["app", "trainer", "templates"]
    assert all(Path(folder).is_dir() for folder in served["reload_dirs"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("first", ["lost", "busy"])
def test_a_start_is_sent_again_with_the_same_key(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    keys: list[str] = []
    waited: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1 and first == "lost":
            raise httpx.ReadError("Connection reset by peer")
        if len(keys) == 1:
            return httpx.Response(503, headers={"retry-after": "3"}, json={"detail": "not now"})
        return httpx.Response(201, json={"id": "a"})

    monkeypatch.setattr("app.cli.client.time.sleep", waited.append)
    sender = client.Client("http://127.0.0.1:1")
    sender._http = httpx.Client(base_url=sender.url, transport=httpx.MockTransport(answer))
    assert sender.start_run(dataset="digits") == {"id": "a"}
    assert sender.start_sweep(base={}) == {"id": "a"}
    assert len(keys) == 3
    assert keys[0] == keys[1] != keys[2]
    assert waited == [1 if first == "lost" else 3]


def test_a_start_is_sent_again_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(503, headers={"retry-after": "1"}, json={"detail": "The disk is full."})

    monkeypatch.setattr("app.cli.client.time.sleep", lambda _seconds: None)
    sender = client.Client("http://127.0.0.1:1")
    sender._http = httpx.Client(base_url=sender.url, transport=httpx.MockTransport(answer))
    with pytest.raises(client.ClientError, match="The disk is full"):
        sender.start_run(dataset="digits")
    assert len(sent) == 2
