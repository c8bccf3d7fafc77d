"""The command ``runoff``: a thin layer over the client and the server. Flags of ``train`` come from ``RunConfig``."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

import trainer
from app import resources
from app.cli.client import Client, ClientError, find_server
from app.settings import Settings, SettingsError, load_settings
from trainer.config import FIELDS, ConfigError, FieldProblem, problems_of
from trainer.i18n import _, ngettext
from trainer.interpreter import python_command
from trainer.run_folder import RunFolder, read_events

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Launch image-classification runs, watch them live, and settle which one is really better.",
)  # fmt: skip
datasets_app = typer.Typer(no_args_is_help=True, help="List, import and remove data sets.")
app.add_typer(datasets_app, name="datasets")


def main() -> None:
    """The console script: every expected error is one sentence on stderr and status 1 (2 for wrong arguments)."""
    from app.errors import Problem

    try:
        app()
    except (ConfigError, Problem) as error:
        _fail(error.problems if isinstance(error, ConfigError) else error.errors, str(error), 2)
    except ClientError as error:
        _fail([FieldProblem(**item) for item in error.errors], str(error), 2 if error.status == 422 else 1)
    except (SettingsError, ValueError, RuntimeError, OSError) as error:
        _fail([], str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(problems: list[FieldProblem], text: str, status: int) -> None:
    for problem in problems:
        sys.stderr.write(f"{problem.field}: {problem.message}\n")
    if not problems:
        sys.stderr.write(f"{text}\n")
    sys.exit(status)


def _server(settings: Settings) -> Client:
    """The running server's client. Raises ``ClientError``."""
    client = find_server(settings)
    if client is None:
        raise ClientError(_("No Runoff server runs on {home}. Start it with runoff serve.").format(home=settings.home))
    return client


# Server --------------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default RUNOFF_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default RUNOFF_PORT or 8000.")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when the code changes; runs go on.")] = False,
) -> None:
    """Start the server."""
    settings = load_settings(host=host, port=port)
    _check_port(settings)
    os.environ.update(RUNOFF_HOME=str(settings.home), RUNOFF_HOST=settings.host, RUNOFF_PORT=str(settings.port))
    uploads = settings.home / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(uploads)  # large uploads wait beside the data sets, not on a small /tmp
    import uvicorn

    from app.server import lock_home

    lock_home(settings).close()
    typer.echo(
        _("Runoff serves {url} from {home}").format(url=f"http://{settings.host}:{settings.port}", home=settings.home)
    )
    if settings.required_token() and not settings.token:
        typer.echo(_("Others can reach this address, so a token is needed: runoff token prints it."))
    if reload:
        os.environ["PYTHONSAFEPATH"] = "1"  # for the child in which uvicorn serves: as -P in python_command
    uvicorn.run(
        "app.main:create_app", factory=True, host=settings.host, port=settings.port, reload=reload, log_level="warning",
        reload_dirs=_watched() if reload else None,
        timeout_graceful_shutdown=2, timeout_keep_alive=30,
    )  # fmt: skip


def _watched() -> list[str]:
    """The folders whose changes restart a server with ``--reload``."""
    packages = [resources.PACKAGE, Path(trainer.__file__).parent]
    return [str(path) for path in [*packages, resources.folder("templates")]]


