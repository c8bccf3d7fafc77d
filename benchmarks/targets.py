"""Time to the test accuracy that the notebook's recipe ends with: its loop against the fast presets."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.epochs import TITLES, whole_epoch
from benchmarks.report import Result, accuracies, count, number, percent, spread, times
from benchmarks.sides import Bench, Measured, each, interleaved, loop_of, ratio_of
from trainer.config import RunConfig
from trainer.datasets import catalogue
from trainer.run_folder import RunFolder, iter_valid_events

NOTEBOOK_EPOCHS = 10  # of vgg
VGG_TARGET = 0.82  # test accuracy of the notebook's recipe after them, in one training with seed 0


def time_to_accuracy(model: str, preset: str, bench: Bench) -> Iterator[Result]:
    """Seconds of the notebook's training and test against seconds until a fast preset has the same test accuracy."""
    epochs = 1 if model == "cnn" else bench.plan.lenet_epochs
    repeats = bench.plan.repeats if epochs == 1 else 1

    def training(seed: int) -> Measured:
        return bench.notebook(model, seeds=[seed], epochs=epochs)

    def fast_training(seed: int) -> Measured:
        return bench.runoff([bench.preset(preset, seed=seed)])

    notebook = interleaved(repeats, {"notebook loop": training})["notebook loop"]
    fast = interleaved(bench.plan.repeats, {f"Runoff, {preset}": fast_training})[f"Runoff, {preset}"]
    target, seconds = statistics.mean(each(notebook, "accuracy")), each(notebook, "seconds")
    reached = [at for one in fast if (at := seconds_to(loop_of(one)["epochs"], target)) is not None]
    ratio = ratio_of(seconds, reached) if len(reached) == len(fast) else None
    yield Result(
        f"{model}-target", f"{TITLES[model]}, time to {percent(target)}",
        f"not reached in {len(fast) - len(reached)} of {len(fast)} trainings" if ratio is None else times(ratio),
        f"{repeats} of the notebook, {len(fast)} of Runoff",
        sentence=f"{percent(target)} is the test accuracy of the notebook's recipe after {count(epochs, 'epoch')} (mean "
        "over its seeds), and its time is that of the whole training and one test. Runoff's time is that until the end "
        "of the first epoch whose test reaches it, with the tests of all epochs so far.",
        head=["side", "seconds to the accuracy", "test accuracy at the end", "epochs"],
        rows=[
            ["notebook loop", spread(seconds), accuracies(each(notebook, "accuracy")), str(epochs)],
            [f"Runoff, `{preset}`", spread(reached) if reached else "not reached", accuracies(each(fast, "accuracy")),
             str(len(loop_of(fast[0])["epochs"]))],
        ],
        ratio=ratio, raw={"notebook loop": notebook, "Runoff": fast, "target": target},
    )  # fmt: skip


