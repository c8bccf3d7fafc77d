"""A cache of responses to requests that the host has had before."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any

from trainer import wire

MAX_ANSWERS = 256
SECONDS_KEPT: dict[type, float] = {  # other types of requests are never cached
    wire.Describe: float("inf"),
    wire.Devices: 10.0,  # they have the memory that is free just now
}


def key_of(request: wire.Request) -> str:
    """A key that is equal for requests with equal responses: only model and width of a configuration affect the net."""
    if isinstance(request, wire.Describe):
        fields = {name: request.config.get(name) for name in ("model", "width")}
        return json.dumps([fields, request.image_shape, request.num_classes])
    return request.model_dump_json(exclude={"id"})


class Answers:
    """The most recently used responses."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    def find(self, request: wire.Request) -> dict[str, Any] | None:
        """The cached response to an equal request; None if there is none or it is out of date."""
        known = self._answers.get(key_of(request))
        if known is None or time.monotonic() >= known[0]:
            return None
        self._answers.move_to_end(key_of(request))
        return known[1]

    def keep(self, request: wire.Request, answer: dict[str, Any]) -> None:
        """Cache a response if its type is worth it; errors are not cached."""
        seconds = SECONDS_KEPT.get(type(request))
        if seconds is None or "result" not in answer:
            return
        self._answers[key_of(request)] = (time.monotonic() + seconds, answer)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
