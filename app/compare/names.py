"""The names of runs in a comparison: letters, and names that are short and differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from app.compare.shapes import ComparedRun
from app.runs.sweeps import without_seed
from trainer.config import MODELS
from trainer.i18n import _


def letter(position: int) -> str:
    """A to Z, then AA, AB, ..."""
    head, tail = divmod(position, 26)
    return (letter(head - 1) if head else "") + chr(ord("A") + tail)


def recipe_name(run: ComparedRun) -> str:
    """The run's name without its seed; its model where it has no name."""
    name = without_seed(run.name)
    model = MODELS.get(str(run.config.get("model")))
    return name or run.name.strip() or (_(model.title) if model else run.id)


def without_shared_parts(names: Sequence[str]) -> list[str]:
    """The names without the parts between commas that all of them share, as runs of a sweep do.

    They stay as they are where nothing, or only a seed, would remain of one.
    """
    parts = [name.split(", ") for name in names]
    shared = set.intersection(*map(set, parts)) if len(set(names)) > 1 else set()
    shorter = [", ".join(part for part in own if part not in shared) for own in parts]
    return shorter if all(map(without_seed, shorter)) else list(names)


def short_names(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Run id -> a short name that no other run has: without seed, else with its seed, else with its letter."""
    plain = without_shared_parts([recipe_name(run) for run in runs])
    seeded = [_with_seed(name, run.seed) for name, run in zip(plain, runs, strict=True)]
    plain_counts, seeded_counts = Counter(plain), Counter(seeded)
    names = {}
    for position, run in enumerate(runs):
        if plain_counts[plain[position]] == 1:
            names[run.id] = plain[position]
        elif seeded_counts[seeded[position]] == 1:
            names[run.id] = seeded[position]
        else:
            names[run.id] = f"{plain[position]} ({run.letter or letter(position)})"
    return names


def _with_seed(name: str, seed: int) -> str:
    words = _("{name}, seed {seed}") if ", " in name else _("{name} seed {seed}")
    return words.format(name=name, seed=seed)


def recipe_names(first_runs: Sequence[tuple[int, ComparedRun]]) -> list[str]:
    """Names of recipes that differ, from the position and the first run of each."""
    names = without_shared_parts([recipe_name(run) for _position, run in first_runs])
    counts = Counter(names)
    return [
        f"{name} ({run.letter or letter(position)})" if counts[name] > 1 else name
        for name, (position, run) in zip(names, first_runs, strict=True)
    ]


def pair_names(a: str, b: str) -> tuple[str, str]:
    """The names of two runs or recipes in sentences about these two alone."""
    first, second = without_shared_parts([a, b])
    return first, second
