"""Makes caches in a child process and relays its progress, so that decoding can neither harm nor slow its caller.

Progress is ``download`` (bytes of one file at a time), ``import`` (bytes of the source whose headers were read), then
``cache`` (images).

What the child does is in ``originals`` and ``importing``; this module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from trainer.datasets import cache
from trainer.datasets.catalogue import get_dataset
from trainer.datasets.errors import DatasetError, DiskFull, Interrupted, UnknownDataset
from trainer.datasets.facts import KNOWN, NAME, PARTIAL, KnownSet
from trainer.events import Progress
from trainer.i18n import _
from trainer.interpreter import python_command

__all__ = [
    "DatasetError",
    "DiskFull",
    "Interrupted",
    "UnknownDataset",
    "check_name",
    "find_known",
    "import_images",
    "prepare",
    "remove_leftovers",
]

OnStart = Callable[[subprocess.Popen[bytes]], None]  # is given the child, to end it from another thread
DEFAULT_SIZE = 64  # pixels per side, for images that are not all of one small size
SMALLEST_SIZE, LARGEST_SIZE = 8, 512
_PATIENCE_SECONDS = 10
_ASKED_TO_END = {code for signum in (signal.SIGTERM, signal.SIGINT) for code in (128 + signum, -signum)}


def find_known(name: str) -> KnownSet:
    """The known data set of this name. Raises ``UnknownDataset``."""
    if name not in KNOWN:
        raise UnknownDataset(_("Only {names} can be prepared.").format(names=", ".join(KNOWN)))
    return KNOWN[name]


def check_name(name: str) -> None:
    """Whether images may be imported under this name. Raises ``DatasetError``."""
    if not NAME.fullmatch(name):
        raise DatasetError(
            _("This name is not valid: use only lowercase letters, digits and hyphens, at most 64 of them."),
            _("Choose a name such as my-images."),
        )
    if name in KNOWN:
        raise DatasetError(
            _("The name {name} is reserved for a built-in data set.").format(name=name), _("Choose another name.")
        )


def prepare(
    home: Path, name: str, *, download: bool = True, on_start: OnStart | None = None
) -> Generator[Progress, None, None]:
    """Cache a known data set, from files on this machine or by download; nothing to do where it is ready.

    Raises ``UnknownDataset``, or ``DatasetError`` where it is not here and can't be had. Closing the generator ends the
    child; nothing half-written stays.
    """
    if get_dataset(home, name).status == "ready":
        return
    find_known(name)
    yield from _relay(home, name, ["prepare", name, *([] if download else ["--no-download"])], on_start)


def import_images(
    home: Path,
    name: str,
    source: Path,
    *,
    size: int = DEFAULT_SIZE,
    title: str | None = None,
    reserve: int = 0,
    on_start: OnStart | None = None,
) -> Generator[Progress, None, None]:
    """Cache the images of a zip, tar, tar.gz or folder of class folders under ``name``.

    ``size`` (pixels per side) is for images that are not all of one size of at most 64; ``reserve`` bytes of the disk are
    kept free. Raises ``DatasetError``, which is ``DiskFull`` if the disk is full and ``Interrupted`` if the child was asked
    to end; then nothing is left behind. Closing the generator ends the child.
    """
    check_name(name)
    arguments = ["import", "--size", str(size), f"--reserve={reserve}"]
    arguments += [*([] if title is None else [f"--title={title}"]), "--", name, str(source.absolute())]
    yield from _relay(home, name, arguments, on_start)


def remove_leftovers(home: Path) -> None:
    """Remove half-made caches and partial downloads that killed processes left.

    Those of a live process stay.
    """
    making = home / "datasets" / ".making"
    for name in [path.name for path in making.iterdir()] if making.is_dir() else []:
        cache.clean(home, name)
    for known in KNOWN.values():
        partial = [home / "downloads" / f"{path}{PARTIAL}" for path in known.packed]
        if any(path.exists() for path in partial):
            with cache.locked(home, known.name, wait=False) as taken:
                for path in partial if taken else ():
                    path.unlink(missing_ok=True)


def _relay(home: Path, name: str, arguments: list[str], on_start: OnStart | None) -> Generator[Progress, None, None]:
    environment = {key: value for key, value in os.environ.items() if key != "RUNOFF_TOKEN"}
    child = subprocess.Popen(
        python_command("trainer.datasets", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**environment, "RUNOFF_HOME": str(home)},
    )
    try:
        if on_start:
            on_start(child)
        yield from _read(child)
    finally:
        _end(child)
        cache.clean(home, name)


def _read(child: subprocess.Popen[bytes]) -> Generator[Progress, None, None]:
    assert child.stdout is not None
    for raw in child.stdout:
        line: dict[str, Any] = json.loads(raw)
        kind = line.pop("type")
        if kind == "error":
            raise DiskFull(**line) if "needed" in line else DatasetError(**line)
        if kind == "ready":
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE_SECONDS)
            return
        yield Progress(**line)
    code = child.wait()
    if code in _ASKED_TO_END:
        raise Interrupted(_("The images could not be read: the process was stopped."), _("Try again."))
    what = signal.Signals(-code).name if code < 0 else _("status {code}").format(code=code)
    raise DatasetError(
        _("The images could not be read: the process ended unexpectedly ({what}).").format(what=what),
        _("It may have run out of memory. Try again, with smaller images."),
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that is done, or stop one that is not."""
    assert child.stdout is not None
    child.stdout.close()
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
