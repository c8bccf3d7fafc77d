"""One epoch and the test on both sides, the memory that they take, and how near to the machine's limit training comes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.product import peak_of_server
from benchmarks.report import Result, count, number, percent, spread, times
from benchmarks.sides import Bench, Measured, check_same_work, each, interleaved, loop_of, ratio_of

TITLES = {"fc": "FC on MNIST", "cnn": "CNN on MNIST", "lenet": "LeNet on CIFAR-10", "vgg": "VGG on CIFAR-10"}


def epoch_and_test(model: str, bench: Bench) -> Iterator[Result]:
    """fc, cnn or lenet: the notebook's recipe for one epoch, then the test."""
    sides = {
        "notebook loop": lambda seed: bench.notebook(model, seeds=[seed]),
        "notebook loop, 1 thread": lambda seed: bench.notebook(model, seeds=[seed], threads=1),
        "Runoff": lambda seed: bench.runoff([bench.recipe(model, seed=seed)]),
    }
    raw = interleaved(bench.plan.repeats, sides)
    for notebook, runoff in zip(raw["notebook loop"], raw["Runoff"], strict=True):
        check_same_work(loop_of(notebook), loop_of(runoff))
    seconds = {side: each(measured, "seconds") for side, measured in raw.items()}
    ratio = ratio_of(seconds["notebook loop"], seconds["Runoff"])
    yield Result(
        model,
        f"{TITLES[model]}, one epoch and test",
        times(ratio),
        f"{bench.plan.repeats} each",
        sentence=_thread_words(seconds["notebook loop, 1 thread"], seconds["Runoff"]),
        head=["side", "threads", "precision", "seconds", "training", "test"],
        rows=[
            [
                side,
                *_how(measured),
                spread(seconds[side]),
                spread(each(measured, "train_seconds")),
                spread(each(measured, "test_seconds")),
            ]
            for side, measured in raw.items()
        ],
        ratio=ratio,
        raw=raw,
    )


def _thread_words(one_thread: Sequence[float], runoff: Sequence[float]) -> str:
    return (
        f"The notebook's loop uses all cores. Against the same loop on one thread, Runoff is "
        f"{times(ratio_of(one_thread, runoff))}. Cores that Runoff leaves free can train a second run."
    )


def _how(measured: Sequence[Measured]) -> list[str]:
    return [str(measured[0]["threads"]), measured[0]["precision"]]


# vgg -----------------------------------------------------------------------------------------------------------------


def vgg_epoch(bench: Bench) -> Iterator[Result]:
    """vgg: both sides time the same number of steps from the beginning of an epoch, and the whole test."""
    num_train, recipe = bench.num_train("vgg"), bench.recipe("vgg")
    steps = bench.plan.vgg_steps
    part = min(1.0, steps * recipe["batch_size"] / num_train)
    sides = {
        "notebook loop": lambda seed: bench.notebook("vgg", seeds=[seed], steps=steps),
        "Runoff": lambda seed: bench.runoff([{**recipe, "seed": seed, "train_fraction": part}]),
    }
    raw = interleaved(bench.plan.repeats, sides)
    for notebook, runoff in zip(raw["notebook loop"], raw["Runoff"], strict=True):
        check_same_work(loop_of(notebook), loop_of(runoff))
    seconds = {side: [whole_epoch(one, num_train) for one in measured] for side, measured in raw.items()}
    ratio = ratio_of(seconds["notebook loop"], seconds["Runoff"])
    yield Result(
        "vgg",
        f"{TITLES['vgg']}, one epoch and test",
        times(ratio),
        f"{bench.plan.repeats} each",
        sentence=f"The notebook's recipe with its augmentation. Both sides train {loop_of(raw['Runoff'][0])['steps']:,} "
        f"steps from the beginning of an epoch, scaled to its {num_train:,} images, and test on all test images.",
        head=["side", "threads", "precision", "seconds", "images/s in training", "test, seconds"],
        rows=[
            [
                side,
                *_how(measured),
                spread(seconds[side]),
                spread([_rate(loop_of(one)) for one in measured]),
                spread(each(measured, "test_seconds")),
            ]
            for side, measured in raw.items()
        ],
        ratio=ratio,
        raw={**raw, "num_train": num_train},
    )


