"""The scheduler, with ``tick`` called by the tests: slots, order, processes that end unexpectedly, restarts."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from app.runs import scheduler as scheduler_module
from app.runs import slots
from app.runs.executors import ExecutorUnavailable, RunNotStarted
from app.runs.indexer import Indexer
from app.runs.queue import RESTART_SECONDS, restart_in, restart_words
from app.runs.scheduler import Scheduler
from app.runs.vanished import vanished_error
from app.store.database import reading, writing
from app.store.tables import Run
from tests.app.run_folders import epoch, finish, new_run, say, started
from trainer import cores
from trainer.events import Failed
from trainer.run_folder import RunFolder
from trainer.wire import Measure

CPU = [{"name": "cpu"}]
TWO_GPUS = [*CPU, {"name": "cuda:0"}, {"name": "cuda:1"}]


def _hold(path: str, ready: Any, end: Any) -> None:
    with open(path, "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.set()
        end.wait(60)


class Process:
    """A real process that holds a run's lock until it is ended."""

    def __init__(self, folder: RunFolder) -> None:
        context = multiprocessing.get_context("spawn")
        ready, self._end = context.Event(), context.Event()
        self._process = context.Process(target=_hold, args=(str(folder.lock_path), ready, self._end))
        self._process.start()
        assert ready.wait(30)

    def end(self) -> None:
        self._end.set()
        self._process.join(30)


