"""What the form of a new run draws of its plan: the layers of the net, and the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.draw.form import ScheduleCurve, learning_rates, net_chart, schedule_chart
from app.draw.markers import MARKS
from app.draw.svg import Drawing, ResponsiveDrawing
from app.forms.read import text_of
from app.runs.executors import ExecutorUnavailable
from app.runs.executors import Refused as NotDescribed
from app.state import TrainerHost
from trainer import schedule
from trainer.config import MODELS, RunConfig, resolved_width
from trainer.datasets.catalogue import Dataset
from trainer.i18n import _

_MOST_CURVES = MARKS
_MOST_SHAPES = 12  # in the drawing of a net
_SCHEDULE_FIELDS = ("learning_rate", "schedule", "peak_at", "epochs", "batch_size")


# The net -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """The layers of a net, or why they can't be shown."""

    layers: list[dict[str, Any]] = field(default_factory=list)
    input_shape: list[int] = field(default_factory=list)
    num_parameters: int = 0
    multiply_adds: int = 0
    chart: Drawing | None = None
    comparison: str = ""
    missing: str = ""
    waiting: bool = False  # the trainer host is starting: ask again in a moment


def net_of(executor: TrainerHost, config: RunConfig | None, dataset: Dataset | None) -> Net:
    """The net of a configuration on the images of a data set. Asks the trainer host."""
    if config is None or dataset is None:
        return Net(missing=_("The layers appear once data set and model are chosen."))
    if dataset.image_shape is None or not dataset.class_names:
        return Net(missing=_("The layers appear once the images are available: their size is not known yet."))
    shape, num_classes = tuple(dataset.image_shape), len(dataset.class_names)
    try:
        description = _description(executor, config.model, resolved_width(config), shape, num_classes)
        comparison = _comparison(executor, config.model, shape, num_classes)
    except ExecutorUnavailable:
        return Net(missing=_("The trainer is starting. The layers appear in a moment."), waiting=True)
    except NotDescribed as problem:
        return Net(missing=str(problem))
    shapes = [description["input_shape"], *(layer["shape"] for layer in description["layers"])]
    return Net(
        layers=description["layers"],
        input_shape=description["input_shape"],
        num_parameters=description["num_parameters"],
        multiply_adds=description["multiply_adds"],
        chart=net_chart(_changes_of_shape(shapes)),
        comparison=comparison,
    )


def _changes_of_shape(shapes: list[list[int]]) -> list[list[int]]:
    """Each shape that differs from the one before it; of more than 12 the first 8 and the last 4."""
    changes = [shape for number, shape in enumerate(shapes) if number == 0 or shape != shapes[number - 1]]
    return changes if len(changes) <= _MOST_SHAPES else [*changes[:8], *changes[8 - _MOST_SHAPES :]]


@lru_cache(maxsize=256)
def _description(
    executor: TrainerHost, model: str, width: int, shape: tuple[int, ...], num_classes: int
) -> dict[str, Any]:
    """The trainer's description of a net, asked once: it depends on no other field of the configuration."""
    config = RunConfig(dataset="any", model=model, width=width)
    return executor.describe(config.model_dump(), list(shape), num_classes)


def _comparison(executor: TrainerHost, model: str, shape: tuple[int, ...], num_classes: int) -> str:
    """The size of a simple net for comparison: fc, or cnn where the net is fc."""
    other = "cnn" if model == "fc" else "fc"
    width = MODELS[other].default_width
    description = _description(executor, other, width, shape, num_classes)
    return _("{model}, width {width}: {parameters} parameters, {adds} multiply-adds").format(
        model=other,
        width=width,
        parameters=f"{description['num_parameters']:,}",
        adds=f"{description['multiply_adds']:,}",
    )


# The schedule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps, with its legend as (number, label)."""

    chart: ResponsiveDrawing
    legend: list[tuple[int, str]]
    steps_per_epoch: int


def schedule_of(configs: Sequence[RunConfig], dataset: Dataset | None) -> Schedule | None:
    """A curve for each different schedule, the highest first; None where the number of steps is unknown."""
    if not configs or dataset is None or not dataset.num_train:
        return None
    different = {_schedule_key(config): config for config in reversed(configs)}
    chosen = sorted(different.values(), key=lambda config: -config.learning_rate)[:_MOST_CURVES]
    steps = {_schedule_key(config): config.epochs * _steps_per_epoch(config, dataset) for config in chosen}
    curves = [
        ScheduleCurve(index, _schedule_label(config, chosen), learning_rates(config, steps[_schedule_key(config)]))
        for index, config in enumerate(chosen)
    ]
    longest = max(chosen, key=lambda config: steps[_schedule_key(config)])
    per_epoch = _steps_per_epoch(longest, dataset)
    chart = schedule_chart(curves, steps_per_epoch=per_epoch, total_steps=longest.epochs * per_epoch)
    return Schedule(chart, [(curve.index, curve.label) for curve in curves] if len(curves) > 1 else [], per_epoch)


def _steps_per_epoch(config: RunConfig, dataset: Dataset) -> int:
    return max(schedule.steps_per_epoch(dataset.num_train or 0, config), 1)


def _schedule_key(config: RunConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in _SCHEDULE_FIELDS)


def _schedule_label(config: RunConfig, configs: Sequence[RunConfig]) -> str:
    """The values by which this curve differs from the others."""
    varying = [name for name in _SCHEDULE_FIELDS if len({getattr(other, name) for other in configs}) > 1]
    return ", ".join(text_of(getattr(config, name)) or _("none") for name in varying)
