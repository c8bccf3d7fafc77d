"""Everything that writes about runs: plan, start, cancel, resume, change, delete, and each change of a status.

A status changes by one guarded UPDATE; a refused one is a ``Conflict`` with a sentence. What must survive the database
goes into run.json first.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from pydantic import ValidationError
from sqlalchemy import update
from sqlmodel import Session, col

from app.errors import Conflict, NotFound, Problem, Refused
from app.runs import sweeps
from app.schemas import RunChange, RunLabels, SweepIn, SweepOut
from app.settings import Settings
from app.state import Runoff
from app.store.database import reading, writing
from app.store.indexer import ingest, next_version
from app.store.queries import get_run, run_out, runs_of_groups, sweep_runs
from app.store.tables import ACTIVE, Run
from trainer.config import (
    FIELDS,
    MODELS,
    ConfigError,
    FieldProblem,
    RunConfig,
    check_data,
    group_hash,
    parse_config,
    problems_of,
)
from trainer.datasets import catalogue
from trainer.i18n import _
from trainer.presets import PRESETS
from trainer.run_folder import RunFolder, new_id, now

MAX_RUNS = 1000
_TICK_SECONDS = 0.0002  # a fraction of the millisecond in which times are written
MAX_FRUITLESS_ATTEMPTS = 3


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan, checked but not started."""

    config: RunConfig
    name: str
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """What a form or a request would start, with the warnings about it (each once)."""

    runs: list[PlannedRun]
    warnings: list[str]


def folder_of(state: Runoff, run_id: str) -> RunFolder:
    """The run's folder."""
    return RunFolder(state.settings.runs / run_id)


# Planning ------------------------------------------------------------------------------------------------------------


def plan(state: Runoff, sweep: SweepIn) -> Plan:
    """Check a sweep and spell out its runs; starts nothing. Raises ``Refused`` with one sentence per field."""
    return plan_for(state.settings, sweep)


def plan_for(settings: Settings, sweep: SweepIn) -> Plan:
    """The same without a server."""
    base, grid = _with_preset(sweep)
    _check_grid(base, grid, sweep.repeats)
    runs: list[PlannedRun] = []
    warnings: dict[str, None] = {}
    problems: dict[str, str] = {}
    varying = [name for name, values in grid.items() if len(values) > 1]
    with_seed = sweep.repeats > 1 or "seed" in grid
    for choice in itertools.product(*(range(len(values)) for values in grid.values())):
        picked = dict(zip(grid, choice, strict=True))
        fields = base | {name: grid[name][index] for name, index in picked.items()}
        try:
            config, said = parse_config(fields)
            _check_dataset(settings, config)
        except ConfigError as error:
            for problem in error.problems:
                field = f"grid.{problem.field}[{picked[problem.field]}]" if problem.field in picked else problem.field
                problems.setdefault(field, problem.message)
            continue
        warnings.update(dict.fromkeys(said))
        for seed in _seeds(config, sweep.repeats, problems):
            seeded = config.model_copy(update={"seed": seed})
            runs.append(PlannedRun(seeded, _name(sweep.name, seeded, varying, with_seed=with_seed), said))
    if problems:
        raise Refused.fields([FieldProblem(field=field, message=message) for field, message in problems.items()])
    distinct = list({item.config.model_dump_json(): item for item in runs}.values())
    if len(distinct) < len(runs):
        message = _(
            "{n} runs would equal others (a value given twice, or a field that does not apply); each starts once."
        )
        warnings[message.format(n=f"{len(runs) - len(distinct):,}")] = None
    return Plan(distinct, [*warnings])


def _with_preset(sweep: SweepIn) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Base and grid with the preset under them: a given field wins over the preset's base and over its grid."""
    if not sweep.preset:
        base, grid = dict(sweep.base), dict(sweep.grid)
    elif sweep.preset in PRESETS:
        preset = PRESETS[sweep.preset]
        base = preset.base | sweep.base
        grid = {name: values for name, values in preset.grid.items() if name not in sweep.base} | sweep.grid
    else:
        message = _("Unknown preset. Known are: {names}.").format(names=", ".join(PRESETS))
        raise Refused.fields([FieldProblem(field="preset", message=message)])
    return base | ({"dataset": sweep.dataset} if sweep.dataset else {}), grid


