"""Which data sets there are, what is known of each, and their arrays: all that the web server needs of data sets.

Reads the cache below ``HOME/datasets``; never decodes, downloads or writes an image (see ``worker``). Imports neither
torch nor torchvision nor Pillow, and numpy only inside functions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.datasets import cache, integrity
from trainer.datasets.errors import DatasetDamaged, DatasetError, UnknownDataset
from trainer.datasets.facts import KNOWN, NAME, KnownSet, find_originals
from trainer.datasets.integrity import Damage
from trainer.datasets.meta import Meta
from trainer.home import datasets_root
from trainer.i18n import _

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Dataset",
    "DatasetDamaged",
    "DatasetError",
    "Split",
    "UnknownDataset",
    "get_dataset",
    "known_shape",
    "list_datasets",
    "open_split",
    "pixel_permutation",
    "read_image",
    "remove_dataset",
    "samples_path",
]


@dataclass(frozen=True)
class Dataset:
    """One data set as far as it is known; what only the pixels tell is empty until it is cached."""

    name: str
    title: str
    kind: str  # "torchvision", "built in" or "imported"
    status: str  # "ready" (cached), "damaged", "available" (can be cached offline) or "absent" (needs a download)
    image_shape: tuple[int, int, int] | None  # channels, height, width; of known sets also before they are here
    num_train: int | None
    num_test: int | None
    class_names: list[str]
    train_counts: list[int] = field(default_factory=list)  # images of each class
    test_counts: list[int] = field(default_factory=list)
    train_fingerprint: str | None = None
    test_fingerprint: str | None = None
    mean: list[float] = field(default_factory=list)  # of each channel, pixels scaled to 0..1, whole train split
    std: list[float] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # the first 100 files that were skipped at import
    num_unreadable: int = 0
    created_at: str | None = None
    source: str = ""  # name of the file or folder that it was imported from
    num_ignored: int = 0  # image files outside the class folders
    problem: str = ""  # of a damaged set: what is wrong with its files
    advice: str = ""  # and what to do


@dataclass(frozen=True)
class Split:
    """One split of a cached data set."""

    images: NDArray[np.uint8]  # [N, channels, height, width], mapped from disk, read-only
    labels: NDArray[np.uint8] | NDArray[np.uint16]  # [N]


def list_datasets(home: Path) -> list[Dataset]:
    """All data sets: the known ones in their fixed order, then the imported ones by name."""
    return [*(_known(home, known) for known in KNOWN.values()), *_imported(home)]


def get_dataset(home: Path, name: str) -> Dataset:
    """One data set. Raises ``UnknownDataset`` with a sentence that names the others."""
    if name in KNOWN:
        return _known(home, KNOWN[name])
    found = integrity.inspect(home, name) if NAME.fullmatch(name) else None
    if found is None:
        names = ", ".join([*KNOWN, *(dataset.name for dataset in _imported(home))])
        raise UnknownDataset(
            _("There is no data set named {name}. Available: {names}.").format(name=_short(name), names=names)
        )
    return _imported_set(name, found)


def _short(name: str) -> str:
    """A name as it was typed, fit for a sentence."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 64 else name[:61] + "..."


def known_shape(name: str) -> tuple[int, int, int] | None:
    """Channels, height and width of a known data set, cached or not; None for any other name."""
    return KNOWN[name].image_shape if name in KNOWN else None


def _known(home: Path, known: KnownSet) -> Dataset:
    found = integrity.inspect(home, known.name)
    if isinstance(found, Meta):
        return _ready(known.name, _(known.title), found)
    here = known.kind == "built in" or find_originals(known, (datasets_root(), home / "downloads")) is not None
    dataset = Dataset(
        known.name,
        _(known.title),
        known.kind,
        "available" if here else "absent",
        known.image_shape,
        known.num_train,
        known.num_test,
        [*known.class_names],
    )
    return _damaged(dataset, found) if found else dataset


