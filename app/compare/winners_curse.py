"""The winner's curse: the best of several runs, chosen by the images that it is shown on, looks better than it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.compare.shapes import BestOf, ComparedRun
from app.statistics import best_of_n_optimism
from app.words import rounded_percent, short_points
from trainer.i18n import _

_FEWEST_TO_CHOOSE_FROM = 3


def best_of(runs: Sequence[ComparedRun], names: Mapping[str, str]) -> BestOf | None:
    """The best of the runs, and how optimistic its accuracy is; None below three runs that were tested on the same images.

    Runs that were tested on other images than most do not take part.
    """
    by_images: dict[tuple[str, int], list[ComparedRun]] = {}
    for run in runs:
        if run.predictions is not None:
            by_images.setdefault(run.images_key, []).append(run)
    candidates = max(by_images.values(), key=len, default=[])
    if len(candidates) < _FEWEST_TO_CHOOSE_FROM or candidates[0].known.num_images < 2:
        return None
    best = max(candidates, key=lambda run: run.accuracy)
    optimism = best_of_n_optimism(np.stack([run.correct for run in candidates]))
    text = _note(names[best.id], len(candidates), best.accuracy, optimism)
    return BestOf(run=best.id, num_runs=len(candidates), accuracy=best.accuracy, optimism=optimism, text=text)


def _note(name: str, num_runs: int, accuracy: float, optimism: float) -> str:
    first = _(
        "{name} is the best of {n} runs on the same images that were used to choose it, so its {accuracy} is optimistic"
    )
    if short_points(max(optimism, 0)) == "0.00" or optimism <= 0:
        last = _("; random halves of the images show no drop.")
    else:
        last = _(
            ", by about {points} points (chosen on one half of the images, read on the other; 1,000 random halves)."
        )
    return (first + last).format(
        name=name, n=f"{num_runs:,}", accuracy=rounded_percent(accuracy), points=short_points(max(optimism, 0))
    )
