"""What is known of the built-in data sets before anything is read: names, shapes, classes, file names of the originals.

Neither torchvision nor numpy is imported here; ``originals`` reads the files that this module only names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.i18n import N_

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
PARTIAL = ".part"  # suffix of a file that is being downloaded


@dataclass(frozen=True)
class KnownSet:
    """A data set that Runoff knows by name. ``unpacked`` and ``packed`` are paths below a torchvision root."""

    name: str
    title: str
    kind: str  # "torchvision" or "built in"
    image_shape: tuple[int, int, int]  # channels, height, width
    num_train: int
    num_test: int
    class_names: tuple[str, ...]
    unpacked: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Originals:
    """The complete original files of a known set: a torchvision root, and whether they are still packed there."""

    root: Path
    packed: bool


def _idx_files(folder: str) -> tuple[str, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{part}-ubyte" for part in parts)


_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _mnist_like(name: str, title: str, folder: str, class_names: tuple[str, ...]) -> KnownSet:
    files = _idx_files(folder)
    packed = tuple(f"{file}.gz" for file in files)
    return KnownSet(name, title, "torchvision", (1, 28, 28), 60_000, 10_000, class_names, files, packed)


KNOWN: dict[str, KnownSet] = {
    known.name: known
    for known in (
        _mnist_like("mnist", "MNIST", "MNIST", _DIGITS),
        _mnist_like("fashion-mnist", "Fashion-MNIST", "FashionMNIST", _CLOTHES),
        KnownSet(
            "cifar10",
            "CIFAR-10",
            "torchvision",
            (3, 32, 32),
            50_000,
            10_000,
            _CIFAR10,
            tuple(f"cifar-10-batches-py/{batch}" for batch in _BATCHES),
            ("cifar-10-python.tar.gz",),
        ),
        KnownSet("digits", N_("Digits"), "built in", (1, 28, 28), 1_437, 360, _DIGITS),
    )
}


def find_originals(known: KnownSet, roots: Iterable[Path | None]) -> Originals | None:
    """The first of ``roots`` that holds all original files of the set, unpacked or packed; only names are looked at."""
    for root in roots:
        if root is None or not known.packed:
            continue
        for files, packed in ((known.unpacked, False), (known.packed, True)):
            if all((root / file).is_file() for file in files):
                return Originals(root, packed)
    return None
