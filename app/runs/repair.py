"""Puts back what a damaged run folder has lost. A file that is replaced is kept in the folder ``damaged``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from app.errors import Conflict
from app.runs.ingest import ingest
from app.runs.remedies import Remedy, known_in, remedies_for
from app.store.database import reading, writing
from app.store.recorded import is_as_recorded, version_of
from trainer.damage import damage_of
from trainer.event_log import read_log
from trainer.files import now, sync_folder, write_bytes
from trainer.i18n import _
from trainer.run_folder import RunFolder

_KEPT = "damaged"  # the folder of what was replaced


@dataclass
class Repaired:
    """What was done to a run folder, and what is still wrong with it."""

    run_id: str
    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def unlike_the_log(folder: RunFolder, known: Sequence[str] = ()) -> Iterator[str]:
    """A sentence for each file that lacks the hash in the line of its epoch, but for those that are ``known``."""
    for parent in (folder.predictions, folder.checkpoints):
        for path in sorted(parent.glob("[!.]*")):
            name = path.relative_to(folder.path).as_posix()
            with suppress(FileNotFoundError):  # a run removes old checkpoints while it trains
                is_known = any(sentence.startswith(name) for sentence in known)
                if not is_known and not is_as_recorded(folder, version_of(path)):
                    yield _("{name} does not match its SHA-256 in events.jsonl.").format(name=name)


def repair(engine: Engine, folder: RunFolder, backups: Sequence[Path] = ()) -> Repaired:
    """Restore every damaged file that has an intact copy, and give the row the status that the folder then proves.

    A run whose log or run.json had to be made again without an end is cancelled: it waits for a person. One that was
    queued or running when its folder was damaged continues. Raises ``Conflict`` while a process trains the run.
    """
    if folder.is_alive():
        raise Conflict(_("The run is running. Cancel it first."))
    with reading(engine) as session:
        known = known_in(session, folder.id)
    result = Repaired(folder.id)
    for remedy in remedies_for(folder, known, backups):
        _apply(folder, remedy)
        result.done.append(_("{file} was restored from {source}.").format(file=remedy.file, source=remedy.source))
        if remedy.loses:
            result.done.append(remedy.loses)
    result.problems = damage_of(folder, full=True)
    result.problems += unlike_the_log(folder, result.problems)
    lost = {row.epoch for row in known.epochs} - set(read_log(folder.events_path).epochs) if known else set()
    if lost and not result.problems:  # else the index would forget what no other copy has
        message = _("events.jsonl has no line for epochs that the index knows: {epochs}.")
        result.problems.append(message.format(epochs=", ".join(map(str, sorted(lost)))))
    with writing(engine) as session:
        ingest(session, folder, trust_row=bool(result.problems))
        session.commit()
    return result


def _apply(folder: RunFolder, remedy: Remedy) -> None:
    """Copy what is replaced to ``damaged`` first. A crash or a full disk leaves either the old file or the new one."""
    path = folder.path / remedy.file
    content = remedy.content() if callable(remedy.content) else remedy.content
    if path.exists():
        kept = folder.path / _KEPT
        kept.mkdir(exist_ok=True)
        stamp = now().replace(":", "").replace(".", "")
        write_bytes(kept / f"{stamp}-{remedy.file.replace('/', '-')}", path.read_bytes())
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, content)
    else:
        path.unlink()
        sync_folder(path.parent)
