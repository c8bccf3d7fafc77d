"""Where another copy of a damaged run's files is: the index, the log itself, other run folders, and backups."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session, col, select

from app.runs.ingest import lost_lines
from app.runs.lifecycle import record_of
from app.store.database import reading
from app.store.recorded import is_as_recorded, recorded_hashes, version_of
from app.store.tables import Epoch, Run
from trainer.config import SCHEMA_VERSION, RunConfig, config_hash
from trainer.damage import Manifest, RunRecord
from trainer.event_log import EventLog, line_of, parse_line, read_log
from trainer.events import TERMINAL
from trainer.files import now, read_sealed_or_none, sealed_bytes, sha256
from trainer.home import home_id
from trainer.i18n import _
from trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Known:
    """What the index knows of a run."""

    run: Run
    epochs: list[Epoch]


@dataclass(frozen=True)
class Remedy:
    """A file of a run folder that another copy can replace. Without content it is only set aside."""

    file: str  # path within the folder
    source: str  # where the content comes from, for a person
    content: bytes | Callable[[], bytes] | None  # a function is called when the files before it are in place
    loses: str = ""  # what that copy does not have

    @property
    def sentence(self) -> str:
        text = _("{file} can be restored from {source}.").format(file=self.file, source=self.source)
        return f"{text} {self.loses}".strip()


def known_of(engine: Engine | None, run_id: str) -> Known | None:
    """What the index knows of a run; None where there is no index, or none that can be read."""
    if engine is None:
        return None
    try:
        with reading(engine) as session:
            return known_in(session, run_id)
    except (DatabaseError, ValueError, LookupError):
        return None


def known_in(session: Session, run_id: str) -> Known | None:
    """What the index knows of a run; None where it has no row."""
    run = session.get(Run, run_id)
    if run is None:
        return None
    epochs = session.exec(select(Epoch).where(Epoch.run_id == run_id).order_by(col(Epoch.epoch))).all()
    return Known(run, list(epochs))


def remedies_for(folder: RunFolder, known: Known | None, backups: Sequence[Path] = ()) -> list[Remedy]:
    """What can be put back, in the order in which it should be."""
    copies = [RunFolder(backup / "runs" / folder.id) for backup in backups]
    copies += [RunFolder(path) for path in folder.path.parent.glob(f"{folder.id}?*")]  # such as ID.bak
    same = [copy for copy in copies if copy.path.is_dir() and (copy.read_run() or {}).get("id") == folder.id]
    return _Finder(folder, known, same).find() if folder.path.is_dir() else []


class _Finder:
    """Looks for copies of what one run folder has lost."""

    def __init__(self, folder: RunFolder, known: Known | None, copies: Sequence[RunFolder]) -> None:
        self.folder, self.known, self.copies = folder, known, copies
        self.log: EventLog = read_log(folder.events_path)
        self.own_manifest = _manifest_of(folder)
        self.whole_log = self._copied_log()  # of a copy that says all that this log says
        self.manifest = self.own_manifest or self._copied_manifest()
        self.hashes = dict(recorded_hashes(folder))
        if self.manifest is not None:
            self.hashes |= {name: file.sha256 for name, file in self.manifest.files.items()}

    def find(self) -> list[Remedy]:
        found = [*self._files(), *self._config(), *self._environment()]
        log = self._log()
        if log is not None:
            found.append(Remedy("events.jsonl", *log))
        content = log[1] if log is not None else None
        found += self._manifest(content, {remedy.file for remedy in found})
        found += self._record(content)
        return found

    # files with a recorded hash
    def _files(self) -> Iterator[Remedy]:
        for name, recorded in sorted(self.hashes.items()):
            if "/" not in name or self._is_whole(name):
                continue
            copy = self._same_file(name, recorded)
            if copy is not None:
                yield Remedy(name, _("{path}, which has the same SHA-256").format(path=copy), copy.read_bytes())
            elif name.startswith("checkpoints/") and (epoch := self._earlier_epoch(name)):
                source = _("the checkpoint of epoch {epoch}, from which a resumed run continues").format(epoch=epoch)
                yield Remedy(name, source, None)

    def _is_whole(self, name: str) -> bool:
        """Whether a file is as it should be. Files that a run removes while it trains may be missing."""
        path = self.folder.path / name
        if not path.exists():
            return name != "predictions/labels.npy" and (self.manifest is None or name not in self.manifest.files)
        if self.manifest is not None and name in self.manifest.files:
            return sha256(path) == self.manifest.files[name].sha256
        return is_as_recorded(self.folder, version_of(path))

    def _same_file(self, name: str, recorded: str) -> Path | None:
        """A file of a backup or of another run with that SHA-256. Only files of the right size are read."""
        size = self._size(name)
        others = [copy.path for copy in self.copies]
        others += sorted(path for path in self.folder.path.parent.glob("[!.]*") if path != self.folder.path)
        for path in (other / name for other in others):
            with suppress(OSError):
                if size in (None, path.stat().st_size) and sha256(path) == recorded:
                    return path
        return None

    def _size(self, name: str) -> int | None:
        if self.manifest is not None and name in self.manifest.files:
            return self.manifest.files[name].size
        path = self.folder.path / name
        return path.stat().st_size if path.exists() else None

    def _earlier_epoch(self, name: str) -> int | None:
        """The newest epoch before a damaged checkpoint from which an unfinished run can be resumed."""
        match = re.fullmatch(r"checkpoints/epoch-(\d+)\.(safetensors|json)", name)
        if match is None or self._is_finished():
            return None
        number = int(match.group(1))
        for epoch in sorted((epoch for epoch in self.log.epochs if epoch < number), reverse=True):
            path = self.folder.checkpoint_path(epoch)
            if path.exists() and all(
                self._is_whole(f"checkpoints/{path.stem}{end}") for end in (".safetensors", ".json")
            ):
                return epoch
        return None

    # config.json and environment.json
    def _config(self) -> Iterator[Remedy]:
        if _reads(self.folder):
            return
        for copy in self.copies:
            content = copy.config_path.read_bytes() if _reads(copy) else b""
            if content and self._agrees("config.json", content) and self._is_of_known_config(copy):
                yield Remedy("config.json", str(copy.config_path), content)
                return
        if self.known is None:
            return
        with suppress(ValidationError):
            config = RunConfig.model_validate(self.known.run.config)
            content = sealed_bytes({"schema": SCHEMA_VERSION, **config.model_dump()})
            if config_hash(config) == self.known.run.config_hash and self._agrees("config.json", content):
                yield Remedy("config.json", _("the index"), content)

    def _environment(self) -> Iterator[Remedy]:
        path = self.folder.path / "environment.json"
        started = [event for event in self.log.events if event["type"] == "started"]
        if read_sealed_or_none(path) is not None or (not path.exists() and not started):
            return
        for copy in self.copies:
            other = copy.path / "environment.json"
            if read_sealed_or_none(other) is not None and self._agrees("environment.json", other.read_bytes()):
                yield Remedy("environment.json", str(other), other.read_bytes())
                return
        for event in started:
            content = sealed_bytes(event["environment"]) if event.get("environment") else None
            if content is not None and self._agrees("environment.json", content):
                yield Remedy("environment.json", "events.jsonl", content)
                return
        recorded = self.hashes.get("environment.json")
        same = self._same_file("environment.json", recorded) if recorded else None
        if same is not None:
            yield Remedy(
                "environment.json", _("{path}, which has the same SHA-256").format(path=same), same.read_bytes()
            )

    def _agrees(self, name: str, content: bytes) -> bool:
        recorded = self.hashes.get(name)
        return recorded is None or hashlib.sha256(content).hexdigest() == recorded

    # events.jsonl
    def _log(self) -> tuple[str, bytes, str] | None:
        """Source and content of a log to replace this one, and what it lacks."""
        if not self._log_has_lost_something():
            return None
        if self.whole_log is not None:
            return str(self.whole_log), self.whole_log.read_bytes(), ""
        epochs = {row.epoch: row for row in self.known.epochs} if self.known else {}
        last = max([*self.log.epochs, *epochs], default=0)
        if set(range(1, last + 1)) - set(self.log.epochs) - set(epochs):
            return None  # an epoch would be missing for good
        content = b"".join(line_of(event, sealed=True) for event in self._events(epochs))
        loses = _("The losses of single steps in its damaged lines are lost.")
        return _("its intact lines and the index"), content, loses

    def _copied_log(self) -> Path | None:
        """The log of a copy that has every intact event of this one and all that the index knows."""
        least = max(self.log.last["seq"] if self.log.last else 0, self.known.run.event_seq if self.known else 0)
        for copy in self.copies:
            log = read_log(copy.events_path)
            by_seq = {event["seq"]: event for event in log.events}
            is_longer = log.last is not None and log.last["seq"] >= least and log.torn_at is None and not log.damage
            if is_longer and all(by_seq.get(event["seq"]) == event for event in self.log.events):
                return copy.events_path
        return None

    def _copied_manifest(self) -> Manifest | None:
        """The manifest of a copy that belongs to the log that this run has, or will get from a copy."""
        path = self.whole_log or self.folder.events_path
        facts = _before_last(path.read_bytes()) if path.exists() else {}
        manifests = map(_manifest_of, self.copies)
        return next((one for one in manifests if one is not None and one.log.model_dump() == facts), None)

    def _is_of_known_config(self, copy: RunFolder) -> bool:
        return self.known is None or config_hash(copy.read_config()) == self.known.run.config_hash

    def _log_has_lost_something(self) -> bool:
        lost = self.known is not None and bool(lost_lines(self.folder, self.known.run, self.log))
        ended_without_a_word = self.manifest is not None and not self.log.has_end
        unknown = any("does not know" in sentence for sentence in self.log.damage)
        return (bool(self.log.damage) or lost or ended_without_a_word) and not unknown

    def _is_finished(self) -> bool:
        return self.manifest is not None or any(event["type"] == "finished" for event in self.log.events)

    def _events(self, rows: dict[int, Epoch]) -> list[dict[str, Any]]:
        """The intact events, with the epochs that only the index has where they belong, numbered from 1."""
        missing = [rows[epoch] for epoch in sorted(rows.keys() - set(self.log.epochs))]
        events: list[dict[str, Any]] = []
        has_started = any(event["type"] == "started" for event in self.log.events)
        if not has_started and self.known is not None and self.known.run.started_at is not None:
            events.append(
                _started_again(self.known.run, read_sealed_or_none(self.folder.path / "environment.json") or {})
            )
        for event in self.log.events:
            is_end = event["type"] in TERMINAL
            while missing and (
                missing[0].attempt <= event["attempt"] if is_end else missing[0].epoch < event.get("epoch", 0)
            ):
                events.append(self._epoch_again(missing.pop(0)))
            events.append(event)
        events += map(self._epoch_again, missing)
        if events and self._is_finished() and events[-1]["type"] != "finished":
            epochs = max(event["epoch"] for event in events if event["type"] == "epoch")
            config = self.known.run.epochs if self.known else epochs
            time = (self.known.run.finished_at if self.known else None) or events[-1]["time"]
            attempt = events[-1]["attempt"]
            end = {"type": "finished", "epochs": epochs, "stopped_early": epochs < config}
            events.append({"time": time, "attempt": attempt, **end})
        return [{"seq": seq, **_without(event, "seq")} for seq, event in enumerate(events, start=1)]

    def _epoch_again(self, row: Epoch) -> dict[str, Any]:
        values = row.model_dump(exclude={"run_id", "ended_at", "attempt", "logged_correct"})
        if row.logged_correct is not None:  # what the log had said, which the predictions contradict
            values |= {"test_correct": row.logged_correct, "test_accuracy": row.logged_correct / row.test_total}
        files = {name: value for name, value in self.hashes.items() if f"-{row.epoch:04d}." in name}
        return {
            "time": row.ended_at,
            "attempt": row.attempt,
            "type": "epoch",
            **values,
            "files": files,
            "restored": True,
        }

    # manifest.json and run.json
    def _manifest(self, log: bytes | None, replaced: set[str]) -> Iterator[Remedy]:
        """From a copy, or written again if the log says that the run finished and its files are those of the log."""
        data = log if log is not None else self.folder.events_path.read_bytes() if self.log.last else b""
        if self.own_manifest is not None and (log is None or self.own_manifest.log.model_dump() == _before_last(data)):
            return
        for copy in self.copies:
            manifest = _manifest_of(copy)
            if manifest is not None and manifest == self.manifest and manifest.log.model_dump() == _before_last(data):
                yield Remedy("manifest.json", str(copy.manifest_path), copy.manifest_path.read_bytes())
                return
        events = _parsed(data)
        wanted = self.folder.manifest_path.exists() or _is_of_version(events)
        if not events or events[-1]["type"] != "finished" or not wanted:
            return
        if any(not self._is_whole(name) for name in self.hashes if "/" in name and name not in replaced):
            return
        facts = _before_last(data)
        source = _("events.jsonl and the files that it tells of")
        yield Remedy("manifest.json", source, lambda: sealed_bytes(self.folder.manifest_values(facts)))

    def _record(self, log: bytes | None) -> Iterator[Remedy]:
        """run.json from the index. A run whose log lost its end waits for a person: it is cancelled, not queued."""
        record = read_sealed_or_none(self.folder.path / "run.json")
        is_whole = False
        if record is not None:
            with suppress(ValidationError):
                RunRecord.model_validate(record)
                is_whole = True
        events = _parsed(log) if log is not None else self.log.events
        has_end = bool(events) and events[-1]["type"] in TERMINAL
        if is_whole and (log is None or has_end):
            return
        source, loses, values = "", "", record if is_whole else None
        if values is None and self.known is not None:
            home = "unknown" if self.known.run.imported else home_id(self.folder.home)
            values, source = record_of(self.known.run) | {"home": home}, _("the index")
        for copy in self.copies if values is None else ():
            values, source = copy.read_run(), str(copy.path / "run.json")
        if values is None:
            created = events[0]["time"] if events else now()
            values = {"id": self.folder.id, "created_at": created, "home": home_id(self.folder.home)}
            source, loses = "events.jsonl", _("Its name, tags and notes are lost.")
        if not has_end:
            attempt = max([event["attempt"] for event in events], default=0)
            values |= {"status": "cancelled", "after_attempt": attempt, "ended_at": now()}
        yield Remedy("run.json", source or _("what is left of the run"), sealed_bytes(values), loses)


def _reads(folder: RunFolder) -> bool:
    try:
        folder.read_config()
    except (OSError, ValueError):
        return False
    return True


def _before_last(log: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a log without its last line, as a manifest has them."""
    data = log[: log.rstrip(b"\n").rfind(b"\n") + 1]
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest_of(folder: RunFolder) -> Manifest | None:
    with suppress(ValidationError):
        values = read_sealed_or_none(folder.manifest_path)
        return Manifest.model_validate(values) if values is not None else None
    return None


def _parsed(data: bytes) -> list[dict[str, Any]]:
    return [event for line in data.splitlines(keepends=True) if (event := parse_line(line)) is not None]


def _is_of_version(events: Sequence[dict[str, Any]]) -> bool:
    """Whether the run was made by a version that writes manifests: those also write where an attempt ran."""
    return any(event.get("environment") for event in events)


def _without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != name}


def _started_again(run: Run, environment: dict[str, Any]) -> dict[str, Any]:
    names = ("num_parameters", "device", "precision", "num_train", "num_test", "steps_per_epoch", "total_steps")
    values = {name: getattr(run, name) for name in (*names, "test_fingerprint", "class_names")}
    values |= {"num_threads": environment.get("num_threads", 1), "num_validation": 0, "first_epoch": 1}
    values |= {"train_fingerprint": environment.get("train_fingerprint", ""), "image_shape": []}
    return {"time": run.started_at or run.created_at, "attempt": 1, "type": "started", **values, "restored": True}
