"""Whether the cached images are those that were written: a quick look at the files, and a check of every byte.

``inspect`` reads ``meta.json`` and the headers, for lists and pages. ``verify`` computes the fingerprints from the
images and labels, once for each version of the files; the note of that lies in ``datasets/.checked``.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from trainer.datasets.errors import DatasetDamaged
from trainer.datasets.facts import KNOWN
from trainer.datasets.meta import (
    META,
    SPLITS,
    Checked,
    CheckedSplit,
    Meta,
    NotMeta,
    folder_of,
    read_meta_file,
)
from trainer.files import Stamp, stamp_of, write_json
from trainer.i18n import N_, _

_BLOCK_BYTES = 4 << 20
_SETTLED_NS = 10**9  # a file that changed shortly before its check may change again without a new time stamp
_MAGIC = b"\x93NUMPY\x01\x00"
_ARRAYS = tuple(f"{split}-{what}.npy" for split in SPLITS for what in ("images", "labels"))


@dataclass(frozen=True)
class Damage:
    """What is wrong with the files of a data set; ``meta`` is what they still say of themselves."""

    what: str  # to be translated
    file: str = ""
    detail: str = ""
    meta: Meta | None = None

    def error(self, name: str) -> DatasetDamaged:
        """The damage as a sentence about the data set ``name``, with an advice."""
        what = _(self.what).format(file=self.file, detail=self.detail)
        if self.what == _NEWER:
            advice = _("Update Runoff, or remove the data set.")
        elif name in KNOWN:
            advice = _("Prepare it again on the page Data sets.")
        else:
            advice = _("Import the same images again under this name, or remove the data set.")
        return DatasetDamaged(_("The data set {name} is damaged: {what}.").format(name=name, what=what), advice)


_MISSING = N_("its file {file} is missing")
_UNREADABLE = N_("its file {file} can't be read ({detail})")
_NOT_WRITTEN = N_("its file {file} has a content that Runoff does not write ({detail})")
_NEWER = N_("its file {file} was written by a newer version of Runoff ({detail})")
_WRONG_SIZE = N_("its file {file} is incomplete or too long ({detail} bytes)")
_OTHER_IMAGES = N_("the images or labels in {file} are not those that were imported")


def _stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None where it can't be asked about."""
    try:
        return stamp_of(path)
    except OSError:
        return None


def note_path(home: Path, name: str) -> Path:
    """Where the note of the last check of a data set is."""
    return home / "datasets" / ".checked" / f"{name}.json"


# The quick look ------------------------------------------------------------------------------------------------------


def inspect(home: Path, name: str) -> Meta | Damage | None:
    """What a quick look says of a data set; None where there is none of this name.

    Its arrays are not read, but an earlier check of the same files that found other images counts.
    """
    return _inspect(folder_of(home, name), note_path(home, name))


def _inspect(folder: Path, note: Path | None) -> Meta | Damage | None:
    stamps = tuple(_stamp(folder / file) for file in (META, *_ARRAYS))
    if not any(stamps):
        return None
    return _look(folder, note, stamps, _stamp(note) if note else None)


@lru_cache(maxsize=256)
def _look(folder: Path, note: Path | None, stamps: tuple[Stamp | None, ...], note_stamp: Stamp | None) -> Meta | Damage:
    try:
        meta = read_meta_file(folder / META)
    except FileNotFoundError:
        return Damage(_MISSING, META)
    except OSError as error:
        return Damage(_UNREADABLE, META, error.strerror or "")
    except NotMeta as problem:
        return Damage(_NEWER if problem.schema else _NOT_WRITTEN, META, problem.detail)
    checked = read_note(note) if note and note_stamp else None
    for split in SPLITS:
        damage = _wrong_arrays(folder, split, meta) or _known_damage(folder, split, meta, checked)
        if damage:
            return damage
    return meta


def _wrong_arrays(folder: Path, split: str, meta: Meta) -> Damage | None:
    """What the headers and sizes of the arrays of a split say against ``meta``."""
    count = meta.num_images(split)
    label_type = "|u1" if len(meta.class_names) <= 256 else "<u2"
    expected = {"images": ((count, *meta.image_shape), "|u1"), "labels": ((count,), label_type)}
    for what, (shape, kind) in expected.items():
        path = folder / f"{split}-{what}.npy"
        try:
            with path.open("rb") as file:
                found = read_header(file)
                start, size = file.tell(), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return Damage(_MISSING, path.name, meta=meta)
        except OSError as error:
            return Damage(_UNREADABLE, path.name, error.strerror or "", meta)
        except ValueError as problem:
            return Damage(_NOT_WRITTEN, path.name, str(problem), meta)
        if found != (shape, kind):
            return Damage(_NOT_WRITTEN, path.name, f"{found[1]} {found[0]}", meta)
        if size != start + math.prod(shape) * int(kind[-1]):
            return Damage(_WRONG_SIZE, path.name, f"{size:,}", meta)
    return None


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], str]:
    """Shape and type of the array that follows in a .npy file. Raises ``ValueError`` where it is no plain array.

    ``numpy`` reads more formats than are written here, and has many kinds of errors for damaged ones.
    """
    magic, length = file.read(len(_MAGIC)), file.read(2)
    text = file.read(int.from_bytes(length, "little")) if magic == _MAGIC and len(length) == 2 else b""
    try:
        header = ast.literal_eval(text.strip().decode("latin-1"))
        shape, kind = header["shape"], header["descr"]
        if header["fortran_order"] is not False or not all(type(side) is int for side in shape):
            raise ValueError
        return tuple(shape), str(kind)
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise ValueError("no NumPy header") from None


