"""A cache of responses to earlier requests."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any

from trainer import wire

MAX_RESPONSES = 256
SECONDS_KEPT: dict[type, float] = {  # responses to other requests are not cached
    wire.Describe: float("inf"),
    wire.Devices: 10.0,  # the response includes the free memory, which changes
}


def key_of(request: wire.Request) -> str:
    """A cache key: equal for requests that have the same response.

    Of a configuration, only the model and its width affect the layers.
    """
    if isinstance(request, wire.Describe):
        fields = {name: request.config.get(name) for name in ("model", "width")}
        return json.dumps([fields, request.image_shape, request.num_classes])
    return request.model_dump_json(exclude={"id"})


class ResponseCache:
    """The ``MAX_RESPONSES`` most recently used responses."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    def find(self, request: wire.Request) -> dict[str, Any] | None:
        """The cached response to an equal request, or None if there is none or it has expired."""
        known = self._responses.get(key_of(request))
        if known is None or time.monotonic() >= known[0]:
            return None
        self._responses.move_to_end(key_of(request))
        return known[1]

    def keep(self, request: wire.Request, response: dict[str, Any]) -> None:
        """Cache a response if its request is of a type in ``SECONDS_KEPT``. Errors are not cached."""
        seconds = SECONDS_KEPT.get(type(request))
        if seconds is None or "result" not in response:
            return
        self._responses[key_of(request)] = (time.monotonic() + seconds, response)
        while len(self._responses) > MAX_RESPONSES:
            self._responses.popitem(last=False)
