"""Sweeps as pure functions: in which order their runs start, their names, which fields vary, and what each field did.

Nothing here reads the database (``app.store.queries``) or starts anything (``app.runs.commands``).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from app.words import value_words
from trainer.config import FIELDS, RunConfig
from trainer.i18n import _

LONGEST_NAME = 120
NOT_FACTORS = ("seed", "device", "deterministic")  # repeats and machines differ in these
LAST_SEED = 2**32 - 1


# Starting ------------------------------------------------------------------------------------------------------------


def spread_order(groups: Sequence[str], sweep_id: str) -> list[int]:
    """The order in which the runs of a sweep start, as positions in ``groups`` (the group of each planned run).

    They start in rounds: the first repeat of every group, then the second of every group, and so on, each round shuffled.
    So the part that has run is always a random sample of the grid, and each combination has run once after one round.
    ``sweep_id`` is the seed: the same sweep has the same order.
    """
    chance = random.Random(sweep_id)
    rounds: dict[int, list[int]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for position, group in enumerate(groups):
        rounds[seen[group]].append(position)
        seen[group] += 1
    for members in rounds.values():
        chance.shuffle(members)
    return [position for number in sorted(rounds) for position in rounds[number]]


def next_seeds(taken: Collection[int], count: int) -> list[int]:
    """``count`` seeds that are not ``taken``: those after the highest one, or the lowest free ones where it is the last."""
    first = max(taken, default=-1) + 1
    if first + count - 1 <= LAST_SEED:
        return [*range(first, first + count)]
    free = (seed for seed in range(LAST_SEED + 1) if seed not in taken)
    return [next(free) for _number in range(count)]


def run_name(stem: str, config: RunConfig, varying: Iterable[str], *, with_seed: bool) -> str:
    """The stem, which may be empty, with the values that vary within the sweep, the seed last.

    A field that does not apply to the run is left out. Where the name is too long, the stem is cut.
    """
    parts = [
        f"{field} {value_words(value)}"
        for field in varying
        if field != "seed" and (value := getattr(config, field)) is not None
    ]
    if with_seed:
        parts.append(_("seed {seed}").format(seed=config.seed))
    values = ", ".join(parts)
    if not stem or not values:
        return (stem or values)[:LONGEST_NAME]
    return f"{stem[: max(LONGEST_NAME - len(values) - 2, 20)]}, {values}"[:LONGEST_NAME]


def without_seed(name: str) -> str:
    """A name without the "seed 3" at its end: the name that all repeats share."""
    return re.sub(r"[\s,;·-]*\bseed\s+\d+$", "", name.strip(), flags=re.IGNORECASE)


def common_name(names: Sequence[str]) -> str:
    """The parts between commas with which all names begin; empty where there are none."""
    parts = [name.split(", ") for name in names]
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ", ".join(column[0] for column in shared)


# What varies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factor:
    """A field whose value varies within a sweep, with its values in order."""

    field: str
    title: str
    values: list[Any]

    def place(self, config: Mapping[str, Any]) -> int:
        """The position of the config's value among ``values``; -1 where the field does not apply to it."""
        value = config.get(self.field)
        return self.values.index(value) if value in self.values else -1

    def words(self, value: Any) -> str:
        """A value as text."""
        if value is None:
            return _("default") if self.field == "width" else _("off")
        return value_words(value)

    @property
    def labels(self) -> list[str]:
        return [self.words(value) for value in self.values]

    def label(self, config: Mapping[str, Any]) -> str:
        """The value of the config as text; a dash if the field does not apply."""
        place = self.place(config)
        return self.labels[place] if place >= 0 else "–"


def factors_of(configs: Sequence[Mapping[str, Any]]) -> list[Factor]:
    """The fields that vary among the configs, in the order of ``RunConfig``; never the seed.

    None counts as a value only of fields whose default it is; elsewhere it means that the field does not apply.
    """
    factors = []
    for field, info in FIELDS.items():
        if field in NOT_FACTORS:
            continue
        distinct = dict.fromkeys(config.get(field) for config in configs)
        values = [value for value in distinct if value is not None or info.default is None]
        if len(values) > 1:
            factors.append(Factor(field, _(info.title or field), sorted(values, key=_order)))
    return factors


def _order(value: Any) -> tuple[bool, bool, Any]:
    """None first, then numbers, then texts."""
    return (value is not None, isinstance(value, str), 0 if value is None else value)


# One factor at a time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The result of one finished run of a sweep; ``accuracy`` is a fraction."""

    config: Mapping[str, Any]
    group: str
    accuracy: float


@dataclass(frozen=True)
class Level:
    """One value of a factor: the accuracies of the runs that have it, rising, and their mean (None without a run).

    The mean counts each combination of the other fields once, however many repeats it has.
    """

    label: str
    accuracies: list[float]
    mean: float | None

    @property
    def lowest(self) -> float | None:
        return self.accuracies[0] if self.accuracies else None

    @property
    def highest(self) -> float | None:
        return self.accuracies[-1] if self.accuracies else None


def levels_of(factor: Factor, results: Sequence[Result]) -> list[Level]:
    """The results by value of the factor, whatever the other fields are."""
    return [_level(label, [r for r in results if factor.place(r.config) == i]) for i, label in enumerate(factor.labels)]


def _level(label: str, results: Sequence[Result]) -> Level:
    groups: dict[str, list[float]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result.accuracy)
    means = [sum(values) / len(values) for values in groups.values()]
    return Level(label, sorted(r.accuracy for r in results), sum(means) / len(means) if means else None)


def is_balanced(factor: Factor, factors: Sequence[Factor], results: Sequence[Result]) -> bool:
    """Whether the results combine every value of ``factor`` with the same values of the others.

    Only then does the difference of two means show the effect of this field alone.
    """
    others = [other for other in factors if other.field != factor.field]
    combinations: list[set[tuple[int, ...]]] = [set() for _value in factor.values]
    for result in results:
        place = factor.place(result.config)
        if place >= 0:
            combinations[place].add(tuple(other.place(result.config) for other in others))
    return all(these == combinations[0] for these in combinations)
