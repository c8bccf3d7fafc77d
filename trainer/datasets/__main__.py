"""``python -m trainer.datasets``: the child process that makes caches. Speaks JSON lines on stdout; see ``worker``.

Ends on SIGTERM, SIGINT and when nobody reads its output any more, and cleans up in each case.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.datasets.errors import DatasetError, DiskFull, UnknownDataset
from trainer.events import Progress, payload
from trainer.files import is_full
from trainer.home import home
from trainer.i18n import _

_REPORT_SECONDS = 0.1


def _stop(signum: int, frame: FrameType | None) -> None:
    _deaf()
    raise SystemExit(128 + signum)


def _deaf() -> None:
    """Ignore further signals: what is left to do is cleaning up and ending."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


class Reporter:
    """Writes progress lines, at most ten a second, and always those that complete something."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.done < progress.total and time.monotonic() < self._last + _REPORT_SECONDS:
            return
        self._last = time.monotonic()
        say(payload(progress))


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.datasets")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="cache a known data set")
    prepare.add_argument("name")
    prepare.add_argument("--no-download", action="store_true")
    importing = commands.add_parser("import", help="cache the images of an archive or a folder")
    importing.add_argument("name")
    importing.add_argument("source", type=Path)
    importing.add_argument("--size", type=int, default=64)
    importing.add_argument("--title")
    importing.add_argument("--reserve", type=int, default=0, help="bytes of the disk to keep free")
    return parser.parse_args()


def _work(arguments: argparse.Namespace) -> None:
    if arguments.command == "prepare":
        from trainer.datasets.originals import prepare
        from trainer.datasets.worker import find_known

        prepare(home(), find_known(arguments.name), Reporter(), download=not arguments.no_download)
    else:
        from trainer.datasets.importing import import_images

        options = {key: getattr(arguments, key) for key in ("size", "title", "reserve")}
        import_images(home(), arguments.name, arguments.source, Reporter(), **options)


def _explain(error: Exception) -> DatasetError:
    """The message of an error. The traceback of an unexpected one is also printed to stderr."""
    if isinstance(error, DatasetError):
        return error
    if isinstance(error, UnknownDataset):
        return DatasetError(str(error), _("Check the name, then try again."))
    if isinstance(error, OSError):
        return _explain_disk(error)
    traceback.print_exc()
    return DatasetError(
        _("Unexpected error: {error}.").format(error=f"{type(error).__name__}: {error}"),
        _("Please report it, with the lines that the log has of it."),
    )


def _explain_disk(error: OSError) -> DatasetError:
    if is_full(error):
        return DiskFull(_("The disk is full."), _("Free some space, then try again."))
    where = f": {error.filename}" if error.filename else ""
    return DatasetError(
        _("Could not write to disk: {reason}{where}.").format(reason=error.strerror or error, where=where),
        _("Check the disk and who may write there, then try again."),
    )


def main() -> int:
    """Do what the command line says; the exit status is 1 where an ``error`` line was written."""
    arguments = _arguments()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    failure = None
    try:
        _work(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        failure = _explain(error)
    _deaf()
    if failure is not None:
        needed = {"needed": failure.needed} if isinstance(failure, DiskFull) else {}
        say({"type": "error", "message": failure.message, "advice": failure.advice, **needed})
        return 1
    say({"type": "ready"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
