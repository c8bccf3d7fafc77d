"""``runoff train``: options are derived from ``RunConfig``. It trains on the running server, or here without one."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.cli import client as servers
from app.cli.terminal import RunBar, follow_runs, progress_bars
from app.settings import Settings, load_settings
from trainer.config import FIELDS, ConfigError, FieldProblem, problems_of
from trainer.events import TERMINAL
from trainer.i18n import _
from trainer.interpreter import python_command
from trainer.run_folder import RunFolder, read_events


def _train(
    preset: str | None, repeats: int, name: str, tag: list[str] | None, local: bool, detach: bool, **fields: str | None
) -> None:
    """Train one or more runs: on the running server, or here if there is none.

    Several values in a field, separated by commas, make a sweep; whole numbers may be a range such as 0..4.
    """
    settings = load_settings()
    base, grid = _base_and_grid(fields)
    sweep = {"preset": preset, "base": base, "grid": grid, "repeats": repeats, "name": name, "tags": tag or []}
    client = None if local else servers.find_server(settings)
    if client is None:
        sys.exit(_train_here(settings, sweep))
    ids = _start_on_server(client, sweep)
    if not detach:
        sys.exit(follow_runs(client, ids))


def _base_and_grid(fields: Mapping[str, str | None]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Split the given fields into those with one value and those with several. Raises ``ConfigError``."""
    from app.forms import read as forms

    base: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    for field, text in fields.items():
        if text is not None:
            try:
                values = forms.values_of(field, text)
            except ValueError as error:
                raise ConfigError([FieldProblem(field=field, message=str(error))]) from None
            if len(values) > 1:
                grid[field] = values
            else:
                base[field] = values[0]
    return base, grid


def _start_on_server(client: servers.Client, sweep: Mapping[str, Any]) -> list[str]:
    """Start the runs, print their URLs and return their ids."""
    started = client.start_sweep(**sweep)
    for warning in started["warnings"]:
        sys.stderr.write(f"{warning}\n")
    for run in started["runs"]:
        typer.echo(f"{run['id']}  {run['name']}  {client.url}/runs/{run['id']}")
    if len(started["runs"]) > 1:
        _show_links(client.url, started)
    return [run["id"] for run in started["runs"]]


def _show_links(url: str, started: Mapping[str, Any]) -> None:
    """Print the URLs at which the runs of a sweep are shown together."""
    from app.compare.load import MAX_COMPARED

    sys.stderr.write(f"{_('All together')}: {url}/sweeps/{started['id']}\n")
    if len(started["runs"]) <= MAX_COMPARED:
        sys.stderr.write(
            f"{_('Compared')}: {url}/compare?" + "&".join(f"run={run['id']}" for run in started["runs"]) + "\n"
        )


def _signature() -> inspect.Signature:
    """The parameters of ``train``, followed by an option for each field of ``RunConfig``."""

    def option(name: str, annotation: Any, default: Any, *flags: str, help: str) -> inspect.Parameter:
        wrapped = Annotated[annotation, typer.Option(*flags, help=help, show_default=False)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=wrapped)

    own = [
        option("preset", str | None, None, "--preset", help="A preset; the other options take precedence."),
        option("repeats", int, 1, "--repeats", help="Seeds for each configuration."),
        option("name", str, "", "--name", help="A name; the values that vary are appended."),
        option("tag", list[str] | None, None, "--tag", help="A tag; may be given several times."),
        option("local", bool, False, "--local", help="Train here even if a server is running."),
        option("detach", bool, False, "--detach", help="Do not wait for the server's runs to end."),
    ]
    fields = [
        option(name, str | None, None, f"--{name.replace('_', '-')}", help=f"{info.title}. {info.description or ''}")
        for name, info in FIELDS.items()
    ]
    return inspect.Signature([*own, *fields])


def make_command() -> Callable[..., None]:
    """The command ``train`` for typer, which reads a function's signature."""

    def command(**arguments: Any) -> None:
        _train(**arguments)

    signature = _signature()
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    command.__doc__ = _train.__doc__
    return command


def _train_here(settings: Settings, sweep: Mapping[str, Any]) -> int:
    """Plan as the server would, then train the runs one after the other, each in its own process.

    Returns the exit status.
    """
    from app.runs.plan import plan
    from app.schemas import SweepIn

    os.environ["RUNOFF_HOME"] = str(settings.home)
    try:
        checked = SweepIn.model_validate(sweep)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None
    planned = plan(settings.home, checked)
    for warning in planned.warnings:
        sys.stderr.write(f"{warning}\n")
    status = 0
    for item in planned.runs:
        folder = RunFolder.claim(settings.runs, item.config)
        labels = {"name": item.name, "tags": checked.tags, "warnings": item.warnings}
        with progress_bars() as bars:
            bar = RunBar(bars, item.name)
            last: dict[str, Any] = {}
            for last in _local_events(folder, labels):
                bar.show_event(last)
        typer.echo(str(folder.path))
        status = max(status, _report_end(last))
        if last.get("type") == "cancelled":
            break  # Ctrl-C means all that is left
    return status


def _report_end(last: Mapping[str, Any]) -> int:
    if last.get("type") == "failed":
        sys.stderr.write(f"{last['message']} {last['advice']}\n")
    elif last.get("type") not in TERMINAL:
        sys.stderr.write(_("The process ended unexpectedly. The file log.txt in the run's folder may say why.") + "\n")
    return 0 if last.get("type") == "finished" else 1


def _local_events(folder: RunFolder, labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Train ``folder`` in a separate process and yield its events; Ctrl-C asks it to stop and keeps the last epoch.

    The process announces the folder when it has its lock, so that a running server does not start it as well.
    """
    command = python_command("trainer", str(folder.path), "--announce", json.dumps(dict(labels)))
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    offset = seq = 0
    while True:
        try:
            ended = child.poll() is not None
            chunk = read_events(folder.events_path, offset, seq)
            offset, seq = chunk.offset, seq + len(chunk.events)
            yield from chunk.events
            if ended and not chunk.events:
                return
            time.sleep(0 if ended else 0.1)
        except KeyboardInterrupt:
            folder.request_stop()
