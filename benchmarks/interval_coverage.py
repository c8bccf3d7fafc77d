"""Which interval to trust: coverage of four intervals of a paired difference, and of the recipe interval.

Prints the tables of docs/statistics.md. Run ``python -m benchmarks.interval_coverage`` (a minute or two on one core).
The methods that lost live here only; the one that won is ``app.statistics.paired_interval``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.statistics import (
    normal_quantile,
    paired_interval,
    paired_t,
    recipe_interval,
    t_quantile,
    welch_t,
    wilson_interval,
)

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]
Method = Callable[[Floats, Floats, Floats, int, float], Interval]  # both right, only a, only b, n, level

SEED = 20_250_101
SIZES = (100, 360, 1000, 10_000)
FAMILIES = (1, 10, 435)  # pairs shown at once: the level is 1 - 0.05 / m
DISCORDANCES = (0.02, 0.08, 0.30)
TILTS = (0.0, 0.5, 0.9)  # difference as a part of the discordance
BOTH_WRONG = 0.02


# The candidates ------------------------------------------------------------------------------------------------------


def wald(both: Floats, b: Floats, c: Floats, n: int, level: float) -> Interval:
    """Estimate ± z standard errors, the variance as observed."""
    d = (b - c) / n
    half = normal_quantile(level) * np.sqrt(np.maximum((b + c) / n - d**2, 0) / n)
    return d - half, d + half


def bonett_price(both: Floats, b: Floats, c: Floats, n: int, level: float) -> Interval:
    """Wald after one more image in each cell where the runs disagree.

    Source: D. G. Bonett, R. M. Price (2012), J. Educ. Behav. Stat. 37, 479-488.
    """
    pb, pc = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = normal_quantile(level) * np.sqrt((pb + pc - (pb - pc) ** 2) / (n + 2))
    return pb - pc - half, pb - pc + half


def newcombe(both: Floats, b: Floats, c: Floats, n: int, level: float) -> Interval:
    """Square-and-add of two Wilson intervals with a corrected correlation.

    Source: method 10 of R. G. Newcombe (1998), Stat. Med. 17, 2635-2650.
    """
    neither = n - both - b - c
    a_right, b_right = both + b, both + c
    (low_a, high_a), (low_b, high_b) = wilson_interval(a_right, n, level), wilson_interval(b_right, n, level)
    pa, pb = a_right / n, b_right / n
    product = both * neither - b * c
    corrected = np.where(product > n / 2, product - n / 2, np.minimum(product, 0))
    scale = np.sqrt(a_right * (n - a_right) * b_right * (n - b_right))
    phi = np.divide(corrected, scale, out=np.zeros_like(corrected), where=scale > 0)
    down, up = pa - low_a, high_b - pb
    below = np.sqrt(np.maximum(down**2 - 2 * phi * down * up + up**2, 0))
    up, down = high_a - pa, pb - low_b
    above = np.sqrt(np.maximum(up**2 - 2 * phi * up * down + down**2, 0))
    return pa - pb - below, pa - pb + above


def tango(both: Floats, b: Floats, c: Floats, n: int, level: float) -> Interval:
    """The score interval that the product uses."""
    return paired_interval(b, c, n, level)


METHODS: dict[str, Method] = {"Wald": wald, "Bonett-Price": bonett_price, "Newcombe": newcombe, "Tango": tango}


# Two runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth, and how wide it was (points, mean)."""

    held: float
    width: float


def scenarios() -> Iterator[tuple[float, float]]:
    """Probabilities of (only a right, only b right)."""
    for d in DISCORDANCES:
        for tilt in TILTS:
            yield d * (1 + tilt) / 2, d * (1 - tilt) / 2


