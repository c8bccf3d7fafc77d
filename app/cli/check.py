"""The command ``runoff check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.settings import Settings, load_settings
from trainer.i18n import _, ngettext


def check(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids of runs. Default: all runs, data sets and the index.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every file and compare it with its hash; sizes are compared anyway.")
    ] = False,
    restore: Annotated[
        list[str] | None, typer.Option("--restore", help="Restore the damaged files of this run from intact copies.")
    ] = None,
    backup: Annotated[list[Path] | None, typer.Option(help="A backup with further copies, for --restore.")] = None,
) -> None:
    """Check run folders, data sets and the index against their checksums. Nothing is changed without --restore.

    Exit status 1: something is damaged.
    """
    if backup and not restore:
        message = _("It is used only with --restore; add --restore ID, or leave out --backup.")
        raise typer.BadParameter(message, param_hint="--backup")
    settings = load_settings()
    if restore:
        _restore(settings, restore, backup or [])
        return
    from app.runs.check import check_home

    found = list(check_home(settings, runs or [], full=full))
    damaged = [each for each in found if each.problems]
    for each in damaged:
        typer.echo(f"{each.name}: {' '.join([*each.problems, *each.remedies, each.advice]).strip()}")
    text = ngettext(
        "{count} thing checked, {damaged} damaged.", "{count} things checked, {damaged} damaged.", len(found)
    )
    typer.echo(text.format(count=f"{len(found):,}", damaged=f"{len(damaged):,}"))
    if damaged:
        raise typer.Exit(1)


def _restore(settings: Settings, runs: list[str], backups: list[Path]) -> None:
    from app.runs.repair import repair
    from app.store.database import open_index
    from trainer.run_folder import RunFolder

    engine, told = open_index(settings.database)
    if told:
        typer.echo(told)
    is_damaged = False
    for run_id in runs:
        folder = RunFolder(settings.runs / run_id)
        if not folder.path.is_dir():
            raise typer.BadParameter(_("There is no run {id}.").format(id=run_id), param_hint="--restore")
        result = repair(engine, folder, backups)
        for sentence in result.done or [
            _("Nothing could be restored.") if result.problems else _("Nothing is damaged.")
        ]:
            typer.echo(f"{run_id}: {sentence}")
        if result.problems:
            is_damaged = True
            typer.echo(f"{run_id}: " + _("Still damaged: {what}").format(what=" ".join(result.problems)))
    engine.dispose()
    if is_damaged:
        raise typer.Exit(1)
