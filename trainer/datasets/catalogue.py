"""Which data sets there are, what is known of each, and their arrays: all that the web server needs of data sets.

Reads the cache below ``HOME/datasets``; never decodes, downloads or writes an image (see ``worker``). Imports neither
torch nor torchvision nor Pillow, and numpy only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.datasets import cache
from trainer.datasets.errors import DatasetError, UnknownDataset
from trainer.datasets.facts import KNOWN, NAME, KnownSet, find_originals
from trainer.home import datasets_root
from trainer.i18n import _

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Dataset",
    "DatasetError",
    "Split",
    "UnknownDataset",
    "get_dataset",
    "known_shape",
    "list_datasets",
    "open_split",
    "pixel_permutation",
    "remove_dataset",
    "samples_path",
]


@dataclass(frozen=True)
class Dataset:
    """One data set as far as it is known; what only the pixels tell is empty until it is cached."""

    name: str
    title: str
    kind: str  # "torchvision", "built in" or "imported"
    status: str  # "ready" (cached), "available" (can be cached offline) or "absent" (needs a download)
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
    meta = cache.read_meta(home, name) if NAME.fullmatch(name) else None
    if meta is None:
        names = ", ".join([*KNOWN, *(dataset.name for dataset in _imported(home))])
        raise UnknownDataset(
            _("There is no data set named {name}. Available: {names}.").format(name=_short(name), names=names)
        )
    return _from_meta(name, meta)


def _short(name: str) -> str:
    """A name as it was typed, fit for a sentence."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 64 else name[:61] + "..."


def known_shape(name: str) -> tuple[int, int, int] | None:
    """Channels, height and width of a known data set, cached or not; None for any other name."""
    return KNOWN[name].image_shape if name in KNOWN else None


def _known(home: Path, known: KnownSet) -> Dataset:
    meta = cache.read_meta(home, known.name)
    if meta is not None:
        return _from_meta(known.name, meta)
    here = known.kind == "built in" or find_originals(known, (datasets_root(), home / "downloads")) is not None
    return Dataset(
        known.name,
        _(known.title),
        known.kind,
        "available" if here else "absent",
        known.image_shape,
        known.num_train,
        known.num_test,
        [*known.class_names],
    )


def _imported(home: Path) -> Iterator[Dataset]:
    folder = home / "datasets"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        meta = cache.read_meta(home, name) if name not in KNOWN and NAME.fullmatch(name) else None
        if meta is not None:
            yield _from_meta(name, meta)


def _from_meta(name: str, meta: dict[str, Any]) -> Dataset:
    channels, height, width = meta["image_shape"]
    return Dataset(
        name=name,
        title=_(KNOWN[name].title) if name in KNOWN else meta["title"],
        kind=meta["kind"],
        status="ready",
        image_shape=(channels, height, width),
        **{
            key: meta[key]
            for key in (
                "num_train",
                "num_test",
                "class_names",
                "train_counts",
                "test_counts",
                "train_fingerprint",
                "test_fingerprint",
                "mean",
                "std",
                "unreadable",
                "num_unreadable",
                "created_at",
                "source",
                "num_ignored",
            )
        },
    )


def samples_path(home: Path, name: str) -> Path:
    """The sheet with four training images of each of the first ten classes; exists once the set is ready."""
    return cache.folder_of(home, name) / "samples.png"


def open_split(home: Path, name: str, split: str) -> Split:
    """The arrays of ``train`` or ``test``, mapped from disk. Raises ``FileNotFoundError`` where the set is not cached."""
    import numpy as np

    assert split in cache.SPLITS
    folder = cache.folder_of(home, name)
    images = np.load(folder / f"{split}-images.npy", mmap_mode="r", allow_pickle=False)
    return Split(images, np.load(folder / f"{split}-labels.npy", allow_pickle=False))


def pixel_permutation(height: int, width: int, seed: int) -> NDArray[np.int64]:
    """The permutation of ``permute_pixels``, [height * width]: new pixel i is old pixel ``permutation[i]``, row by row.

    It depends on the sizes and the seed only: the same for all channels, images, splits, machines and versions.
    """
    return cache.permutation(height * width, seed)


def remove_dataset(home: Path, name: str) -> None:
    """Remove an imported data set; its name stays reserved for the same images.

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
