"""Runs: start, list, change, cancel, resume, delete, and what each has to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.errors import NotFound
from app.routes.api.starting import IdempotencyKey, start_once
from app.runs import commands
from app.runs.plan import plan_run
from app.schemas import AccuracyCost, EpochList, FileList, RunChange, RunLabels, RunList, RunOut, StepList
from app.store import predictions, queries
from app.store.database import reading
from app.store.epochs import epochs_csv, epochs_of, epochs_with_sums, to_accuracy
from app.store.files import file_path, files_of, steps_of
from app.store.predictions import PredictionPage, PredictionQuery
from app.store.queries import RunFilter, run_out
from app.store.tables import ACTIVE, Run
from app.web.deps import Reading, State
from trainer.config import RunConfig
from trainer.i18n import _
from trainer.run_folder import Chunk, EventLogChanged, read_events

router = APIRouter(prefix="/runs", tags=["runs"])
Limit = Annotated[int, Query(ge=1, le=1000, description="maximum number of items")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="number of items to skip")]
_POLL_SECONDS = 0.25


_create_schema = {
    "type": "object",
    "properties": {
        "preset": {"type": "string", "description": "a preset; fields given here take precedence"},
        **RunConfig.model_json_schema()["properties"],
        **RunLabels.model_json_schema()["properties"],
    },
}


@router.post(
    "",
    status_code=201,
    response_model=RunOut,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _create_schema}}}},
)
def start_run(
    state: State, response: Response, body: Annotated[dict[str, Any], Body()], idempotency_key: IdempotencyKey = None
) -> Any:
    """Start a run. With the header Idempotency-Key it can be repeated safely."""
    home = state.settings.home
    return start_once(state, response, idempotency_key, ["runs", body], lambda: plan_run(home, body))


@router.get("")
def list_runs(
    session: Reading,
    status: str | None = None,
    dataset: str | None = None,
    model: str | None = None,
    tag: str | None = None,
    group: str | None = None,
    sweep: str | None = None,
    q: Annotated[str | None, Query(description="words, or an expression: model=vgg and test_accuracy > 97%")] = None,
    archived: Annotated[bool | None, Query(description="omit for both")] = None,
    sort: Annotated[str, Query(description="a field; a leading minus reverses the order")] = "-created_at",
    limit: Limit = 100,
    offset: Offset = 0,
) -> RunList:
    """List runs."""
    wanted = RunFilter(status, dataset, model, tag, group, sweep, q, archived, sort, limit, offset)
    runs, total = queries.find_runs(session, wanted)
    return RunList(runs=[run_out(run) for run in runs], total=total)


@router.get("/{run_id}")
def get_run(session: Reading, run_id: str) -> RunOut:
    """One run."""
    return run_out(queries.get_run(session, run_id))


@router.patch("/{run_id}")
def change_run(state: State, run_id: str, wanted: RunChange) -> RunOut:
    """Change name, tags, notes or archived."""
    return run_out(commands.change(state, run_id, wanted))


@router.delete("/{run_id}", status_code=204)
def delete_run(state: State, run_id: str) -> None:
    """Move a run to the trash, where it is kept for 30 days; a running one must be cancelled first."""
    commands.delete(state, run_id)


@router.post("/{run_id}/restore")
def restore_run(state: State, run_id: str) -> RunOut:
    """Undelete a run: move its folder back from the trash."""
    return run_out(commands.restore(state, run_id))


@router.post("/{run_id}/cancel", status_code=202)
def cancel_run(state: State, run_id: str) -> RunOut:
    """Cancel a queued run, or ask a running one to stop at its next step."""
    return run_out(commands.cancel(state, run_id))


@router.post("/{run_id}/stop", status_code=202)
def stop_run(state: State, run_id: str) -> RunOut:
    """End a running run by force, for one that hangs; it keeps its last completed epoch and becomes cancelled."""
    return run_out(commands.stop_now(state, run_id))


@router.post("/{run_id}/resume", status_code=202)
def resume_run(state: State, run_id: str) -> RunOut:
    """Queue a failed or cancelled run again, from its last checkpoint."""
    return run_out(commands.resume(state, run_id))


@router.get("/{run_id}/epochs")
def list_epochs(session: Reading, run_id: str) -> EpochList:
    """The numbers of every epoch."""
    return EpochList(epochs=epochs_with_sums(session, queries.get_run(session, run_id)))


@router.get("/{run_id}/to_accuracy")
def cost_of_accuracy(
    session: Reading, run_id: str, accuracy: Annotated[float, Query(gt=0, le=1, description="a fraction: 0.9 is 90 %")]
) -> AccuracyCost:
    """Training seconds, images and FLOPs up to the first epoch with at least that test accuracy; null if none has it."""
    return to_accuracy(epochs_with_sums(session, queries.get_run(session, run_id)), accuracy)


@router.get("/{run_id}/steps")
def list_steps(
    state: State, session: Reading, run_id: str, max_points: Annotated[int, Query(ge=2, le=100_000)] = 1000
) -> StepList:
    """Losses of steps 1, 101, 201 ..., thinned with the extremes kept."""
    queries.get_run(session, run_id)
    return steps_of(state.run_folder(run_id), max_points)


@router.get("/{run_id}/predictions")
def list_predictions(
    state: State,
    session: Reading,
    run_id: str,
    epoch: Annotated[int | None, Query(ge=1, description="default: the latest")] = None,
    correct: bool | None = None,
    label: Annotated[int | None, Query(ge=0, le=65_535)] = None,
    predicted: Annotated[int | None, Query(ge=0, le=65_535)] = None,
    min_confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    sort: Literal["index", "confidence", "-confidence", "worst"] = "index",
    limit: Limit = 100,
    offset: Offset = 0,
) -> PredictionPage:
    """The run's predictions for the test images."""
    run = queries.get_run(session, run_id)
    wanted = PredictionQuery(correct, label, predicted, min_confidence, sort, limit, offset)
    stored = queries.predictions_of(state.settings.runs, run, epoch)
    defect = queries.defect_of_predictions(session, run, epoch, stored)
    return predictions.query(stored, wanted).model_copy(update={"defect": defect})


