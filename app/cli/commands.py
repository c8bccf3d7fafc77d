"""The command ``runoff``. All commands are registered here; those for the server and for runs are defined here."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import trainer
from app import resources
from app.cli import backup, check, datasets
from app.cli import client as servers
from app.cli.client import Client, ClientError
from app.cli.terminal import console, follow_runs, runs_table, show_comparison
from app.cli.train import make_command
from app.settings import Settings, SettingsError, load_settings
from trainer.config import ConfigError, FieldProblem
from trainer.i18n import _, ngettext

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Launch image-classification runs, watch them live, and settle which one is really better.",
)


def main() -> None:
    """The console script. Prints expected errors as a sentence to stderr and exits with 1 (2 for wrong arguments)."""
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
    client = servers.find_server(settings)
    if client is None:
        raise ClientError(
            _("No Runoff server is running on {home}. Start it with runoff serve.").format(home=settings.home)
        )
    return client


# Server --------------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: RUNOFF_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: RUNOFF_PORT or 8000.")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes; runs continue.")] = False,
) -> None:
    """Start the server."""
    settings = load_settings(host=host, port=port)
    _check_port(settings)
    os.environ.update(RUNOFF_HOME=str(settings.home), RUNOFF_HOST=settings.host, RUNOFF_PORT=str(settings.port))
    uploads = settings.home / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(uploads)  # large uploads are kept next to the data sets, not in a small /tmp
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    from app.logs import uvicorn_config
    from app.main import create_app
    from app.server import open_home

    lock, engine, told = open_home(settings)  # here, where an error is a sentence
    if told:
        typer.echo(told)
    if reload:
        lock.close()  # the child in which uvicorn serves takes it again
    typer.echo(
        _("Runoff serves {url} from {home}").format(url=f"http://{settings.host}:{settings.port}", home=settings.home)
    )
    if settings.required_token() and not settings.token:
        typer.echo(_("Other machines can reach this address, so a token is required; runoff token prints it."))
    if reload:
        os.environ["PYTHONSAFEPATH"] = "1"  # for the child in which uvicorn serves: as -P in python_command
    uvicorn.run(
        "app.main:create_app" if reload else create_app(settings, lock=lock, engine=engine),
        factory=reload,
        host=settings.host,
        port=settings.port,
        reload=reload,
        log_level="warning",
        log_config=uvicorn_config(LOGGING_CONFIG),
        reload_dirs=_watched() if reload else None,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,
    )


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
    """Print the server's token; it is created on first use."""
    settings = load_settings()
    typer.echo(settings.token or settings.stored_token())


@app.command()
def reindex() -> None:
    """Rebuild the database from the run folders. A damaged or a newer one is set aside first."""
    settings = load_settings()
    client = servers.find_server(settings)
    if client is not None:
        count = client.call("POST", "/reindex")["runs"]
    else:
        from app.runs.indexer import Indexer
        from app.server import lock_home
        from app.store.database import open_index

        with lock_home(settings):
            engine, told = open_index(settings.database, replace_newer=True)
            if told:
                typer.echo(told)
            count = Indexer(engine, settings.runs).rebuild()
    typer.echo(ngettext("{count} run indexed.", "{count} runs indexed.", count).format(count=count))


app.command("check")(check.check)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)


@app.command()
def demo(
    exit: Annotated[
        bool, typer.Option("--exit", help="Exit when the runs are finished and leave no process behind.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Train again instead of reusing finished runs.")] = False,
) -> None:
    """Train FC, CNN and CNN on permuted pixels, and print the link to their comparison."""
    from app.cli.demo import run_demo

    run_demo(load_settings(), leave=exit, again=again)


app.command("train")(make_command())


# Runs ----------------------------------------------------------------------------------------------------------------


@app.command("runs")
def list_runs(
    q: Annotated[str | None, typer.Argument(help="Words in name, tags, notes; field=value compares a field.")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, finished, failed or cancelled.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set's name.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag.")] = None,
    sort: Annotated[str, typer.Option(help="A column; a leading minus reverses the order.")] = "-created_at",
    limit: Annotated[int, typer.Option(help="Maximum number of runs.")] = 30,
) -> None:
    """List runs of the running server."""
    found = _server(load_settings()).runs(
        q=q, status=status, dataset=dataset, model=model, tag=tag, sort=sort, limit=limit
    )
    count = ngettext("{count} run", "{count} runs", found["total"]).format(count=f"{found['total']:,}")
    console.print(runs_table(found["runs"], count))


@app.command()
def watch(
    run: Annotated[list[str], typer.Argument(help="Run ids; default: all queued and running runs.")] = [],  # noqa: B006
) -> None:
    """Follow runs until they end."""
    client = _server(load_settings())
    ids = run or [live["id"] for status in ("running", "queued") for live in client.runs(status=status)["runs"]]
    if not ids:
        typer.echo(_("Nothing is running. Start a run with runoff train."))
        return
    sys.exit(follow_runs(client, ids))


@app.command()
def compare(
    run: Annotated[list[str], typer.Argument(help="Two or more run ids.")],
    at: Annotated[str, typer.Option(help="last, best or an epoch.")] = "last",
    base: Annotated[str | None, typer.Option(help="Compare all others with this run only.")] = None,
    margin: Annotated[float, typer.Option(help="A difference too small to matter, in points.")] = 0.5,
) -> None:
    """Show which run is better, by how much, and whether the difference is real."""
    client = _server(load_settings())
    show_comparison(client.compare(run, at=at, base=base, margin=margin / 100))
    console.print(f"\n{client.url}/compare?" + "&".join(f"run={run_id}" for run_id in run), soft_wrap=True)


# Data sets -----------------------------------------------------------------------------------------------------------

datasets_app = typer.Typer(no_args_is_help=True, help="List, import and remove data sets.")
datasets_app.command("list")(datasets.list_datasets)
datasets_app.command("import")(datasets.import_dataset)
datasets_app.command("remove")(datasets.remove_dataset)
app.add_typer(datasets_app, name="datasets")
