"""The uint8 cache of decoded images below ``HOME/datasets``: its files, how they are made, and the names never reused.

A cache is made in a folder of its own under the lock of its name, synced and renamed: all of it exists or nothing.
Where the images come from is the business of ``originals`` and ``importing``; numpy is imported inside functions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
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

from trainer.datasets import integrity
from trainer.datasets.errors import DatasetError
from trainer.datasets.meta import META, SCHEMA, SPLITS, Meta, Removed, crc_of, folder_of, read_meta_file
from trainer.events import Progress
from trainer.i18n import _
from trainer.run_folder import sync_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]  # [N, channels, height, width]
    Order = NDArray[np.int64]  # [n], rows of Images

__all__ = ["SPLITS", "folder_of"]  # and what is defined here

Report = Callable[[Progress], None]

TEST_PART = 0.2
_BLOCK_BYTES = 4 << 20
_SAMPLE_CLASSES, _SAMPLES_PER_CLASS, _SAMPLE_CELL = 10, 4, 32


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
        "schema": SCHEMA,
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
    write_json(folder / META, meta | {"crc": crc_of(meta)})
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

    content = io.BytesIO()  # numpy reports a full disk as an OSError without errno
    np.save(content, labels.astype(np.uint8 if num_classes <= 256 else np.uint16), allow_pickle=False)
    with path.open("wb") as file:
        file.write(content.getvalue())
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
    """Train and test fingerprint of the images that ``name`` stands for or once stood for, or None if it is free.

    Of a damaged data set they are what its ``meta.json`` or the note of its last check says. Raises ``DatasetError``
    where the note of a removed data set is damaged: the name is taken, but for which images is not known.
    """
    found = integrity.inspect(home, name)
    meta = found if isinstance(found, Meta) else found.meta if found else None
    if meta is not None:
        return meta.fingerprints
    checked = integrity.read_note(integrity.note_path(home, name))
    if found is not None and checked is not None:
        return checked.train.promised, checked.test.promised
    path = _tombstone(home, name)
    try:
        removed = Removed.read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise DatasetError(
            _("The name {name} was used for images that were removed, but its note {path} is damaged.").format(
                name=name, path=path.relative_to(home)
            ),
            _("Choose another name. If no run needs the old images, delete that file and try again."),
        ) from None
    return removed.train_fingerprint, removed.test_fingerprint


def publish(home: Path, name: str, made: Path) -> None:
    """Give the finished cache in ``made`` its name, in place of a damaged one.

    Raises ``DatasetError`` where the files can't be read back as they were written, where the name stands for other
    images, and where foreign files have the place of the cache.
    """
    note = made.with_name("checked.json")
    written = integrity.verify_folder(made, note)
    if not isinstance(written, Meta):
        raise DatasetError(
            _("The images could not be read back from the disk as they were written."),
            _("Check the disk and the memory of this machine, then try again."),
        )
    taken = fingerprints_of(home, name)
    if taken is not None and taken != written.fingerprints:
        raise DatasetError(
            _("The name {name} is already used for other images.").format(name=name),
            _("Choose another name. Runs refer to images by name, so a name is never reused."),
        )
    target = folder_of(home, name)
    if os.path.lexists(target):
        if integrity.inspect(home, name) is not None and is_whole(home, name):
            return
        _set_aside(home, name, made.with_name("damaged"))
    sync_folder(made)
    made.rename(target)
    sync_folder(target.parent)
    integrity.keep_note(note, integrity.note_path(home, name))


def is_whole(home: Path, name: str) -> bool:
    """Whether there is a data set of this name with the images that it was made of."""
    return isinstance(integrity.verify_folder(folder_of(home, name), integrity.note_path(home, name)), Meta)


def _set_aside(home: Path, name: str, leaving: Path) -> None:
    """Move a damaged cache out of the way. Raises ``DatasetError`` where the place holds anything else."""
    target = folder_of(home, name)
    if integrity.inspect(home, name) is None and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(
            _("datasets/{name} in RUNOFF_HOME is not a data set, and files are in it.").format(name=name),
            _("Move them elsewhere, or choose another name."),
        )
    target.rename(leaving)


def remove(home: Path, name: str) -> None:
    """Remove a finished or damaged cache and keep its name and fingerprints; the caller holds the lock of the name.

    The name of a damaged cache whose fingerprints are lost is free again: runs keep the fingerprints of their images.
    """
    tombstone, leaving = _tombstone(home, name), _making_folder(home, name)
    fingerprints = None
    with contextlib.suppress(DatasetError):  # an older note is damaged, and stays as it is
        fingerprints = fingerprints_of(home, name)
    if fingerprints is not None:
        tombstone.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept(folder_of(home, name))
        write_json(tombstone, kept | dict(zip(("train_fingerprint", "test_fingerprint"), fingerprints, strict=True)))
    shutil.rmtree(leaving, ignore_errors=True)
    leaving.parent.mkdir(parents=True, exist_ok=True)
    folder_of(home, name).rename(leaving)
    sync_folder(home / "datasets")
    shutil.rmtree(leaving, ignore_errors=True)
    integrity.note_path(home, name).unlink(missing_ok=True)


def _kept(folder: Path) -> dict[str, Any]:
    try:
        meta = read_meta_file(folder / META)
    except (OSError, ValueError):
        return {}
    return meta.model_dump(include={"title", "num_train", "num_test", "created_at"})


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
