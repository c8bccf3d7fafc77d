"""Checks a home against its checksums: run folders, data sets, and the index. Nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings
from app.store.recorded import is_as_recorded, stamp
from trainer.damage import damage_of
from trainer.datasets import catalogue, integrity
from trainer.i18n import _
from trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Checked:
    """One thing that was checked, with a sentence for each thing that is wrong with it."""

    name: str  # of a run its id
    problems: list[str]


def check_runs(runs: Path, ids: Sequence[str], *, full: bool) -> Iterator[Checked]:
    """Every run folder, or those of ``ids``. With ``full`` each file is read and compared with its SHA-256."""
    names = ids or sorted(path.name for path in runs.glob("*") if path.is_dir() and not path.name.startswith("."))
    for name in names:
        folder = RunFolder(runs / name)
        if not folder.path.is_dir():
            yield Checked(name, [_("There is no such run folder.")])
        elif ids or not folder.is_empty():
            problems = damage_of(folder, full=full)
            yield Checked(name, [*problems, *_unlike_the_log(folder, problems)] if full else problems)


def _unlike_the_log(folder: RunFolder, known: Sequence[str]) -> Iterator[str]:
    """The files that do not have the hash in the line of their epoch, but for those that are ``known``."""
    for parent in (folder.predictions, folder.checkpoints):
        for path in sorted(parent.glob("[!.]*")):
            name = path.relative_to(folder.path).as_posix()
            if not any(sentence.startswith(name) for sentence in known) and not is_as_recorded(folder, stamp(path)):
                yield _("{name} does not match its SHA-256 in events.jsonl.").format(name=name)


def check_datasets(home: Path, *, full: bool) -> Iterator[Checked]:
    """Every data set that is cached. With ``full`` the fingerprints are computed again from every image."""
    for dataset in catalogue.list_datasets(home):
        if dataset.status == "damaged":
            yield Checked(dataset.name, [f"{dataset.problem} {dataset.advice}"])
        elif dataset.status == "ready":
            yield Checked(dataset.name, list(_wrong_images(home, dataset.name)) if full else [])


def _wrong_images(home: Path, name: str) -> Iterator[str]:
    integrity.note_path(home, name).unlink(missing_ok=True)  # it says that these files were checked before
    try:
        integrity.verify(home, name)
    except catalogue.DatasetDamaged as error:
        yield f"{error.message} {error.advice}"


def check_index(settings: Settings) -> Checked:
    """The SQLite file. It is an index of the run folders, so ``runoff reindex`` makes a damaged one again."""
    path = settings.database
    if not path.exists():
        return Checked(path.name, [])
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            answers = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
    except sqlite3.DatabaseError as error:
        answers = [str(error)]
    if answers == ["ok"]:
        return Checked(path.name, [])
    message = _("SQLite says: {what}. Delete the file and run runoff reindex.")
    return Checked(path.name, [message.format(what="; ".join(answers))])
