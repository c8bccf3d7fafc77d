"""Which interval and which test to trust: how often each interval of app.statistics holds the truth, four candidates for
the paired difference, and how often equally good nets and recipes are called different.

Prints the tables of docs/lab/intervals.md and docs/lab/seeds.md. Run ``python -m benchmarks.interval_coverage`` (three
or four minutes on one core).
The methods that lost live here only; the one that won is ``app.statistics.paired_interval``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.compare.shapes import DEFAULT_MARGIN
from app.compare.verdicts import judge
from app.statistics import (
    SeedTest,
    calibration_error,
    holm,
    kappa,
    mcnemar_p,
    normal_quantile,
    paired_interval,
    paired_t,
    recipe_interval,
    t_interval,
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

ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
EVEN_ACCURACIES = tuple(round(0.5 + k / 100, 2) for k in range(50))  # for what is quick; coverage is a sawtooth
IMAGES = (100, 1_000, 10_000)
SEEDS = (2, 3, 5, 10)


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


def hits(random: np.random.Generator, world: World, seeds: int, n: int) -> tuple[list[bool], float]:
    """Whether each interval held the true difference of the two recipes, which is zero, and the width of the wider.

    In the order of the table: seeds only, images only, the wider by paired t, the wider by Welch's t.
    """
    difficulty = random.standard_normal(n)
    a, b = answers(random, world, difficulty, seeds), answers(random, world, difficulty, seeds)
    image_error = float((a.mean(axis=0) - b.mean(axis=0)).var(ddof=1)) / n
    accuracies = a.mean(axis=1).tolist(), b.mean(axis=1).tolist()
    test = paired_t(*accuracies)
    wider, welch = (recipe_interval(t, image_error, n) for t in (test, welch_t(*accuracies)))
    difference = abs(test.difference)
    by_seeds = t_quantile(test.df) * test.squared_error**0.5
    by_images = normal_quantile() * image_error**0.5
    held = [difference <= by_seeds, difference <= by_images, wider.low <= 0 <= wider.high, welch.low <= 0 <= welch.high]
    return held, wider.high - wider.low


def report_recipes(random: np.random.Generator, repeats: int) -> None:
    print(
        "| world | n | seeds each | seeds only | images only | the wider, paired | the wider, Welch | width, paired |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for title, world in WORLDS.items():
        for n in (360, 2000):
            for seeds in SEEDS:
                found = [hits(random, world, seeds, n) for _repeat in range(repeats)]
                cells = " | ".join(f"{share:.1%}" for share in np.mean([held for held, _ in found], axis=0))
                width = np.mean([width for _, width in found]) * 100
                print(f"| {title} | {n:,} | {seeds} | {cells} | {width:.2f} |")


def report_false_alarms(random: np.random.Generator, repeats: int) -> None:
    """How often equal recipes are called different at 0.05: accuracies of seeds drawn from one normal distribution."""
    tests = {"paired t": paired_t, "Welch t": welch_t}
    print("| seeds each | " + " | ".join([*tests, *(f"the wider, {name}" for name in tests)]) + " |")
    print("|---|" + "---|" * 2 * len(tests))
    for seeds in SEEDS:
        pairs = random.normal(0.9, 0.01, (repeats, 2, seeds)).tolist()
        images = 2 * 0.01**2 / 5  # the images are as uncertain as five seeds each
        rates = []
        for image_error in (0.0, images):
            shifts = random.normal(0, image_error**0.5, repeats)  # what other images would have added to the difference
            for test in tests.values():
                found = [test(a, b) for a, b in pairs]
                moved = [SeedTest(t.difference + x, t.squared_error, t.df) for t, x in zip(found, shifts, strict=True)]
                rates.append(np.mean([recipe_interval(t, image_error, 10_000).p_value <= 0.05 for t in moved]))
        print(f"| {seeds} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |")


def report_families(random: np.random.Generator, draws: int, nets: int = 10) -> None:
    """How often some pair of equally good nets is called better."""
    first, second = np.triu_indices(nets, 1)
    level = 1 - 0.05 / len(first)
    rates = []
    for n in IMAGES[1:]:
        alarms = 0
        for _draw in range(draws):
            own = 0.6 * random.standard_normal((nets, n), dtype=np.float32)
            right = (1.5 + random.standard_normal(n, dtype=np.float32) + own > 0).astype(np.float32)
            both = right @ right.T
            only_a, only_b = (both[i, i] - both[first, second] for i in (first, second))
            adjusted = holm(mcnemar_p(only_a, only_b))
            low, high = paired_interval(only_a, only_b, n, level) if adjusted.min() <= 0.05 else (adjusted, adjusted)
            facts = zip((only_a - only_b) / n, low, high, adjusted, strict=True)
            alarms += any("better" in judge(d, lo, hi, p, DEFAULT_MARGIN) for d, lo, hi, p in facts if p <= 0.05)
        rates.append(f"{alarms / draws:.1%} at {n:,} images")
    print(
        f"Of {nets} equally good nets ({len(first)} pairs, {draws:,} draws) some pair was called better in "
        + ", ".join(rates)
        + "."
    )


# Every interval, over accuracies -------------------------------------------------------------------------------------


def cell(held: list[tuple[float, str]]) -> str:
    """Mean coverage, the lowest, and where that was."""
    lowest, place = min(held)
    return f"{np.mean([share for share, _place in held]):.1%}, {lowest:.1%} at {place}"


def pair_of(accuracy: float) -> list[float]:
    """Probabilities of both right, only a, only b, both wrong; b has that accuracy, a makes a fifth fewer errors."""
    error = 1 - accuracy
    return [1 - 1.3 * error, 0.5 * error, 0.3 * error, 0.5 * error]


def wilson_held(random: np.random.Generator, n: int, accuracy: float, draws: int) -> float:
    low, high = wilson_interval(random.binomial(n, accuracy, draws), n)
    return float(((low <= accuracy) & (accuracy <= high)).mean())


def paired_held(random: np.random.Generator, n: int, accuracy: float, draws: int, *, level: float = 0.95) -> float:
    cells = pair_of(accuracy)
    _both, b, c, _neither = random.multinomial(n, cells, draws).T
    low, high = paired_interval(b, c, n, level)
    truth = cells[1] - cells[2]
    return float(((low <= truth) & (truth <= high)).mean())


def kappa_held(random: np.random.Generator, n: int, accuracy: float, draws: int) -> float:
    """Ten classes, the largest ten times the smallest; where both runs are wrong they give one answer half of the time."""
    both, _only_a, _only_b, neither = pair_of(accuracy)
    agree = both + neither / 2
    shares = 1 / np.arange(1, 11)
    shares /= shares.sum()
    apart = np.outer(shares, shares) * (1 - np.eye(10))
    table = agree * np.diag(shares) + (1 - agree) * apart / apart.sum()
    chance = table.sum(axis=0) @ table.sum(axis=1)
    truth = (agree - chance) / (1 - chance)
    a, b = (side.ravel() for side in np.indices(table.shape))
    counts = random.multinomial(n, table.ravel(), draws)
    found = [kappa(np.repeat(a, row), np.repeat(b, row)) for row in counts]
    return float(np.mean([k.low <= truth <= k.high for k in found]))


SHAPES = {"exact": (1.0, 0.0), "too sure": (0.7, -0.2), "not sure enough": (1.5, 0.0), "shifted": (1.0, -0.5)}
_NORMAL = np.asarray([normal_quantile(2 * p - 1) for p in (np.arange(20_000) + 0.5) / 20_000])


def calibration_world(shape: str, accuracy: float) -> tuple[float, float]:
    """(mean logit of the confidences, whose spread is 1.5, so that the accuracy is that one; true calibration error)."""
    low, high = -10.0, 20.0
    for _step in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chances(shape, middle + 1.5 * _NORMAL).mean() < accuracy else (low, middle)
    logits = low + 1.5 * _NORMAL
    return low, float(np.abs(logistic(logits) - chances(shape, logits)).mean())


def logistic(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def chances(shape: str, logits: Floats) -> Floats:
    """Chance of being right, of images with these logits of the confidence."""
    slope, shift = SHAPES[shape]
    return logistic(slope * logits + shift)


def calibration_draws(random: np.random.Generator, n: int, shape: str, mean: float, draws: int) -> Floats:
    """(value, low, high) of each of ``draws`` test sets [draws, 3]."""
    found = []
    for _draw in range(draws):
        logits = mean + 1.5 * random.standard_normal(n)
        error = calibration_error(logistic(logits), random.random(n) < chances(shape, logits))
        found.append((error.value, error.low, error.high))
    return np.array(found)


def report_accuracies(random: np.random.Generator, draws: int, slow_draws: int) -> None:
    """Each interval that rests on images: over 50 accuracies, or 8 with ``slow_draws`` where each image is drawn singly."""
    quick: dict[str, Callable[[np.random.Generator, int, float, int], float]] = {
        "accuracy (Wilson)": wilson_held,
        "paired difference (Tango)": paired_held,
        "paired difference, level 90 % (equivalence)": partial(paired_held, level=0.9),
    }
    rows: dict[str, list[str]] = {}
    for n in IMAGES:
        for name, held in quick.items():
            rows.setdefault(name, []).append(cell([(held(random, n, a, draws), f"{a}") for a in EVEN_ACCURACIES]))
        found = [(kappa_held(random, n, a, 3 * slow_draws), f"{a}") for a in ACCURACIES]
        rows.setdefault("kappa", []).append(cell(found))
        for name, text in calibration_cells(random, n, slow_draws // 2).items():
            rows.setdefault(name, []).append(text)
    print("| interval | " + " | ".join(f"{n:,} images" for n in IMAGES) + " |")
    print("|---|" + "---|" * len(IMAGES))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def calibration_cells(random: np.random.Generator, n: int, draws: int) -> dict[str, str]:
    """Coverage where the true error is above 0 and where it is 0, and what is found there on average."""
    above, none, values = [], [], []
    for shape in SHAPES:
        for accuracy in ACCURACIES:
            mean, truth = calibration_world(shape, accuracy)
            value, low, high = calibration_draws(random, n, shape, mean, draws).T
            if shape == "exact":
                none.append((float((low == 0).mean()), f"{accuracy}"))
                values.append(value)
            else:
                above.append((float(((low <= truth) & (truth <= high)).mean()), f"{accuracy}, {shape}"))
    return {
        "calibration error above 0": cell(above),
        "calibration error of 0": cell(none),
        "found where the error is 0, points": f"{np.mean(values) * 100:.2f}",
    }


def even(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return 0.15 * random.standard_normal(shape)


def skewed(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return -0.3 * random.standard_exponential(shape)


def stuck(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return 0.1 * random.standard_normal(shape) - 1.5 * (random.random(shape) < 0.1)


SPREADS = {"even": even, "skewed to the worse": skewed, "one in ten gets stuck": stuck}  # of a seed's logit


def report_seeds(random: np.random.Generator, draws: int) -> None:
    """Each interval that rests on seeds: the mean of one recipe, and the difference from another whose seeds are even."""
    print("| seeds' accuracies | interval | " + " | ".join(f"{seeds} seeds" for seeds in SEEDS) + " |")
    print("|---|---|" + "---|" * len(SEEDS))
    for title, spread in SPREADS.items():
        rows: dict[str, list[str]] = {"mean (t)": [], "difference (paired t)": [], "difference (Welch)": []}
        for seeds in SEEDS:
            held: dict[str, list[tuple[float, str]]] = {name: [] for name in rows}
            for accuracy in ACCURACIES:
                centre = np.log(accuracy / (1 - accuracy))
                mean, other = (float(logistic(centre + s(random, (400_000,))).mean()) for s in (spread, even))
                a, b = (logistic(centre + s(random, (draws, seeds))).tolist() for s in (spread, even))
                intervals = {
                    "mean (t)": ([t_interval(x) for x in a], mean),
                    "difference (paired t)": (
                        _intervals(paired_t(x, y) for x, y in zip(a, b, strict=True)),
                        mean - other,
                    ),
                    "difference (Welch)": (_intervals(welch_t(x, y) for x, y in zip(a, b, strict=True)), mean - other),
                }
                for name, (found, truth) in intervals.items():
                    held[name].append((float(np.mean([low <= truth <= high for low, high in found])), f"{accuracy}"))
            for name in rows:
                rows[name].append(cell(held[name]))
        for name, cells in rows.items():
            print(f"| {title} | {name} | " + " | ".join(cells) + " |")


def _intervals(tests: Iterator[SeedTest]) -> list[tuple[float, float]]:
    found = (recipe_interval(test, 0.0, 10_000) for test in tests)
    return [(interval.low, interval.high) for interval in found]


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
    parser.add_argument("--repeats", type=int, default=5_000, help="pairs of recipes per scenario")
    parser.add_argument(
        "--slow-draws", type=int, default=2_000, help="test sets per scenario where images are drawn singly"
    )
    parser.add_argument("--quick", action="store_true", help="few draws, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.draws, options.repeats, options.slow_draws = 2_000, 20, 10
    draws, repeats, slow = options.draws, options.repeats, options.slow_draws
    started = time.perf_counter()
    print(
        f"numpy seed {SEED}, {draws:,} test sets for each of {len(list(scenarios()))} scenarios and each n, "
        f"{repeats:,} pairs of recipes a line; {platform.machine()}, numpy {np.__version__}\n"
    )
    reports: list[Callable[[np.random.Generator], None]] = [
        lambda random: report_pairs(random, draws),
        lambda random: report_accuracies(random, draws // 20, slow),
        lambda random: report_seeds(random, repeats // 2),
        lambda random: report_recipes(random, repeats),
        lambda random: report_false_alarms(random, repeats),
        lambda random: report_families(random, slow),
        lambda random: report_looks(random, draws),
    ]
    for number, report in enumerate(reports):
        begun = time.perf_counter()
        report(np.random.default_rng([SEED, number]))
        print(f"\n({time.perf_counter() - begun:.0f} s)\n", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