def whole_epoch(measured: Measured, num_train: int, epochs: int = 1) -> float:
    """Seconds of whole epochs and one test, from those of a part of an epoch."""
    loop = loop_of(measured)
    return float(epochs * loop["train_seconds"] * num_train / loop["num_trained"] + loop["test_seconds"])


def _rate(loop: Mapping[str, Any]) -> float:
    """Images per second of training."""
    return float(loop["num_trained"] / loop["train_seconds"])


def memory(bench: Bench) -> Iterator[Result]:
    """Peak memory of vgg with the notebook's recipe: Runoff over a whole epoch, the notebook's loop over its first steps."""
    steps = bench.plan.memory_steps
    raw = {
        "notebook loop": bench.notebook("vgg", steps=steps, watch=True),
        "Runoff": bench.runoff([bench.recipe("vgg")], watch=True),
        "Runoff's server, with a run": {"peak_mb": peak_of_server(bench.home, bench.recipe("vgg"))},
    }
    peaks = {side: measured["peak_mb"] for side, measured in raw.items()}
    yield Result(
        "memory",
        "Peak memory of VGG training",
        f"{percent(peaks['Runoff'] / peaks['notebook loop'], 0)} of the notebook's",
        "1 each",
        sentence="Training and test. The process with its children, sampled 4 times a second (proportional set size: a page "
        "shared by n processes counts as 1/n, and mapped files count). Runoff trains a whole epoch, the notebook's loop "
        f"{count(steps, 'step')}, with its images in memory from the beginning. The ratio is that of the engine alone. A "
        "server adds the web process and the trainer host, whose size does not depend on the number of runs.",
        head=["side", "MB"],
        rows=[[side, number(peak)] for side, peak in peaks.items()],
        raw=raw,
    )


# The share of the matrix product -------------------------------------------------------------------------------------


def matmul_share(bench: Bench) -> Iterator[Result]:
    """vgg: FLOPs of training against the rate of the matrix product, which is timed between the steps."""
    every, recipe = bench.plan.matmul_every, bench.recipe("vgg")
    part = min(1.0, bench.plan.share_steps * recipe["batch_size"] / bench.num_train("vgg"))

    def training(seed: int) -> Measured:
        return bench.runoff([{**recipe, "seed": seed, "train_fraction": part}], matmul_every=every)

    raw = interleaved(bench.plan.repeats, {"Runoff": training})["Runoff"]
    loops = [loop_of(one) for one in raw]
    reached = [loop["flops_per_image"] * loop["num_trained"] / loop["epochs"][0]["seconds"] / 1e9 for loop in loops]
    shares = [gflops / loop["matmul"]["gflops"] for gflops, loop in zip(reached, loops, strict=True)]
    threads, precision = _how(raw)
    yield Result(
        "share",
        "VGG training, share of the matrix product's rate",
        percent(statistics.median(shares), 0),
        f"{bench.plan.repeats}",
        sentence=f"Training with augmentation: {number(loops[0]['flops_per_image'] / 1e9)} GFLOP per image, which is 6 x "
        f"the multiply-adds of the forward pass, in {precision}, threads: {threads}. The product is the best of 1,024, "
        f"2,048 and 4,096 square (each the median of its rounds) in the same precision and process, timed every {every} "
        "steps while training is paused. The FLOPs are nominal: a convolution by Winograd's method needs fewer "
        "multiplications, so the share can be above 100 %.",
        head=["repeat", "training, GFLOP/s", "matrix product, GFLOP/s", "its size", "its fastest round", "share"],
        rows=[
            [
                str(place),
                number(gflops),
                number(loop["matmul"]["gflops"]),
                f"{loop['matmul']['size']:,}",
                number(loop["matmul"]["fastest"]),
                percent(share, 1),
            ]
            for place, (gflops, loop, share) in enumerate(zip(reached, loops, shares, strict=True), start=1)
        ],
        raw={"Runoff": raw},
    )
