"""Backup and restore: nothing is lost, a run's files belong together, and a bad backup is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.cli import commands as cli
from app.main import create_app
from app.runs import commands
from app.schemas import RunChange
from app.settings import Settings
from app.state import Runoff
from app.store import backup, run_snapshot
from app.store.backup import BackupError, make_backup
from app.store.restore import read_listing, restore
from tests.app.run_folders import epoch, finish, new_run, started, tear
from tests.app.starting import start_run
from trainer.run_folder import EventWriter, RunFolder, is_locked, iter_valid_events, sha256

Runoff_ = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runoff(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runoff_:
    """Status, stdout and stderr of ``runoff ARGUMENTS``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runoff", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def full(state: Runoff) -> Runoff:
    """A home with runs that finished, one that was killed, one in the queue, data sets, and what is not to be copied."""
    home, runs = state.settings.home, state.settings.runs
    for seed in range(3):
        finish(new_run(runs, seed=seed))
    writer = EventWriter((killed := new_run(runs, seed=9)).events_path, 1)
    writer.write(started())
    writer.close()
    tear(killed)
    state.indexer.tick()
    start_run(state, dataset="digits", model="fc", name="waits")
    for path in runs.glob("*/run.json"):
        os.utime(path, (1e9, 1e9))  # else all rows are made again from the folders
    for name, kind in (("lock", "imported"), ("mnist", "torchvision")):
        folder = home / "datasets" / name
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"kind": kind}))
        (folder / "train.npy").write_bytes(bytes(1000))
    for name in ("downloads/raw.gz", "datasets/.removed/old.json", "measurements.json", "token"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("{}")
    (home / "token").chmod(0o600)
    for path in [home / name.replace("RUN", killed.id) for name in NOT_COPIED]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "s.sock"))
    return state


NOT_COPIED = [
    "server.json",
    "server.lock",
    "host-12345678.lock",
    "uploads/x/half.zip",
    "datasets/.making/new/train.npy",
    "datasets/.locks/mnist",
    ".token.1234.tmp",
    "runs/.deleted-aaaaaaaaaa-1234/run.json",
    "runs/RUN/lock",
    "runs/RUN/.run.json.1234.tmp",
    "runs/RUN/checkpoints/.epoch-0001.safetensors.1234.tmp",
]


def hashes(home: Path) -> dict[str, str]:
    files = [path for path in home.rglob("*") if path.is_file()]
    return {path.relative_to(home).as_posix(): sha256(path) for path in files}


def answers(home: Path) -> list[Any]:
    """What the API says of the runs, without what the index counts by itself."""
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost/api/v1/") as api:
        runs = api.get("runs", params={"limit": 1000, "sort": "created_at"}).json()
        ids = [run["id"] for run in runs["runs"] if run["status"] == "finished"]
        compared = api.get("compare", params={"run": ids}).json()
        assert compared["pairs"]
        return [runs, *[api.get(f"runs/{run}").json() for run in ids], compared]


