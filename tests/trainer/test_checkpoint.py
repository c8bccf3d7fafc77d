"""Checkpoints come back as they were, damage is seen, and what is kept is thinned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray

from trainer import checkpoint
from trainer.checkpoint import State
from trainer.run_folder import RunFolder, sha256


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def state(epoch: int) -> State:
    tensors = {"model.weight": torch.randn(3, 4), "optimizer.0.step": torch.tensor(7.0), "model.count": torch.tensor(3)}
    return State(epoch, epoch * 10, tensors, {"patience": {"best": 0.5, "best_epoch": 1}})


def test_comes_back_as_it_was(folder: RunFolder) -> None:
    saved = state(5)
    files = checkpoint.save(folder, saved)
    assert [*files] == ["checkpoints/epoch-0005.safetensors", "checkpoints/epoch-0005.json"]
    assert all(sha256(folder.path / name) == digest for name, digest in files.items())
    assert checkpoint.is_intact(folder, 5, files)
    loaded = checkpoint.load(folder, 5)
    assert (loaded.epoch, loaded.step, loaded.scalars) == (5, 50, saved.scalars)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in saved.tensors.items())
    assert [*checkpoint.load_model(folder, 5)] == ["count", "weight"]


def test_damage_is_seen(folder: RunFolder) -> None:
    files = checkpoint.save(folder, state(1))
    path = folder.checkpoint_path(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not checkpoint.is_intact(folder, 1, files)
    path.unlink()
    assert not checkpoint.is_intact(folder, 1, files)


def test_prune_keeps_what_it_should(folder: RunFolder) -> None:
    for epoch in range(1, 5):
        checkpoint.save(folder, state(epoch))
    checkpoint.prune(folder, {2, 4})
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "epoch-0002.json",
        "epoch-0002.safetensors",
        "epoch-0004.json",
        "epoch-0004.safetensors",
    ]


def test_leftovers_of_a_killed_attempt_go(folder: RunFolder) -> None:
    checkpoint.save(folder, state(1))
    (folder.checkpoints / ".epoch-0002.safetensors.ab12.tmp").write_bytes(b"half")
    checkpoint.remove_leftovers(folder)
    assert len([*folder.checkpoints.iterdir()]) == 2


def test_log_probabilities_are_thinned_past_the_limit(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SPACE_FOR_LOG_PROBABILITIES", 3_000)
    digests: dict[str, str] = {}
    for epoch in range(1, 6):
        arrays: dict[str, NDArray[np.generic]] = {
            "predicted": np.zeros(50, np.uint16),
            "confidence": np.ones(50, np.float32),
            "log_probabilities": np.zeros((50, 10), np.float16),
        }
        digests |= checkpoint.save_predictions(folder, epoch, arrays)
        checkpoint.thin_predictions(folder, 1, 2, epoch, checkpoint.log_probability_bytes(arrays))
    kept = [
        epoch
        for epoch in range(1, 6)
        if "log_probabilities" in safetensors.numpy.load_file(folder.predictions_path(epoch))
    ]
    assert kept == [1, 2, 5]
    assert len(safetensors.numpy.load_file(folder.predictions_path(4))["predicted"]) == 50
    with safetensors.safe_open(folder.predictions_path(4), framework="np") as file:
        assert file.metadata()["thinned_from"] == digests["predictions/epoch-0004.safetensors"]
