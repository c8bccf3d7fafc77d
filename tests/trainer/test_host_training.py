"""Hosts with the real runtime: a small run on the built-in digits is trained, asked, and in spawned children as well."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from trainer import measurements, wire
from trainer.config import RunConfig
from trainer.datasets import catalogue
from trainer.run_folder import RunFolder, iter_valid_events

pytestmark = pytest.mark.slow

SPAWNING = "import sys; from pathlib import Path; from trainer.host import loop as host; home = Path(sys.argv[2]); "
SPAWNING += "host.prepare_environment(home); sys.exit(host.Host(home, spawn=True).serve())"


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


def ask(home: Path, request: wire.Request) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(wire.socket_path(home, wire.code_version())))
        with connection.makefile("rwb") as file:
            file.readline()
            file.write(request.model_dump_json().encode() + b"\n")
            file.flush()
            answer: dict[str, Any] = json.loads(file.readline())
    return answer


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The home of a serving host."""
    home = tmp_path
    how = ["-m", "trainer.host"] if request.param == "fork" else ["-c", SPAWNING]
    environment = {name: value for name, value in os.environ.items() if name != "RUNOFF_DATASETS"}
    with wire.log_path(home).open("ab") as log:
        process = subprocess.Popen([sys.executable, *how, "--home", str(home)], stdout=log, stderr=log, env=environment)
    wait_for(lambda: wire.socket_path(home, wire.code_version()).exists() or process.poll() is not None)
    assert process.poll() is None, wire.log_path(home).read_text()
    yield home
    process.terminate()
    assert process.wait(10) == 0, wire.log_path(home).read_text()


def train(home: Path) -> RunFolder:
    folder = RunFolder.create(home / "runs", RunConfig(dataset="digits", model="fc", optimizer="adam"))
    answer = ask(home, wire.Start(folder=folder.path, attempt=1, num_threads=1))
    assert "pid" in answer["result"]
    assert wait_for(lambda: folder.read_exit(1))["code"] == 0
    types = [event["type"] for event, _end in iter_valid_events(folder.events_path)]
    assert types[-2:] == ["epoch", "finished"], folder.log_path.read_text()
    return folder


@pytest.mark.parametrize("home", ["fork"], indirect=True)
def test_a_net_is_asked_as_it_was_tested(home: Path) -> None:
    folder = train(home)
    tested = load_file(folder.predictions_path(1))
    images = catalogue.open_split(home, "digits", "test").images
    for index in (0, 1):
        buffer = io.BytesIO()
        Image.fromarray(images[index][0]).save(buffer, format="PNG")
        request = wire.Predict.from_bytes(folder.path, 1, buffer.getvalue())
        result = ask(home, request)["result"]
        assert result["predicted"] == tested["predicted"][index]
        np.testing.assert_allclose(np.log(result["probabilities"]), tested["log_probabilities"][index], atol=0.02)
        assert len(result["class_names"]) == 10
    for epoch, image, reason in ((1, b"no image", "not a readable image"), (2, buffer.getvalue(), "was not kept")):
        error = ask(home, wire.Predict.from_bytes(folder.path, epoch, image))["error"]
        assert (error["kind"], reason in error["message"]) == ("invalid", True), error
    damaged = bytearray(folder.checkpoint_path(1).read_bytes())
    damaged[-1] ^= 1
    folder.checkpoint_path(1).write_bytes(damaged)
    error = ask(home, request)["error"]
    assert (error["kind"], error["message"].startswith("The checkpoint of epoch 1 is damaged.")) == ("invalid", True)


@pytest.mark.parametrize("home", ["fork"], indirect=True)
def test_what_a_run_lacked_is_measured_and_the_next_obeys(home: Path) -> None:
    folder = train(home)
    environment, config = folder.read_environment() or {}, folder.read_config()
    key = measurements.precision_key(config, (1, 28, 28), environment)
    request = wire.Measure(
        section="precision",
        key=key,
        config=config.model_dump(),
        image_shape=[1, 28, 28],
        num_classes=10,
        num_threads=environment["num_threads"],
        device=environment["device"],
    )
    entry = ask(home, request)["result"]
    assert measurements.read(home) == {"precision": {key: entry}, "matmul": {}}
    assert (train(home).read_environment() or {})["precision"] == entry["chosen"]
    error = ask(home, request.model_copy(update={"key": "another machine"}))["error"]
    assert error["kind"] == "invalid"
    measurements.path(home).unlink()
    assert "result" in ask(home, request)
    assert key in measurements.read(home)["precision"]  # measured again, not answered from memory


@pytest.mark.parametrize("home", ["spawn"], indirect=True)
def test_where_fork_is_not_safe_children_are_spawned(home: Path) -> None:
    train(home)
    assert ask(home, wire.Devices())["result"][0]["name"] == "cpu"
