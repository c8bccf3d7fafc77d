"""The patterns page: every component in every state, built from the same macros as the pages. Its numbers are examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response

from app.draw.compare import ForestRow, SeedRow, forest_plot, seeds_chart
from app.draw.small import Scale, scale_of
from app.draw.svg import ResponsiveDrawing
from app.web import templating
from trainer.i18n import _

router = APIRouter()

SEEDS = [0.8878, 0.8807, 0.8405, 0.8592, 0.8612]
LOSSES = [2.3 * math.exp(-step / 3) + 0.1 + 0.05 * math.sin(7 * step) for step in range(30)]
SINGLE, SINGLE_INTERVAL = 0.9780, (0.9749, 0.9807)
MEAN, MEAN_INTERVAL = 0.8659, (0.8426, 0.8892)


def example_forest() -> ResponsiveDrawing:
    """The two lines of a comparison: two nets, two recipes."""
    rows = [
        ForestRow(_("These two nets"), _("paired over 10,000 images"), 4.83, 4.34, 5.34, 0),
        ForestRow(_("The two recipes"), _("5 and 5 seeds"), 7.89, 5.9, 9.88, 0),
        ForestRow(_("Too close to call"), _("paired over 10,000 images"), 0.12, -0.39, 0.63),
    ]
    return forest_plot(rows, margin=0.5, left=_("FC"), right=_("CNN"))


def example_seeds() -> ResponsiveDrawing:
    """Two recipes, each with the accuracies of its seeds."""
    rows = [
        SeedRow(0, _("CNN"), [95.46, 94.39, 93.79, 94.38, 94.39], 94.48, 93.73, 95.23),
        SeedRow(1, _("FC"), [100 * seed for seed in SEEDS], 100 * MEAN, 100 * MEAN_INTERVAL[0], 100 * MEAN_INTERVAL[1]),
    ]
    return seeds_chart(rows, caption=_("test accuracy after 1 epoch, %"))


@dataclass(frozen=True)
class Example:
    """A test image with the predictions of two runs: (letter index, answer, is right, confidence)."""

    label: int
    answers: list[tuple[int, int, bool, float]]


@dataclass(frozen=True)
class PatternsPage:
    """Variables of patterns.html."""

    scale: Scale = field(default_factory=lambda: scale_of([SINGLE_INTERVAL, MEAN_INTERVAL]))
    forest: ResponsiveDrawing = field(default_factory=example_forest)
    seeds_drawn: ResponsiveDrawing = field(default_factory=example_seeds)
    statuses: tuple[str, ...] = ("queued", "running", "finished", "failed", "cancelled")
    single: float = SINGLE
    single_interval: tuple[float, float] = SINGLE_INTERVAL
    mean: float = MEAN
    mean_interval: tuple[float, float] = MEAN_INTERVAL
    seeds: list[float] = field(default_factory=lambda: list(SEEDS))
    losses: list[float] = field(default_factory=lambda: list(LOSSES))
    tiles: tuple[tuple[int, int, float], ...] = (
        (7, 7, 1.0),
        (2, 2, 1.0),
        (1, 1, 1.0),
        (0, 0, 0.998),
        (8, 7, 0.999),
        (2, 7, 0.998),
        (5, 3, 0.997),
        (8, 9, 0.996),
    )
    pairs: tuple[Example, ...] = (
        Example(5, [(0, 5, True, 0.993), (1, 6, False, 0.941)]),
        Example(3, [(0, 3, True, 0.87), (1, 2, False, 0.8)]),
        Example(4, [(0, 4, True, 0.99), (1, 6, False, 0.42)]),
        Example(2, [(0, 2, True, 1.0), (1, 3, False, 0.52)]),
    )


@router.get("/patterns")
def patterns_page(request: Request) -> Response:
    """Every component in every state."""
    return templating.render(request, "patterns.html", PatternsPage())