class FakeExecutor:
    """Starts nothing: a run is alive while it is in ``alive``."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int, str | None]] = []
        self.alive: set[str] = set()
        self.found = CPU
        self.is_ready = True
        self.error: Exception | None = None

    def ensure_host(self) -> None:
        pass

    def ready(self) -> bool:
        return self.is_ready

    def known_devices(self) -> list[dict[str, Any]]:
        return self.devices()

    def devices(self) -> list[dict[str, Any]]:
        return self.found

    def force_stop(self, folder: RunFolder, attempt: int) -> bool:
        self.alive.discard(folder.id)
        return True

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        if self.error:
            raise self.error
        self.started.append((folder.id, attempt, num_threads, device))
        self.alive.add(folder.id)

    def describe(self, config: dict[str, Any], image_shape: list[int], num_classes: int) -> dict[str, Any]:
        raise NotImplementedError

    def predict(self, folder: RunFolder, epoch: int, image_png: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def measure(self, request: Measure) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> FakeExecutor:
    executor = FakeExecutor()
    monkeypatch.setattr(RunFolder, "is_alive", lambda folder: folder.id in executor.alive)
    for module in (slots, cores):
        monkeypatch.setattr(module, "num_cores", lambda: 2)
    return executor


Make = Callable[..., Scheduler]


@pytest.fixture
def make(engine: Engine, executor: FakeExecutor, tmp_path: Path) -> Make:
    """A scheduler on the same database; a second one is the server after a restart."""

    def make(slots: int | None = None, **options: Any) -> Scheduler:
        return Scheduler(engine, tmp_path / "runs", Indexer(engine, tmp_path / "runs"), executor, slots, **options)

    return make


def row(one: Scheduler, run_id: str) -> Run:
    with reading(one.engine) as session:
        return session.exec(select(Run).where(Run.id == run_id)).one()


def queue(one: Scheduler, count: int, **fields: Any) -> list[RunFolder]:
    return [new_run(one.folder, seed=seed, **fields) for seed in range(count)]


def test_runs_start_in_order_while_slots_are_free(make: Make, executor: FakeExecutor) -> None:
    one = make(slots=2)
    folders = queue(one, 4)
    assert one.tick()
    order = [run_id for run_id, *_rest in executor.started]
    with reading(one.engine) as session:
        expected = sorted(session.exec(select(Run)).all(), key=lambda r: (r.queued_at, r.created_at, r.seed, r.id))
    assert order == [run.id for run in expected[:2]]
    one.tick()
    assert len(executor.started) == 2
    ended = RunFolder(one.folder / order[0])
    finish(ended)
    executor.alive.remove(ended.id)
    one.tick()
    assert [run_id for run_id, *_rest in executor.started] == [run.id for run in expected[:3]]
    assert row(one, ended.id).status == "finished"
    assert len(folders) == 4


def test_cpu_slots_are_cores(make: Make, executor: FakeExecutor) -> None:
    one = make()
    queue(one, 3)
    one.tick()
    assert [(threads, device) for _id, _attempt, threads, device in executor.started] == [(1, "cpu"), (1, "cpu")]


def test_a_wide_net_has_the_cpu_alone_and_nobody_overtakes_it(make: Make, executor: FakeExecutor) -> None:
    one = make()
    first = new_run(one.folder, seed=0)
    one.tick()
    wide = new_run(one.folder, model="vgg", seed=1)
    one.tick()
    late = new_run(one.folder, seed=2)
    one.tick()
    assert [run_id for run_id, *_rest in executor.started] == [first.id]
    finish(first)
    executor.alive.clear()
    one.tick()
    assert [run_id for run_id, *_rest in executor.started] == [first.id, wide.id]
    assert row(one, late.id).status == "queued"


def test_one_run_for_each_gpu(make: Make, executor: FakeExecutor) -> None:
    executor.found = TWO_GPUS
    one = make()
    queue(one, 3)
    one.tick()
    assert [device for *_rest, device in executor.started] == ["cuda:0", "cuda:1"]


def test_a_named_device_is_kept(make: Make, executor: FakeExecutor) -> None:
    executor.found = TWO_GPUS
    one = make()
    for device in ("cuda:1", "cpu", "cuda"):
        new_run(one.folder, device=device)
        one.tick()
    assert [device for *_rest, device in executor.started] == ["cuda:1", "cpu", "cuda:0"]


def test_chosen_slots_share_a_device(make: Make, executor: FakeExecutor) -> None:
    executor.found = TWO_GPUS
    one = make(slots=3)
    queue(one, 4)
    one.tick()
    assert [device for *_rest, device in executor.started] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_vanished_run_is_queued_again_and_fails_after_three(
    make: Make, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.queue.RESTART_SECONDS", (0.0, 0.0))
    one = make()
    [folder] = queue(one, 1)
    for attempt in (1, 2, 3):
        one.tick()
        assert executor.started[-1][:2] == (folder.id, attempt)
        say(folder, [started()], attempt)
        folder.write_exit(attempt, 9)
        executor.alive.clear()
        if attempt < 3:
            one.tick()  # notices, queues again, and starts in the same turn or the next
    one.tick()
    run = row(one, folder.id)
    assert (run.status, run.attempt) == ("failed", 3)
    assert run.error is not None
    assert run.error["error"] == "ProcessVanished"
    assert "was ended by SIGKILL (signal 9)" in run.error["message"]
    one.indexer.rebuild()
    assert (row(one, folder.id).status, row(one, folder.id).error) == ("failed", run.error)


def test_a_run_that_vanished_twice_waits_and_others_go_first(make: Make, executor: FakeExecutor) -> None:
    one = make(slots=1)
    [folder] = queue(one, 1)
    for attempt in (1, 2):
        one.tick()
        one.tick()
        assert executor.started[-1][:2] == (folder.id, attempt), "the first time it starts again at once"
        executor.alive.clear()
    one.tick()
    one.tick()
    waiting = row(one, folder.id)
    assert (waiting.status, waiting.fruitless_attempts, len(executor.started)) == ("queued", 2, 2)
    assert 5 < restart_in(waiting) <= RESTART_SECONDS[1]
    assert restart_words(waiting).startswith("its process ended unexpectedly; starts again in ")
    [other] = queue(one, 1)
    one.tick()
    assert executor.started[-1][0] == other.id
    executor.alive.clear()
    finish(other)
    with writing(one.engine) as session:
        run = session.get_one(Run, folder.id)
        run.queued_at = (datetime.now(UTC) - timedelta(seconds=11)).isoformat()
        session.add(run)
        session.commit()
    one.tick()
    one.tick()
    assert executor.started[-1][:2] == (folder.id, 3)


@pytest.mark.parametrize("shift", [3600, -3600], ids=["late", "set back"])
def test_the_wait_ends_whatever_the_clock_does(shift: int) -> None:
    queued_at = (datetime.now(UTC) - timedelta(seconds=shift)).isoformat()
    run = Run.model_construct(id="a", status="queued", queued_at=queued_at, fruitless_attempts=2)
    assert (restart_in(run), restart_words(run)) == (0, "")


MEMORY = {
    "peak_bytes": 3 * 10**9,
    "total_bytes": 16 * 10**9,
    "available_bytes_before": 2 * 10**9,
    "oom_kills_before": 4,
}
ENDINGS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"signal": 9, "memory": {**MEMORY, "oom_kills": 5}},
        "SIGKILL (signal 9). It used at most 3.0 GB; of the machine's 16.0 GB, 2.0 GB were free",
        "Memory ran out",
    ),
    ({"signal": 9, "memory": {**MEMORY, "oom_kills": 4}}, "SIGKILL", "Memory did not run out"),
    ({"signal": 11, "memory": {**MEMORY, "oom_kills": 5}}, "was ended by SIGSEGV (signal 11)", "Resume it"),
    ({"signal": 9}, "SIGKILL (signal 9).", "Resume it"),
    ({"signal": 200}, "an unknown signal (signal 200)", "Resume it"),
    ({"code": 3, "signal": None}, "exited with code 3", "Resume it"),
    ({}, "ended unexpectedly", "Resume it"),
]


@pytest.mark.parametrize(("ending", "message", "advice"), ENDINGS)
def test_memory_is_blamed_only_if_it_ran_out(ending: dict[str, Any], message: str, advice: str) -> None:
    error = vanished_error(ending, 3)
    assert message in error["message"]
    assert error["advice"].startswith(advice)


def test_an_epoch_between_forgives(make: Make, executor: FakeExecutor) -> None:
    one = make()
    [folder] = queue(one, 1)
    for attempt in range(1, 6):
        one.tick()
        one.tick()
        say(folder, [started(), epoch(1)], attempt)
        executor.alive.clear()
    one.tick()
    assert row(one, folder.id).status in ("queued", "running")


def test_a_cancelled_run_that_vanishes_is_cancelled(make: Make, executor: FakeExecutor, engine: Engine) -> None:
    one = make()
    [folder] = queue(one, 1)
    one.tick()
    with writing(engine) as session:
        run = session.get(Run, folder.id)
        assert run is not None
        run.cancel_requested = True
        session.add(run)
        session.commit()
    executor.alive.clear()
    one.tick()
    assert (row(one, folder.id).status, row(one, folder.id).cancel_requested) == ("cancelled", False)


def test_without_an_executor_the_queue_waits(make: Make, executor: FakeExecutor) -> None:
    one = make()
    [folder] = queue(one, 1)
    executor.is_ready = False
    one.tick()
    executor.is_ready, executor.error = True, ExecutorUnavailable("gone")
    one.tick()
    assert (row(one, folder.id).status, row(one, folder.id).attempt) == ("queued", 0)
    executor.error = None
    one.tick()
    assert (row(one, folder.id).status, row(one, folder.id).attempt) == ("running", 1)


def test_a_run_that_ends_at_once_counts_as_an_attempt(
    make: Make, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.queue.RESTART_SECONDS", (0.0, 0.0))
    one = make()
    [folder] = queue(one, 1)
    executor.error = RunNotStarted("ended")
    for _turn in range(6):
        one.tick()
    assert (row(one, folder.id).status, row(one, folder.id).attempt) == ("failed", 3)


def test_a_restarted_server_finds_the_run_alive(make: Make, executor: FakeExecutor) -> None:
    one = make()
    [folder] = queue(one, 1)
    one.tick()
    say(folder, [started(), epoch(1)])
    two = make()
    two.tick()
    assert (row(two, folder.id).status, row(two, folder.id).epochs_done) == ("running", 1)
    assert len(executor.started) == 1
    finish_events = [epoch(2), epoch(3)]
    say(folder, finish_events)
    two.tick()
    assert row(two, folder.id).epochs_done == 3


def test_a_run_whose_start_was_not_noted_is_adopted(make: Make, executor: FakeExecutor) -> None:
    one = make()
    [folder] = queue(one, 1)
    executor.alive.add(folder.id)
    one.tick()
    assert row(one, folder.id).status == "running"
    assert executor.started == []


def test_a_folder_removed_by_hand_keeps_nobody_waiting(make: Make, executor: FakeExecutor) -> None:
    import shutil

    one = make(slots=1)
    first, second = queue(one, 2)
    one.tick()
    running = executor.started[0][0]
    shutil.rmtree(one.folder / running)
    executor.alive.clear()
    one.tick()
    one.tick()
    assert {run_id for run_id, *_rest in executor.started} == {first.id, second.id}


def test_a_failing_tick_does_not_end_the_thread(make: Make) -> None:
    one = make()
    calls: list[int] = []

    def fail() -> bool:
        calls.append(1)
        raise OSError("no space left")

    assert one._guarded(fail)
    assert calls == [1]


def test_the_thread_starts_and_ends(make: Make, executor: FakeExecutor) -> None:
    one = make()
    queue(one, 1)
    one.begin()
    one.wake()
    import time

    deadline = time.monotonic() + 10
    while not executor.started and time.monotonic() < deadline:
        time.sleep(0.01)
    one.end()
    assert len(executor.started) == 1


def test_a_real_lock_tells_life(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    assert not folder.is_alive()
    process = Process(folder)
    assert folder.is_alive()
    process.end()
    assert not folder.is_alive()


# Hanging -------------------------------------------------------------------------------------------------------------


def make_silent(folder: RunFolder, seconds: float) -> None:
    folder.heartbeat_path.write_text("0.1")
    os.utime(folder.heartbeat_path, (time.time() - seconds,) * 2)


def test_a_silent_run_is_shown_until_it_beats_again(make: Make, tmp_path: Path) -> None:
    scheduler, folder = make(), new_run(tmp_path / "runs")
    scheduler.tick()
    make_silent(folder, 90)
    scheduler.tick()
    since = row(scheduler, folder.id).hanging_since
    assert since is not None
    assert 80 < time.time() - datetime.fromisoformat(since).timestamp() < 100
    assert row(scheduler, folder.id).status == "running"
    make_silent(folder, 1)
    scheduler.tick()
    assert row(scheduler, folder.id).hanging_since is None


@pytest.mark.parametrize(("hang_seconds", "is_ended"), [(None, False), (300, False), (80, True)])
def test_a_silent_run_is_ended_only_where_a_setting_says_so(
    make: Make, tmp_path: Path, hang_seconds: float | None, is_ended: bool
) -> None:
    scheduler, folder = make(hang_seconds=hang_seconds), new_run(tmp_path / "runs")
    scheduler.tick()
    scheduler.watch_seconds = 0
    say(folder, [started(), epoch(1)])
    make_silent(folder, 90)
    for _tick in range(4):
        scheduler.tick()
    found = row(scheduler, folder.id)
    assert (found.status, found.attempt) == ("running", 2 if is_ended else 1)


# A full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The free bytes of the disk, as its only item."""
    bytes_free = [10**9]
    (tmp_path / "runs").mkdir(exist_ok=True)
    monkeypatch.setattr("app.runs.room.shutil.disk_usage", lambda _path: SimpleNamespace(free=bytes_free[0]))
    return bytes_free


