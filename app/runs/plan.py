"""Turns a request into a plan: the runs that it asks for, or one sentence for each field that is wrong.

Starts nothing and writes nothing. ``app.runs.commands.start`` takes a plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.errors import Refused
from app.runs import sweeps
from app.schemas import RunLabels, SweepIn
from trainer.config import (
    FIELDS,
    MODELS,
    ConfigError,
    FieldProblem,
    RunConfig,
    parse_config,
    problems_of,
)
from trainer.datasets import catalogue
from trainer.i18n import _
from trainer.image_rules import check_data
from trainer.presets import PRESETS

MAX_RUNS = 1000  # in one plan
_IN_EVERY_NAME = ("model", "permute_pixels", "dataset")  # the fields that ``default_name`` shows

Base = dict[str, Any]  # field -> value
Grid = dict[str, list[Any]]  # field -> values


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan, checked but not started."""

    config: RunConfig
    name: str
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """The runs that a request asks for, with their tags and notes.

    ``is_sweep`` says whether they start as a sweep, which one run can be too. ``warnings`` has each warning once.
    """

    runs: list[PlannedRun]
    tags: list[str]
    notes: str
    is_sweep: bool
    warnings: list[str]


def plan_run(home: Path, body: Mapping[str, Any]) -> Plan:
    """Plan the one run of ``POST /runs``. Raises ``Refused``."""
    return plan(home, parse_run(body), is_sweep=False)


def parse_run(body: Mapping[str, Any]) -> SweepIn:
    """The body of ``POST /runs`` as a sweep of one run. Raises ``Refused``."""
    base = dict(body)
    labels = {name: base.pop(name) for name in RunLabels.model_fields if name in base}
    preset, dataset = base.pop("preset", None), base.get("dataset")
    try:
        checked = RunLabels.model_validate(labels)
        request = SweepIn(base=base, preset=preset, **checked.model_dump())
    except ValidationError as error:
        raise Refused.fields(problems_of(error)) from None
    _base, grid = _with_preset(request)
    if grid:
        message = _("{preset} starts several runs. Send it to POST /api/v1/sweeps, or give {fields} here.").format(
            preset=preset, fields=", ".join(grid)
        )
        raise Refused.fields([FieldProblem(field="preset", message=message)])
    return request.model_copy(update={"dataset": dataset if isinstance(dataset, str) else None})


def plan(home: Path, request: SweepIn, *, is_sweep: bool = True) -> Plan:
    """Check a request and list its runs. Raises ``Refused`` with one sentence for each field that is wrong.

    ``home`` holds the data sets that the runs may name.
    """
    base, grid = _with_preset(request)
    _check_grid(base, grid, request.repeats)
    varying = [name for name, values in grid.items() if len(values) > 1]
    with_seed = request.repeats > 1 or "seed" in grid
    runs: list[PlannedRun] = []
    problems: dict[str, str] = {}
    for places in _combinations(grid):
        try:
            config, warnings = _checked(home, base | {name: grid[name][place] for name, place in places.items()})
            seeds = _seeds(config, request.repeats)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(_request_field(problem.field, places), problem.message)
            continue
        for seed in seeds:
            seeded = config.model_copy(update={"seed": seed})
            name = _name(request.name, seeded, varying, with_seed=with_seed)
            runs.append(PlannedRun(seeded, name, warnings))
    if problems:
        raise Refused.fields([FieldProblem(field=field, message=message) for field, message in problems.items()])
    distinct = list({run.config.model_dump_json(): run for run in runs}.values())
    warnings = list(dict.fromkeys(warning for run in runs for warning in run.warnings))
    warnings += _warning_of_equal_runs(len(runs) - len(distinct))
    return Plan(distinct, list(dict.fromkeys(request.tags)), request.notes, is_sweep, warnings)


# Fields --------------------------------------------------------------------------------------------------------------