def _check_grid(base: Mapping[str, Any], grid: Mapping[str, list[Any]], repeats: int) -> None:
    problems = []
    for name in grid:
        if name not in FIELDS:
            message = _("Unknown field. Known are: {names}.").format(names=", ".join(FIELDS))
            problems.append(FieldProblem(field=f"grid.{name[:40]}", message=message))
    if "seed" in grid and repeats > 1:
        message = _("Give either seeds in the grid or repeats above 1, not both.")
        problems.append(FieldProblem(field="repeats", message=message))
    count = repeats
    for values in grid.values():
        count *= len(values)
    if count > MAX_RUNS:
        message = _("This would start {count} runs; at most {limit} at once. Take fewer values.").format(
            count=f"{count:,}", limit=f"{MAX_RUNS:,}"
        )
        problems.append(FieldProblem(field="grid" if grid else "repeats", message=message))
    if problems:
        raise Refused.fields(problems)


def _check_dataset(settings: Settings, config: RunConfig) -> None:
    """Check the config against its data set, as far as that is known. Raises ``ConfigError``."""
    try:
        dataset = catalogue.get_dataset(settings.home, config.dataset)
    except catalogue.UnknownDataset as error:
        raise ConfigError([FieldProblem(field="dataset", message=str(error))]) from None
    if dataset.image_shape and dataset.num_train:
        channels, height, width = dataset.image_shape
        check_data(config, image_size=(height, width), num_channels=channels, num_train=dataset.num_train)


def _seeds(config: RunConfig, repeats: int, problems: dict[str, str]) -> Iterator[int]:
    last = config.seed + repeats - 1
    if last > 2**32 - 1:
        problems["seed"] = _("The last seed would be {seed}; at most {limit} is possible.").format(
            seed=f"{last:,}", limit=f"{2**32 - 1:,}"
        )
        return
    yield from range(config.seed, last + 1)


def default_name(config: RunConfig) -> str:
    """A short name from what matters most: net, permutation, data set."""
    permuted = " " + _("permuted") if config.permute_pixels else ""
    return f"{MODELS[config.model].title}{permuted} {_('on')} {config.dataset}"


def _name(given: str, config: RunConfig, varying: list[str], *, with_seed: bool) -> str:
    """The given name with the values that vary within the sweep; without one these alone, where they say enough."""
    told = [] if given else [field for field in varying if field in ("model", "permute_pixels", "dataset")]
    rest = [field for field in varying if field not in (*told, "seed")]
    stem = given or ("" if rest and not told else default_name(config))
    return sweeps.run_name(stem, config, rest, with_seed=with_seed)


# Starting ------------------------------------------------------------------------------------------------------------

choosing_seeds = Lock()  # held from reading which seeds are used until the runs with others are written


def parse_start(data: Mapping[str, Any]) -> SweepIn:
    """The body of ``POST /runs`` as a sweep of one. Raises ``Refused``."""
    data = dict(data)
    labels = {name: data.pop(name) for name in ("name", "tags", "notes") if name in data}
    preset, dataset = data.pop("preset", None), data.get("dataset")
    try:
        checked = RunLabels.model_validate(labels)
        sweep = SweepIn(base=data, preset=preset, **checked.model_dump())
    except ValidationError as error:
        raise Refused.fields(problems_of(error)) from None
    grid = _with_preset(sweep)[1]
    if grid:
        message = _("{preset} starts several runs. Send it to POST /api/v1/sweeps, or give {fields} here.").format(
            preset=preset, fields=", ".join(grid)
        )
        raise Refused.fields([FieldProblem(field="preset", message=message)])
    return sweep.model_copy(update={"dataset": dataset if isinstance(dataset, str) else None})


def start(state: Runoff, data: Mapping[str, Any]) -> tuple[Run, list[str]]:
    """Start one run from the fields of a request. Returns it with the warnings."""
    sweep = parse_start(data)
    planned = plan(state, sweep)
    [run] = _create(state, planned, sweep, sweep_id=None)
    return run, planned.warnings


def start_sweep(state: Runoff, sweep: SweepIn, sweep_id: str | None = None) -> SweepOut:
    """Start all runs of a sweep, or none; they run, and are answered, in the order of ``sweeps.spread_order``.

    With ``sweep_id`` they join a sweep that is there.
    """
    planned = plan(state, sweep)
    sweep_id = sweep_id or new_id()
    order = sweeps.spread_order([group_hash(item.config) for item in planned.runs], sweep_id)
    runs = _create(state, Plan([planned.runs[i] for i in order], planned.warnings), sweep, sweep_id)
    return SweepOut(id=sweep_id, runs=[run_out(run) for run in runs], warnings=planned.warnings)