# The check of every byte ---------------------------------------------------------------------------------------------


def verify(home: Path, name: str, tick: Callable[[], None] = lambda: None, *, full: bool = False) -> Meta:
    """Check that images and labels have the fingerprints in ``meta.json``; reads them only if they may have changed.

    With ``full`` it reads them in any case, and leaves no note. ``tick`` is called between blocks of a few megabytes.
    Raises ``DatasetDamaged``.
    """
    result = verify_folder(folder_of(home, name), None if full else note_path(home, name), tick)
    if isinstance(result, Damage):
        raise result.error(name)
    return result


def verify_folder(folder: Path, note: Path | None, tick: Callable[[], None] = lambda: None) -> Meta | Damage:
    """As ``verify``, for a folder that may not have its name yet. Without a note every image is read."""
    meta = _inspect(folder, note)
    if not isinstance(meta, Meta):
        return meta or Damage(_MISSING, META)
    before = read_note(note) if note else None
    checked, is_new = {}, False
    for split in SPLITS:
        known = _of_split(before, split)
        if known is None or not _still_holds(folder, split, meta, known):
            try:
                known, is_new = _check(folder, split, meta, tick), True
            except (OSError, ValueError) as error:
                return Damage(_UNREADABLE, f"{split}-images.npy", str(getattr(error, "strerror", None) or error), meta)
        checked[split] = known
    result = Checked(train=checked["train"], test=checked["test"])
    if note and is_new:
        _write_note(note, result)
    for split in SPLITS:
        if checked[split].found != checked[split].promised:
            return Damage(_OTHER_IMAGES, f"{split}-images.npy", meta=meta)
    return meta


def read_note(path: Path) -> Checked | None:
    """The note of a check; None where there is none that can be read: then it is made again."""
    try:
        return Checked.read(path)
    except (OSError, ValueError):
        return None


def _write_note(path: Path, checked: Checked) -> None:
    with contextlib.suppress(OSError):  # then the next run checks again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, checked.model_dump())


def keep_note(note: Path, target: Path) -> None:
    """Give the note of a check its place, after its data set got its own."""
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        note.replace(target)


def _of_split(checked: Checked | None, split: str) -> CheckedSplit | None:
    return None if checked is None else checked.train if split == "train" else checked.test


def _is_of_these_files(folder: Path, split: str, meta: Meta, checked: CheckedSplit) -> bool:
    stamps = tuple(_stamp(folder / f"{split}-{what}.npy") for what in ("images", "labels"))
    return stamps == (checked.images, checked.labels) and checked.promised == meta.fingerprint(split)


def _still_holds(folder: Path, split: str, meta: Meta, checked: CheckedSplit) -> bool:
    """Whether an earlier check says that these files are whole."""
    changed = max(*checked.images[3:], *checked.labels[3:])
    settled = changed < checked.started_ns - _SETTLED_NS
    return settled and checked.found == checked.promised and _is_of_these_files(folder, split, meta, checked)


def _known_damage(folder: Path, split: str, meta: Meta, note: Checked | None) -> Damage | None:
    """What an earlier check of the same files has found."""
    checked = _of_split(note, split)
    if checked is None or checked.found == checked.promised or not _is_of_these_files(folder, split, meta, checked):
        return None
    return Damage(_OTHER_IMAGES, f"{split}-images.npy", meta=meta)


def _check(folder: Path, split: str, meta: Meta, tick: Callable[[], None]) -> CheckedSplit:
    images, labels = folder / f"{split}-images.npy", folder / f"{split}-labels.npy"
    started, stamps = time.time_ns(), (_stamp(images), _stamp(labels))
    found = fingerprint(images, labels, meta.counts(split), tick)
    if stamps[0] is None or stamps[1] is None:
        raise OSError(_("it changed during the check"))
    return CheckedSplit(
        images=stamps[0], labels=stamps[1], started_ns=started, found=found, promised=meta.fingerprint(split)
    )


def fingerprint(images: Path, labels: Path, counts: list[int], tick: Callable[[], None] = lambda: None) -> str:
    """The fingerprint of a split, from its files; ``counts`` has the images of each class by ``meta.json``.

    SHA-256 over the shape, all pixels [N, C, H, W] and the labels as little-endian uint16. All zeros where the labels do
    not give the counts.
    """
    import numpy as np

    with images.open("rb") as file:
        shape, _kind = read_header(file)
        digest = hashlib.sha256(json.dumps({"shape": shape}).encode())
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            tick()
    with labels.open("rb") as file:
        _shape, kind = read_header(file)
        values = np.frombuffer(file.read(), kind)
    digest.update(values.astype("<u2").tobytes())
    return digest.hexdigest() if np.bincount(values, minlength=len(counts)).tolist() == counts else "0" * 64
