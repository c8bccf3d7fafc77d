"""How often real repeats of one recipe are called two recipes: comparisons of some seeds against as many others.

Each seed is trained once by ``trainer.engine`` (MNIST, the preset ``mnist-fc``, one thread), and each comparison is
``app.compare.comparison``'s, as the compare page asks for it. Any "better" is a false alarm, as the recipe is the same.

Run ``python -m benchmarks.false_alarms``: 2,000 seeds, half an hour on two cores. With ``--results FILE`` the answers of a
finished seed are kept there, a line each, and an interrupted measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app import statistics
from app.compare.comparison import compare
from app.compare.shapes import ComparedRun, Recipe
from app.store.predictions import Predictions
from benchmarks.engine_loop import versions
from trainer import engine, loader
from trainer.config import RunConfig, config_hash, parse_config
from trainer.cores import num_cores
from trainer.datasets import catalogue, worker
from trainer.environment import apply, resolve
from trainer.events import Epoch
from trainer.presets import PRESETS

PRESET = "mnist-fc"
COMPARISONS, SEEDS = 200, 5
ALPHA = 0.05
DEALS = 20_000
_SECONDS_BETWEEN_LINES = 15
Answers = NDArray[np.uint8]  # predicted classes of the test images [N]


# Training ------------------------------------------------------------------------------------------------------------


def recipe(dataset: str, seed: int) -> RunConfig:
    """The preset's configuration; in float32, so that it does not hang on what this machine once measured."""
    base = {**PRESETS[PRESET].base, "dataset": dataset, "seed": seed, "precision": "float32"}
    return parse_config(base)[0]


def answers(home: Path, config: RunConfig) -> Answers:
    """Train and test as ``config`` says, in this process on one thread."""
    dataset = catalogue.get_dataset(home, config.dataset)
    assert dataset.image_shape is not None
    environment = resolve(config, dataset.image_shape, home, num_threads=1)
    apply(environment)
    data = loader.load(home, config, torch.device(environment.device))
    epochs = [event for event in engine.train(config, data, environment) if isinstance(event, Epoch)]
    return np.asarray(epochs[-1].predictions["predicted"], np.uint8)


def _trained(home: Path, dataset: str, seed: int) -> tuple[int, str]:
    return seed, base64.b64encode(zlib.compress(answers(home, recipe(dataset, seed)).tobytes())).decode()


def unpacked(text: str) -> Answers:
    """The answers of a line."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


class Kept:
    """The answers of the seeds trained so far: a file of one JSON object a line, the first says what they are of.

    A torn last line is cut off. Raises ``ValueError`` where the file is of something else.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        self.path, self.of = path, dict(of)
        self.by_seed: dict[int, Answers] = {}
        lines = (
            [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            if path.exists()
            else []
        )
        if lines and json.loads(lines[0]) != self.of:
            raise ValueError(
                f"{path} holds answers of something else: {lines[0].decode().strip()}. Choose another file."
            )
        path.write_bytes(b"".join(lines) or json.dumps(self.of).encode() + b"\n")
        for line in lines[1:]:
            item = json.loads(line)
            self.by_seed[item["seed"]] = unpacked(item["predicted"])

    def add(self, seed: int, predicted: str) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps({"seed": seed, "predicted": predicted}).encode() + b"\n")
        self.by_seed[seed] = unpacked(predicted)


def train_missing(home: Path, dataset: str, seeds: Iterable[int], kept: Kept, processes: int) -> None:
    """Train the seeds that are not kept yet, one in each of ``processes``, and say how it goes."""
    missing = [seed for seed in seeds if seed not in kept.by_seed]
    begin = said = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(_trained, home, dataset, seed) for seed in missing]
        for done, future in enumerate(as_completed(waiting), start=1):
            kept.add(*future.result())
            now = time.monotonic()
            if now - said > _SECONDS_BETWEEN_LINES or done == len(missing):
                said, each = now, (now - begin) / done
                left = (len(missing) - done) * each / 60
                print(f"  {done:,} of {len(missing):,} seeds, {each:.2f} s each, {left:.0f} min left", flush=True)


# Comparing -----------------------------------------------------------------------------------------------------------


def compared(
    seed: int, group: str, dataset: str, fingerprint: str, labels: NDArray[Any], predicted: Answers
) -> ComparedRun:
    """The run as the server brings it to the comparison, except that its group is the side that it is on."""
    config = recipe(dataset, seed)
    return ComparedRun(
        id=f"{group}{seed}",
        name=group,
        config=config.model_dump(),
        group=group,
        seed=seed,
        test_fingerprint=fingerprint,
        epoch=config.epochs,
        epochs_done=config.epochs,
        predictions=Predictions(labels, predicted.astype(np.uint16), np.ones(len(labels), np.float32)),
    )


def compare_sides(sides: Sequence[Sequence[ComparedRun]]) -> Recipe:
    """The recipe question of a comparison: the page shows the first run of each side, and takes all repeats."""
    [result] = compare([side[0] for side in sides], {side[0].group: side for side in sides}).recipes
    return result


def comparisons(num: int, size: int) -> list[tuple[range, range]]:
    """Seeds of both sides of each comparison; no seed is in two of them."""
    return [
        (range(start, start + size), range(start + size, start + 2 * size))
        for start in range(0, 2 * size * num, 2 * size)
    ]


