"""How long runs will take, judged by earlier runs like them: the "about 3 min" of the form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session, col, select

from app.store.tables import Run
from trainer.config import MODELS, RunConfig, resolved_width
from trainer.datasets import catalogue
from trainer.schedule import images_per_epoch

_NEWEST_RUNS = 20  # whose speed counts
_LOOKED_AT = 100  # among which runs of the same width are searched for


@dataclass(frozen=True)
class Estimate:
    """The time that runs take one after the other. The seconds are None where no run like one of them was measured."""

    seconds: float | None  # of all runs
    each: float | None  # of a run, on average
    num_epochs: int  # of earlier runs, that the estimate rests on


@dataclass(frozen=True)
class _Speed:
    """Seconds of training and evaluation for each training image, measured over ``num_epochs`` epochs."""

    seconds_per_image: float
    num_epochs: int


def estimate(session: Session, home: Path, configs: Sequence[RunConfig]) -> Estimate:
    """The time that runs with these configs take, from runs with the same data set, net and width."""
    unknown = Estimate(None, None, 0)
    speeds: dict[tuple[str, str, int], _Speed] = {}
    sizes = {name: catalogue.get_dataset(home, name).num_train for name in {config.dataset for config in configs}}
    total = 0.0
    for config in configs:
        key = (config.dataset, config.model, resolved_width(config))
        if key not in speeds:
            speeds[key] = _measured_speed(session, *key)
        num_train = sizes[config.dataset]
        if not speeds[key].num_epochs or not num_train:
            return unknown
        total += speeds[key].seconds_per_image * config.epochs * images_per_epoch(num_train, config)
    if not configs:
        return unknown
    return Estimate(total, total / len(configs), sum(speed.num_epochs for speed in speeds.values()))


def _measured_speed(session: Session, dataset: str, model: str, width: int) -> _Speed:
    newest_first = (
        select(Run)
        .where(Run.dataset == dataset, Run.model == model, col(Run.epochs_done) > 0)
        .order_by(col(Run.created_at).desc())
        .limit(_LOOKED_AT)
    )
    default = MODELS[model].default_width
    runs = [
        run for run in session.exec(newest_first) if run.num_train and (run.config.get("width") or default) == width
    ]
    runs = runs[:_NEWEST_RUNS]
    images = sum(run.epochs_done * (run.num_train or 0) for run in runs)
    seconds = sum(run.train_seconds + run.evaluation_seconds for run in runs)
    return _Speed(seconds / images if images else 0.0, sum(run.epochs_done for run in runs))
