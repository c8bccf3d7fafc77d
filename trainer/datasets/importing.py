"""Imports the images of an archive or folder into the cache: a pass over the headers, then a pass that decodes.

Nothing is unpacked to disk and no more than one image is in memory. The order of the images is fixed by their paths:
by split, class and natural file name (img2 before img10), so the same files give the same fingerprints however packed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from trainer.datasets import archive, cache, layout
from trainer.datasets.decode import SUFFIXES, Header, Unreadable, decode, quiet_images, read_header
from trainer.datasets.errors import DatasetError, DiskFull
from trainer.datasets.layout import Parts
from trainer.datasets.worker import LARGEST_SIZE, SMALLEST_SIZE, check_name
from trainer.events import Progress
from trainer.i18n import _
from trainer.run_folder import now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST_KEPT = 64  # pixels per side: images of one size up to this are kept as they are
KEPT_NAMES = 100  # of unreadable files


@dataclass
class Found:
    """An image file: its place in the source, its header, and later its row among the decoded images."""

    index: int
    header: Header | None  # None: unreadable
    row: int = -1


@dataclass
class Survey:
    """What the pass over the headers found, by cleaned path (a later file replaces an earlier one of the same path)."""

    files: dict[Parts, Found] = field(default_factory=dict)

    def unreadable(self) -> list[str]:
        paths = sorted("/".join(path) for path, found in self.files.items() if found.header is None)
        return [layout.printable(path) for path in paths]


@dataclass(frozen=True)
class Target:
    """What all images become: one size, grey or RGB."""

    grey: bool
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1 if self.grey else 3, self.height, self.width)


def import_images(
    home: Path,
    name: str,
    source: Path,
    report: cache.Report,
    *,
    size: int,
    title: str | None = None,
    reserve: int = 0,
) -> None:
    """Make the cache of an imported data set; see ``worker.import_images``. Raises ``DatasetError``."""
    check_name(name)
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        message = _("The size must be {low} to {high} pixels.").format(low=SMALLEST_SIZE, high=LARGEST_SIZE)
        raise DatasetError(message, _("Leave it at 64 unless the details are small."))
    with cache.making(home, name) as folder, quiet_images():
        survey = survey_files(source, report)
        places = layout.recognise([*survey.files])
        _number_rows(survey, places)
        rows = folder / "rows"
        target = _decode_all(source, survey, places, rows, size, reserve, report)
        made = folder / "cache"
        made.mkdir()
        _write(made, survey, places, rows, target, _facts(name, source, title, survey, places), report)
        cache.publish(home, name, made)


def _facts(name: str, source: Path, title: str | None, survey: Survey, places: layout.Layout) -> dict[str, object]:
    unreadable = survey.unreadable()
    return {
        "title": layout.printable((title or "").strip()) or name,
        "kind": "imported",
        "created_at": now(),
        "source": layout.printable(source.name),
        "unreadable": unreadable[:KEPT_NAMES],
        "num_unreadable": len(unreadable),
        "num_ignored": len(survey.files) - len(places.places),
    }


# First pass ----------------------------------------------------------------------------------------------------------


def _images(source: Path) -> Iterator[tuple[Parts, archive.Member]]:
    """The members with an image's suffix that are not hidden, with their cleaned paths."""
    for member in archive.members(source):
        parts = layout.path_parts(member.name)
        if parts is not None and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES:
            yield parts, member


def survey_files(source: Path, report: cache.Report) -> Survey:
    """Read the header of each image file; progress is ``import``, in bytes of the source."""
    survey, total = Survey(), archive.source_bytes(source) if source.exists() else 0
    for parts, member in _images(source):
        survey.files[parts] = Found(member.index, _header(member))
        report(Progress("import", min(member.position, max(total - 1, 0)), total, "bytes"))
    if not survey.files:
        raise DatasetError(
            _("{name} contains no images.").format(name=layout.printable(source.name)),
            _("Put JPEG or PNG files into one folder for each class, then import that."),
        )
    report(Progress("import", total, total, "bytes"))
    return survey


def _header(member: archive.Member) -> Header | None:
    try:
        with member.open() as file:
            return read_header(file)
    except (Unreadable, OSError):
        return None


def _number_rows(survey: Survey, places: layout.Layout) -> None:
    """Give each file in a class folder its row: by split (train first), class, natural path."""
    ranks = {name: rank for rank, name in enumerate(places.class_names)}

    def key(path: Parts) -> tuple[bool, int, list[layout.NaturalKey]]:
        split, class_name = places.places[path]
        return split == "test", ranks[class_name], [layout.natural_key(part) for part in path]

    for row, path in enumerate(sorted(places.places, key=key)):
        survey.files[path].row = row


