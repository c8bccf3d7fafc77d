"""Which responses the host caches, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer import wire
from trainer.host import response_cache
from trainer.host.response_cache import ResponseCache

RESPONSE: dict[str, Any] = {"result": [1]}


def describe(**config: Any) -> wire.Describe:
    return wire.Describe(config={"model": "cnn", **config}, image_shape=[1, 28, 28], num_classes=10)


def test_nets_are_described_once() -> None:
    cache = ResponseCache()
    cache.keep(describe(epochs=1), RESPONSE)
    assert cache.find(describe(epochs=9)) == RESPONSE
    assert cache.find(describe(width=3)) is None


def test_devices_are_asked_again_as_their_memory_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResponseCache()
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    cache.keep(wire.Devices(), RESPONSE)
    assert cache.find(wire.Devices(id=5)) == RESPONSE
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + response_cache.SECONDS_KEPT[wire.Devices])
    assert cache.find(wire.Devices()) is None


def test_errors_and_measurements_are_not_kept() -> None:
    cache = ResponseCache()
    cache.keep(describe(), {"error": {}})
    request = wire.Predict.from_bytes(Path("/run"), 1, b"image")
    cache.keep(request, RESPONSE)
    assert cache.find(describe()) is None
    assert cache.find(request) is None


def test_the_least_recently_used_response_goes_first() -> None:
    cache = ResponseCache()
    for width in range(response_cache.MAX_RESPONSES):
        cache.keep(describe(width=width), RESPONSE)
    assert cache.find(describe(width=0)) == RESPONSE
    cache.keep(describe(width=1000), RESPONSE)
    assert cache.find(describe(width=0)) == RESPONSE
    assert cache.find(describe(width=1)) is None