def _existing(state: State, run_id: str) -> str:
    """The id of a run that exists. Raises ``NotFound`` before the stream begins; holds no session while it runs."""
    with reading(state.engine) as session:
        return queries.get_run(session, run_id).id


@router.get("/{run_id}/events", response_class=EventSourceResponse)
async def follow_events(
    state: State, run_id: Annotated[str, Depends(_existing)], last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """The run's events as they happen; ends after its last one. ``Last-Event-ID`` resumes after that event."""
    given = last_event_id or ""
    seen = int(given[:18]) if given.isascii() and given.isdigit() else 0
    offset = seq = 0
    while not state.ending.is_set():  # asyncio sleeps without a thread, so many clients can listen
        is_active, chunk = await run_in_threadpool(_poll_events, state, run_id, offset, seq)
        for event in chunk.events:
            seq = event["seq"]
            if seq > seen:
                yield ServerSentEvent(data=event, event=event["type"], id=str(seq))
        offset = chunk.offset
        if not is_active and not chunk.events:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _poll_events(state: State, run_id: str, offset: int, seq: int) -> tuple[bool, Chunk]:
    """Whether more events may come, and the events after ``offset``; none if the log was replaced in the meantime."""
    with reading(state.engine) as session:
        run = session.get(Run, run_id)
    try:
        chunk = read_events(state.run_folder(run_id).events_path, offset, seq)
    except EventLogChanged:
        return False, Chunk([], offset)
    return run is not None and run.status in ACTIVE, chunk


@router.get("/{run_id}/files")
def list_files(state: State, session: Reading, run_id: str) -> FileList:
    """The files of a run that can be downloaded."""
    run = queries.get_run(session, run_id)
    return FileList(files=files_of(session, state.run_folder(run_id), run))


@router.get("/{run_id}/files/{name}", response_class=FileResponse)
def get_file(state: State, session: Reading, run_id: str, name: str) -> Response:
    """Download one of the files."""
    run = queries.get_run(session, run_id)
    if name == "epochs.csv":
        return Response(epochs_csv(epochs_of(session, run_id)), media_type="text/csv")
    path = file_path(state.run_folder(run_id), name, run)
    if path is None or not path.is_file():
        raise NotFound(
            _("The run has no file {name}. Available: {names}.").format(
                name=name[:60], names=", ".join(file.name for file in list_files(state, session, run_id).files)
            )
        )
    return FileResponse(path, filename=f"{run_id}-{name}")
