"""Each optimizer, schedule, precision and kind of net: killed in each epoch, a run ends with the same bits.

A kill is a generator closed in the middle of an epoch, after which only the files are left.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import checkpoint, engine
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.events import Epoch, Started
from trainer.loader import Data
from trainer.run_folder import RunFolder, sha256

pytestmark = pytest.mark.slow

EPOCHS, STEPS_BEFORE_THE_KILL = 3, 3
OPTIMIZERS, SCHEDULES = ("sgd", "adam", "adamw", "muon"), ("constant", "one_cycle")
PRECISIONS, MODELS = ("float32", "bfloat16"), ("cnn", "vgg")
MATRIX = [*itertools.product(OPTIMIZERS, SCHEDULES, PRECISIONS, MODELS)]


def recipe(optimizer: str, schedule: str, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "width": 4,
        "epochs": EPOCHS,
        "optimizer": optimizer,
        "schedule": schedule,
        "learning_rate": 0.002 if optimizer.startswith("adam") else 0.02,
        "momentum": 0.6,
        "augmentation": "crop_flip",
        "label_noise": 0.2,
    }


def attempt(folder: RunFolder, config: RunConfig, data: Data, environment: Environment, last: int | None) -> int:
    """Train from the newest checkpoint on. With ``last`` the attempt is killed in the epoch after it. Returns its epochs."""
    done = [int(path.stem[-4:]) for path in folder.checkpoints.glob("*.safetensors")]
    resume = checkpoint.load(folder, max(done)) if done else None
    torch.manual_seed(len(done) + 1234)  # a new process: nothing may depend on what an earlier one drew
    num_epochs = steps = 0
    with contextlib.closing(engine.train(config, data, environment, resume)) as events:
        for event in events:
            if isinstance(event, Epoch):
                assert isinstance(event.state, State)
                checkpoint.save(folder, event.state)
                checkpoint.save_predictions(folder, event.epoch, event.predictions)
                num_epochs, steps = num_epochs + 1, 0
            elif not isinstance(event, Started):
                steps += 1
            if steps == STEPS_BEFORE_THE_KILL and len(done) + num_epochs == last:
                break
    return num_epochs


def hashes(folder: RunFolder) -> dict[str, str]:
    """Tensors and predictions of each epoch, by file."""
    files = [*folder.checkpoints.glob("*.safetensors"), *folder.predictions.glob("*.safetensors")]
    return {path.relative_to(folder.path).as_posix(): sha256(path) for path in files}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All combinations with ``--full``, as ``make faults`` has it, else some in which each value occurs."""
    if "optimizer" in metafunc.fixturenames:
        chosen = MATRIX if metafunc.config.option.full else MATRIX[::5]
        metafunc.parametrize(("optimizer", "schedule", "precision", "model"), chosen, ids=["-".join(c) for c in chosen])


def test_killed_in_each_epoch_ends_with_the_same_bits(
    make_config: Callable[..., RunConfig],
    make_data: Callable[..., Data],
    tmp_path: Path,
    optimizer: str,
    schedule: str,
    precision: str,
    model: str,
) -> None:
    config = make_config(**recipe(optimizer, schedule, model))
    data = make_data(config, shape=(3, 32, 32) if model == "vgg" else (1, 16, 16))
    environment = Environment("cpu", precision, 1)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    for folder in (whole, killed):
        folder.path.mkdir()
    assert attempt(whole, config, data, environment, last=None) == EPOCHS
    attempts = [attempt(killed, config, data, environment, last) for last in range(EPOCHS)]
    assert attempts == [0, *[1] * (EPOCHS - 1)], "killed in the middle of each epoch"
    assert attempt(killed, config, data, environment, last=None) == 1
    assert hashes(killed) == hashes(whole)
    assert len(hashes(whole)) == 2 * EPOCHS


def test_other_noise_changes_the_bits(
    make_config: Callable[..., RunConfig], make_data: Callable[..., Data], tmp_path: Path
) -> None:
    """The comparison can fail: another seed leads to other tensors."""
    config = make_config(**recipe("sgd", "constant", "cnn"))
    folders = [RunFolder(tmp_path / name) for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        folder.path.mkdir()
        seeded = config.model_copy(update={"seed": seed})
        attempt(folder, seeded, make_data(seeded), Environment("cpu", "float32", 1), last=None)
    one, other = map(hashes, folders)
    assert all(one[name] != other[name] for name in one if name.startswith("checkpoints/"))
