"""What the host answers from memory, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer import wire
from trainer.host import answers
from trainer.host.answers import Answers

ANSWER: dict[str, Any] = {"result": [1]}


def describe(**config: Any) -> wire.Describe:
    return wire.Describe(config={"model": "cnn", **config}, image_shape=[1, 28, 28], num_classes=10)


def test_nets_are_described_once() -> None:
    memory = Answers()
    memory.keep(describe(epochs=1), ANSWER)
    assert memory.find(describe(epochs=9)) == ANSWER
    assert memory.find(describe(width=3)) is None


def test_devices_are_asked_again_as_their_memory_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Answers()
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    memory.keep(wire.Devices(), ANSWER)
    assert memory.find(wire.Devices(id=5)) == ANSWER
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + answers.SECONDS_KEPT[wire.Devices])
    assert memory.find(wire.Devices()) is None


def test_errors_and_measurements_are_not_kept() -> None:
    memory = Answers()
    memory.keep(describe(), {"error": {}})
    request = wire.Predict.from_bytes(Path("/run"), 1, b"image")
    memory.keep(request, ANSWER)
    assert memory.find(describe()) is None
    assert memory.find(request) is None


def test_the_longest_unused_answer_goes_first() -> None:
    memory = Answers()
    for width in range(answers.MAX_ANSWERS):
        memory.keep(describe(width=width), ANSWER)
    assert memory.find(describe(width=0)) == ANSWER
    memory.keep(describe(width=1000), ANSWER)
    assert memory.find(describe(width=0)) == ANSWER
    assert memory.find(describe(width=1)) is None