# Second pass ---------------------------------------------------------------------------------------------------------


def _decode_all(
    source: Path, survey: Survey, places: layout.Layout, rows: Path, size: int, reserve: int, report: cache.Report
) -> Target:
    """Decode every image into its row of the file ``rows``; those that fail are marked unreadable.

    A file whose header was fine may fail here. Where it alone had decided the size or the colour, all is done again.
    """
    while True:
        target = _target(survey, places, size)
        _check_space(rows.parent, len(places.places), target, reserve)
        _decode_rows(source, survey, rows, target, report)
        if _target(survey, places, size) == target:
            return target


def _target(survey: Survey, places: layout.Layout, size: int) -> Target:
    headers = [header for path in places.places if (header := survey.files[path].header) is not None]
    if not headers:
        raise DatasetError(
            _("None of the {count:,} image files can be read.").format(count=len(places.places)),
            _("Check that they open on this machine, then import them again."),
        )
    grey = all(header.grey for header in headers)
    sizes = {(header.height, header.width) for header in headers}
    height, width = sizes.pop()
    if sizes or max(height, width) > LARGEST_KEPT:
        height = width = size
    return Target(grey, height, width)


def _check_space(folder: Path, count: int, target: Target, reserve: int) -> None:
    """Raise ``DiskFull`` if the decoded images, which are on the disk twice for a moment, would not leave the reserve free."""
    channels, height, width = target.shape
    needed, free = 2 * count * channels * height * width + reserve, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            _("The disk has {free:,} MB left; this import needs {needed:,} MB.").format(
                free=free // 1_000_000, needed=needed // 1_000_000 + 1
            ),
            _("Free some space, then try again."),
            needed=needed,
        )


def _decode_rows(source: Path, survey: Survey, rows: Path, target: Target, report: cache.Report) -> None:
    channels, height, width = target.shape
    row_bytes = channels * height * width
    total = sum(found.row >= 0 and found.header is not None for found in survey.files.values())
    num_rows = 1 + max(found.row for found in survey.files.values())
    done = 0
    with rows.open("wb") as file:
        file.truncate(num_rows * row_bytes)
        for parts, member in _images(source):
            found = survey.files.get(parts)
            if found is None or found.index != member.index or found.row < 0 or found.header is None:
                continue
            try:
                with member.open() as image:
                    pixels = decode(image, grey=target.grey, height=height, width=width)
                if os.pwrite(file.fileno(), pixels.tobytes(), found.row * row_bytes) < row_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(rows))
            except Unreadable:
                found.header = None
            done += 1
            report(Progress("cache", done, total, "images"))


# The result ----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    survey: Survey,
    places: layout.Layout,
    rows: Path,
    target: Target,
    facts: dict[str, object],
    report: cache.Report,
) -> None:
    import numpy as np

    images = np.memmap(rows, np.uint8, "r").reshape(-1, *target.shape)
    splits = _split_rows(survey, places, images)
    num_classes = len(places.class_names)
    counts = {split: np.bincount(part.labels, minlength=num_classes).tolist() for split, part in splits.items()}
    layout.check_counts(places.class_names, counts, has_test=places.has_test)

    def alive(progress: Progress) -> None:
        """All images are decoded; this only shows that somebody still listens."""
        report(Progress("cache", progress.total, progress.total, "images"))

    cache.write_cache(folder, splits, places.class_names, facts, alive)


def _split_rows(survey: Survey, places: layout.Layout, images: NDArray[np.uint8]) -> dict[str, cache.Rows]:
    """The readable rows of each split with their labels; without test/ a fifth of each class is held out."""
    import numpy as np

    ranks = {name: rank for rank, name in enumerate(places.class_names)}
    readable = sorted(
        (survey.files[path].row, split == "test", ranks[class_name])
        for path, (split, class_name) in places.places.items()
        if survey.files[path].header is not None
    )
    order, test, labels = (np.asarray(column) for column in zip(*readable, strict=True))
    test = test.astype(np.bool_)
    if not places.has_test:
        test = cache.stratified_test(labels, len(ranks), seed=0)
    return {
        "train": cache.Rows(images, order[~test], labels[~test]),
        "test": cache.Rows(images, order[test], labels[test]),
    }