def test_nothing_starts_below_the_reserve(make: Make, tmp_path: Path, executor: FakeExecutor, free: list[int]) -> None:
    scheduler, folder = make(reserve=5 * 10**8), new_run(tmp_path / "runs")
    free[0] = 4 * 10**8
    scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).queue_reason) == ("queued", "disk")
    assert executor.started == []
    free[0] = 10**9
    scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).queue_reason) == ("running", "")


def test_runs_that_lacked_space_continue_when_there_is_some(
    make: Make, tmp_path: Path, executor: FakeExecutor, free: list[int]
) -> None:
    scheduler, folder, other = make(reserve=5 * 10**8), new_run(tmp_path / "runs"), new_run(tmp_path / "runs", seed=1)
    scheduler.tick()
    free[0] = 10**6
    say(folder, [started(), epoch(1), Failed("DiskFull", "The disk is full.", "Free some space.")])
    say(other, [started(), Failed("NonFiniteLoss", "The loss is NaN.", "Lower the rate.")])
    executor.alive.clear()
    for _tick in range(3):
        scheduler.tick()
        assert row(scheduler, folder.id).status == "failed"
    free[0] = 55 * 10**7  # more than the reserve, but not enough to begin again
    scheduler.tick()
    assert row(scheduler, folder.id).status == "failed"
    free[0] = 10**9
    scheduler.tick()
    scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).attempt) == ("running", 2)
    assert row(scheduler, other.id).status == "failed"


