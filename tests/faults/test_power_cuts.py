"""The power is cut while runs train and people change and delete runs. What was reported or acknowledged is still there.

The home is on an ext4 file system in a file. A cut is ext4's shutdown: from then on nothing reaches the disk, and what
was not synced is gone when the file system is mounted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.cli.client import ClientError
from tests.faults.conftest import Count
from tests.faults.results import problems_of, reported_epochs, results
from tests.faults.servers import BASE, Server, trainer_processes, wait_for
from trainer.run_folder import RunFolder, new_id, now

pytestmark = [
    pytest.mark.faults,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed"),
]

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_FLAGS = {"the journal's last transactions are lost": 2, "the journal is written first": 1}
RECIPE: dict[str, Any] = {**BASE, "epochs": 30, "schedule": "cosine"}
LATEST_CUT_SECONDS = 1.0  # after a new epoch
PATIENCE_SECONDS = 30.0


class Disk:
    """An ext4 file system in a file. Its journal is committed every five minutes, or when something asks for it."""

    def __init__(self, folder: Path) -> None:
        self._image, self.path = folder / "disk.img", folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self._image], check=True)
        mounted = self.mount()
        if mounted.returncode:
            pytest.skip(f"root can't mount a file system here: {mounted.stderr.strip()}")

    def mount(self) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = ["mount", "-o", "loop,commit=300", self._image, self.path]
        return subprocess.run(command, capture_output=True, text=True)

    def cut(self, flag: int) -> None:
        """Nothing reaches the disk from now on."""
        folder = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", flag))
        os.close(folder)

    def unmount(self) -> None:
        wait_for(lambda: not subprocess.run(["umount", self.path], stderr=subprocess.DEVNULL).returncode)


@dataclass
class Known:
    """What the server has reported and acknowledged so far."""

    epochs: dict[str, int] = field(default_factory=dict)  # run -> its epochs, by the API or the log
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> name and tags as acknowledged
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> a change without an answer yet
    deleted: list[str] = field(default_factory=list)
    num_changes: int = 0


class Person(threading.Thread):
    """Renames and tags runs, and deletes one of ``spare``, until the server does not answer any more."""

    def __init__(self, server: Server, known: Known, runs: list[str], spare: str, chance: random.Random) -> None:
        super().__init__()
        self._server, self._known, self._runs, self._spare, self._chance = server, known, runs, spare, chance

    def run(self) -> None:
        delete_after = self._chance.uniform(0, LATEST_CUT_SECONDS)
        begin = time.monotonic()
        with contextlib.suppress(ClientError):
            while True:
                self._change(self._chance.choice(self._runs))
                if self._spare not in self._known.deleted and time.monotonic() - begin > delete_after:
                    self._server.client.call("DELETE", f"/runs/{self._spare}")
                    self._known.deleted.append(self._spare)

    def _change(self, run: str) -> None:
        number = self._known.num_changes + 1
        labels = {"name": f"change {number}", "tags": [f"tag-{number}"]}
        self._known.asked[run] = labels
        self._server.client.call("PATCH", f"/runs/{run}", json=labels)
        self._known.labels[run] = self._known.asked.pop(run)
        self._known.num_changes = number


@pytest.fixture
def disk() -> Iterator[Disk]:
    memory = Path("/dev/shm")  # a sync to a file in memory takes no time
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 256 << 20
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder:
        disk = Disk(Path(folder))
        try:
            yield disk
        finally:
            disk.unmount()


def test_a_power_cut_loses_nothing_that_was_reported(
    disk: Disk, full: bool, chance: random.Random, count: Count
) -> None:
    num_cuts = 50 if full else 1
    server, known = Server(disk.path / "home"), Known()
    try:
        undisturbed = server.begin(**RECIPE)
        assert server.wait_status(undisturbed, "finished", "failed")["status"] == "finished"
        expected = results(server.folder(undisturbed))
        spares = [_copy(server.folder(undisturbed)) for _cut in range(num_cuts)]
        wait_for(lambda: server.client.runs(limit=1)["total"] == 1 + num_cuts)
        os.sync()
        runs, wrong, seconds = [undisturbed], [], []
        known.epochs[undisturbed] = RECIPE["epochs"]
        for number, spare in enumerate(spares):
            flag = chance.choice(list(_FLAGS.values()))
            active = _active_runs(server, runs)
            _wait_for_new_epochs(server, active)
            person = Person(server, known, runs, spare, chance)
            person.start()
            time.sleep(chance.uniform(0, LATEST_CUT_SECONDS))
            for run in active:
                known.epochs[run] = max(len(server.epochs(run)), len(reported_epochs(server.folder(run))))
            disk.cut(flag)
            _end_all(server)
            person.join()
            disk.unmount()
            assert not disk.mount().returncode
            in_folders = [f"{run}: {text}" for run in runs for text in problems_of(server.folder(run))]
            for run, epochs in known.epochs.items():
                if len(reported_epochs(server.folder(run))) < epochs:
                    in_folders.append(
                        f"{run} had {epochs} epochs and has {reported_epochs(server.folder(run))} in its log"
                    )
            begin = time.monotonic()
            server.start()
            wrong += [f"cut {number + 1}, flag {flag}: {text}" for text in [*in_folders, *_lost(server, known)]]
            seconds.append(time.monotonic() - begin)
        for run in runs:
            ended = server.wait_status(run, "finished", "failed", "damaged")
            if ended["status"] != "finished":
                wrong.append(f"{run} is {ended['status']}: {ended['error']}")
            elif server.epochs(run) != [*range(1, RECIPE["epochs"] + 1)] or results(server.folder(run)) != expected:
                wrong.append(f"{run} ended with other results than the undisturbed run")
    finally:
        _end_all(server)
        server.client.close()
    count(
        f"power cut, {len(runs) - 1} runs",
        num_cuts,
        f"{len(wrong)} wrong; {sum(known.epochs.values()) - RECIPE['epochs']} reported epochs, {known.num_changes} "
        f"acknowledged changes, {len(known.deleted)} deletes; everything there after "
        f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)",
    )
    assert not wrong, "\n".join(wrong)


def _copy(folder: RunFolder) -> str:
    """The same run under another id."""
    copy = RunFolder(folder.path.with_name(new_id()))
    hidden = folder.path.with_name(f".{copy.id}")
    shutil.copytree(folder.path, hidden)
    RunFolder(hidden).write_run({**(folder.read_run() or {}), "id": copy.id, "created_at": now()})
    hidden.rename(copy.path)
    return copy.id


def _exists(server: Server, run: str) -> bool:
    try:
        server.client.run(run)
    except ClientError as error:
        if error.status != 404:
            raise
        return False
    return True


def _active_runs(server: Server, runs: list[str]) -> list[str]:
    """The runs that train, and a new one if the latest is past its middle."""
    if len(runs) == 1 or server.client.run(runs[-1])["epochs_done"] > RECIPE["epochs"] // 2:
        runs.append(server.begin(**RECIPE))
    return [run for run in runs if server.status(run) in ("queued", "running")]


def _wait_for_new_epochs(server: Server, runs: list[str]) -> None:
    """Each run has an epoch more, so that none fails because too many attempts in a row had none."""
    wanted = {run: min(server.client.run(run)["epochs_done"] + 1, RECIPE["epochs"]) for run in runs}
    for run, epochs in wanted.items():
        server.wait_epochs(run, epochs)


def _end_all(server: Server) -> None:
    """Every process of the server, as a power cut ends them."""
    server.kill()
    for process in trainer_processes(server.home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    wait_for(lambda: not trainer_processes(server.home))


def _lost(server: Server, known: Known) -> list[str]:
    """What was reported or acknowledged and is not there any more."""
    lost = []
    for run, epochs in known.epochs.items():
        wait_until = time.monotonic() + PATIENCE_SECONDS  # the server first reads what the index has missed
        while len(found := server.epochs(run)) < epochs and time.monotonic() < wait_until:
            time.sleep(0.1)
        if len(found) < epochs or found != [*range(1, len(found) + 1)]:
            lost.append(f"{run} had {epochs} epochs and has {found}, in its log {reported_epochs(server.folder(run))}")
    for run, labels in [*known.labels.items()]:
        fields = server.client.run(run)
        present = {name: fields[name] for name in labels}
        if present not in (labels, known.asked.pop(run, None)):
            lost.append(f"{run} had {labels} and has {present}")
        known.labels[run] = present
    lost += [f"{run} was deleted and is back" for run in known.deleted if _exists(server, run)]
    return lost
