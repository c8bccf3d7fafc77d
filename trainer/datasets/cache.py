"""The uint8 cache of decoded images below ``HOME/datasets``: its files, how they are made, and the names never reused.

A cache is made in a folder of its own under the lock of its name, synced and renamed: all of it exists or nothing.
Where the images come from is the business of ``originals`` and ``importing``; numpy is imported inside functions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer.datasets.errors import DatasetError
from trainer.events import Progress
from trainer.i18n import _
from trainer.run_folder import read_json, sync_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]  # [N, channels, height, width]
    Order = NDArray[np.int64]  # [n], rows of Images

Report = Callable[[Progress], None]

SPLITS = ("train", "test")
TEST_PART = 0.2
_SCHEMA = 1
_BLOCK_BYTES = 4 << 20
_SAMPLE_CLASSES, _SAMPLES_PER_CLASS, _SAMPLE_CELL = 10, 4, 32


def folder_of(home: Path, name: str) -> Path:
    """The folder of a finished cache."""
    return home / "datasets" / name


def read_meta(home: Path, name: str) -> dict[str, Any] | None:
    """``meta.json`` of a finished cache, or None where there is none."""
    meta = read_json(folder_of(home, name) / "meta.json")
    return meta if meta is not None and meta.get("schema") == _SCHEMA else None


# One maker at a time -------------------------------------------------------------------------------------------------


def _making_folder(home: Path, name: str) -> Path:
    return home / "datasets" / ".making" / name


@contextmanager
def locked(home: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a name; yields False where another process holds it and ``wait`` is false.

    A POSIX lock: it ends with the process that holds it, whatever happens to it.
    """
    path = home / "datasets" / ".locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while not (taken := _try_lock(file)) and wait:
            time.sleep(0.05)
        yield taken


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def making(home: Path, name: str) -> Iterator[Path]:
    """An empty folder to make a cache in, under the lock of its name; nothing of it is left behind."""
    with locked(home, name):
        folder = _making_folder(home, name)
        for stale in folder.parent.iterdir() if folder.parent.is_dir() else ():
            if stale.name != name:
                clean(home, stale.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clean(home: Path, name: str) -> None:
    """Remove what a killed maker left behind, unless another one is at work."""
    folder = _making_folder(home, name)
    if folder.exists():
        with locked(home, name, wait=False) as taken:
            if taken:
                shutil.rmtree(folder, ignore_errors=True)


# Writing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """One split to be written: ``images[order]`` with ``labels`` (of the same length as ``order``)."""

    images: Images
    order: Order
    labels: NDArray[np.integer[Any]]


def write_cache(
    folder: Path, splits: dict[str, Rows], class_names: Sequence[str], facts: dict[str, Any], report: Report
) -> dict[str, Any]:
    """Write the arrays of both splits, ``samples.png`` and ``meta.json`` into ``folder``; returns the meta data.

    ``facts`` (title, kind, source, ...) goes into the meta data as it is. Reports ``cache`` progress in images.
    """
    total = sum(len(rows.order) for rows in splits.values())
    shape = splits["train"].images.shape[1:]
    meta: dict[str, Any] = {
        "schema": _SCHEMA,
        **facts,
        "image_shape": list(shape),
        "class_names": [*class_names],
    }
    done = 0
    for split, rows in splits.items():
        histogram, meta[f"{split}_fingerprint"] = _write_images(
            folder / f"{split}-images.npy", rows, done, total, report
        )
        _write_labels(folder / f"{split}-labels.npy", rows.labels, len(class_names))
        meta[f"num_{split}"] = len(rows.order)
        meta[f"{split}_counts"] = _counts(rows.labels, len(class_names))
        if split == "train":
            meta["mean"], meta["std"] = _moments(histogram)
        done += len(rows.order)
    _write_samples(folder / "samples.png", splits["train"], len(class_names))
    write_json(folder / "meta.json", meta)
    return meta


def _counts(labels: NDArray[np.integer[Any]], num_classes: int) -> list[int]:
    import numpy as np

    return [int(count) for count in np.bincount(labels, minlength=num_classes)]


def _write_images(path: Path, rows: Rows, done: int, total: int, report: Report) -> tuple[NDArray[np.int64], str]:
    """Write the images in order; returns pixel counts by channel and value [C, 256], and the split's fingerprint.

    The fingerprint is SHA-256 over the shape, all pixels [N, C, H, W] and the labels as little-endian uint16.
    """
    import numpy as np

    shape = (len(rows.order), *rows.images.shape[1:])
    channels, pixels = shape[1], shape[2] * shape[3]
    digest = hashlib.sha256(json.dumps({"shape": shape}).encode())
    histogram = np.zeros((channels, 256), np.int64)
    block = max(1, _BLOCK_BYTES // (channels * pixels))
    with path.open("wb") as file:
        header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, shape[0], block):
            part = np.ascontiguousarray(rows.images[rows.order[start : start + block]])
            file.write(part.data)
            digest.update(part.data)
            for channel in range(channels):
                histogram[channel] += np.bincount(part[:, channel].reshape(-1), minlength=256)
            report(Progress("cache", done + start + len(part), total, "images"))
        digest.update(rows.labels.astype("<u2").tobytes())
        file.flush()
        os.fsync(file.fileno())
    return histogram, digest.hexdigest()


def _write_labels(path: Path, labels: NDArray[np.integer[Any]], num_classes: int) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, labels.astype(np.uint8 if num_classes <= 256 else np.uint16), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _moments(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, from exact counts [C, 256]."""
    import numpy as np

    values = np.arange(256) / 255
    count = histogram.sum(axis=1)
    mean = histogram @ values / count
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    return [float(m) for m in mean], [float(s) for s in np.sqrt(variance)]


def _write_samples(path: Path, rows: Rows, num_classes: int) -> None:
    """A sheet: a column for each of the first ten classes, its first four training images below each other, unscaled."""
    import numpy as np
    from PIL import Image

    channels, height, width = rows.images.shape[1:]
    cell_height, cell_width = max(_SAMPLE_CELL, height), max(_SAMPLE_CELL, width)
    columns = min(num_classes, _SAMPLE_CLASSES)
    sheet = np.zeros((_SAMPLES_PER_CLASS * cell_height, columns * cell_width, channels), np.uint8)
    for column in range(columns):
        chosen = rows.order[np.flatnonzero(rows.labels == column)[:_SAMPLES_PER_CLASS]]
        for row, index in enumerate(chosen):
            top = row * cell_height + (cell_height - height) // 2
            left = column * cell_width + (cell_width - width) // 2
            sheet[top : top + height, left : left + width] = rows.images[index].transpose(1, 2, 0)
    with path.open("wb") as file:
        Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(file, "PNG")
        file.flush()
        os.fsync(file.fileno())


# Names ---------------------------------------------------------------------------------------------------------------


def _tombstone(home: Path, name: str) -> Path:
    return home / "datasets" / ".removed" / f"{name}.json"


def fingerprints_of(home: Path, name: str) -> tuple[str, str] | None:
    """Train and test fingerprint of the images that ``name`` stands for or once stood for, or None if it is free."""
    meta = read_meta(home, name) or read_json(_tombstone(home, name))
    return (meta["train_fingerprint"], meta["test_fingerprint"]) if meta else None


def publish(home: Path, name: str, made: Path) -> None:
    """Give the finished cache in ``made`` its name. Raises ``DatasetError`` where the name stands for other images."""
    meta = read_json(made / "meta.json")
    assert meta is not None
    taken = fingerprints_of(home, name)
    if taken is not None and taken != (meta["train_fingerprint"], meta["test_fingerprint"]):
        raise DatasetError(
            _("The name {name} is already used for other images.").format(name=name),
            _("Choose another name. Runs refer to images by name, so a name is never reused."),
        )
    target = folder_of(home, name)
    if target.exists():
        return
    sync_folder(made)
    made.rename(target)
    sync_folder(target.parent)


def remove(home: Path, name: str) -> None:
    """Remove a finished cache and keep its name and fingerprints; the caller holds the lock of the name."""
    meta = read_meta(home, name)
    assert meta is not None
    tombstone, leaving = _tombstone(home, name), _making_folder(home, name)
    tombstone.parent.mkdir(parents=True, exist_ok=True)
    kept = ("title", "train_fingerprint", "test_fingerprint", "num_train", "num_test", "created_at")
    write_json(tombstone, {key: meta.get(key) for key in kept})
    shutil.rmtree(leaving, ignore_errors=True)
    leaving.parent.mkdir(parents=True, exist_ok=True)
    folder_of(home, name).rename(leaving)
    sync_folder(home / "datasets")
    shutil.rmtree(leaving, ignore_errors=True)


# Random choices that must never change -------------------------------------------------------------------------------


def permutation(length: int, seed: int) -> Order:
    """A random order of 0 .. length - 1, the same on every machine and with every version of numpy.

    The rank of raw PCG64 output: numpy promises that stream for ever, but not the methods built on it (NEP 19).
    """
    import numpy as np

    return np.argsort(np.random.PCG64(seed).random_raw(length), kind="stable").astype(np.int64)


def stratified_test(labels: NDArray[np.integer[Any]], num_classes: int, seed: int = 0) -> NDArray[np.bool_]:
    """Which images to hold out for test: a fifth of each class, at least one image where a class has two.

    The total is a fifth of all, rounded up; its remainder goes to the classes with the largest fractions.
    """
    import numpy as np

    counts = np.bincount(labels, minlength=num_classes)
    quotas = np.floor(counts * TEST_PART).astype(np.int64)
    missing = math.ceil(len(labels) * TEST_PART - 1e-9) - int(quotas.sum())
    fractions = counts * TEST_PART - quotas
    quotas[np.argsort(-np.round(fractions, 9), kind="stable")[:missing]] += 1
    quotas = np.clip(quotas, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
    ranks = permutation(len(labels), seed)
    held_out = np.zeros(len(labels), np.bool_)
    for label in range(num_classes):
        members = ranks[labels[ranks] == label]
        held_out[members[: quotas[label]]] = True
    return held_out
