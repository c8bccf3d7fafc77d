"""``runoff datasets``: list, import and remove data sets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as Bars
from rich.table import Table

from app.cli import client as servers
from app.cli.terminal import console
from app.settings import load_settings
from trainer.datasets import catalogue, worker
from trainer.events import Progress
from trainer.i18n import _


def list_datasets() -> None:
    """List the data sets that can be trained on."""
    table = Table()
    for column in (_("Name"), _("Status"), _("Kind"), _("Training images"), _("Test images"), _("Shape"), _("Classes")):
        table.add_column(column)
    for dataset in catalogue.list_datasets(load_settings().home):
        shape = " × ".join(map(str, dataset.image_shape)) if dataset.image_shape else ""
        images = [f"{count:,}" if count else "" for count in (dataset.num_train, dataset.num_test)]
        table.add_row(
            dataset.name, _(dataset.status), _(dataset.kind), *images, shape, str(len(dataset.class_names) or "")
        )
    console.print(table)


def import_dataset(
    source: Annotated[Path, typer.Argument(help="A zip, tar, tar.gz or folder of class folders.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: the file's name.")] = None,
    size: Annotated[int, typer.Option(min=8, max=512, help="Pixels per side, if images must be resized.")] = 64,
) -> None:
    """Import your own images: train/<class>/* and test/<class>/*, or just <class>/*."""
    settings = load_settings()
    os.environ["RUNOFF_HOME"] = str(settings.home)
    name = name or _name_from(source)
    known = {dataset.name: dataset for dataset in catalogue.list_datasets(settings.home)}
    if name in known and known[name].status != "damaged":
        raise ValueError(
            _("There is already a data set named {name}. Choose another name with --name.").format(name=name)
        )
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
        typer.echo(_("Skipped as unreadable: {names}").format(names=", ".join(made.unreadable)))


def _name_from(source: Path) -> str:
    """Derive the name of a data set from a file name: lowercase letters, digits and hyphens."""
    stem = source.name.lower().split(".")[0]
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:64]


@contextlib.contextmanager
def _data_bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar for work on a data set; yields the function that updates it."""
    with Bars(console=console) as bars:
        task = bars.add_task(name, total=None)
        yield lambda p: bars.update(task, total=p.total or None, completed=p.done, description=f"{name}: {p.what}")


def remove_dataset(name: Annotated[str, typer.Argument(help="An imported data set.")]) -> None:
    """Remove an imported data set."""
    settings = load_settings()
    client = servers.find_server(settings)
    if client is not None:
        client.call("DELETE", f"/datasets/{name}")
    else:
        catalogue.get_dataset(settings.home, name)
        catalogue.remove_dataset(settings.home, name)
    typer.echo(_("Removed {name}.").format(name=name))
