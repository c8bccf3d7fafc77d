"""Starting runs only once: a request that is repeated with its ``Idempotency-Key`` gets the first response again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Header, Response
from fastapi.responses import JSONResponse

from app.errors import Conflict, Unavailable
from app.runs import commands, idempotency, starting
from app.runs.commands import Started
from app.runs.idempotency import KeyedRequest, Record
from app.runs.plan import Plan
from app.schemas import RunOut, SweepOut
from app.state import Runoff
from app.store.database import reading
from app.store.queries import run_out
from app.store.tables import Run
from trainer.i18n import _

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=idempotency.FIELD,
        description="Makes it safe to send the request again: within 24 hours the same key and body get the first "
        "response, and nothing is started twice. The same key with another body is refused with 422.",
    ),
]


def start_once(state: Runoff, response: Response, key: str | None, asked: Any, plan: Callable[[], Plan]) -> Any:
    """Start the runs of a plan, or return the first response to the same request with the same key.

    ``asked`` is the request as a JSON value. Raises ``Refused``, ``Conflict`` and ``Unavailable``.
    """
    if key is None:
        started = commands.start(state, plan())
        response.headers["location"] = _location(started.sweep, started.runs[0].id)
        return _answer(started)
    home = state.settings.home
    keyed = KeyedRequest.of(key, asked)
    with idempotency.answering(keyed):
        found = idempotency.find(home, keyed)
        if found is not None and found.answer is not None:
            return _sent(found.answer, found.sweep, found.runs[0])
        if found is None and starting.is_noted(home, keyed):
            raise _being_read()
        started = _started_before(state, found) if found else commands.start(state, plan(), keyed=keyed)
        ids = [run.id for run in started.runs]
        answer = _answer(started).model_dump(mode="json")
        with suppress(OSError):  # on a full disk; a repeated request then gets an answer made from the runs
            idempotency.record(home, keyed, ids, started.sweep, answer)
    return _sent(answer, started.sweep, ids[0])


def _started_before(state: Runoff, found: Record) -> Started:
    """What a request started before the server ended without a response. Raises ``Unavailable`` and ``Conflict``."""
    with reading(state.engine) as session:
        runs = [run for run_id in found.runs if (run := session.get(Run, run_id)) is not None]
    missing = set(found.runs) - {run.id for run in runs}
    if any(state.run_folder(run_id).path.is_dir() for run_id in missing):
        raise _being_read()
    if missing:
        raise Conflict(_("The runs of this request were started and then deleted. Use a new key."))
    return Started(runs, found.sweep, list(dict.fromkeys(warning for run in runs for warning in run.warnings)))


def _being_read() -> Unavailable:
    return Unavailable(_("The runs of this request were started and are being read. Try again in a few seconds."))


def _answer(started: Started) -> RunOut | SweepOut:
    if started.sweep is None:
        return run_out(started.runs[0])
    return SweepOut(id=started.sweep, runs=[run_out(run) for run in started.runs], warnings=started.warnings)


def _location(sweep: str | None, run_id: str) -> str:
    return f"/api/v1/sweeps/{sweep}" if sweep else f"/api/v1/runs/{run_id}"


def _sent(answer: Any, sweep: str | None, run_id: str) -> Response:
    return JSONResponse(answer, 201, {"location": _location(sweep, run_id)})
