"""Real nets on the real MNIST through the real server: every number of a comparison, counted anew by ``tests/recompute.py``,
a program that imports nothing of ours, from what the API answers and from the files.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.cli.client import Client
from app.runs.executors.local import LocalExecutor

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "recompute.py"
COUNTS = (
    "num_images",
    "both_correct",
    "only_a_correct",
    "only_b_correct",
    "both_wrong",
    "a_correct",
    "b_correct",
    "same_wrong_answer",
)
SECONDS = 300  # for three runs of one epoch and a start, on a machine that does other work


@dataclass
class Trained:
    """A server with finished runs of one epoch and seed 0: ``fc``, ``cnn``, and ``fc`` once more."""

    home: Path
    url: str
    client: Client
    fc: str
    cnn: str
    again: str

    def compare(self, a: str, b: str) -> dict[str, Any]:
        """The only pair of ``GET /compare``, over HTTP."""
        [pair] = self.client.compare([a, b])["pairs"]
        return dict(pair)

    def recomputed(self, a: str, b: str) -> dict[str, Any]:
        """The same pair by the program, from the API's answers and from the files."""
        folders = [str(self.home / "runs" / run) for run in (a, b)]
        command = [sys.executable, "-I", str(PROGRAM), self.url, a, b, *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def mnist() -> Path:
    """The torchvision root that has MNIST; skips where the files are not on this machine."""
    root = Path(os.environ.get("RUNOFF_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets").resolve()
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs MNIST below {root}: set RUNOFF_DATASETS to a torchvision root")
    return root


@pytest.fixture(scope="module")
def trained(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    home = tmp_path_factory.mktemp("recomputed") / "home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "RUNOFF_HOME": str(home),
        "RUNOFF_PORT": str(port),
        "RUNOFF_DATASETS": str(mnist),
        "RUNOFF_MEASURE": "false",
    }
    server = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment)
    client = Client(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + SECONDS
        while not client.is_up():
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        base = {"dataset": "mnist", "epochs": 1, "seed": 0, "train_fraction": 0.2}
        ids = [str(client.start_run(model=model, **base)["id"]) for model in ("fc", "cnn", "fc")]
        for run in ids:
            while (status := client.run(run)["status"]) in ("queued", "running"):
                assert time.monotonic() < deadline, f"{run} is still {status}"
                time.sleep(0.1)
            assert status == "finished", client.run(run)["error"]
        yield Trained(home, f"http://127.0.0.1:{port}", client, *ids)
    finally:
        client.close()
        server.terminate()
        server.wait()
        with contextlib.suppress(OSError):
            LocalExecutor(home).end_host()


def assert_recomputed(pair: dict[str, Any], found: dict[str, Any]) -> None:
    """Counts and difference are equal, digit by digit. The other numbers come from other arithmetic.

    The program has whole numbers and 60 digits where the server has float64: limits then differ by less than 1e-15 of an
    accuracy, and p by less than 1e-11 of itself (scipy's incomplete beta function; 2e-12 was seen).
    """
    assert {name: pair[name] for name in COUNTS} == {name: found[name] for name in COUNTS}
    assert pair["difference"] == found["difference"]
    assert pair["interval"] == pytest.approx(found["interval"], rel=0, abs=1e-15)
    assert pair["p_value"] == pytest.approx(found["p_value"], rel=1e-11, abs=0)
    assert pair["p_value_adjusted"] == pair["p_value"]  # one pair is a family of one


def test_the_program_imports_nothing_of_ours() -> None:
    imported = set()
    for node in ast.walk(ast.parse(PROGRAM.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_fc_against_cnn_from_the_answers_and_from_the_files(trained: Trained) -> None:
    found = trained.recomputed(trained.fc, trained.cnn)
    pair = trained.compare(trained.fc, trained.cnn)
    assert_recomputed(pair, found["answers"])
    assert found["files"] == found["answers"]
    assert pair["num_images"] == 10_000
    assert sum(pair[name] for name in COUNTS[1:5]) == 10_000
    assert pair["only_a_correct"] != pair["only_b_correct"]
    assert trained.client.run(trained.fc)["test_accuracy"] == pair["a_correct"] / 10_000


def test_the_other_way_round_the_signs_change(trained: Trained) -> None:
    pair = trained.compare(trained.cnn, trained.fc)
    assert_recomputed(pair, trained.recomputed(trained.cnn, trained.fc)["answers"])
    other = trained.compare(trained.fc, trained.cnn)
    assert (pair["difference"], pair["p_value"]) == (-other["difference"], other["p_value"])
    assert pair["interval"] == [-side for side in reversed(other["interval"])]
    assert {pair["verdict"], other["verdict"]} in ({"a_better", "b_better"}, {"inconclusive"}, {"negligible"})


def test_the_same_config_with_the_same_seed_gives_identical_answers(trained: Trained) -> None:
    pair = trained.compare(trained.fc, trained.again)
    found = trained.recomputed(trained.fc, trained.again)
    assert_recomputed(pair, found["answers"])
    assert found["files"] == found["answers"]
    assert found["answers"]["identical"]
    assert (pair["difference"], pair["p_value"], pair["p_value_adjusted"]) == (0, 1, 1)
    assert (pair["only_a_correct"], pair["only_b_correct"], pair["agreement"]) == (0, 0, 1)
    assert (pair["verdict"], pair["heading"]) == ("negligible", "Identical predictions.")
