"""Checkpoints and predictions on disk: safetensors with a JSON sidecar, never pickle.

Tensors are named ``model.*`` (the weights that were tested), ``training.*`` (the weights that training continues with,
only if the tested weights are a running mean) and ``optimizer.<parameter number>.<name>``. Counters and scalars are in
the sidecar.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.i18n import _
from trainer.run_folder import RunFolder, iter_valid_events, sha256, write_bytes

_SPACE_FOR_LOG_PROBABILITIES = 64 << 20  # bytes per run; above it only the first, best and last epoch keep theirs
_EXTRA = ("log_probabilities", "best_classes", "best_log_probabilities", "label_log_probability")


@dataclass(frozen=True)
class State:
    """Everything that is needed to continue exactly. Tensors may be on the device and change with the next step."""

    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    scalars: dict[str, Any] = field(default_factory=dict)  # JSON values


def save(folder: RunFolder, state: State) -> dict[str, str]:
    """Write the checkpoint of an epoch, then its sidecar; return their paths within the folder with their SHA-256."""
    path = folder.checkpoint_path(state.epoch)
    path.parent.mkdir(exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    sidecar = {"epoch": state.epoch, "step": state.step, **state.scalars}
    files = {
        path: safetensors.torch.save(tensors),
        path.with_suffix(".json"): json.dumps(sidecar, indent=1, allow_nan=False).encode(),
    }
    return {name: digest for file, data in files.items() for name, digest in [_write(folder, file, data)]}


def load(folder: RunFolder, epoch: int) -> State:
    """Read a checkpoint, with tensors on the CPU. Check it with ``is_intact`` first."""
    path = folder.checkpoint_path(epoch)
    scalars = json.loads(path.with_suffix(".json").read_text())
    return State(scalars.pop("epoch"), scalars.pop("step"), safetensors.torch.load_file(path), scalars)


def load_model(folder: RunFolder, epoch: int) -> dict[str, Tensor]:
    """The tested weights only, named as in the model's ``state_dict``, for predicting with a trained net.

    Raises ``FileNotFoundError`` if the checkpoint of the epoch was not kept, and ``ValueError`` if it is not the one
    that the run's log tells of.
    """
    files = _recorded(folder, epoch)
    if files and folder.checkpoint_path(epoch).exists() and not is_intact(folder, epoch, files):
        raise ValueError(
            _("The checkpoint of epoch {epoch} is damaged. Choose another one, or train the run again.").format(
                epoch=epoch
            )
        )
    with safetensors.safe_open(folder.checkpoint_path(epoch), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 (no dictionary)
        return {name.removeprefix("model."): file.get_tensor(name) for name in names}


def _recorded(folder: RunFolder, epoch: int) -> dict[str, str]:
    """The hashes in the latest event of an epoch; empty where there is none."""
    events = (event for event, _end in iter_valid_events(folder.events_path))
    files = [event.get("files") or {} for event in events if event["type"] == "epoch" and event["epoch"] == epoch]
    return files[-1] if files else {}


def is_intact(folder: RunFolder, epoch: int, files: Mapping[str, str]) -> bool:
    """Whether both files of the checkpoint exist and match the SHA-256 in ``files`` (path -> SHA-256)."""
    path = folder.checkpoint_path(epoch)
    try:
        return all(sha256(file) == files.get(_name(folder, file)) for file in (path, path.with_suffix(".json")))
    except OSError:
        return False


def prune(folder: RunFolder, keep: Iterable[int]) -> None:
    """Remove the checkpoints of all epochs but these."""
    kept = {path.stem for path in map(folder.checkpoint_path, keep)}
    for path in folder.checkpoints.glob("epoch-*.*"):
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def remove_leftovers(folder: RunFolder) -> None:
    """Remove temporary files of an attempt that was killed while it wrote. Those of the server's files stay."""
    patterns = {folder.path: ".[em]*.tmp"} | dict.fromkeys(
        (folder.checkpoints, folder.predictions, folder.pictures), ".*.tmp"
    )
    for parent, pattern in patterns.items():
        for path in parent.glob(pattern):
            if not path.name.startswith(".exit-"):  # the host's
                path.unlink(missing_ok=True)


# Predictions --------------------------------------------------------------------------------------------------------


def save_predictions(folder: RunFolder, epoch: int, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """Write the predictions of an epoch; return the path within the folder with its SHA-256."""
    path = folder.predictions_path(epoch)
    path.parent.mkdir(exist_ok=True)
    return dict([_write(folder, path, safetensors.numpy.save({**arrays}))])


def save_labels(folder: RunFolder, labels: NDArray[np.generic]) -> dict[str, str]:
    """Write the labels of the test images as uint16 [N], unless the file has them; return its path with its SHA-256."""
    path, stored = folder.labels_path, labels.astype(np.uint16)
    if not _has_array(path, stored):
        folder.predictions.mkdir(exist_ok=True)
        write_bytes(path, _npy(stored))
    return {_name(folder, path): sha256(path)}


def _has_array(path: Path, array: NDArray[np.generic]) -> bool:
    try:
        return np.array_equal(np.load(path, allow_pickle=False), array)
    except (OSError, ValueError, EOFError, MemoryError):
        return False


def thin_predictions(folder: RunFolder, first: int, best: int, last: int, row_bytes: int) -> None:
    """Once a run has more than 64 MiB of log-probabilities, keep only those of the first, best and last epoch.

    ``row_bytes`` is the size of those of one epoch. The metadata of a reduced file has the hash of the original, as it
    is in the event of the epoch, under ``thinned_from``, and the hash of what follows its header under ``content``.
    """
    if last * row_bytes <= _SPACE_FOR_LOG_PROBABILITIES:
        return
    kept = {folder.predictions_path(epoch) for epoch in (first, best, last)}
    for path in folder.predictions.glob("epoch-*.safetensors"):
        if path not in kept and path.stat().st_size > row_bytes:
            arrays = safetensors.numpy.load_file(path)
            if any(name in arrays for name in _EXTRA):
                small = {name: array for name, array in arrays.items() if name not in _EXTRA}
                metadata = {"thinned_from": sha256(path), "content": _content_hash(safetensors.numpy.save(small))}
                write_bytes(path, safetensors.numpy.save(small, metadata=metadata))


def _content_hash(data: bytes) -> str:
    """SHA-256 of what follows the header of a safetensors file, which does not depend on its metadata."""
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def log_probability_bytes(arrays: Mapping[str, NDArray[np.generic]]) -> int:
    """Size of the log-probabilities of an epoch in bytes."""
    return sum(arrays[name].nbytes for name in _EXTRA if name in arrays)


def _npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _name(folder: RunFolder, file: Path) -> str:
    return file.relative_to(folder.path).as_posix()


def _write(folder: RunFolder, file: Path, data: bytes) -> tuple[str, str]:
    write_bytes(file, data)
    return _name(folder, file), hashlib.sha256(data).hexdigest()