def test_a_run_continues_even_if_nothing_could_be_written_while_the_disk_was_full(
    make: Make, tmp_path: Path, executor: FakeExecutor, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, folder = make(reserve=5 * 10**8), new_run(tmp_path / "runs")
    scheduler.tick()
    say(folder, [started(), epoch(1), Failed("DiskFull", "The disk is full.", "Free some space.")])
    executor.alive.clear()
    free[0] = 0

    def fail() -> bool:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.indexer, "tick", fail)
        with pytest.raises(OperationalError):
            scheduler.tick()
    free[0] = 10**9
    scheduler.tick()
    scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).attempt) == ("running", 2)


def test_a_run_that_fails_again_for_lack_of_space_is_not_tried_for_ever(
    make: Make, tmp_path: Path, executor: FakeExecutor, free: list[int]
) -> None:
    """A quota may be used up while the disk has space."""
    scheduler, folder = make(reserve=5 * 10**8), new_run(tmp_path / "runs")
    scheduler.tick()
    say(folder, [started(), Failed("DiskFull", "The disk is full.", "Free some space.")])
    executor.alive.clear()
    for _tick in range(5):
        scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).attempt) == ("failed", 1)


def test_a_run_that_waits_for_a_slot_says_so(make: Make, tmp_path: Path, free: list[int]) -> None:
    scheduler = make(slots=1)
    first, second = new_run(tmp_path / "runs"), new_run(tmp_path / "runs", seed=1)
    scheduler.tick()
    reasons = {row(scheduler, folder.id).status: row(scheduler, folder.id).queue_reason for folder in (first, second)}
    assert reasons == {"running": "", "queued": "slot"}


