"""``runoff demo``: the product's main job from beginning to end, on real data, through the REST API."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.cli.client import Client, ClientError, find_server
from app.cli.terminal import console, runs_table, watch_runs
from app.runs.executors.local import LocalExecutor
from app.settings import Settings
from trainer.config import config_hash, parse_config
from trainer.i18n import _
from trainer.interpreter import python_command

DOWNLOAD_SECONDS = 10.0
_START_SECONDS = 60.0
_PORTS_TO_TRY = 100
_POLL_SECONDS = 0.2

# digits has 1,437 training images against MNIST's 60,000, so it takes more passes and larger steps to learn anything.
_RECIPES: dict[str, dict[str, Any]] = {
    "mnist": {"epochs": 1},
    "digits": {"epochs": 20, "batch_size": 16, "learning_rate": 0.02},
}
_RUNS: list[dict[str, Any]] = [
    {"name": "FC", "model": "fc"},
    {"name": "CNN", "model": "cnn"},
    {"name": "CNN permuted", "model": "cnn", "permute_pixels": True},
]


def run_demo(settings: Settings, *, leave: bool, again: bool) -> None:
    """Serve, train and compare; then serve until Ctrl-C, or with ``leave`` exit and leave no process behind."""
    with _serving(settings, leave) as (client, is_ours):
        dataset = _choose_dataset(client)
        ids = [_start(client, dataset, choice, again) for choice in _RUNS]
        finished = watch_runs(client, ids)
        console.print(runs_table(finished, _("The same budget of parameters, three results")))
        console.print(_("\nWhich is better, and is it real?"))
        console.print(f"{client.url}/compare?" + "&".join(f"run={run_id}" for run_id in ids), soft_wrap=True)
        if not all(run["status"] == "finished" for run in finished):
            raise ClientError(_("Not every run finished; the table above says why."))
        if is_ours and not leave:
            console.print(_("The server runs until you press Ctrl-C."))
            signal.pause()


@contextmanager
def _serving(settings: Settings, leave: bool) -> Iterator[tuple[Client, bool]]:
    """A client of the server on this home: one that is already running, or a new one that ends with this process."""
    running = find_server(settings)
    if running is not None:
        console.print(_("Using the server at {url}.").format(url=running.url))
        yield running, False
        return
    port = _free_port(settings.host, settings.port)
    environment = os.environ | {"RUNOFF_HOME": str(settings.home), "RUNOFF_PORT": str(port)}
    server = subprocess.Popen(python_command("app.cli", "serve"), env=environment)
    try:
        yield _wait_for(settings, server), True
    except KeyboardInterrupt:
        console.print()
    finally:
        server.terminate()
        server.wait()
        if leave:
            LocalExecutor(settings.home).end_host()


def _free_port(host: str, first: int) -> int:
    """The first free port from ``first`` upwards."""
    for port in range(first, min(first + _PORTS_TO_TRY, 65_536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue
    raise ClientError(_("No port from {first} upwards is free. Set RUNOFF_PORT to a free port.").format(first=first))


def _wait_for(settings: Settings, server: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        client = find_server(settings)
        if client is not None:
            return client
        time.sleep(0.05)
    raise ClientError(_("The server did not start; its last lines are above."))


def _choose_dataset(client: Client) -> str:
    """The data set of the demo: MNIST if it is available or can be downloaded quickly, else the built-in digits."""
    mnist = client.call("GET", "/datasets/mnist")
    if mnist["status"] != "absent":
        return "mnist"
    console.print(_("MNIST has not been downloaded yet; trying to download it (11 MB)."))
    client.call("POST", "/datasets/mnist/download")
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    while time.monotonic() < deadline:
        mnist = client.call("GET", "/datasets/mnist")
        if mnist["status"] == "ready":
            return "mnist"
        if mnist["work"] is None or mnist["work"]["error"]:
            break
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(ClientError):  # it may be complete at this very moment
        client.call("DELETE", "/datasets/mnist")
    if client.call("GET", "/datasets/mnist")["status"] == "ready":
        return "mnist"
    console.print(
        _(
            "MNIST could not be downloaded, so the demo uses digits: 1,797 real handwritten digits that come with Runoff."
        )
    )
    return "digits"


def _start(client: Client, dataset: str, choice: dict[str, Any], again: bool) -> str:
    """The id of a run with these values: a finished one with the same config if there is one, else a new one."""
    fields = {"dataset": dataset, **_RECIPES[dataset], **{k: v for k, v in choice.items() if k != "name"}}
    if not again:
        wanted = config_hash(parse_config(fields)[0])
        for run in client.runs(status="finished", tag="demo", limit=1000)["runs"]:
            if run["config_hash"] == wanted:
                return str(run["id"])
    return str(client.start_run(name=choice["name"], tags=["demo"], **fields)["id"])
