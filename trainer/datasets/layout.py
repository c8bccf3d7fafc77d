"""Which split and class a file of an archive belongs to, from its path alone; and what names may be.

``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*``, or ``train/`` alone, below any number of wrapping folders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer.datasets.errors import DatasetError
from trainer.i18n import _, ngettext

MAX_CLASSES = 1_000
MAX_CLASS_NAME = 100
_NUMBERS = re.compile(r"([0-9]+)")
_BIDI = {chr(code) for code in (0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}

Parts = tuple[str, ...]
NaturalKey = tuple[tuple[str | tuple[int, str], ...], str]


def natural_key(text: str) -> NaturalKey:
    """Sorts a2 before a10, upper and lower case alike, and equal texts by their code points."""
    pieces = _NUMBERS.split(text.casefold())
    numbered = [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else p for i, p in enumerate(pieces)]
    return tuple(numbered), text


def path_parts(name: str) -> Parts | None:
    """The parts of a file's path, or None for what is passed over: hidden files, __MACOSX.

    Raises ``DatasetError`` for a path that leads out of the archive.
    """
    parts = tuple(unicodedata.normalize("NFC", part) for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise DatasetError(
            _("The archive contains a file name that points outside it: {name}.").format(name=printable(name)),
            _("Pack the class folders again, then import that."),
        )
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return parts or None


def printable(text: str) -> str:
    """A name from an archive, fit for a sentence and for JSON."""
    text = "".join("?" if _is_forbidden(c) else c for c in text)
    return text if len(text) <= 120 else f"{text[:58]} ... {text[-57:]}"


def _is_forbidden(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in _FORBIDDEN_CATEGORIES


@dataclass(frozen=True)
class Layout:
    """Where the classes are: ``places`` has (split, class) of each file in a class folder."""

    has_test: bool  # else everything is in split train, to be split by chance
    class_names: list[str]
    places: dict[Parts, tuple[str, str]] = field(repr=False)


def recognise(paths: Sequence[Parts]) -> Layout:
    """The layout of the image files at ``paths``. Raises ``DatasetError`` where there are no two classes in it."""
    root = _root(paths)
    below = [path for path in paths if path[: len(root)] == root]
    splits = {_split_of(path[len(root)]) for path in below if len(path) > len(root) + 2}
    has_train = "train" in splits
    if has_train and "test" not in splits and len(splits) > 1:
        raise DatasetError(
            _("Next to train/ there are other folders with images, but no test/."),
            _("Name the folder with the test images test, or remove the others, then import it again."),
        )
    depth = len(root) + (1 if has_train else 0)
    places: dict[Parts, tuple[str, str]] = {}
    for path in below:
        split = _split_of(path[len(root)]) if has_train else "train"
        if split and len(path) > depth + 1:
            places[path] = split, path[depth]
    names = sorted({name for _split, name in places.values()}, key=natural_key)
    _check_class_names(names)
    return Layout(has_train and "test" in splits, names, places)


def _split_of(folder: str) -> str:
    """``train`` or ``test`` for the folders of these names in any case, else an empty string."""
    return folder.lower() if folder.lower() in ("train", "test") else ""


def _root(paths: Sequence[Parts]) -> Parts:
    """The folder that holds train/ or the class folders: the first one with more than one folder with images below it."""
    root: Parts = ()
    while True:
        inside = [path[len(root) :] for path in paths if path[: len(root)] == root]
        folders = {path[0] for path in inside if len(path) > 1}
        nested = {path[0] for path in inside if len(path) > 2}  # a class may be named train, too
        if any(_split_of(folder) == "train" for folder in nested) or len(folders) != 1 or not nested:
            return root
        root = (*root, folders.pop())


def _check_class_names(names: Sequence[str]) -> None:
    rename = _("Rename the folder, then import it again.")
    for name in names:
        if len(name) > MAX_CLASS_NAME:
            message = _("A class name has {length:,} characters; at most {limit} are allowed.")
            raise DatasetError(message.format(length=len(name), limit=MAX_CLASS_NAME), rename)
        if any(_is_forbidden(character) for character in name):
            message = _("The class name {name} contains characters that can't be shown.")
            raise DatasetError(message.format(name=printable(name)), rename)
    if len(names) > MAX_CLASSES:
        message = _("There are {count:,} class folders; at most {limit:,} are allowed.")
        raise DatasetError(
            message.format(count=len(names), limit=MAX_CLASSES), _("Check that there is one folder for each class.")
        )
    if len(names) < 2:
        message = ngettext(
            "There is only {count} class folder with images; at least 2 are needed.",
            "There are {count} class folders with images; at least 2 are needed.",
            len(names),
        )
        raise DatasetError(
            message.format(count=len(names)), _("Put the images of each class into a folder of its own.")
        )


def check_counts(names: Sequence[str], counts: dict[str, Iterable[int]], *, has_test: bool) -> None:
    """Whether each class has a readable training and test image; ``counts`` by split. Raises ``DatasetError``."""
    for split, by_class in counts.items():
        for name, count in zip(names, by_class, strict=True):
            if count == 0:
                raise _too_few(name, split, has_test)


def _too_few(name: str, split: str, has_test: bool) -> DatasetError:
    if not has_test:
        message = _("Class {name} has fewer than two images that can be read: one is needed to train and one to test.")
    elif split == "train":
        message = _("Class {name} has no training image that can be read.")
    else:
        message = _("Class {name} has no test image that can be read.")
    return DatasetError(message.format(name=name), _("Add images to it or remove the class, then import it again."))
