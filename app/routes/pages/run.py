"""The page of a run: its accuracy, its progress, its cost and its predictions. Also the JSON of its charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import ValidationError
from sqlmodel import Session, select

from app.compare import curves, walls
from app.compare.confusion_matrix import Matrix, matrix_of
from app.compare.walls import Wall
from app.draw.figures import RunCurve, accuracy_figure, plotly_json, step_figure
from app.errors import Refused
from app.routes.pages.run_view import TILES, Answers, RunPage, RunQuery, Speed, Stat, ToAccuracy, TrainImages
from app.runs import commands
from app.runs.queue import place_in_queue
from app.schemas import EpochOut, RunChange, RunOut
from app.state import Runoff
from app.store import epochs as cost
from app.store import predictions, queries
from app.store.files import files_of, log_tail, steps_of
from app.store.images import images_of
from app.store.predictions import PredictionQuery, Predictions, PredictionsError
from app.store.tables import ACTIVE, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from app.words import between, number, percent, remaining, seconds, seconds_since, short_percent, value_words
from trainer import measurements
from trainer.config import MODELS, FieldProblem, RunConfig, problems_of
from trainer.datasets import catalogue
from trainer.i18n import _
from trainer.precision import explain_precision
from trainer.run_folder import RunFolder, read_json

router = APIRouter()
MOST_EPOCHS_IN_TABLE = 50
_LOG_BYTES = 16_000
_VERSIONS = (("torch", "PyTorch"), ("python", "Python"))


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}")
def show(
    request: Request, state: State, session: Reading, run_id: str, query: Annotated[RunQuery, Query()]
) -> Response:
    """The page of a run. It updates itself while the run is queued or running."""
    run = queries.get_run(session, run_id)
    place = place_in_queue(session, run)
    counts = queries.status_counts(session)
    measured = measurements.path(state.settings.home)
    measured_at = measured.stat().st_mtime_ns if measured.exists() else 0
    version = (
        f"{run.version}.{place}.{counts['running']}.{counts['queued']}.{measured_at}.{hash(state.scheduler.waits_for)}"
    )
    unchanged = templating.unchanged(request, version)
    if unchanged:
        return unchanged
    page = _page(state, session, run, query, place)
    header = header_from(state, counts)
    return templating.render(request, "run.html", page, version=version, live=run.status in ACTIVE, header=header)


@router.post("/runs/{run_id}/change")
def change(
    state: State,
    run_id: str,
    name: Annotated[str, Form()] = "",
    tags: Annotated[str, Form()] = "",
    notes: Annotated[str, Form()] = "",
) -> Response:
    """Save name, tags and notes, and redirect to the run. Raises ``Refused`` for a text that is too long."""
    words = [tag for part in tags.split(",") if (tag := part.strip())]
    try:
        wanted = RunChange(name=name, tags=words, notes=notes.replace("\r\n", "\n"))
    except ValidationError as error:
        raise Refused.fields(_named(problems_of(error))) from None
    commands.change(state, run_id, wanted)
    return RedirectResponse(f"/runs/{run_id}", status_code=303)


def _named(problems: list[FieldProblem]) -> list[FieldProblem]:
    return [FieldProblem(field=problem.field.partition(".")[0], message=problem.message) for problem in problems]


@router.post("/runs/{run_id}/{action}")
def act(
    state: State, run_id: str, action: Literal["archive", "unarchive", "cancel", "stop", "resume", "repair", "delete"]
) -> Response:
    """Do the action of a button, and redirect to the run, or to the list of runs if it was deleted."""
    if action == "delete":
        commands.delete(state, run_id)
        return RedirectResponse("/runs", status_code=303)
    if action in ("archive", "unarchive"):
        commands.change(state, run_id, RunChange(archived=action == "archive"))
    elif action == "cancel":
        commands.cancel(state, run_id)
    elif action == "stop":
        commands.stop_now(state, run_id)
    elif action == "repair":
        state.checks.restore(run_id)
        return RedirectResponse("/check", status_code=303)  # which says what was done
    else:
        commands.resume(state, run_id)
    return RedirectResponse(f"/runs/{run_id}", status_code=303)


@router.get("/runs/{run_id}/figures/{figure}.json")
def figure(state: State, session: Reading, run_id: str, figure: Literal["accuracy", "loss"]) -> Response:
    """A figure of the run as JSON for plotly.js."""
    run = queries.get_run(session, run_id)
    curve = RunCurve(0, run.name or run.id, curves.points_of(cost.epochs_with_sums(session, run)))
    if figure == "accuracy":
        return JSONResponse(plotly_json(accuracy_figure(curve, last_epoch=run.epochs)))
    steps = steps_of(state.run_folder(run_id))
    shown = step_figure(
        steps.steps, steps.losses, curve, steps_per_epoch=run.steps_per_epoch or 0, total_steps=run.total_steps or 0
    )
    return JSONResponse(plotly_json(shown))


# The page ------------------------------------------------------------------------------------------------------------


def _page(state: Runoff, session: Session, run: Run, query: RunQuery, place: int) -> RunPage:
    folder = state.run_folder(run.id)
    environment = folder.read_environment() or {}
    path = f"/runs/{run.id}"
    images = images_of(state.settings.home, run, "test")
    out = queries.run_out(run)
    epochs = cost.epochs_with_sums(session, run)
    return RunPage(
        run=run,
        out=out,
        query=query,
        path=path,
        stats=_stats(run, out),
        left=remaining(run.seconds_left, run.updated_at),
        seconds_so_far=seconds_since(run.started_at) if run.status == "running" else 0.0,
        place_in_queue=place,
        waits_for=state.scheduler.waits_for,
        next_seed=_next_seed(session, run),
        classes=list(run.class_names),
        images=images,
        answers=_answers(state, run, folder, query, path, environment, epochs),
        config=_config(run),
        first_images=None if run.epochs_done else _train_images(state, run, folder, environment),
        environment=_environment(run, environment),
        precision_reason=_precision_reason(state, run, environment),
        to_accuracy=_to_accuracy(query.to, epochs),
        speed=_speed(state, run, epochs, environment),
        epochs=epochs[: -MOST_EPOCHS_IN_TABLE - 1 : -1],
        files=files_of(session, folder, run),
        log=log_tail(folder, _LOG_BYTES),
        figure_version=f"{run.version}",
    )


def _next_seed(session: Session, run: Run) -> int:
    """The first seed after those that the run's group has used."""
    seeds = session.exec(select(Run.seed).where(Run.group == run.group)).all()
    return max(seeds, default=run.seed) + 1


