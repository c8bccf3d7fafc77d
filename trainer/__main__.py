"""``python -m trainer``: train from a shell, with no server. Leaves the same run folder under ``HOME/runs``.

``python -m trainer FOLDER`` goes on with a run; with flags, one per field of ``RunConfig``, it begins a new one.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from trainer.config import FIELDS, ConfigError, parse_config
from trainer.cores import threads_for
from trainer.home import home
from trainer.i18n import _
from trainer.presets import PRESETS
from trainer.run_folder import RunFolder, iter_valid_events


def parser() -> argparse.ArgumentParser:
    """The flags: title, help, bounds and default of each come from ``RunConfig``."""
    result = argparse.ArgumentParser(
        prog="python -m trainer", description=_("Train from the command line, without a server.")
    )
    result.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help=_("a run folder to continue"))
    result.add_argument("--announce", metavar="JSON", help=argparse.SUPPRESS)  # labels of a new run's folder
    result.add_argument("--preset", choices=sorted(PRESETS), help=_("a preset; fields given here take precedence"))
    result.add_argument("--name", default="", help=_("a name for the run"))
    for name, field in FIELDS.items():
        default = "" if field.is_required() else _(" (default {value})").format(value=field.default)
        text = f"{_(field.title or name)}: {_(field.description or '')}{default}".replace("%", "%%")
        result.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, metavar="VALUE", help=text)
    return result


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that were typed, over those of the preset. An empty value is null; pydantic reads the numbers."""
    preset = PRESETS[arguments.preset].base if arguments.preset else {}
    typed = {name: value or None for name in FIELDS if (value := getattr(arguments, name)) is not None}
    return {**preset, **typed}


def main(argv: list[str] | None = None) -> int:
    """Start or continue a run. Exit status: 0 finished or stopped, 1 failed, 2 wrong arguments."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.folder:
            labels = json.loads(arguments.announce) if arguments.announce else None
            return _train(_existing(arguments.folder), labels)
        return _train(*_new(arguments))
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem.field}: {problem.message}\n")
        return 2


def _existing(path: Path) -> RunFolder:
    folder = RunFolder(path.resolve())
    if not folder.config_path.exists():
        sys.exit(_("{path} is not a run folder: it has no config.json.").format(path=path))
    folder.clear_stop()
    return folder


def _new(arguments: argparse.Namespace) -> tuple[RunFolder, dict[str, Any]]:
    config, warnings = parse_config(given_fields(arguments))
    for warning in warnings:
        sys.stderr.write(f"{warning}\n")
    labels = {"name": arguments.name, "warnings": warnings}
    return RunFolder.claim(home() / "runs", config), labels


def _train(folder: RunFolder, labels: dict[str, Any] | None = None) -> int:
    """Train ``folder``. A new one is announced once its lock is held, so that a server does not start it as well."""
    from trainer import runtime

    sys.stdout.write(f"{folder.path}\n")
    attempts = [event["attempt"] for event, _end in iter_valid_events(folder.events_path)]
    try:
        threads = threads_for(folder.read_config().model)
    except ValueError as problem:
        sys.exit(str(problem))
    on_locked = partial(folder.announce, **labels) if labels is not None else None
    status = runtime.execute(folder, max(attempts, default=0) + 1, num_threads=threads, echo=_echo, on_locked=on_locked)
    if status == runtime.ALREADY_RUNNING:
        sys.exit(_("This run is already running in another process."))
    if status:
        return 1
    last = [event["type"] for event, _end in iter_valid_events(folder.events_path)][-1]
    return 1 if last == "failed" else 0


def _echo(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