def report(results: Sequence[tuple[Recipe, float]], num_images: int) -> Iterator[str]:
    """What was found, in sentences; with each result goes the p of Welch's test over the seeds alone."""
    n = len(results)

    def rate(count: int) -> str:
        low, high = (float(side) for side in statistics.wilson_interval(count, n))
        return f"{count} of {n}: {count / n:.1%} ({low:.1%} to {high:.1%})"

    verdicts = Counter(found.verdict for found, _alone in results)
    alarms = sum(count for verdict, count in verdicts.items() if verdict in ("a_better", "b_better"))
    significant = sum(found.p_value is not None and found.p_value <= ALPHA for found, _alone in results)
    first = results[0][0]
    apart = [abs(found.difference or 0.0) * 100 for found, _alone in results]
    yield (
        f"{n} comparisons of {first.n_a} seeds against {first.n_b} others ({first.method}), "
        f"{num_images:,} test images; apart {np.median(apart):.2f} points at the median, {max(apart):.2f} at most"
    )
    yield f"one recipe called better: {rate(alarms)}"
    yield f"p at most {ALPHA:g}, whatever the margin: {rate(significant)}"
    yield f"p at most {ALPHA:g} by the seeds alone: {rate(sum(alone <= ALPHA for _found, alone in results))}"
    yield "verdicts: " + ", ".join(f"{verdict} {count}" for verdict, count in sorted(verdicts.items(), key=str))


def measured(
    kept: Kept, num: int, size: int, dataset: str, fingerprint: str, labels: NDArray[Any]
) -> list[tuple[Recipe, float]]:
    """Each comparison, with the p of the seeds alone."""
    results = []
    for sides in comparisons(num, size):
        runs = [
            [compared(seed, group, dataset, fingerprint, labels, kept.by_seed[seed]) for seed in seeds]
            for group, seeds in zip(("one", "other"), sides, strict=True)
        ]
        test = statistics.welch_t(*([run.accuracy for run in side] for side in runs))
        results.append((compare_sides(runs), statistics.recipe_interval(test, 0.0, len(labels)).p_value))
    return results


def regrouped(accuracies: Sequence[float], size: int) -> str:
    """How the seeds spread, and how often Welch's test over seeds finds a difference when they are dealt anew.

    The same seeds serve many times, so this rate is surer than that of the comparisons and has no interval of its own.
    """
    random, values, alarms = np.random.default_rng(0), np.asarray(accuracies), 0
    for _deal in range(DEALS):
        drawn = random.choice(values, 2 * size, replace=False)
        test = statistics.welch_t(*drawn.reshape(2, size).tolist())
        alarms += statistics.recipe_interval(test, 0.0, 1).p_value <= ALPHA
    low, middle, high = (100 * float(q) for q in np.quantile(values, (0, 0.5, 1)))
    return (
        f"seeds: {low:.2f} to {high:.2f}%, median {middle:.2f}, standard deviation {100 * values.std(ddof=1):.2f} points; "
        f"dealt anew {DEALS:,} times: p at most {ALPHA:g} by the seeds alone in {alarms / DEALS:.1%}"
    )


@contextmanager
def opened(home: Path | None, dataset: str) -> Iterator[Path]:
    """A home with the data set in its cache; a temporary one where none is given."""
    with tempfile.TemporaryDirectory(prefix="runoff-false-alarms-") as temporary:
        place = (home or Path(temporary)).resolve()
        os.environ["RUNOFF_HOME"] = str(place)
        for _progress in worker.prepare(place, dataset):
            pass
        yield place


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=COMPARISONS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each side")
    parser.add_argument("--home", type=Path, help="a RUNOFF_HOME with the data set; default: a temporary one")
    parser.add_argument("--results", type=Path, help="keep the answers here, and go on with those that are there")
    parser.add_argument("--processes", type=int, default=num_cores())
    parser.add_argument("--quick", action="store_true", help="two comparisons of two seeds on digits")
    options = parser.parse_args(argv)
    num, size = (2, 2) if options.quick else (options.comparisons, options.seeds)
    dataset = "digits" if options.quick else PRESETS[PRESET].base["dataset"]
    begin = time.monotonic()
    with opened(options.home, dataset) as home, tempfile.TemporaryDirectory() as temporary:
        facts, split = catalogue.get_dataset(home, dataset), catalogue.open_split(home, dataset, "test")
        fingerprint = facts.test_fingerprint or ""
        of = {"recipe": config_hash(recipe(dataset, 0)), "images": fingerprint, "torch": str(torch.__version__)}
        try:
            kept = Kept(options.results or Path(temporary) / "answers.jsonl", of)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        found = len(kept.by_seed)
        train_missing(home, dataset, range(2 * size * num), kept, options.processes)
        results = measured(kept, num, size, dataset, fingerprint, np.asarray(split.labels))
    here = versions()
    print(
        f"{PRESET} on {facts.title}, seeds 0 to {2 * size * num - 1:,}; {here['machine']}, torch {here['torch']}; "
        f"{time.monotonic() - begin:.0f} s, {found:,} seeds were there"
    )
    for line in report(results, len(split.labels)):
        print(line)
    right = [float((predicted == split.labels).mean()) for _seed, predicted in sorted(kept.by_seed.items())]
    print(regrouped(right, size))


if __name__ == "__main__":
    main()
