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

_NOTEBOOK = "notebook loop"
NOTEBOOK_EPOCHS = 10  # of vgg
VGG_TARGET = 0.82  # test accuracy of the notebook's recipe after them, in one training with seed 0


def time_to_accuracy(model: str, preset: str, bench: Bench) -> Iterator[Result]:
    """Seconds of the notebook's training and test against seconds until a fast preset has the same test accuracy."""
    epochs = 1 if model == "cnn" else bench.plan.lenet_epochs
    repeats = bench.plan.repeats if epochs == 1 else 1

    def training(seed: int) -> Measured:
        return bench.notebook(model, seeds=[seed], epochs=epochs)

    notebook = interleaved(repeats, {_NOTEBOOK: training})[_NOTEBOOK]
    fast = interleaved(bench.plan.repeats, {preset: partial(_fast_training, bench, preset)})[preset]
    target = statistics.mean(each(notebook, "accuracy"))
    yield _reached(
        model,
        preset,
        each(notebook, "seconds"),
        fast,
        target,
        repeats=f"{repeats} of the notebook, {len(fast)} of Runoff",
        sentence=f"{percent(target)} is the test accuracy of the notebook's recipe after {count(epochs, 'epoch')} (mean "
        "over its seeds); its time is that of the whole training and one test.",
        notebook_row=[accuracies(each(notebook, "accuracy")), str(epochs)],
        raw={_NOTEBOOK: notebook, "Runoff": fast, "target": target},
    )


def vgg_target(bench: Bench) -> Iterator[Result]:
    """Trainings with vgg's fast preset, seeds from 1, each after a part of an epoch by the notebook's loop."""
    preset, steps = "cifar10-vgg-fast", bench.plan.vgg_target_steps
    changes = {"epochs": bench.plan.vgg_epochs} if bench.plan.vgg_epochs else {}
    raw = interleaved(
        bench.plan.repeats,
        {
            _NOTEBOOK: lambda place: bench.notebook("vgg", seeds=[place + 1], steps=steps),
            preset: lambda place: _fast_training(bench, preset, place + 1, **changes),
        },
    )
    yield _reached(
        "vgg",
        preset,
        _notebook_seconds(bench, raw[_NOTEBOOK]),
        raw[preset],
        VGG_TARGET,
        repeats=f"{bench.plan.repeats} each",
        sentence=f"{percent(VGG_TARGET, 1)} is the test accuracy of the notebook's recipe after {NOTEBOOK_EPOCHS} epochs, "
        f"measured once; its time is that of these epochs and one test, scaled from {count(steps, 'step')} of training "
        "before each of Runoff's trainings. The preset was chosen on these test images with seed 0; the seeds here are 1 "
        f"to {bench.plan.repeats}.",
        notebook_row=[f"{percent(VGG_TARGET, 1)}, once", str(NOTEBOOK_EPOCHS)],
        raw={_NOTEBOOK: raw[_NOTEBOOK], "Runoff": raw[preset]},
    )


def _notebook_seconds(bench: Bench, parts: Sequence[Measured]) -> list[float]:
    """Seconds of the notebook's epochs of vgg and one test, from each timing of a part of an epoch."""
    return [whole_epoch(one, bench.num_train("vgg"), NOTEBOOK_EPOCHS) for one in parts]


def _fast_training(bench: Bench, preset: str, seed: int, **changes: Any) -> Measured:
    return bench.runoff([bench.preset(preset, seed=seed, **changes)])


def _reached(
    model: str,
    preset: str,
    notebook: Sequence[float],
    fast: Sequence[Measured],
    target: float,
    *,
    repeats: str,
    sentence: str,
    notebook_row: list[str],
    raw: dict[str, Any],
) -> Result:
    """The result: the notebook's seconds against those until each of Runoff's trainings had the accuracy."""
    reached = [at for one in fast if (at := seconds_to(loop_of(one)["epochs"], target)) is not None]
    ratio = ratio_of(notebook, reached) if len(reached) == len(fast) else None
    return Result(
        f"{model}-target",
        f"{TITLES[model]}, time to {percent(target)}",
        f"not reached in {len(fast) - len(reached)} of {len(fast)} trainings" if ratio is None else times(ratio),
        repeats,
        sentence=f"{sentence} Runoff's time ends with the first epoch whose test reaches this accuracy, and includes "
        "the tests of all epochs until then.",
        head=["side", "seconds to the accuracy", "test accuracy at the end", "epochs"],
        rows=[
            [_NOTEBOOK, spread(notebook), *notebook_row],
            [
                f"Runoff, `{preset}`",
                spread(reached) if reached else "not reached",
                accuracies(each(fast, "accuracy")),
                str(len(loop_of(fast[0])["epochs"])),
            ],
        ],
        ratio=ratio,
        raw=raw,
    )


def seconds_to(epochs: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """When the first epoch with that test accuracy was done; None where none has it."""
    return next((epoch["at_seconds"] for epoch in epochs if epoch["test_accuracy"] >= target), None)


# Long runs of vgg ----------------------------------------------------------------------------------------------------


def vgg_runs(bench: Bench) -> Iterator[Result]:
    """Finished runs of vgg, read from their folders, against the notebook's epochs.

    A run takes an hour, so it is trained beforehand; its epochs are timed at the rate that its config has now, so that
    both sides are of one time; an epoch on smaller images counts as one on full ones. Raises ``ValueError`` where a
    folder or the notebook's side does not serve.
    """
    if not bench.run_folders:
        print("  none: their folders are given with --runs")
        return
    if "vgg-target" not in bench.found:
        raise ValueError(
            "The notebook's side of vgg was not measured yet. Measure vgg-target first, or together with this."
        )
    notebook = _notebook_seconds(bench, bench.found["vgg-target"].raw[_NOTEBOOK])
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
        name,
        f"VGG, time to {percent(VGG_TARGET, 1)} in a run of {count(len(epochs), 'epoch')}",
        f"{to_target}; {percent(last)} in {percent(end / budget, 0)} of the notebook's time",
        f"accuracies 1, timings {len(notebook)} of the notebook and {len(rates)} of Runoff",
        sentence=f"One run with seed {config.seed}, read from its folder; the accuracy is that of its last epoch. The "
        f"notebook's side is {NOTEBOOK_EPOCHS} epochs and one test, scaled from the steps timed above; it reaches "
        f"{percent(VGG_TARGET, 1)} at the end. Runoff's time is training and a test after every epoch, at the rate "
        "measured now on full-size images, also for the epochs on smaller ones. By the run's own clock it took "
        f"{number(_by_its_clock(logged))} s, with saving.",
        head=[
            "side",
            f"seconds to {percent(VGG_TARGET, 1)}",
            "seconds in total",
            "test accuracy at the end",
            "images/s",
        ],
        rows=[
            ["notebook loop", spread(notebook), spread(notebook), percent(VGG_TARGET, 1), "as above"],
            [
                "Runoff",
                "not reached" if reached is None else number(reached),
                number(end),
                percent(last),
                spread(rates),
            ],
        ],
        ratio=ratio,
        raw={"config": config.model_dump(), "epochs": epochs, "notebook": notebook, "Runoff": raw},
    )


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
    part = min(1.0, max(bench.plan.timed_images, config.batch_size) / bench.num_train("vgg"))
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