def _stats(run: Run, out: RunOut) -> list[Stat]:
    stats = []
    if run.test_accuracy is not None:
        interval = out.test_accuracy_interval
        beside = between(percent(interval[0]), percent(interval[1])) if interval else ""
        stats.append(Stat(_("Test accuracy"), f"{percent(run.test_accuracy)} %", beside))
    if run.validation_accuracy is not None:
        stats.append(Stat(_("Validation accuracy"), f"{percent(run.validation_accuracy)} %"))
    if run.train_accuracy is not None:
        stats.append(Stat(_("Training accuracy"), f"{percent(run.train_accuracy)} %", _("during the epoch")))
    if run.test_loss is not None:
        stats.append(Stat(_("Test loss"), f"{run.test_loss:.4f}"))
    if run.best_epoch is not None:
        beside = _("of {n} done").format(n=number(run.epochs_done))
        if out.best_is_optimistic and run.epochs_done > 1:
            beside += ", " + _("chosen on the test images")
        stats.append(Stat(_("Best epoch"), number(run.best_epoch), beside))
    if run.num_parameters is not None:
        stats.append(Stat(_("Parameters"), number(run.num_parameters)))
    if run.train_seconds:
        speed = _("{n} images/s").format(n=number(run.images_per_second)) if run.images_per_second else ""
        stats.append(Stat(_("Time"), seconds(run.train_seconds), speed))
    return stats


def _config(run: Run) -> list[tuple[str, str]]:
    """The fields that apply to the run, with their values in effect."""
    pairs = []
    for name, value in run.config.items():
        if name == "width":
            value = value or MODELS[run.model].default_width
        if value is not None:
            pairs.append((name, value_words(value)))
    return pairs