def repeat(state: Runoff, run: Run, seeds: list[int], sweep_id: str | None = None) -> SweepOut:
    """Start the run's config again with these seeds (one at least), named as its repeats are; see ``start_sweep``."""
    base = {name: value for name, value in run.config.items() if value is not None and name != "seed"}
    name = sweeps.without_seed(run.name)
    return start_sweep(state, SweepIn(base=base, grid={"seed": seeds}, name=name, tags=run.tags), sweep_id)


def add_repeats(state: Runoff, group: str, count: int) -> SweepOut:
    """Start ``count`` more repeats of a group, with seeds that none of its runs has used. Raises ``NotFound``.

    They join the sweep of the group's runs where that is one and the same.
    The seeds of failed and cancelled runs count as used: leaving out those that fail would make the rest look better.
    """
    with choosing_seeds:
        with reading(state.engine) as session:
            members = runs_of_groups(session, [group])
        if not members:
            raise NotFound(_("There is no group {id}. Its runs may have been deleted.").format(id=group[:40]))
        sweep_ids = {run.sweep for run in members}
        sweep_id = sweep_ids.pop() if len(sweep_ids) == 1 else None
        return repeat(state, members[-1], sweeps.next_seeds({run.seed for run in members}, count), sweep_id)


def _create(state: Runoff, planned: Plan, sweep: SweepIn, sweep_id: str | None) -> list[Run]:
    """Write the folders, then their rows; a failure on the way takes all folders back.

    The folders become runs (get their run.json) only under the database's write lock, so that the indexer finds none of
    a sweep before all are there.
    """
    folders: list[RunFolder] = []
    try:
        for item in planned.runs:
            folders.append(RunFolder.claim(state.settings.runs, item.config))
        with writing(state.engine) as session:
            session.connection()
            for folder, item, at in zip(folders, planned.runs, _moments(), strict=False):
                labels = {"name": item.name, "tags": list(dict.fromkeys(sweep.tags)), "notes": sweep.notes}
                folder.announce(sweep=sweep_id, warnings=item.warnings, created_at=at, **labels)
            runs = [run for folder in folders if (run := ingest(session, folder))]
            session.commit()
    except BaseException as error:
        for folder in folders:
            shutil.rmtree(folder.path, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        message = _("The run could not be written: {reason}. Make room in {home} and try again.")
        raise Problem(message.format(reason=error.strerror, home=state.settings.home), status=503) from error
    state.scheduler.wake()
    return runs


def _moments() -> Iterator[str]:
    """The time again and again, never the same twice: runs leave the queue in the order of their times."""
    last = ""
    while True:
        while (at := now()) <= last:
            time.sleep(_TICK_SECONDS)
        yield (last := at)


# Changing ------------------------------------------------------------------------------------------------------------


def _transition(session: Session, run: Run, *sources: str, to: str, **values: Any) -> None:
    """Change a status by one guarded UPDATE. Raises ``Conflict`` where the run has another status by now."""
    changed = session.connection().execute(
        update(Run)
        .where(col(Run.id) == run.id, col(Run.status).in_(sources))
        .values(status=to, version=next_version(session), **values)
    )
    if changed.rowcount != 1:
        session.refresh(run)
        raise Conflict(
            _("The run is {status} by now, so this is not possible. Load it again.").format(status=run.status)
        )
    session.refresh(run)


def _say(folder: RunFolder, run: Run, **values: Any) -> None:
    """Put what the server decides about a run into run.json, where a rebuilt index finds it."""
    folder.write_run((folder.read_run() or {}) | {"after_attempt": run.attempt, **values})


def cancel(state: Runoff, run_id: str) -> Run:
    """Cancel a queued run at once; ask a running one to stop at its next step. Raises ``Conflict`` for an ended one."""
    folder = folder_of(state, run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        if run.status == "queued":
            at = now()
            _transition(session, run, "queued", to="cancelled", finished_at=at, cancel_requested=False)
            _say(folder, run, status="cancelled", ended_at=at)
        elif run.status == "running":
            folder.request_stop()
            run.cancel_requested, run.version = True, next_version(session)
            session.add(run)
        else:
            raise Conflict(
                _("The run is {status} already; only queued and running runs can be cancelled.").format(
                    status=run.status
                )
            )
        session.commit()
    state.scheduler.wake()
    return run


def cancel_sweep(state: Runoff, sweep_id: str) -> int:
    """Cancel every run of a sweep that is queued or running; how many. Raises ``NotFound``."""
    with reading(state.engine) as session:
        found = [run for run in sweep_runs(session, sweep_id) if run.status in ACTIVE]
    count = 0
    for run in sorted(found, key=lambda run: run.status != "queued"):  # queued ones first: none starts meanwhile
        with contextlib.suppress(Conflict, NotFound):  # it has ended since, or was deleted
            cancel(state, run.id)
            count += 1
    return count


def resume(state: Runoff, run_id: str) -> Run:
    """Queue a failed or cancelled run again; it goes on from its last checkpoint."""
    folder = folder_of(state, run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        if run.status not in ("failed", "cancelled"):
            raise Conflict(
                _("The run is {status}; only failed and cancelled runs can be resumed.").format(status=run.status)
            )
        folder.clear_stop()
        _requeue(session, folder, run, "failed", "cancelled", fruitless_attempts=0)
        session.commit()
    state.scheduler.wake()
    return run


def _requeue(session: Session, folder: RunFolder, run: Run, *sources: str, **values: Any) -> None:
    at = now()
    _transition(
        session, run, *sources, to="queued", queued_at=at, finished_at=None, error=None, cancel_requested=False,
        seconds_left=None, phase=None, **values,
    )  # fmt: skip
    _say(folder, run, status="queued", queued_at=at, error=None, fruitless_attempts=run.fruitless_attempts)


def change(state: Runoff, run_id: str, wanted: RunChange) -> Run:
    """Change name, tags, notes or archived; the config never changes."""
    values = wanted.model_dump(exclude_none=True)
    if "tags" in values:
        values["tags"] = list(dict.fromkeys(values["tags"]))
    folder = folder_of(state, run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        folder.write_run((folder.read_run() or {}) | values)
        for name, value in values.items():
            setattr(run, name, value)
        run.version = next_version(session)
        session.add(run)
        session.commit()
    return run


def delete(state: Runoff, run_id: str) -> None:
    """Delete a run with its folder. Raises ``Conflict`` while it is running."""
    folder = folder_of(state, run_id)
    with writing(state.engine) as session:
        run = get_run(session, run_id)
        if run.status == "running":
            raise Conflict(_("The run is running. Cancel it first, then delete it."))
        gone = folder.path.with_name(f".deleted-{run_id}-{secrets.token_hex(4)}")
        session.delete(run)
        session.flush()
        if folder.path.exists():
            folder.path.rename(gone)
        session.commit()
    shutil.rmtree(gone, ignore_errors=True)


# What the scheduler decides ------------------------------------------------------------------------------------------


def mark_running(session: Session, folder: RunFolder, run: Run, device: str) -> None:
    """A queued run begins its next attempt, on ``device``."""
    folder.clear_stop()
    _transition(session, run, "queued", to="running", attempt=run.attempt + 1, device=device, cancel_requested=False)


def mark_not_started(session: Session, folder: RunFolder, run: Run) -> None:
    """The executor could not take the run: back to the queue, as if it had not been tried, unless a stop was asked for."""
    if run.cancel_requested:
        mark_vanished(session, folder, run)
        return
    _transition(session, run, "running", to="queued", attempt=run.attempt - 1)


def mark_vanished(session: Session, folder: RunFolder, run: Run) -> None:
    """The process of a running run is gone: cancelled if that was asked for, else queued again, at most three times in a row."""
    if run.cancel_requested:
        at = now()
        _transition(
            session,
            run,
            "running",
            to="cancelled",
            finished_at=at,
            cancel_requested=False,
            seconds_left=None,
            phase=None,
        )
        _say(folder, run, status="cancelled", ended_at=at)
        return
    fruitless = run.fruitless_attempts + 1
    if fruitless >= MAX_FRUITLESS_ATTEMPTS:
        _fail(session, folder, run, _vanished_error(folder, run))
    else:
        _requeue(session, folder, run, "running", fruitless_attempts=fruitless)


def _vanished_error(folder: RunFolder, run: Run) -> dict[str, str]:
    ending = folder.read_exit(run.attempt) or {}
    if ending.get("signal"):
        how = _("ended by signal {signal}").format(signal=ending["signal"])
    elif "code" in ending:
        how = _("exited with code {code}").format(code=ending["code"])
    else:
        how = _("gone without a trace")
    return {
        "error": "ProcessVanished",
        "message": _("{count} attempts in a row ended without a new epoch; the last process was {how}.").format(
            count=MAX_FRUITLESS_ATTEMPTS, how=how
        ),
        "advice": _(
            "Signal 9 usually means too little memory: take a smaller batch size or width. The log has the details."
        ),
    }


def _fail(session: Session, folder: RunFolder, run: Run, error: dict[str, str]) -> None:
    at = now()
    _transition(
        session,
        run,
        "queued",
        "running",
        to="failed",
        finished_at=at,
        error=error,
        cancel_requested=False,
        seconds_left=None,
        phase=None,
    )
    _say(folder, run, status="failed", error=error, ended_at=at)
