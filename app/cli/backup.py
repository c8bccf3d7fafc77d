"""The commands ``runoff backup`` and ``runoff restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.settings import load_settings
from trainer.i18n import _, ngettext


def backup(
    destination: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    leave_out_caches: Annotated[
        bool,
        typer.Option(
            "--leave-out-caches", help="Leave out downloads and the images of built-in data sets; runs get them again."
        ),
    ] = False,
) -> None:
    """Copy RUNOFF_HOME to a folder. The server may be running, and runs may train."""
    from app.store.backup import make_backup

    settings = load_settings()
    made = make_backup(settings, destination, leave_out_caches=leave_out_caches)
    for name, part in made.parts.items():
        title = f"{name}/" if name else _("other files")
        typer.echo(_describe(title, part.num_bytes, part.num_files))
    for name, size in made.left_out.items():
        typer.echo(_("{name}: left out, {size} MB").format(name=f"{name}/", size=f"{size / 1e6:,.1f}"))
    if not made.has_index:
        typer.echo(_("The index was left out; the server makes it again from the run folders."))
    text = ngettext("{count} run backed up to {path}.", "{count} runs backed up to {path}.", made.num_runs)
    typer.echo(text.format(count=made.num_runs, path=destination))


def _describe(title: str, num_bytes: int, num_files: int) -> str:
    text = ngettext("{title}: {count} file, {size} MB", "{title}: {count} files, {size} MB", num_files)
    return text.format(title=title, count=f"{num_files:,}", size=f"{num_bytes / 1e6:,.1f}")


def restore(source: Annotated[Path, typer.Argument(help="The folder of a backup.")]) -> None:
    """Copy a backup into RUNOFF_HOME, which must be empty. Every file is checked."""
    from app.server import lock_home
    from app.store.restore import check_home_is_empty, read_listing
    from app.store.restore import restore as restore_files

    settings = load_settings()
    folder = source.expanduser().resolve()
    listing = read_listing(folder)
    check_home_is_empty(settings.home)
    with lock_home(settings):
        restore_files(settings, folder, listing)
    num_bytes = sum(file.size for file in listing.files)
    typer.echo(_describe(_("Restored to {home}").format(home=settings.home), num_bytes, len(listing.files)))
    typer.echo(_("Start the server with runoff serve. Runs that were running or queued continue then."))
