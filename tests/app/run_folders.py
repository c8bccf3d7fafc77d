"""Run folders as a run's process leaves them, written without torch: events, answers, checkpoints in miniature."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trainer.config import parse_config
from trainer.events import Cancelled, Epoch, Failed, Finished, Progress, Started, Step
from trainer.run_folder import EventWriter, RunFolder

STEPS = 10  # an epoch
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
ENVIRONMENT = {"device": "cpu", "precision": "float32", "num_threads": 1}


def new_run(runs: Path, **fields: Any) -> RunFolder:
    """A folder that waits in the queue."""
    config, _warnings = parse_config({"dataset": "digits", "model": "fc", "epochs": 3, **fields})
    return RunFolder.create(runs, config, name="a run")


def started(first_epoch: int = 1, epochs: int = 3) -> Started:
    return Started(
        num_parameters=6442,
        device="cpu",
        precision="float32",
        num_threads=1,
        num_train=100,
        num_validation=0,
        num_test=len(LABELS),
        steps_per_epoch=STEPS,
        total_steps=STEPS * epochs,
        first_epoch=first_epoch,
        train_fingerprint="a" * 64,
        test_fingerprint="f" * 64,
        class_names=["zero", "one", "two"],
        image_shape=[1, 8, 8],
        environment=ENVIRONMENT,
    )


def epoch(number: int, correct: int = 6, **values: Any) -> Epoch:
    total = len(LABELS)
    return Epoch(
        **{
            "epoch": number,
            "step": number * STEPS,
            "train_loss": 1 / number,
            "train_accuracy": 0.5,
            "test_loss": 2 / number,
            "test_accuracy": correct / total,
            "test_correct": correct,
            "test_total": total,
            "learning_rate": 0.01,
            "seconds": 2.0,
            "evaluation_seconds": 0.5,
            "images_per_second": 50.0,
            "flops": 4e9,
            "save_seconds": 0.1,
            **values,
        }
    )


def say(folder: RunFolder, events: Iterable[Any], attempt: int = 1, machine: str = "") -> None:
    """Append events as the process of ``attempt`` does, which writes environment.json before the first one."""
    if folder.read_environment() is None:
        folder.write_environment(ENVIRONMENT)
    writer = EventWriter(folder.events_path, attempt)
    for event in events:
        writer.write(replace(event, machine=machine) if isinstance(event, Started) else event)
    writer.close()


def steps(number: int) -> Step:
    """The position after the first step of an epoch, with its loss."""
    step = (number - 1) * STEPS + 1
    return Step(epoch=number, step=step, losses=[[step, 2.0 / step]])


def finish(folder: RunFolder, epochs: int = 3) -> RunFolder:
    """A whole run: events, answers of each epoch, manifest, log."""
    said: list[Any] = [started(epochs=epochs)]
    for number in range(1, epochs + 1):
        said += [steps(number), epoch(number, correct=4 + number)]
        answer(folder, number, correct=4 + number)
    say(folder, said)
    folder.write_manifest()
    say(folder, [Finished(epochs)])
    folder.log_path.write_text("Finished.\n")
    return folder


def answer(folder: RunFolder, number: int, correct: int) -> None:
    """Store the answers of an epoch, the first ``correct`` of them right."""
    folder.predictions.mkdir(exist_ok=True)
    labels = np.array(LABELS, np.uint16)
    predicted = labels.copy()
    predicted[correct:] = (predicted[correct:] + 1) % 3
    np.save(folder.labels_path, labels)
    rows = np.full((len(labels), 3), np.log(0.05), np.float16)
    rows[np.arange(len(labels)), predicted] = np.log(0.9)
    confidence = np.linspace(0.5, 0.99, len(labels), dtype=np.float32)
    tensors: dict[str, Any] = {"predicted": predicted, "confidence": confidence, "log_probabilities": rows}
    save_file(tensors, folder.predictions_path(number))


def tear(folder: RunFolder) -> None:
    """Half a line, as a lost write leaves it."""
    with folder.events_path.open("ab") as file:
        file.write(b'{"seq":99,"type":"ep')


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events_path.read_bytes().splitlines()]


CANCELLED, PROGRESS = Cancelled(1), Progress("cache", 5, 10, "images")
FAILED = Failed("NonFiniteLoss", "The loss is not finite.", "Lower the learning rate.")