def test_a_run_is_not_ended_before_the_server_has_watched_it(make: Make, tmp_path: Path) -> None:
    """After the machine was suspended all heartbeats are old."""
    scheduler, folder = make(hang_seconds=80), new_run(tmp_path / "runs")
    scheduler.tick()
    make_silent(folder, 7200)
    for _tick in range(3):
        scheduler.tick()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).attempt) == ("running", 1)


def test_an_imported_run_is_not_started_when_its_process_elsewhere_ends(
    make: Make, tmp_path: Path, executor: FakeExecutor
) -> None:
    other = new_run(tmp_path / "other" / "runs")
    folder = RunFolder(Path(shutil.copytree(other.path, tmp_path / "runs" / other.id)))
    executor.alive.add(folder.id)
    scheduler = make()
    scheduler.indexer.rebuild()
    assert (row(scheduler, folder.id).status, row(scheduler, folder.id).imported) == ("queued", True)
    executor.alive.clear()
    for _tick in range(3):
        scheduler._start_queued([row(scheduler, folder.id)])
    assert (row(scheduler, folder.id).status, executor.started) == ("failed", [])


def test_lack_of_space_again_and_again_ends_in_failure(
    make: Make, tmp_path: Path, executor: FakeExecutor, free: list[int]
) -> None:
    scheduler, folder = make(reserve=5 * 10**8), new_run(tmp_path / "runs")
    for attempt in range(1, 8):
        free[0] = 10**9
        for _tick in range(2):
            scheduler.tick()
        if row(scheduler, folder.id).status == "running":
            say(folder, [started(), Failed("DiskFull", "The disk is full.", "Free some space.")], attempt=attempt)
        executor.alive.clear()
        free[0] = 10**6
        for _tick in range(2):
            scheduler.tick()
        with writing(scheduler.engine) as session:  # the wait after several attempts is over
            found = session.get(Run, folder.id)
            assert found is not None
            found.queued_at = "2026-01-01T00:00:00.000Z"
            session.add(found)
            session.commit()
    assert row(scheduler, folder.id).status == "failed"
    assert row(scheduler, folder.id).attempt <= 6  # however often there is space again


def test_a_run_whose_files_cannot_be_read_keeps_no_other_waiting(
    make: Make, tmp_path: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make()
    closed, following = new_run(tmp_path / "runs"), new_run(tmp_path / "runs", seed=1)
    scheduler.indexer.tick()
    from trainer.damage import damage_of as real

    def damage_of(folder: RunFolder, *arguments: Any, **options: Any) -> list[str]:
        if folder.id == closed.id:
            raise PermissionError(13, "Permission denied")
        return real(folder, *arguments, **options)

    monkeypatch.setattr(scheduler_module, "damage_of", damage_of)
    scheduler.tick()
    assert [run_id for run_id, *_rest in executor.started] == [following.id]
    assert row(scheduler, closed.id).status == "queued"
