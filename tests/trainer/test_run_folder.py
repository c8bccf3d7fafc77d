"""The run folder: atomic files, an event log that survives torn lines, a lock that tells life."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.run_folders import epoch, lines, new_run, say, started, tear
from trainer import files
from trainer.run_folder import (
    EventLogChanged,
    RunFolder,
    iter_valid_events,
    now,
    read_events,
    read_json,
    write_bytes,
    write_json,
)


def test_a_replaced_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [*tmp_path.iterdir()] == [path]


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"null"])
def test_what_is_no_object_reads_as_none(tmp_path: Path, text: bytes) -> None:
    write_bytes(tmp_path / "a.json", text)
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "missing.json") is None
    assert read_json(tmp_path / "a.json" / "below") is None


def test_times_are_utc_with_milliseconds() -> None:
    assert len(now()) == len("2026-03-01T10:00:00.000Z")
    assert now().endswith("Z")


def test_config_comes_back(tmp_path: Path) -> None:
    folder = new_run(tmp_path, learning_rate=0.1)
    assert folder.read_config().learning_rate == 0.1
    assert len(folder.id) == 10
    assert set(folder.id) <= set("0123456789abcdefghjkmnpqrstvwxyz")
    assert (folder.read_run() or {})["status"] == "queued"


def test_a_torn_line_is_ignored_then_cut_off(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    say(folder, [started(), epoch(1)])
    tear(folder)
    chunk = read_events(folder.events_path)
    assert [event["seq"] for event in chunk.events] == [1, 2]
    assert read_events(folder.events_path, chunk.offset, 2).events == []
    assert [event["seq"] for event, _end in iter_valid_events(folder.events_path)] == [1, 2]
    say(folder, [epoch(2)], attempt=2)
    assert [(line["seq"], line["attempt"]) for line in lines(folder)] == [(1, 1), (2, 1), (3, 2)]
    assert [event["seq"] for event in read_events(folder.events_path, chunk.offset, 2).events] == [3]


@pytest.mark.parametrize("text", [b'{"seq":2}\n', b"not json\n", b"[1]\n", b'{"no":1}\n', b"\n"])
def test_a_log_that_does_not_go_on_is_noticed(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(text)
    with pytest.raises(EventLogChanged):
        read_events(path)
    assert [*iter_valid_events(path)] == []


def test_a_shorter_log_is_noticed(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    say(folder, [started()])
    with pytest.raises(EventLogChanged):
        read_events(folder.events_path, 10**6, 1)
    assert read_events(tmp_path / "missing").events == []


def test_the_lock_excludes_other_processes_until_they_die(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    assert not folder.is_alive()
    code = (
        "import sys; from pathlib import Path; from trainer.run_folder import RunFolder\n"
        f"lock = RunFolder(Path({str(folder.path)!r})).acquire_lock()\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert folder.is_alive()
        assert folder.acquire_lock(patience_seconds=0.05) is None
        holder.kill()
    assert not folder.is_alive()


def test_how_a_process_ended(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.write_exit(1, 9)
    folder.write_exit(2, 3 << 8)
    assert {k: v for k, v in (folder.read_exit(1) or {}).items() if k != "time"} == {"code": 0, "signal": 9}
    assert {k: v for k, v in (folder.read_exit(2) or {}).items() if k != "time"} == {"code": 3, "signal": None}
    assert folder.read_exit(3) is None


def test_a_failed_claim_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = new_run(tmp_path / "other").read_config()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        RunFolder.claim(tmp_path / "runs", config)
    assert [*(tmp_path / "runs").iterdir()] == []
