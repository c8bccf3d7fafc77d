"""The runs of a sweep start together or not at all, even if the server is killed in between.

Their run.json files, the record of the idempotency key and the rows of the index can't be written in one step. So a note
about all of them is written first. The indexer ignores the folders that a note names. At its start, a server completes the
notes of an earlier one, or removes the folders of those that were refused.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.runs import idempotency
from app.runs.idempotency import KeyedRequest
from trainer.files import DamagedFile, read_sealed, write_sealed
from trainer.run_folder import RunFolder

Announced = tuple[RunFolder, Mapping[str, Any]]  # a claimed folder, and the labels of its run.json
_REFUSED = ".refused"
_CLAIM_SECONDS = 600.0  # a folder without run.json that is older than this will not be completed


def announce(home: Path, name: str, runs: Sequence[Announced], keyed: KeyedRequest | None = None) -> None:
    """Turn the claimed folders into runs, and record the key of the request with them. Raises ``OSError``.

    Call ``settle`` once they are in the index, or ``take_back`` after a failure.
    """
    note = _notes(home) / f"{name}.json"
    note.parent.mkdir(exist_ok=True)
    values = [{"folder": folder.id, **labels} for folder, labels in runs]
    write_sealed(note, {"runs": values, "keyed": keyed.values() if keyed else None})
    for folder, labels in runs:
        folder.announce(**labels)
    if keyed:
        idempotency.record(home, keyed, [folder.id for folder, _labels in runs], runs[0][1]["sweep"])


def settle(home: Path, name: str) -> None:
    """Remove the note: the announced runs are in the index."""
    with suppress(OSError):  # the next start removes the note
        (_notes(home) / f"{name}.json").unlink(missing_ok=True)


def pending(home: Path) -> set[str]:
    """The ids of runs that are being started or taken back now."""
    return {run["folder"] for note in _notes(home).glob("*") for run in _read(note).get("runs", [])}


def take_back(home: Path, name: str, folders: Sequence[RunFolder], keyed: KeyedRequest | None = None) -> None:
    """Remove the folders of runs that could not all be started, and the record of their request.

    A folder that can't be removed at once no longer counts as a run.
    """
    note = _notes(home) / f"{name}.json"
    refused = note.with_suffix(_REFUSED)
    with suppress(OSError):  # there may be no note yet
        note.rename(refused)
    note.unlink(missing_ok=True)
    for folder in folders:
        _remove(folder)
    if keyed:
        idempotency.forget(home, keyed)
    refused.unlink(missing_ok=True)


def _remove(folder: RunFolder) -> None:
    hidden = folder.path.with_name(f".deleted-{folder.id}")
    with suppress(OSError):
        folder.path.rename(hidden)
    for path in (folder.path, hidden):
        shutil.rmtree(path, ignore_errors=True)


def is_noted(home: Path, keyed: KeyedRequest) -> bool:
    """Whether runs of this request are being made, or wait to be completed."""
    return any((_read(note).get("keyed") or {}).get("name") == keyed.name for note in _notes(home).glob("*.json"))


def complete(home: Path, before: float = math.inf) -> None:
    """Announce what a killed server had noted, and remove what it had refused, or claimed and never announced.

    Only notes that were written earlier than ``before`` count. Raises ``OSError``, after which it can be tried again.
    """
    notes = [note for note in sorted(_notes(home).glob("*")) if note.stat().st_mtime < before]
    for note in (note for note in notes if note.suffix == _REFUSED):
        values = _read(note)
        for run in values.get("runs", []):
            _remove(RunFolder(home / "runs" / run["folder"]))
        if values.get("keyed"):
            idempotency.forget(home, KeyedRequest(**values["keyed"]))
        note.unlink(missing_ok=True)
    for note in (note for note in notes if note.suffix == ".json" and not note.name.startswith(".")):
        values = _read(note)
        runs, keyed = values.get("runs", []), values.get("keyed")
        for labels in runs:
            folder = RunFolder(home / "runs" / labels["folder"])
            if folder.config_path.exists() and folder.is_empty():
                folder.announce(**{name: value for name, value in labels.items() if name != "folder"})
        if keyed:
            idempotency.record(home, KeyedRequest(**keyed), [run["folder"] for run in runs], runs[0]["sweep"])
        note.unlink(missing_ok=True)
    for unfinished in (note for note in notes if note.name.startswith(".")):
        unfinished.unlink(missing_ok=True)
    for path in (home / "runs").glob("[!.]*"):
        folder = RunFolder(path)
        is_old = path.is_dir() and time.time() - path.stat().st_mtime > _CLAIM_SECONDS
        is_claim = is_old and folder.is_empty() and {item.name for item in path.iterdir()} <= {"config.json", "lock"}
        if is_claim and not folder.is_alive():
            shutil.rmtree(path, ignore_errors=True)


def _read(note: Path) -> dict[str, Any]:
    try:
        return read_sealed(note) or {}
    except DamagedFile:
        return {}


def _notes(home: Path) -> Path:
    return home / "starting"
