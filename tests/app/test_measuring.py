"""Measuring when idle: what is asked for, when, and what becomes of the answers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.runs import measuring
from app.runs.executors import ExecutorUnavailable, Interrupted, Refused
from app.runs.indexer import Indexer
from app.runs.measuring import Measuring
from app.runs.scheduler import Scheduler
from app.store.database import writing
from app.store.tables import Run
from tests.app.run_folders import finish, new_run
from tests.app.test_scheduler import FakeExecutor
from trainer import measurements
from trainer.run_folder import RunFolder
from trainer.wire import Measure

ENVIRONMENT = {
    "machine": "x86_64, Some CPU, 2 cores",
    "torch": "2.10.0",
    "device": "cpu",
    "device_name": "Some CPU",
    "precision": "float32",
    "num_threads": 1,
}


class Recorder(FakeExecutor):
    """Records what is asked for as if it had been measured, or raises."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.asked: list[Measure] = []
        self.problem: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def measure(self, request: Measure) -> dict[str, Any]:
        self.asked.append(request)
        assert self.may_answer.wait(30)
        if self.problem:
            raise self.problem
        value = {"gflops": 1.0, "chosen": "float32", "images_per_second": {"float32": 1.0}}
        return measurements.record(self.home, request.section, request.key, value)


@pytest.fixture
def executor(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.fixture
def trained(engine: Engine, tmp_path: Path) -> Callable[..., RunFolder]:
    """A finished run in the index, begun in an environment."""

    def train(environment: dict[str, Any] | None = None, **fields: Any) -> RunFolder:
        folder = new_run(tmp_path / "runs", **fields)
        folder.write_environment({**ENVIRONMENT, **(environment or {})})
        finish(folder)
        Indexer(engine, tmp_path / "runs").tick()
        return folder

    return train


def turn(one: Measuring) -> None:
    """A tick, and the end of what it began."""
    one.tick(busy=False)
    if one._thread:
        one._thread.join(30)


def ask_all(one: Measuring, executor: Recorder) -> list[tuple[str, str]]:
    """What is asked for until nothing is missing."""
    for _turn in range(20):
        turn(one)
    return [(request.section, request.key.split("cores | ")[1]) for request in executor.asked]


def test_an_auto_run_wants_its_precision_and_the_matrix_product(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained(model="cnn", batch_size=32)
    assert ask_all(Measuring(engine, tmp_path, executor, 0), executor) == [
        ("precision", "torch 2.10.0 | kernels 2 | cnn-6 | 1x28x28 | batch 32 | cpu"),
        ("matmul", "torch 2.10.0 | cpu | float32 | 1 threads"),
    ]
    first, second = executor.asked
    assert (first.config["precision"], second.config["precision"]) == ("auto", "float32")
    assert (first.image_shape, first.num_classes, first.num_threads, first.device) == ([1, 28, 28], 3, 1, "cpu")


def test_the_newest_runs_come_first_and_nothing_twice(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained(model="fc")
    trained(model="fc", seed=1)
    newest = trained(model="cnn", precision="bfloat16", environment={"precision": "bfloat16"})
    with writing(engine) as session:
        run = session.get(Run, newest.id)
        assert run is not None
        run.finished_at = "2999-01-01T00:00:00.000Z"
        session.commit()
    asked = ask_all(Measuring(engine, tmp_path, executor, 0), executor)
    assert [(section, key.split(" | ")[1:]) for section, key in asked] == [
        ("matmul", ["cpu", "bfloat16", "1 threads"]),
        ("precision", ["kernels 2", "fc-8", "1x28x28", "batch 64", "cpu"]),
        ("matmul", ["cpu", "float32", "1 threads"]),
    ]


def test_what_is_known_is_not_asked(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained()
    ask_all(Measuring(engine, tmp_path, executor, 0), executor)
    executor.asked.clear()
    assert ask_all(Measuring(engine, tmp_path, executor, 0), executor) == []
    measurements.path(tmp_path).unlink()
    assert len(ask_all(Measuring(engine, tmp_path, executor, 0), executor)) == 2


def test_a_failure_is_said_once_and_not_tried_again(
    engine: Engine,
    tmp_path: Path,
    executor: Recorder,
    trained: Callable[..., RunFolder],
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained()
    for executor.problem in (Refused("not here"), ExecutorUnavailable("killed"), KeyError("a defect")):
        executor.asked.clear()
        caplog.clear()
        one = Measuring(engine, tmp_path, executor, 0)
        assert len(ask_all(one, executor)) == 2
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
        one.tick(busy=True)
        assert len(ask_all(one, executor)) == 2


def test_what_a_run_interrupted_is_asked_again_later(
    engine: Engine,
    tmp_path: Path,
    executor: Recorder,
    trained: Callable[..., RunFolder],
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained()
    one = Measuring(engine, tmp_path, executor, 0)
    executor.problem = Interrupted("a run")
    turn(one)
    assert len(executor.asked) == 1
    assert one._idle_since is None
    executor.problem = None
    assert len(ask_all(one, executor)) == 3
    assert not caplog.records


def test_it_waits_until_the_machine_is_idle_for_long(
    engine: Engine,
    tmp_path: Path,
    executor: Recorder,
    trained: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained()
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    one = Measuring(engine, tmp_path, executor)
    turn(one)
    clock[0] += 20
    one.tick(busy=True)
    turn(one)
    clock[0] += measuring.IDLE_SECONDS - 1
    turn(one)
    assert not executor.asked
    clock[0] += 1
    executor.is_ready = False
    turn(one)
    assert not executor.asked
    executor.is_ready = True
    turn(one)
    assert len(executor.asked) == 1


def test_a_tick_never_waits_and_one_thing_is_measured_at_a_time(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained()
    executor.may_answer.clear()
    one = Measuring(engine, tmp_path, executor, 0)
    begin = time.monotonic()
    for _turn in range(5):
        one.tick(busy=False)
    assert time.monotonic() - begin < 5
    assert len(executor.asked) == 1
    executor.may_answer.set()
    assert len(ask_all(one, executor)) == 2


@pytest.mark.parametrize("environment", [None, {}, {"device": "cpu"}, {**ENVIRONMENT, "num_threads": "many"}])
def test_a_damaged_environment_is_passed_over(
    engine: Engine,
    tmp_path: Path,
    executor: Recorder,
    trained: Callable[..., RunFolder],
    environment: dict[str, Any] | None,
) -> None:
    path = trained().path / "environment.json"
    path.write_text("{" if environment is None else json.dumps(environment))
    assert ask_all(Measuring(engine, tmp_path, executor, 0), executor) == []


def test_a_removed_data_set_is_passed_over(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained(dataset="gone")
    assert ask_all(Measuring(engine, tmp_path, executor, 0), executor) == []


def test_the_scheduler_measures_when_nothing_is_to_train(
    engine: Engine,
    tmp_path: Path,
    executor: Recorder,
    trained: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RunFolder, "is_alive", lambda folder: folder.id in executor.alive)
    trained()
    running = new_run(tmp_path / "runs", seed=7)
    one = Measuring(engine, tmp_path, executor, 0)
    scheduler = Scheduler(engine, tmp_path / "runs", Indexer(engine, tmp_path / "runs"), executor, measuring=one)
    scheduler.tick()
    scheduler.tick()
    assert (len(executor.started), executor.asked) == (1, [])
    finish(running)
    executor.alive.clear()
    scheduler.tick()
    scheduler.tick()
    assert executor.asked


def test_without_it_nothing_is_measured(
    engine: Engine, tmp_path: Path, executor: Recorder, trained: Callable[..., RunFolder]
) -> None:
    trained()
    scheduler = Scheduler(engine, tmp_path / "runs", Indexer(engine, tmp_path / "runs"), executor)
    for _turn in range(3):
        scheduler.tick()
    assert not executor.asked