def test_a_restored_home_has_the_same_files_and_answers(
    full: Runoff, tmp_path: Path, runoff: Runoff_, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, made, restored = full.settings.home, tmp_path / "made", tmp_path / "restored"
    status, out, err = runoff("backup", made)
    assert (status, err) == (0, "")
    assert out.endswith(f"5 runs backed up to {made}.\n")
    assert "datasets/: 5 files, 0.0 MB" in out
    monkeypatch.setenv("RUNOFF_HOME", str(restored))
    status, out, err = runoff("restore", made)
    assert (status, err, str(restored) in out) == (0, "", True)
    [killed] = {path.parent.name for path in home.glob("runs/*/lock")}
    left_out = {path.replace("RUN", killed) for path in NOT_COPIED}
    index = full.settings.database.name
    before = {path: value for path, value in hashes(home).items() if path not in left_out}
    after = {path: value for path, value in hashes(restored).items() if path != "server.lock"}
    assert before.pop(index)
    assert after.pop(index)
    assert after == before
    assert (restored / "token").stat().st_mode & 0o777 == 0o600
    assert (made.stat().st_mode & 0o777) == 0o700
    assert answers(restored) == answers(home)


def test_caches_that_can_be_made_again_are_left_out_on_request(full: Runoff, tmp_path: Path, runoff: Runoff_) -> None:
    status, out, _err = runoff("backup", "--leave-out-caches", tmp_path / "made")
    assert status == 0
    assert "datasets/mnist/: left out, 0.0 MB" in out
    listing = read_listing(tmp_path / "made")
    assert listing.left_out == ["datasets/mnist", "downloads"]
    assert {file.path for file in listing.files if file.path.startswith(("datasets/", "downloads/"))} == {
        "datasets/.removed/old.json",
        "datasets/lock/meta.json",
        "datasets/lock/train.npy",
    }


def test_what_changes_after_the_index_was_copied_is_not_lost(
    full: Runoff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_index = backup._copy_index
    ids = [path.name for path in sorted(full.settings.runs.iterdir()) if not path.name.startswith(".")]
    waiting = next(run for run in ids if (full.run_folder(run).read_run() or {})["name"] == "waits")
    renamed, deleted = sorted(path.parent.name for path in full.settings.runs.glob("*/predictions"))[:2]

    def copy_and_change(source: Path, target: Path) -> bool:
        copied = copy_index(source, target)
        commands.change(full, renamed, RunChange(name="renamed"))
        commands.cancel(full, waiting)
        commands.delete(full, deleted)
        return copied

    monkeypatch.setattr(backup, "_copy_index", copy_and_change)
    made = make_backup(full.settings, tmp_path / "made")
    assert made.num_runs == 4
    settings = Settings(home=tmp_path / "restored")
    restore(settings, tmp_path / "made", read_listing(tmp_path / "made"))
    with TestClient(create_app(settings, train=False), base_url="http://localhost/api/v1/") as api:
        api.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        runs = {run["id"]: run for run in api.get("runs").json()["runs"]}
    assert runs.keys() == {*ids} - {deleted}
    assert (runs[renamed]["name"], runs[waiting]["status"]) == ("renamed", "cancelled")


def test_a_run_that_is_deleted_while_it_is_copied_leaves_nothing(
    full: Runoff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, gone = run_snapshot.take_snapshot, min(path.parent for path in full.settings.runs.glob("*/predictions"))

    def take_and_delete(folder: RunFolder, stack: Any) -> Any:
        snapshot = take(folder, stack)
        if folder.path == gone:
            shutil.rmtree(gone)
        return snapshot

    monkeypatch.setattr(backup, "take_snapshot", take_and_delete)
    assert make_backup(full.settings, tmp_path / "made").num_runs == 4
    assert not (tmp_path / "made" / "runs" / gone.name).exists()
    assert not [file for file in read_listing(tmp_path / "made").files if gone.name in file.path]


def test_an_index_that_cannot_be_read_is_left_out(full: Runoff, tmp_path: Path, runoff: Runoff_) -> None:
    before = answers(full.settings.home)
    full.settings.database.write_bytes(b"no database" * 1000)
    status, out, _err = runoff("backup", tmp_path / "made")
    assert (status, "The index was left out" in out) == (0, True)
    restore(settings := Settings(home=tmp_path / "restored"), tmp_path / "made", read_listing(tmp_path / "made"))
    with TestClient(create_app(settings, train=False), base_url="http://localhost/api/v1/") as api:
        api.app.state.runoff.indexer.rebuild()  # type: ignore[attr-defined]
        names = {run["id"] for run in api.get("runs").json()["runs"]}
    assert names == {run["id"] for run in before[0]["runs"]}


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_backup_needs_an_empty_folder_elsewhere(full: Runoff, tmp_path: Path, runoff: Runoff_) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for target, said in (
        (tmp_path / "used", "is not an empty folder"),
        (tmp_path / "used" / "file", "is not an empty folder"),
        (full.settings.home / "made", "is inside"),
        (full.settings.home, "is inside"),
    ):
        status, out, err = runoff("backup", target)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert said in err


def test_a_backup_of_nothing_is_refused(home: Path, tmp_path: Path, runoff: Runoff_) -> None:
    assert runoff("backup", tmp_path / "made")[::2] == (1, f"There is nothing to back up: {home} does not exist.\n")
    assert not (tmp_path / "made").exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (lambda made: _flip(made / "runoff.sqlite3"), "is damaged"),
    "shorter": (lambda made: (made / "token").write_text("{"), "does not have the size"),
    "missing": (lambda made: (made / "token").unlink(), "is missing"),
    "interrupted": (lambda made: (made / "backup.json").unlink(), "is incomplete"),
    "cut listing": (lambda made: (made / "backup.json").write_text("{"), "can't be read as the listing"),
    "outside": (
        lambda made: (made / "backup.json").write_text(
            (made / "backup.json").read_text().replace('"token"', '"runs/../../token"')
        ),
        "not a path within",
    ),
    "newer": (
        lambda made: (made / "backup.json").write_text(
            (made / "backup.json").read_text().replace('"format": 1', '"format": 2')
        ),
        "can't be read as the listing",
    ),
    "no folder": (shutil.rmtree, "There is no backup"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_backup_is_refused_and_the_home_stays_empty(
    full: Runoff, tmp_path: Path, runoff: Runoff_, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    made = tmp_path / "made"
    make_backup(full.settings, made)
    spoil, said = DAMAGE[damage]
    spoil(made)
    monkeypatch.setenv("RUNOFF_HOME", str(tmp_path / "restored"))
    status, out, err = runoff("restore", made)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert said in err
    assert {*hashes(tmp_path / "restored")} <= {"server.lock"}


def test_only_an_empty_home_without_a_server_is_restored_into(
    full: Runoff, tmp_path: Path, runoff: Runoff_, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backup(full.settings, tmp_path / "made")
    before = hashes(full.settings.home)
    status, _out, err = runoff("restore", tmp_path / "made")
    assert (status, "is not empty" in err, hashes(full.settings.home) == before) == (1, True, True)
    restored = tmp_path / "restored"
    (restored / ".restoring" / "runs").mkdir(parents=True)  # an interrupted restore is begun again
    monkeypatch.setenv("RUNOFF_HOME", str(restored))
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, restored / "server.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout
        server.stdout.readline()
        status, _out, err = runoff("restore", tmp_path / "made")
        assert (status, "server is already running" in err) == (1, True)
        server.communicate(b"\n")
    assert runoff("restore", tmp_path / "made")[0] == 0
    assert not (restored / ".restoring").exists()


def test_a_full_disk_is_said_before_anything_is_copied(
    full: Runoff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _path: usage)  # type: ignore[attr-defined]
    with pytest.raises(BackupError, match="but only 0 MB are free"):
        make_backup(full.settings, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# Under load ----------------------------------------------------------------------------------------------------------

WRITER = """
import itertools, os, sys, time, hashlib
from pathlib import Path
from tests.app.run_folders import epoch, started, steps
from trainer.run_folder import EventWriter, RunFolder, write_bytes
folder = RunFolder(Path(sys.argv[1]))
lock = folder.acquire_lock()
writer = EventWriter(folder.events_path, 1)
writer.write(started(epochs=10**6))
folder.checkpoints.mkdir()
best = 1
for number in itertools.count(1):
    files = {}
    for path in (folder.checkpoint_path(number), folder.checkpoint_path(number).with_suffix(".json")):
        data = os.urandom(20_000)
        write_bytes(path, data)
        files[path.relative_to(folder.path).as_posix()] = hashlib.sha256(data).hexdigest()
    writer.write(steps(number))
    if number % 3 == 1:
        best = number
    writer.write(epoch(number, files=files, best=best))
    for path in folder.checkpoints.glob("epoch-*.*"):
        if int(path.stem[-4:]) not in (number - 1, number, best):
            path.unlink(missing_ok=True)
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_run_that_trains_is_copied_so_that_it_can_be_resumed(state: Runoff, tmp_path: Path) -> None:
    """A process writes epochs as fast as it can; each copy has the checkpoints that its log says."""
    folder = new_run(state.settings.runs)
    script = WRITER.replace("epoch(number, files=files, best=best)", "epoch(number, files=files), best=best")
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, folder.path], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            reached = [_check_copy(state, folder, tmp_path / str(number)) for number in range(25)]
            assert is_locked(folder.lock_path)
        finally:
            process.kill()
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 20, "the writer wrote between the backups"


def _check_copy(state: Runoff, folder: RunFolder, target: Path) -> int:
    make_backup(state.settings, target)
    copy = RunFolder(target / "runs" / folder.id)
    assert copy.events_path.read_bytes().endswith(b"\n")
    events = [event for event, _end in iter_valid_events(copy.events_path)]
    assert len(events) == copy.events_path.read_bytes().count(b"\n")
    lines = {event["epoch"]: event for event in events if event["type"] == "epoch"}
    last: int = max(lines)
    for number in {last, max(last - 1, 1), lines[last]["best"]}:
        for name, digest in lines[number]["files"].items():
            assert sha256(copy.path / name) == digest, (last, name)
    assert {int(path.stem[-4:]) for path in copy.checkpoints.iterdir()} <= {*lines}
    shutil.rmtree(target)
    return last


def test_a_run_that_moves_on_while_it_is_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the log and the checkpoints the run completes an epoch and prunes the one that the log needed."""
    folder = new_run(tmp_path)
    folder.checkpoints.mkdir()
    writer = EventWriter(folder.events_path, 1)
    writer.write(started())

    def complete(number: int) -> None:
        folder.checkpoint_path(number).write_bytes(b"weights")
        writer.write(epoch(number))
        folder.checkpoint_path(number - 1).unlink(missing_ok=True)

    complete(1)
    read_log, moves = run_snapshot._read_log, [2, 3]

    def read_and_move(of: RunFolder) -> bytes | None:
        log = read_log(of)
        if moves:
            complete(moves.pop(0))
        return log

    monkeypatch.setattr(run_snapshot, "_read_log", read_and_move)
    with ExitStack() as stack:
        snapshot = run_snapshot.take_snapshot(folder, stack)
        assert snapshot is not None
        log = snapshot.opened["events.jsonl"][0].read()
        assert json.loads(log.splitlines()[-1])["epoch"] == 3
        assert {name for name in snapshot.opened if "/" in name} == {"checkpoints/epoch-0003.safetensors"}
    writer.close()