def seconds_to(epochs: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """When the first epoch with that test accuracy was done; None where none has it."""
    return next((epoch["at_seconds"] for epoch in epochs if epoch["test_accuracy"] >= target), None)


# Long runs of vgg ----------------------------------------------------------------------------------------------------


def vgg_target(bench: Bench) -> Iterator[Result]:
    """One training with vgg's fast preset, seed 0, against the notebook's epochs. Raises ``ValueError`` before ``vgg``."""
    notebook, preset = _notebook_seconds(bench), "cifar10-vgg-fast"
    changes = {"epochs": bench.plan.vgg_epochs} if bench.plan.vgg_epochs else {}
    measured = bench.runoff([bench.preset(preset, seed=0, **changes)])
    epochs = loop_of(measured)["epochs"]
    reached, last = seconds_to(epochs, VGG_TARGET), epochs[-1]
    ratio = None if reached is None else statistics.median(notebook) / reached
    yield Result(
        "vgg-target", f"VGG, time to {percent(VGG_TARGET, 1)}", "not reached" if ratio is None else times(ratio),
        f"accuracies 1, timings {len(notebook)} of the notebook and 1 of Runoff",
        sentence=f"{percent(VGG_TARGET, 1)} is the test accuracy of the notebook's recipe after {NOTEBOOK_EPOCHS} epochs; "
        "its time is that of those epochs and one test, scaled from the steps timed above. Runoff's time is that until "
        "the end of the first epoch whose test reaches it, with the tests of all epochs so far.",
        head=["side", f"seconds to {percent(VGG_TARGET, 1)}", "seconds in all", "test accuracy after each epoch"],
        rows=[
            ["notebook loop", spread(notebook), spread(notebook), f"{percent(VGG_TARGET, 1)} at the end"],
            [f"Runoff, `{preset}`", "not reached" if reached is None else number(reached), number(last["at_seconds"]),
             ", ".join(percent(epoch["test_accuracy"]) for epoch in epochs)],
        ],
        ratio=ratio, raw={"notebook": notebook, "Runoff": measured},
    )  # fmt: skip


def _notebook_seconds(bench: Bench) -> list[float]:
    """Seconds of the notebook's epochs of vgg and one test, from each timing of a part of an epoch."""
    if "vgg" not in bench.found:
        raise ValueError("The notebook's side of vgg was not measured yet. Measure vgg first, or together with this.")
    vgg = bench.found["vgg"].raw
    return [whole_epoch(one, vgg["num_train"], NOTEBOOK_EPOCHS) for one in vgg["notebook loop"]]


def vgg_runs(bench: Bench) -> Iterator[Result]:
    """Finished runs of vgg, read from their folders, against the notebook's epochs.

    A run takes an hour, so it is trained beforehand; its epochs are timed at the rate that its config has now, so that
    both sides are of one time; an epoch on smaller images counts as one on full ones. Raises ``ValueError`` where a
    folder or the notebook's side does not serve.
    """
    if not bench.run_folders:
        print("  none: their folders are given with --runs")
        return
    notebook = _notebook_seconds(bench)
    for place, path in enumerate(bench.run_folders, start=1):
        yield _vgg_run(bench, f"vgg-run-{place}", RunFolder(path), notebook)


def _vgg_run(bench: Bench, name: str, folder: RunFolder, notebook: Sequence[float]) -> Result:
    config, logged = read_run(bench, folder)
    raw = interleaved(bench.plan.repeats, {"Runoff": partial(_part_of_an_epoch, bench, config)})["Runoff"]
    rates = [loop_of(one)["num_trained"] / loop_of(one)["epochs"][0]["seconds"] for one in raw]
    epochs = at_rate(logged, statistics.median(rates), statistics.median(each(raw, "test_seconds")))
    reached, last, budget = seconds_to(epochs, VGG_TARGET), logged[-1]["test_accuracy"], statistics.median(notebook)
    ratio = None if reached is None else budget / reached
    to_target = percent(VGG_TARGET, 1) + (" not reached" if ratio is None else f" {times(ratio)}")
    end = epochs[-1]["at_seconds"]
    return Result(
        name, f"VGG, time to {percent(VGG_TARGET, 1)} in a run of {count(len(epochs), 'epoch')}",
        f"{to_target}; {percent(last)} in {percent(end / budget, 0)} of the notebook's time",
        f"accuracies 1, timings {len(notebook)} of the notebook and {len(rates)} of Runoff",
        sentence=f"One run with seed {config.seed}, read from its folder; the accuracy is that of its last epoch. The "
        f"notebook's side is {NOTEBOOK_EPOCHS} epochs and one test, scaled from the steps timed above, and reaches "
        f"{percent(VGG_TARGET, 1)} at its end. Runoff's seconds count training and a test after every epoch at the rate "
        "measured now on full images, for epochs on smaller ones as well; by the run's own clock it was "
        f"{number(_by_its_clock(logged))} s with saving.",
        head=["side", f"seconds to {percent(VGG_TARGET, 1)}", "seconds in all", "test accuracy at the end", "images/s"],
        rows=[
            ["notebook loop", spread(notebook), spread(notebook), percent(VGG_TARGET, 1), "as above"],
            ["Runoff", "not reached" if reached is None else number(reached), number(end), percent(last), spread(rates)],
        ],
        ratio=ratio,
        raw={"config": config.model_dump(), "epochs": epochs, "notebook": notebook, "Runoff": raw},
    )  # fmt: skip


def read_run(bench: Bench, folder: RunFolder) -> tuple[RunConfig, list[dict[str, Any]]]:
    """Config and epoch lines of a finished run. Raises ``ValueError`` where it is no run on this benchmark's images."""
    config = folder.read_config()
    events = [event for event, _end in iter_valid_events(folder.events_path)]
    epochs = [event for event in events if event["type"] == "epoch"]
    if not epochs or events[-1]["type"] != "finished":
        raise ValueError(f"{folder.path} is not the folder of a finished run.")
    images = catalogue.get_dataset(bench.home, bench.dataset("vgg"))
    begun = next(event for event in events if event["type"] == "started")
    if (begun["train_fingerprint"], begun["test_fingerprint"]) != (images.train_fingerprint, images.test_fingerprint):
        raise ValueError(f"{folder.path} was trained or tested on other images than the notebook's loop here.")
    return config, epochs


def _part_of_an_epoch(bench: Bench, config: RunConfig, seed: int) -> Measured:
    """A part of one epoch of a run's config, and its test."""
    part = min(1.0, bench.plan.share_steps * config.batch_size / bench.num_train("vgg"))
    changes = {"dataset": bench.dataset("vgg"), "epochs": 1, "seed": seed, "train_fraction": part}
    return bench.runoff([{**config.model_dump(exclude_none=True), **changes}])


def at_rate(epochs: Sequence[Mapping[str, Any]], images_per_second: float, test_seconds: float) -> list[dict[str, Any]]:
    """The epochs with ``at_seconds``, their end, had they been trained at this rate and tested in that time."""
    timed: list[dict[str, Any]] = []
    end = 0.0
    for epoch in epochs:
        end += epoch["images_per_second"] * epoch["seconds"] / images_per_second + test_seconds
        timed.append({**epoch, "at_seconds": end})
    return timed


def _by_its_clock(epochs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training, tests and saving as the run logged them."""
    return float(sum(one["seconds"] + one["evaluation_seconds"] + (one["save_seconds"] or 0) for one in epochs))
