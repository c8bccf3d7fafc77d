"""The command ``runoff check``."""

from __future__ import annotations

from typing import Annotated

import typer

from app.settings import load_settings
from trainer.i18n import ngettext


def check(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids of runs. Default: all runs, data sets and the index.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every file and compare it with its hash; sizes are compared anyway.")
    ] = False,
) -> None:
    """Check run folders, data sets and the index against their checksums. Nothing is changed.

    Exit status 1: something is damaged.
    """
    from app.store.check import check_datasets, check_index, check_runs

    settings = load_settings()
    found = list(check_runs(settings.runs, runs or [], full=full))
    if not runs:
        found += [*check_datasets(settings.home, full=full), check_index(settings)]
    damaged = [each for each in found if each.problems]
    for each in damaged:
        typer.echo(f"{each.name}: {' '.join(each.problems)}")
    text = ngettext(
        "{count} thing checked, {damaged} damaged.", "{count} things checked, {damaged} damaged.", len(found)
    )
    typer.echo(text.format(count=f"{len(found):,}", damaged=f"{len(damaged):,}"))
    if damaged:
        raise typer.Exit(1)