def _check_port(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(
                _("{host}:{port} can't be used: {reason}. Choose another with --port.").format(
                    host=settings.host, port=settings.port, reason=error.strerror
                )
            ) from None


@app.command()
def token() -> None:
    """Print the token that the server asks for, making one on first use."""
    settings = load_settings()
    typer.echo(settings.token or settings.stored_token())


@app.command()
def reindex() -> None:
    """Rebuild the database from the run folders."""
    settings = load_settings()
    client = find_server(settings)
    if client is not None:
        count = client.call("POST", "/reindex")["runs"]
    else:
        from app.server import lock_home, make_state

        with lock_home(settings):
            count = make_state(settings).indexer.rebuild()
    typer.echo(ngettext("{count} run indexed.", "{count} runs indexed.", count).format(count=count))


@app.command()
def demo(
    exit: Annotated[bool, typer.Option("--exit", help="End when the runs are finished, leaving no process.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Train anew instead of reusing finished runs.")] = False,
) -> None:
    """Train FC, CNN and CNN on permuted pixels, and end with the link to their comparison."""
    from app.cli.demo import run_demo

    run_demo(load_settings(), leave=exit, again=again)


# Runs ----------------------------------------------------------------------------------------------------------------


def _train(
    preset: str | None, repeats: int, name: str, tag: list[str] | None, local: bool, detach: bool, **fields: str | None
) -> None:
    from app.forms import read as forms

    settings = load_settings()
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
    sweep = {"preset": preset, "base": base, "grid": grid, "repeats": repeats, "name": name, "tags": tag or []}
    client = None if local else find_server(settings)
    if client is None:
        _train_here(settings, sweep)
    else:
        started = client.start_sweep(**sweep)
        for warning in started["warnings"]:
            sys.stderr.write(f"{warning}\n")
        for run in started["runs"]:
            typer.echo(f"{run['id']}  {run['name']}  {client.url}/runs/{run['id']}")
        if len(started["runs"]) > 1:
            _show_links(client.url, started)
        if not detach:
            sys.exit(_follow(client, [run["id"] for run in started["runs"]]))


def _show_links(url: str, started: Mapping[str, Any]) -> None:
    """Where the runs of a sweep are seen together."""
    from app.compare.load import MAX_COMPARED

    sys.stderr.write(f"{_('All together')}: {url}/sweeps/{started['id']}\n")
    if len(started["runs"]) <= MAX_COMPARED:
        sys.stderr.write(
            f"{_('Compared')}: {url}/compare?" + "&".join(f"run={run['id']}" for run in started["runs"]) + "\n"
        )


_train.__doc__ = """Train one run or several: on the running server, else here.

Several values in a field, with commas between, make a sweep; whole numbers may be a range such as 0..4.
"""


def _train_signature() -> inspect.Signature:
    """The parameters of ``train``: its own, then one option for each field of ``RunConfig``."""

    def option(name: str, annotation: Any, default: Any, *flags: str, help: str) -> inspect.Parameter:
        wrapped = Annotated[annotation, typer.Option(*flags, help=help, show_default=False)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=wrapped)

    own = [
        option("preset", str | None, None, "--preset", help="A named start; the other flags win over it."),
        option("repeats", int, 1, "--repeats", help="Seeds for each configuration."),
        option("name", str, "", "--name", help="A name; the values that vary are appended."),
        option("tag", list[str] | None, None, "--tag", help="A tag; may be given several times."),
        option("local", bool, False, "--local", help="Train here even if a server runs."),
        option("detach", bool, False, "--detach", help="Do not wait for the server's runs to end."),
    ]
    fields = [
        option(name, str | None, None, f"--{name.replace('_', '-')}", help=f"{info.title}. {info.description or ''}")
        for name, info in FIELDS.items()
    ]
    return inspect.Signature([*own, *fields])


def _as_command(signature: inspect.Signature) -> Any:
    def command(**arguments: Any) -> None:
        _train(**arguments)

    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    command.__doc__ = _train.__doc__
    return command


app.command("train")(_as_command(_train_signature()))


def _train_here(settings: Settings, sweep: Mapping[str, Any]) -> None:
    """Plan as the server would, then train one run after the other in processes of their own."""
    from app.cli.terminal import RunBar, progress_bars
    from app.runs import commands as runs
    from app.schemas import SweepIn

    os.environ["RUNOFF_HOME"] = str(settings.home)
    try:
        checked = SweepIn.model_validate(sweep)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None
    planned = runs.plan_for(settings, checked)
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
    sys.exit(status)


def _report_end(last: Mapping[str, Any]) -> int:
    if last.get("type") == "failed":
        sys.stderr.write(f"{last['message']} {last['advice']}\n")
    return 0 if last.get("type") == "finished" else 1


def _local_events(folder: RunFolder, labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Train ``folder`` in a process of its own and yield its events; Ctrl-C asks it to stop and keeps the last epoch.

    The folder is announced when the process has its lock, so that a running server does not start it as well.
    """
    child = subprocess.Popen(
        python_command("trainer", str(folder.path)), stdout=subprocess.DEVNULL, start_new_session=True
    )
    offset = seq = 0
    announced = False
    while True:
        try:
            ended = child.poll() is not None
            if not announced and (ended or folder.is_alive()):
                folder.announce(**labels)
                announced = True
            chunk = read_events(folder.events_path, offset, seq)
            offset, seq = chunk.offset, seq + len(chunk.events)
            yield from chunk.events
            if ended and not chunk.events:
                return
            time.sleep(0 if ended else 0.1)
        except KeyboardInterrupt:
            folder.request_stop()


def _follow(client: Client, run_ids: list[str]) -> int:
    """Draw the runs until all have ended; status 1 if one did not finish. Ctrl-C only stops watching."""
    from app.cli.terminal import console, runs_table, watch_runs

    ended = watch_runs(client, run_ids)
    console.print(runs_table(ended))
    return 0 if all(run["status"] == "finished" for run in ended) else 1


@app.command("runs")
def list_runs(
    q: Annotated[str | None, typer.Argument(help="Words in name, tags, notes; field=value compares a field.")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, finished, failed or cancelled.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set's name.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag.")] = None,
    sort: Annotated[str, typer.Option(help="A column, with a minus before it to turn it round.")] = "-created_at",
    limit: Annotated[int, typer.Option(help="How many at most.")] = 30,
) -> None:
    """List runs of the running server."""
    from app.cli.terminal import console, runs_table

    found = _server(load_settings()).runs(
        q=q, status=status, dataset=dataset, model=model, tag=tag, sort=sort, limit=limit
    )
    count = ngettext("{count} run", "{count} runs", found["total"]).format(count=f"{found['total']:,}")
    console.print(runs_table(found["runs"], count))


@app.command()
def watch(run: Annotated[list[str], typer.Argument(help="Ids of runs; without any, all that are live.")] = []) -> None:  # noqa: B006
    """Follow runs until they end."""
    client = _server(load_settings())
    ids = run or [one["id"] for status in ("running", "queued") for one in client.runs(status=status)["runs"]]
    if not ids:
        typer.echo(_("Nothing is running. Start a run with runoff train."))
        return
    sys.exit(_follow(client, ids))


@app.command()
def compare(
    run: Annotated[list[str], typer.Argument(help="Ids of two or more runs.")],
    at: Annotated[str, typer.Option(help="last, best or an epoch.")] = "last",
    base: Annotated[str | None, typer.Option(help="Compare all others with this run only.")] = None,
    margin: Annotated[float, typer.Option(help="A difference too small to matter, in points.")] = 0.5,
) -> None:
    """Say which run is better, by how much, and whether it is real."""
    from app.cli.terminal import console, show_comparison

    client = _server(load_settings())
    show_comparison(client.compare(run, at=at, base=base, margin=margin / 100))
    console.print(f"\n{client.url}/compare?" + "&".join(f"run={one}" for one in run), soft_wrap=True)


# Data sets -----------------------------------------------------------------------------------------------------------


@datasets_app.command("list")
def list_datasets() -> None:
    """List the data sets that can be trained on."""
    from rich.table import Table

    from app.cli.terminal import console
    from trainer.datasets import catalogue

    table = Table()
    for column in (_("Name"), _("Status"), _("Kind"), _("Training images"), _("Test images"), _("Shape"), _("Classes")):
        table.add_column(column)
    for one in catalogue.list_datasets(load_settings().home):
        shape = " × ".join(map(str, one.image_shape)) if one.image_shape else ""
        images = [f"{count:,}" if count else "" for count in (one.num_train, one.num_test)]
        table.add_row(one.name, _(one.status), _(one.kind), *images, shape, str(len(one.class_names) or ""))
    console.print(table)


@datasets_app.command("import")
def import_dataset(
    source: Annotated[Path, typer.Argument(help="A zip, tar, tar.gz or folder of class folders.")],
    name: Annotated[str | None, typer.Option(help="What runs call it; default from the file's name.")] = None,
    size: Annotated[int, typer.Option(min=8, max=512, help="Pixels a side, where images must be resized.")] = 64,
) -> None:
    """Import one's own images: train/<class>/* and test/<class>/*, or just <class>/*."""
    from trainer.datasets import catalogue, worker

    settings = load_settings()
    os.environ["RUNOFF_HOME"] = str(settings.home)
    name = name or _name_from(source)
    if any(one.name == name for one in catalogue.list_datasets(settings.home)):
        raise ValueError(_("There is a data set {name} already. Choose another name with --name.").format(name=name))
    with _data_bar(name) as move:
        for progress in worker.import_images(settings.home, name, source.resolve(), size=size):
            move(progress)
    made = catalogue.get_dataset(settings.home, name)
    typer.echo(
        _("{name}: {train} training and {test} test images of {classes} classes.").format(
            name=name, train=f"{made.num_train:,}", test=f"{made.num_test:,}", classes=len(made.class_names)
        )
    )
    if made.num_unreadable:
        typer.echo(_("Left out as unreadable: {names}").format(names=", ".join(made.unreadable)))


def _name_from(source: Path) -> str:
    """A data set's name from a file's: small letters, digits and hyphens."""
    stem = source.name.lower().split(".")[0]
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:64]


@contextlib.contextmanager
def _data_bar(name: str) -> Iterator[Any]:
    from rich.progress import Progress

    from app.cli.terminal import console

    with Progress(console=console) as bars:
        task = bars.add_task(name, total=None)
        yield lambda p: bars.update(task, total=p.total or None, completed=p.done, description=f"{name}: {p.what}")


@datasets_app.command("remove")
def remove_dataset(name: Annotated[str, typer.Argument(help="An imported data set.")]) -> None:
    """Remove an imported data set."""
    from trainer.datasets import catalogue

    settings = load_settings()
    client = find_server(settings)
    if client is not None:
        client.call("DELETE", f"/datasets/{name}")
    else:
        catalogue.get_dataset(settings.home, name)
        catalogue.remove_dataset(settings.home, name)
    typer.echo(_("{name} is removed.").format(name=name))
