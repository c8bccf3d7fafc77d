"""The command ``runoff``. All commands are registered here; those for the server and for runs are defined here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.cli import backup, check, datasets, serve
from app.cli import client as servers
from app.cli.client import Client, ClientError
from app.cli.terminal import console, follow_runs, passing_bar, runs_table, show_comparison
from app.cli.train import make_command
from app.settings import Settings, SettingsError, load_settings
from trainer.config import ConfigError, FieldProblem
from trainer.files import is_full
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
        _fail([], _disk_full(error) if is_full(error) else str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _disk_full(error: BaseException) -> str:
    path = getattr(error, "filename", None) or _("a file")
    return _("The disk is full: {path} could not be written. Free some space, then try again.").format(path=path)


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


app.command("serve")(serve.serve)


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
        with console.status(_("Reading the run folders. The pages of the server show the progress.")):
            count = client.call("POST", "/reindex", timeout=None)["runs"]
    else:
        from app.runs.indexer import Indexer
        from app.server import lock_home
        from app.store.database import open_index

        with lock_home(settings):
            engine, told = open_index(settings.database, replace_newer=True)
            if told:
                typer.echo(told)
            with passing_bar(_("Reading the run folders")) as show:
                count = Indexer(engine, settings.runs).rebuild(lambda progress: show(progress.done, progress.total))
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