def _with_preset(request: SweepIn) -> tuple[Base, Grid]:
    """Base and grid with the preset below them: a given field replaces that of the preset's base or grid."""
    base, grid = dict(request.base), dict(request.grid)
    if request.preset:
        if request.preset not in PRESETS:
            message = _("Unknown preset. Known presets: {names}.").format(names=", ".join(PRESETS))
            raise Refused.fields([FieldProblem(field="preset", message=message)])
        preset = PRESETS[request.preset]
        grid = {name: values for name, values in preset.grid.items() if name not in base} | grid
        base = preset.base | base
    return base | ({"dataset": request.dataset} if request.dataset else {}), grid


def _check_grid(base: Base, grid: Grid, repeats: int) -> None:
    problems = []
    for name in grid:
        if name not in FIELDS:
            message = _("Unknown field. Known fields: {names}.").format(names=", ".join(FIELDS))
            problems.append(FieldProblem(field=f"grid.{name[:40]}", message=message))
    if "seed" in grid and repeats > 1:
        message = _("Give either seeds in the grid or repeats above 1, not both.")
        problems.append(FieldProblem(field="repeats", message=message))
    count = repeats * math.prod(len(values) for values in grid.values())
    if count > MAX_RUNS:
        message = _(
            "This would start {count} runs, but at most {limit} can be started at once. Use fewer values."
        ).format(count=f"{count:,}", limit=f"{MAX_RUNS:,}")
        problems.append(FieldProblem(field="grid" if grid else "repeats", message=message))
    if problems:
        raise Refused.fields(problems)


def _combinations(grid: Grid) -> Iterator[dict[str, int]]:
    """Every choice of one value for each field of the grid: field -> position of its value."""
    for places in itertools.product(*(range(len(values)) for values in grid.values())):
        yield dict(zip(grid, places, strict=True))


def _checked(home: Path, fields: Base) -> tuple[RunConfig, list[str]]:
    """A config with its warnings, checked against its data set as far as that is known. Raises ``ConfigError``."""
    config, warnings = parse_config(fields)
    try:
        dataset = catalogue.get_dataset(home, config.dataset)
    except catalogue.UnknownDataset as error:
        raise ConfigError([FieldProblem(field="dataset", message=str(error))]) from None
    if dataset.status == "damaged":
        message = f"{dataset.problem} {dataset.advice}"
        raise ConfigError([FieldProblem(field="dataset", message=message)])
    if dataset.image_shape and dataset.num_train:
        channels, height, width = dataset.image_shape
        check_data(config, image_size=(height, width), num_channels=channels, num_train=dataset.num_train)
    return config, warnings


def _seeds(config: RunConfig, repeats: int) -> Iterable[int]:
    """The seeds of the repeats, from the config's on. Raises ``ConfigError`` where they would not fit 32 bits."""
    last = config.seed + repeats - 1
    if last > sweeps.LAST_SEED:
        message = _("The last seed would be {seed}; at most {limit} is possible.").format(
            seed=f"{last:,}", limit=f"{sweeps.LAST_SEED:,}"
        )
        raise ConfigError([FieldProblem(field="seed", message=message)])
    return range(config.seed, last + 1)


def _request_field(field: str, places: Mapping[str, int]) -> str:
    """A field of a config as a field of the request: ``grid.epochs[1]`` for the second value of the grid."""
    return f"grid.{field}[{places[field]}]" if field in places else field


def _warning_of_equal_runs(count: int) -> list[str]:
    if not count:
        return []
    message = _("{n} runs would be duplicates (a value given twice, or a field that does not apply); each starts once.")
    return [message.format(n=f"{count:,}")]


# Names ---------------------------------------------------------------------------------------------------------------


def default_name(config: RunConfig) -> str:
    """A short name from what matters most: net, permutation, data set."""
    permuted = " " + _("permuted") if config.permute_pixels else ""
    return f"{MODELS[config.model].title}{permuted} {_('on')} {config.dataset}"


def _name(given: str, config: RunConfig, varying: list[str], *, with_seed: bool) -> str:
    """The given name, else the default one, with the values that vary within the sweep.

    Without a given name the values stand alone where the default name shows none of the fields that vary.
    """
    in_default = [] if given else [field for field in varying if field in _IN_EVERY_NAME]
    rest = [field for field in varying if field not in (*in_default, "seed")]
    stem = given or ("" if rest and not in_default else default_name(config))
    return sweeps.run_name(stem, config, rest, with_seed=with_seed)