def _imported(home: Path) -> Iterator[Dataset]:
    folder = home / "datasets"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        found = integrity.inspect(home, name) if name not in KNOWN and NAME.fullmatch(name) else None
        if found is not None:
            yield _imported_set(name, found)


def _imported_set(name: str, found: Meta | Damage) -> Dataset:
    if isinstance(found, Meta):
        return _ready(name, found.title, found)
    if found.meta is not None:
        return _damaged(_ready(name, found.meta.title, found.meta), found)
    return _damaged(Dataset(name, name, "imported", "damaged", None, None, None, []), found)


def _damaged(dataset: Dataset, found: Damage) -> Dataset:
    """The data set with what is wrong, and without fingerprints: nothing may be taken for its images."""
    error = found.error(dataset.name)
    facts = replace(dataset, train_fingerprint=None, test_fingerprint=None)
    return replace(facts, status="damaged", problem=error.message, advice=error.advice)


def _ready(name: str, title: str, meta: Meta) -> Dataset:
    facts = meta.model_dump(exclude={"title", "image_shape"})
    return Dataset(name=name, title=title, status="ready", image_shape=meta.image_shape, **facts)


def samples_path(home: Path, name: str) -> Path:
    """The sheet with four training images of each of the first ten classes; exists once the set is ready."""
    return cache.folder_of(home, name) / "samples.png"


def open_split(home: Path, name: str, split: str) -> Split:
    """The arrays of ``train`` or ``test``, mapped from disk.

    Raises ``FileNotFoundError`` where the set is not cached, and ``DatasetDamaged`` where its files are no such arrays.
    """
    import numpy as np

    assert split in cache.SPLITS
    folder = _whole_folder(home, name)
    images = np.load(folder / f"{split}-images.npy", mmap_mode="r", allow_pickle=False)
    return Split(images, np.load(folder / f"{split}-labels.npy", allow_pickle=False))


def _whole_folder(home: Path, name: str) -> Path:
    found = integrity.inspect(home, name)
    if found is None:
        raise FileNotFoundError(name)
    if isinstance(found, Damage):
        raise found.error(name)
    return cache.folder_of(home, name)


def read_image(home: Path, name: str, split: str, index: int) -> NDArray[np.uint8]:
    """One image [channels, height, width] of a split, read without a map: a file that is cut off meanwhile does no harm.

    Raises as ``open_split``, and ``IndexError``.
    """
    import numpy as np

    assert split in cache.SPLITS
    with (_whole_folder(home, name) / f"{split}-images.npy").open("rb") as file:
        shape, _kind = integrity.read_header(file)
        if not 0 <= index < shape[0]:
            raise IndexError(shape[0])
        size = math.prod(shape[1:])
        data = os.pread(file.fileno(), size, file.tell() + index * size)
    if len(data) < size:
        raise DatasetDamaged(_("The images of {name} are incomplete.").format(name=name), _("Import them again."))
    return np.frombuffer(data, np.uint8).reshape(shape[1:])


def pixel_permutation(height: int, width: int, seed: int) -> NDArray[np.int64]:
    """The permutation of ``permute_pixels``, [height * width]: new pixel i is old pixel ``permutation[i]``, row by row.

    It depends on the sizes and the seed only: the same for all channels, images, splits, machines and versions.
    """
    return cache.permutation(height * width, seed)


def remove_dataset(home: Path, name: str) -> None:
    """Remove an imported data set, damaged or not; its name stays reserved for the same images.

    Raises ``UnknownDataset``, or ``DatasetError`` for a known set and while another process makes this one.
    """
    if name in KNOWN:
        raise DatasetError(
            _("{title} is built into Runoff and can't be removed.").format(title=_(KNOWN[name].title)),
            _("Only imported data sets can be removed."),
        )
    get_dataset(home, name)
    with cache.locked(home, name, wait=False) as taken:
        if not taken:
            raise DatasetError(
                _("{name} is being imported right now.").format(name=name), _("Wait until that is done, or stop it.")
            )
        get_dataset(home, name)
        cache.remove(home, name)
