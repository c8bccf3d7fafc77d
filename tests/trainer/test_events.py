"""Events as JSON objects."""

from __future__ import annotations

import json
import typing

from tests.app.run_folders import CANCELLED, FAILED, PROGRESS, epoch, started, steps
from trainer import events
from trainer.events import Finished, payload


def test_every_event_is_json_with_its_type_first() -> None:
    for event in (started(), PROGRESS, steps(1), epoch(1), Finished(3, True), FAILED, CANCELLED):
        assert next(iter(payload(event))) == "type"
        assert json.loads(json.dumps(payload(event), allow_nan=False)) == payload(event)


def test_what_lives_in_memory_is_left_out() -> None:
    assert not {"state", "predictions"} & set(payload(epoch(1, state=object(), predictions=object())))


def test_types_are_told_apart() -> None:
    types = [kind.type for kind in typing.get_args(events.Event)]
    assert len(types) == len(set(types))
    assert set(types) > events.TERMINAL