def _environment(run: Run, environment: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    if environment:
        device = str(environment.get("device", ""))
        pairs.append((_("Device"), f"{device}, {environment.get('machine') or environment.get('device_name', '')}"))
        if device == "cpu":
            pairs.append((_("Threads"), str(environment.get("num_threads", ""))))
        pairs.append((_("Precision"), str(environment.get("precision", ""))))
        if "convolution" in environment and run.model != "fc":
            pairs.append((_("Convolution"), _convolution_words(str(environment["convolution"]))))
        if environment.get("fused_norm"):
            pairs.append((_("BatchNorm"), _("in one pass with pooling and ReLU")))
        if environment.get("graphs"):
            pairs.append((_("Steps"), _("replayed from a CUDA graph")))
        pairs += [(title, str(environment[key])) for key, title in _VERSIONS if key in environment]
    if run.num_test:
        words = _("{n}, fingerprint {fingerprint}").format(
            n=f"{run.num_test:,}", fingerprint=(run.test_fingerprint or "")[:12]
        )
        pairs.append((_("Test images"), words))
    pairs.append((_("Attempt"), str(run.attempt)))
    return pairs


def _convolution_words(convolution: str) -> str:
    words = {
        "direct": _("direct"),
        "winograd": _("Winograd's method"),
        "fused": _("fused with pooling and ReLU"),
        "columns": _("product of each pixel's neighbours"),
    }
    return words.get(convolution, convolution)


def _precision_reason(state: Runoff, run: Run, environment: dict[str, Any]) -> str:
    """Which precision ``auto`` became and why; empty if the config sets a precision, or if the reason is unknown."""
    home = state.settings.home
    try:
        shape = catalogue.get_dataset(home, run.dataset).image_shape
        reason = shape and explain_precision(home, RunConfig(**run.config), shape, environment)
    except (catalogue.UnknownDataset, KeyError):
        return ""
    return reason or ""


# Cost ----------------------------------------------------------------------------------------------------------------


def _to_accuracy(typed: str, epochs: Sequence[EpochOut]) -> ToAccuracy:
    costs = cost.thresholds_passed(epochs)
    wanted, problem = cost.typed_accuracy(typed)
    if wanted is not None and all(one.accuracy != wanted for one in costs):
        costs = sorted([*costs, cost.to_accuracy(epochs, wanted)], key=lambda one: one.accuracy)
    return ToAccuracy(costs, typed if wanted is None else short_percent(wanted), problem)


def _speed(state: Runoff, run: Run, epochs: Sequence[EpochOut], environment: dict[str, Any]) -> Speed | None:
    if not epochs:
        return None
    saving = [epoch.save_seconds for epoch in epochs if epoch.save_seconds is not None]
    images, flops = epochs[-1].images, epochs[-1].total_flops
    return Speed(
        seconds=run.train_seconds,
        evaluation_seconds=run.evaluation_seconds,
        save_seconds=sum(saving) if saving else None,
        images_per_second=run.images_per_second,
        flops_per_image=flops / images if flops and images else None,
        gflops_per_second=cost.rate(flops, run.train_seconds) if flops else None,
        matmul_gflops=_matmul_gflops(state, environment),
    )


def _matmul_gflops(state: Runoff, environment: dict[str, Any]) -> float | None:
    """The measured matrix-product rate in GFLOP/s of the machine that trained the run; None if not measured."""
    try:
        key = measurements.matmul_key(environment)
    except KeyError:  # no environment.json yet, or one from elsewhere
        return None
    measured = measurements.read(state.settings.home)["matmul"].get(key)
    return float(measured["gflops"]) if measured else None


# Answers -------------------------------------------------------------------------------------------------------------


def _answers(
    state: Runoff,
    run: Run,
    folder: RunFolder,
    query: RunQuery,
    path: str,
    environment: dict[str, Any],
    epochs: Sequence[EpochOut],
) -> Answers | None:
    """The contents of the tabs; None before the first epoch."""
    if not run.epochs_done:
        return None
    epoch = min(query.epoch or run.epochs_done, run.epochs_done)
    try:
        stored = predictions.load(folder, epoch)
    except PredictionsError as problem:
        return Answers(epoch, 0, 0, problem=str(problem))
    right = stored.num_correct
    reported = next((one.reported_correct for one in epochs if one.epoch == epoch), None)
    defect = predictions.defect_of(epoch, right, stored.num_images, reported)
    answers = Answers(epoch, num_wrong=stored.num_images - right, num_right=right, defect=defect)
    if query.tab == "train":
        return replace(answers, train=_train_images(state, run, folder, environment))
    wall = _wall(stored, folder, run, query, epoch, path)
    if query.tab == "matrix":
        return replace(answers, wall=wall if _has_cell(query) else None, matrix=_matrix(stored, run, query, path))
    return replace(answers, wall=wall)


def _has_cell(query: RunQuery) -> bool:
    return query.label is not None and query.predicted is not None


def _wanted(query: RunQuery) -> PredictionQuery:
    correct = {"wrong": False, "right": True, "all": None}[query.show]
    if query.tab == "matrix":
        correct = None
    return PredictionQuery(
        correct=correct,
        label=query.label,
        predicted=query.predicted,
        min_confidence=query.confidence,
        sort=query.order,
        limit=query.shown,
    )


def _wall(stored: Predictions, folder: RunFolder, run: Run, query: RunQuery, epoch: int, path: str) -> Wall:
    bars = partial(walls.bars_of, folder, epoch, run.class_names)
    return walls.wall_of(stored, _wanted(query), query.image, TILES, partial(query.url, path), bars)


def _matrix(stored: Predictions, run: Run, query: RunQuery, path: str) -> Matrix:
    def href(label: int, predicted: int) -> str:
        return query.url(path, label=label, predicted=predicted, image=None, shown=TILES.first) + "#cell"

    return matrix_of(stored, walls.num_classes(run.class_names, stored), href, (query.label, query.predicted))


def _train_images(state: Runoff, run: Run, folder: RunFolder, environment: dict[str, Any]) -> TrainImages | None:
    saved = read_json(folder.pictures / "train.json")
    images = images_of(state.settings.home, run, "train", environment.get("train_fingerprint"))
    if saved is None or images is None:
        return None
    items = list(zip(saved["indices"], saved["labels"], strict=True))
    return TrainImages(images, items, bool(saved.get("permuted")), str(saved.get("augmentation", "none")))