def measure(
    random: np.random.Generator, n: int, only_a: float, only_b: float, draws: int
) -> dict[tuple[str, int], Coverage]:
    """Coverage of each method in each family size, over ``draws`` test sets of ``n`` images."""
    cells = [1 - only_a - only_b - BOTH_WRONG, only_a, only_b, BOTH_WRONG]
    tables, weights = np.unique(random.multinomial(n, cells, size=draws)[:, :3], axis=0, return_counts=True)
    pairs, which = np.unique(tables[:, 1] * (n + 1) + tables[:, 2], return_inverse=True)
    both, b, c = tables.astype(np.float64).T
    share, truth = weights / draws, only_a - only_b
    results = {}
    for m in FAMILIES:
        for name, method in METHODS.items():
            level = 1 - 0.05 / m
            if name == "Newcombe":
                low, high = method(both, b, c, n, level)
            else:  # depends on the disagreements only: far fewer different tables
                pb, pc = (pairs // (n + 1)).astype(np.float64), (pairs % (n + 1)).astype(np.float64)
                low, high = (side[which] for side in method(pb, pb, pc, n, level))
            held = float(share @ ((low <= truth) & (truth <= high)))
            results[name, m] = Coverage(held, float(share @ (high - low)) * 100)
    return results


def report_pairs(random: np.random.Generator, draws: int) -> None:
    measured = {n: [measure(random, n, b, c, draws) for b, c in scenarios()] for n in SIZES}
    print("| level | method | " + " | ".join(f"n = {n:,}" for n in SIZES) + " |")
    print("|---|---|" + "---|" * len(SIZES))
    for m in FAMILIES:
        digits = len(str(m))
        for name in METHODS:
            cells = []
            for n in SIZES:
                found = [result[name, m] for result in measured[n]]
                held = [c.held for c in found]
                width = np.mean([c.width for c in found])
                cells.append(f"{np.mean(held):.{digits}%}, {min(held):.{digits}%}, {width:.2f}")
            print(f"| {1 - 0.05 / m:.{digits}%} (m = {m}) | {name} | " + " | ".join(cells) + " |")


# Two recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Where answers come from: an image is answered right when skill + difficulty + noises are above zero.

    Spreads of what an image does to one recipe, of a seed's skill, and of what a seed does to an image; the difficulty
    that all share has spread 1.
    """

    recipe: float
    seed: float
    noise: float
    skill: float = 1.5


WORLDS = {
    "seeds matter little": World(0.3, 0.02, 0.5),
    "seeds matter": World(0.3, 0.10, 0.5),
    "seeds matter most": World(0.1, 0.30, 0.3),
}


def answers(random: np.random.Generator, world: World, difficulty: Floats, seeds: int) -> NDArray[np.bool_]:
    """Right or wrong [seeds, images] of one recipe."""
    n = len(difficulty)
    image = difficulty + world.recipe * random.standard_normal(n)
    seed = world.seed * random.standard_normal((seeds, 1))
    return world.skill + image + seed + world.noise * random.standard_normal((seeds, n)) > 0


def hits(random: np.random.Generator, world: World, seeds: int, n: int, paired: bool) -> tuple[list[bool], float]:
    """Whether each interval held the true difference of the two recipes, which is zero, and the width of the last."""
    difficulty = random.standard_normal(n)
    a, b = answers(random, world, difficulty, seeds), answers(random, world, difficulty, seeds)
    test = (paired_t if paired else welch_t)(a.mean(axis=1).tolist(), b.mean(axis=1).tolist())
    image_error = float((a.mean(axis=0) - b.mean(axis=0)).var(ddof=1)) / n
    by_seeds = t_quantile(test.df) * test.squared_error**0.5
    by_images = normal_quantile() * image_error**0.5
    wider = recipe_interval(test, image_error, n)
    difference = abs(test.difference)
    return [difference <= by_seeds, difference <= by_images, wider.low <= 0 <= wider.high], wider.high - wider.low


def report_recipes(random: np.random.Generator, repeats: int) -> None:
    print(
        "| world | n | seeds each | seeds only | images only | the wider, paired | the wider, Welch | width, paired |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for title, world in WORLDS.items():
        for n in (360, 2000):
            for seeds in (2, 3, 5):
                paired = [hits(random, world, seeds, n, True) for _repeat in range(repeats)]
                welch = [hits(random, world, seeds, n, False) for _repeat in range(repeats)]
                shares = np.mean([held for held, _ in paired], axis=0)
                width = np.mean([width for _, width in paired]) * 100
                other = np.mean([held[2] for held, _ in welch])
                cells = " | ".join(f"{share:.1%}" for share in [*shares, other])
                print(f"| {title} | {n:,} | {seeds} | {cells} | {width:.2f} |")


def report_looks(random: np.random.Generator, repeats: int) -> None:
    """The false-alarm rate of testing again after each addition of equally many values, against the table in use."""
    sums = random.standard_normal((repeats, 10)).cumsum(axis=1)
    alarms = (np.abs(sums) / np.sqrt(np.arange(1, 11)) > normal_quantile()).cumsum(axis=1) > 0
    print("| looks | " + " | ".join(str(k) for k in range(1, 11)) + " |")
    print("|---|" + "---|" * 10)
    print("| false alarms | " + " | ".join(f"{rate:.1%}" for rate in alarms.mean(axis=0)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400_000, help="test sets per scenario")
    parser.add_argument("--repeats", type=int, default=4_000, help="pairs of recipes per scenario")
    parser.add_argument("--quick", action="store_true", help="few draws, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.draws, options.repeats = 2_000, 20
    random, started = np.random.default_rng(SEED), time.perf_counter()
    print(f"numpy seed {SEED}, {options.draws:,} test sets for each of {len(list(scenarios()))} scenarios and each n, "
          f"{options.repeats:,} pairs of recipes a line; {platform.machine()}, numpy {np.__version__}\n")  # fmt: skip
    report_pairs(random, options.draws)
    print()
    report_recipes(random, options.repeats)
    print()
    report_looks(random, options.draws)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
