"""The known data sets as arrays, from their original files: found, or downloaded into ``HOME/downloads``, then parsed.

``RUNOFF_DATASETS`` is read first and never written. torchvision parses; its CIFAR-10 pickles are opened only after their
MD5 was checked, and only in the child process that runs this. Imports torchvision and numpy inside functions.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.datasets import cache
from trainer.datasets.download import DownloadFailed, Remote, fetch, md5_of
from trainer.datasets.errors import DatasetError
from trainer.datasets.facts import KnownSet, Originals, find_originals
from trainer.events import Progress
from trainer.home import datasets_root
from trainer.i18n import _
from trainer.run_folder import now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIGITS = Path(__file__).with_name("digits.csv.gz")


@dataclass(frozen=True)
class Arrays:
    """A whole data set in memory: images [N, C, H, W] and labels [N] of both splits."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def prepare(home: Path, known: KnownSet, report: cache.Report, *, download: bool) -> None:
    """Make the cache of a known set unless it is there and whole. Raises ``DatasetError``, with nothing half-written."""
    with cache.making(home, known.name) as folder:
        if cache.is_whole(home, known.name):
            return
        arrays = _digits() if known.kind == "built in" else _torchvision(home, known, folder, report, download)
        _check(known, arrays)
        made = folder / "cache"
        made.mkdir()
        facts = {
            "title": known.title,
            "kind": known.kind,
            "source": "",
            "created_at": now(),
            "unreadable": [],
            "num_unreadable": 0,
            "num_ignored": 0,
        }
        cache.write_cache(made, _splits(arrays), known.class_names, facts, report)
        cache.publish(home, known.name, made)


def _splits(arrays: Arrays) -> dict[str, cache.Rows]:
    import numpy as np

    return {
        "train": cache.Rows(arrays.train_images, np.arange(len(arrays.train_labels)), arrays.train_labels),
        "test": cache.Rows(arrays.test_images, np.arange(len(arrays.test_labels)), arrays.test_labels),
    }


def _check(known: KnownSet, arrays: Arrays) -> None:
    """Whether the arrays are what the set's name promises. Raises ``DatasetError``."""
    expected = ((known.num_train, *known.image_shape), (known.num_test, *known.image_shape))
    found = (arrays.train_images.shape, arrays.test_images.shape)
    labels = (arrays.train_labels, arrays.test_labels)
    if found != expected or any(len(part) != shape[0] for part, shape in zip(labels, found, strict=True)):
        raise _damaged(known)
    if any(part.min() < 0 or part.max() >= len(known.class_names) for part in labels):
        raise _damaged(known)


def _damaged(known: KnownSet) -> DatasetError:
    return DatasetError(
        _("The files of {title} are damaged.").format(title=_(known.title)),
        _("Remove them from RUNOFF_DATASETS or from downloads in RUNOFF_HOME, then try again."),
    )


# digits --------------------------------------------------------------------------------------------------------------


def _digits() -> Arrays:
    """The 1,797 digits, values 0..16 scaled to 0..255, 8 x 8 resized bilinearly to 28 x 28, a fifth for test."""
    import numpy as np
    from PIL import Image

    small_images, labels = digits_table()
    images = np.empty((len(labels), 1, 28, 28), np.uint8)
    for row, small in enumerate(small_images):
        large = Image.fromarray((small * (255 / 16)).astype(np.float32)).resize((28, 28), Image.Resampling.BILINEAR)
        images[row, 0] = np.clip(np.rint(np.asarray(large)), 0, 255)
    test = cache.stratified_test(labels, 10, seed=0)
    return Arrays(images[~test], labels[~test], images[test], labels[test])


def digits_table() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The shipped table (see digits.LICENSE.txt): images [1797, 8, 8] with values 0..16, and their digits."""
    import numpy as np

    rows = np.loadtxt(DIGITS, delimiter=",")  # unpacked by the name's ending
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


# torchvision ---------------------------------------------------------------------------------------------------------


def _torchvision(home: Path, known: KnownSet, folder: Path, report: cache.Report, download: bool) -> Arrays:
    roots = (datasets_root(), home / "downloads")
    originals = find_originals(known, roots)
    if originals is None:
        if not download:
            raise _absent(known, _("{title} is not on this machine.").format(title=_(known.title)))
        _download(known, home / "downloads", report)
        originals = Originals(home / "downloads", packed=True)
    with _unpacked(known, originals, folder / "unpacked") as root:
        return _parse(known, root)


def _absent(known: KnownSet, message: str) -> DatasetError:
    return DatasetError(message, _("Import it as a zip of class folders, then start a run on that."))


def remotes(known: KnownSet) -> list[Remote]:
    """The packed files of a set, in the order of ``known.packed``, with the addresses and MD5s that torchvision states."""
    from torchvision import datasets

    if known.name == "cifar10":
        return [Remote((datasets.CIFAR10.url,), datasets.CIFAR10.tgz_md5)]
    source = datasets.FashionMNIST if known.name == "fashion-mnist" else datasets.MNIST
    md5s = dict(source.resources)
    names = [Path(file).name for file in known.packed]
    return [Remote(tuple(mirror + name for mirror in source.mirrors), md5s[name]) for name in names]


def _download(known: KnownSet, root: Path, report: cache.Report) -> None:
    """Fetch the packed files that are missing in ``root``; progress counts the bytes of one file at a time."""

    def received(done: int, total: int) -> None:
        report(Progress("download", done, max(total, done), "bytes"))

    for path, remote in zip(known.packed, remotes(known), strict=True):
        try:
            if not (root / path).is_file():
                fetch(remote, root / path, received)
        except DownloadFailed as failure:
            message = _("{title} is not on this machine and could not be downloaded: {reason}.")
            raise _absent(known, message.format(title=_(known.title), reason=failure.reason)) from None


@contextmanager
def _unpacked(known: KnownSet, originals: Originals, folder: Path) -> Iterator[Path]:
    """A root that torchvision reads; packed files are checked by MD5, then unpacked into ``folder`` for a while."""
    if not originals.packed:
        yield originals.root
        return
    for path, remote in zip(known.packed, remotes(known), strict=True):
        if md5_of(originals.root / path) != remote.md5:
            raise _damaged(known)
    for path in known.unpacked:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        _unpack(known, originals.root, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(known: KnownSet, root: Path, folder: Path) -> None:
    """Unpack checked files; only the names that this program knows are written."""
    if known.name != "cifar10":
        for packed, path in zip(known.packed, known.unpacked, strict=True):
            with gzip.open(root / packed) as source, (folder / path).open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    with tarfile.open(root / known.packed[0]) as archive:
        for path in known.unpacked:
            member = archive.extractfile(path)
            assert member is not None
            with member, (folder / path).open("wb") as target:
                shutil.copyfileobj(member, target)


def _parse(known: KnownSet, root: Path) -> Arrays:
    """Let torchvision read the unpacked files (it checks the MD5 of each CIFAR-10 file before it opens one)."""
    import numpy as np
    from torchvision import datasets

    sources: dict[str, Any] = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
    }
    try:
        train, test = (sources[known.name](root, train=is_train, download=False) for is_train in (True, False))
    except (RuntimeError, ValueError, AssertionError, EOFError):
        raise _damaged(known) from None

    def images(split: Any) -> NDArray[np.uint8]:
        pixels = np.asarray(split.data)
        return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)

    def labels(split: Any) -> NDArray[np.int64]:
        return np.asarray(split.targets, np.int64)

    return Arrays(images(train), labels(train), images(test), labels(test))
