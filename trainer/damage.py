"""What is wrong with a run folder, as sentences. A damaged run is shown, but never started, cut or rewritten.

Files of a folder are checked one by one and against each other, so that a record that lost something is not taken for one
that is not finished. Imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.config import SCHEMA_VERSION, RunConfig
from trainer.event_log import EventLog, read_log
from trainer.files import DamagedFile, read_sealed, sha256
from trainer.i18n import _
from trainer.run_folder import RunFolder


class RunRecord(BaseModel):
    """``run.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    name: str = ""
    tags: list[str] = []
    notes: str = ""
    archived: bool = False
    sweep: str | None = None
    warnings: list[str] = []
    created_at: str = ""
    home: str | None = None
    status: str | None = None
    after_attempt: int = 0
    queued_at: str | None = None
    ended_at: str | None = None
    error: dict[str, str] | None = None
    fruitless_attempts: int = 0


class ManifestFile(BaseModel):
    """A final file of a run: its size in bytes and its SHA-256."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """``manifest.json``, which a run writes when it has finished: a second proof of it."""

    files: dict[str, ManifestFile]  # path within the folder -> what it holds
    log: ManifestFile  # events.jsonl before the line that says that the run has finished


def damage_of(folder: RunFolder, log: EventLog | None = None, *, full: bool = False) -> list[str]:
    """What is wrong with a run folder, empty if nothing is.

    Reads the small files and the log. With ``full`` it also reads every file that the log or the manifest names, and
    compares hashes.
    """
    log = log or read_log(folder.events_path)
    problems = [*log.damage, *_record_problems(folder), *_config_problems(folder), *_environment_problems(folder, log)]
    if not log.damage:
        problems += _contradictions(folder, log)
    problems += _manifest_problems(folder, log, full=full)
    return problems


def _sealed(folder: RunFolder, name: str) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        return read_sealed(folder.path / name), []
    except DamagedFile as problem:
        return None, [str(problem)]


def _record_problems(folder: RunFolder) -> Iterator[str]:
    values, problems = _sealed(folder, "run.json")
    yield from problems
    if values is None and not problems:
        yield _("{name} is missing.").format(name="run.json")
    if values is not None:
        yield from _misfits("run.json", RunRecord, values)


def _config_problems(folder: RunFolder) -> Iterator[str]:
    values, problems = _sealed(folder, "config.json")
    yield from problems
    if values is None:
        if not problems:
            yield _("{name} is missing.").format(name="config.json")
        return
    schema = values.pop("schema", SCHEMA_VERSION)
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        yield _("config.json was written by a newer version of Runoff (schema {schema}).").format(
            schema=str(schema)[:20]
        )
        return
    yield from _misfits("config.json", RunConfig, values)


def _environment_problems(folder: RunFolder, log: EventLog) -> Iterator[str]:
    values, problems = _sealed(folder, "environment.json")
    yield from problems
    has_started = any(event["type"] == "started" for event in log.events)
    if values is None and not problems and has_started:
        yield _("{name} is missing.").format(name="environment.json")
    if values is not None and not all(isinstance(values.get(name), str) for name in ("device", "precision")):
        yield _("{name} lacks fields.").format(name="environment.json")


def _misfits(name: str, model: type[BaseModel], values: dict[str, Any]) -> Iterator[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        fields = sorted({".".join(map(str, item["loc"])) for item in error.errors(include_url=False)})
        yield _("{name} has fields that do not fit: {fields}.").format(name=name, fields=", ".join(fields)[:120])


def _contradictions(folder: RunFolder, log: EventLog) -> Iterator[str]:
    """What other files prove that the log does not say."""
    if log.has_end:
        return
    saved = [number for parent in (folder.predictions, folder.checkpoints) for number in _numbers(parent)]
    last = log.epochs[-1] if log.epochs else 0
    if saved and max(saved) > last + 1:  # an epoch's files are written before its line
        yield _("There are files of epoch {saved}, but events.jsonl ends at epoch {last}.").format(
            saved=max(saved), last=last
        )
    attempt = log.last["attempt"] if log.last else 1
    ending = folder.read_exit(attempt)
    if ending is not None and ending.get("code") == 0 and ending.get("signal") is None:
        yield _("Attempt {attempt} ended normally, but events.jsonl has no end.").format(attempt=attempt)


def _numbers(parent: Any) -> list[int]:
    matches = (re.fullmatch(r"epoch-(\d+)\.safetensors", path.name) for path in parent.glob("epoch-*.safetensors"))
    return [int(match.group(1)) for match in matches if match]


def _manifest_problems(folder: RunFolder, log: EventLog, *, full: bool) -> Iterator[str]:
    values, problems = _sealed(folder, "manifest.json")
    yield from problems
    if values is None:
        return
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError:
        yield _("{name} lacks fields.").format(name="manifest.json")
        return
    # A process may end between manifest and last line. Then nothing is left of that line.
    ended_before_last_line = log.end == manifest.log.size and log.torn_at is None
    if not log.has_end and not ended_before_last_line:
        yield _("manifest.json says that the run has finished, but events.jsonl has no end.")
    for name, file in sorted(manifest.files.items()):
        path = folder.path / name
        try:
            if path.stat().st_size != file.size:
                yield _("{name} has another size than when the run finished.").format(name=name)
            elif full and sha256(path) != file.sha256:
                yield _("{name} does not match its SHA-256.").format(name=name)
        except OSError:
            yield _("{name} is missing.").format(name=name)
