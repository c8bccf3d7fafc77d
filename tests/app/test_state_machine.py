"""A server through random sequences of commands, faults, kills and restarts, with the real parts on a real home.

After each command, what was refused must not be done and what was accepted must be. When the faults are over and some
time has passed, folders, index and processes must agree.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy.exc import DatabaseError
from sqlmodel import select

from app.errors import Problem
from app.runs import commands
from app.runs.ingest import rows_of
from app.runs.plan import plan, plan_run
from app.schemas import RunChange, SweepIn
from app.server import serving
from app.settings import Settings
from app.state import Runoff
from app.store.database import open_index, reading
from app.store.queries import sweep_runs
from app.store.tables import Run, RunColumns
from tests.app.fake_world import SLOTS, Fault, Killed, World, watched_engines  # noqa: F401
from trainer.damage import damage_of
from trainer.event_log import read_log
from trainer.run_folder import RunFolder

BASE = {"dataset": "digits", "model": "fc", "epochs": 2}
REFUSALS = (Problem, OSError, DatabaseError)
MOST_RUNS = 6
SETTLES_AFTER = 5
# What a tick, or a restart with ticks, may make of a status
CHANGES = {
    "queued": {"running", "failed", "cancelled", "finished"},
    "running": {"queued", "finished", "failed", "cancelled"},
    "failed": {"queued", "running"},  # where the disk was full
    "cancelled": set(),
    "finished": set(),
}
FAULTS = st.none() | st.builds(Fault, st.sampled_from(["kill", "ENOSPC", "EIO"]), st.integers(0, 12))
NUMBERS = st.integers(0, MOST_RUNS - 1)
USER_COMMANDS = ["cancel", "resume", "delete", "restore", "rename", "archive", "stop"]


class Machine(RuleBasedStateMachine):
    """A home, its server, and what was accepted so far."""

    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")
        self.home = Path(tempfile.mkdtemp(prefix="runoff-", dir=shared if shared.is_dir() else None))
        self.world = World(self.home)
        self.replaced = ExitStack()
        self.replaced.enter_context(self.world.installed())
        self.settings = Settings(home=self.home, slots=SLOTS, measure=False, hang_seconds=120, reserve_mb=1)
        self.server = ExitStack()
        self.state: Runoff | None = None
        self.wanted: dict[str, dict[str, Any]] = {}  # accepted names and marks
        self.must_not_train: set[str] = set()  # cancelled, stopped or finished, until they are resumed
        self.unsettled = 0  # how much was done since everything was last compared
        self.sweeps: dict[str, int] = {}  # how many runs each has

    @initialize()
    def begin(self) -> None:
        self.settings.database.write_bytes(_empty_index())
        self._start_server(None)
        assert self.state is not None
        commands.start(self.state, plan_run(self.home, {**BASE, "seed": 7}))
        self._learn_new()
        self.state.scheduler.tick()  # type: ignore[attr-defined]
        self._check_begun()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.settle(is_rebuilt=True)
        finally:
            self.server.close()
            self.replaced.close()
            shutil.rmtree(self.home)

    # what can be seen ------------------------------------------------------------------------------------------------

    def folders(self) -> dict[str, Path]:
        """Every folder that is a run, in ``runs`` and in ``trash``, by its name."""
        places = [*self.home.glob("runs/*"), *self.home.glob("trash/*")]
        found = {path.name: path for path in places if not RunFolder(path).is_empty()}
        assert len(found) == len([path for path in places if not RunFolder(path).is_empty()]), "a run is twice here"
        return found

    def listing(self) -> dict[str, Any]:
        """What commands write: which folders there are, and what they hold besides what processes write."""
        files = {}
        for place in ("runs", "trash"):
            for path in sorted(self.home.glob(f"{place}/*")):
                files[f"{place}/{path.name}"] = (
                    RunFolder(path).read_run(),
                    RunFolder(path).stop_requested(),
                    sorted(item.name for item in path.iterdir()),
                )
        return files

    def rows(self) -> dict[str, Run]:
        assert self.state is not None
        with reading(self.state.engine) as session:
            return {run.id: run for run in session.exec(select(Run)).all()}

    def run(self, number: int, place: str = "runs") -> str | None:
        """One of the runs, the oldest first."""
        names = sorted(path.name for path in self.home.glob(f"{place}/*"))
        return names[number % len(names)] if names else None

    # the server ------------------------------------------------------------------------------------------------------

    def _start_server(self, fault: Fault | None) -> None:
        self.world.pass_over(2)
        self.server = ExitStack()
        with self.world.disk.working(fault):
            self.state = self.server.enter_context(serving(self.settings, train=False))
        self.state.executor = self.state.scheduler.executor = self.world  # type: ignore[attr-defined,assignment]
        self._learn_new()  # a sweep that was killed may have been completed

    def _forget_server(self) -> None:
        """The server was killed. Nothing is tidied up."""
        if self.state is not None:
            self.state.engine.dispose()
        self.state = None
        with self.world.disk.working(Fault("kill", 0)), suppress(Killed, *REFUSALS):
            self.server.close()

    def _command(self, do: Callable[[], Any], fault: Fault | None) -> str:
        """Do what a user asks for: accepted, refused or killed."""
        before, rows_before = self.listing(), _visible(self.rows())
        try:
            with self.world.disk.working(fault):
                do()
        except Killed:
            self._forget_server()
            return "killed"
        except REFUSALS:
            assert self.listing() == before, "what was refused has changed a folder"
            assert _visible(self.rows()) == rows_before, "what was refused has changed the index"
            return "refused"
        return "accepted"

    def _do(self, name: str, run_id: str, fault: Fault | None) -> None:
        """A command on one run, and what has to be true of the run from now on."""
        state = self.state
        assert state is not None
        actions: dict[str, Callable[[], Any]] = {
            "cancel": lambda: commands.cancel(state, run_id),
            "resume": lambda: commands.resume(state, run_id),
            "delete": lambda: commands.delete(state, run_id),
            "restore": lambda: commands.restore(state, run_id),
            "rename": lambda: commands.change(state, run_id, RunChange(name=f"{len(self.wanted)}", tags=["one"])),
            "archive": lambda: commands.change(state, run_id, RunChange(archived=True)),
            "stop": lambda: commands.stop_now(state, run_id),
        }
        outcome = self._command(actions[name], fault)
        folder = RunFolder(self.home / "runs" / run_id)
        is_there = folder.path.exists()
        if outcome == "killed":
            self._learn(run_id)
            return
        if outcome == "refused":
            return
        if name == "delete":
            assert not is_there
            assert (self.home / "trash" / run_id).is_dir()
        elif name == "restore":
            assert is_there
        elif name == "resume":
            self.must_not_train.discard(run_id)
        elif name in ("cancel", "stop"):
            self.must_not_train.add(run_id)
        else:
            change = {"archived": True} if name == "archive" else {"name": f"{len(self.wanted)}", "tags": ["one"]}
            self.wanted[run_id].update(change)

    def _learn(self, run_id: str) -> None:
        """A command was killed, so it may or may not be done: what holds from now on is what the folder says."""
        path = self.folders().get(run_id)
        record = RunFolder(path).read_run() if path else None
        if record is not None:
            self.wanted[run_id] = {name: record[name] for name in ("name", "tags", "archived")}
            self.must_not_train.discard(run_id)

    def _learn_new(self) -> None:
        for run_id in self.folders().keys() - self.wanted.keys():
            self._learn(run_id)

    # starting --------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self.state is not None and len(self.folders()) < MOST_RUNS

    @precondition(_has_room)
    @rule(fault=FAULTS, seed=st.integers(0, 3))
    def start_run(self, fault: Fault | None, seed: int) -> None:
        state = self.state
        assert state is not None
        planned = plan_run(self.home, {**BASE, "seed": seed})
        before = len(self.folders())
        outcome = self._command(lambda: commands.start(state, planned), fault)
        if outcome == "accepted":
            assert len(self.folders()) == before + 1
        self._learn_new()

    @precondition(_has_room)
    @rule(fault=FAULTS, count=st.integers(2, 3))
    def start_sweep(self, fault: Fault | None, count: int) -> None:
        state = self.state
        assert state is not None
        planned = plan(self.home, SweepIn(base=BASE, grid={"seed": [*range(count)]}))
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = count
        outcome = self._command(lambda: commands.start(state, planned, name), fault)
        if outcome == "refused":
            del self.sweeps[name]
        self._learn_new()

    @precondition(_has_room)
    @rule(fault=FAULTS, number=NUMBERS)
    def repeat(self, fault: Fault | None, number: int) -> None:
        state, run = self.state, self.rows().get(self.run(number) or "")
        if run is None or run.sweep is not None:
            return
        assert state is not None
        self._command(lambda: commands.add_repeats(state, run.group, 1), fault)
        self._learn_new()

    # commands on a run -----------------------------------------------------------------------------------------------

    def _is_up(self) -> bool:
        return self.state is not None

    @precondition(_is_up)
    @rule(name=st.sampled_from(USER_COMMANDS), number=NUMBERS, fault=FAULTS)
    def command(self, name: str, number: int, fault: Fault | None) -> None:
        self.unsettled += 1
        run_id = self.run(number, "trash" if name == "restore" else "runs")
        if run_id is not None:
            self._do(name, run_id, fault)

    @precondition(_is_up)
    @rule(name=st.sampled_from(USER_COMMANDS), number=NUMBERS)
    def undisturbed_command(self, name: str, number: int) -> None:
        self.command(name=name, number=number, fault=None)

    @precondition(_is_up)
    @rule(number=NUMBERS)
    def cancel_sweep(self, number: int) -> None:
        state, run = self.state, self.rows().get(self.run(number) or "")
        if run is None or run.sweep is None:
            return
        assert state is not None
        with suppress(*REFUSALS), self.world.disk.working():
            commands.cancel_sweep(state, run.sweep)
            with reading(state.engine) as session:
                active = [each for each in sweep_runs(session, run.sweep) if each.status in ("queued", "running")]
            assert all(each.cancel_requested for each in active)
            self.must_not_train |= {each.id for each in active}

    # the server's own work -------------------------------------------------------------------------------------------

    @precondition(_is_up)
    @rule(
        what=st.sampled_from(["tick", "tick", "index", "rebuild"]),
        fault=FAULTS,
        start=st.sampled_from(["ok", "ok", "lost", "refused", "unavailable"]),
        intruder=st.none() | st.tuples(st.integers(0, 3), st.sampled_from(USER_COMMANDS), NUMBERS),
    )
    def work(self, what: str, fault: Fault | None, start: str, intruder: tuple[int, str, int] | None) -> None:
        """A tick of the scheduler or of the indexer, or a rebuild. Meanwhile a user may ask for something."""
        self.unsettled += 1
        assert self.state is not None
        works: dict[str, Callable[[], Any]] = {
            "tick": self.state.scheduler.tick,  # type: ignore[attr-defined]
            "index": self.state.indexer.tick,
            "rebuild": self.state.indexer.rebuild,
        }
        self.world.next_start = start
        before = {run_id: run.status for run_id, run in self.rows().items()}
        # A change whose commit failed is in the folder, and the index follows at the next tick.
        touched: set[str] = {*self.state.indexer._again}  # type: ignore[attr-defined]
        if intruder is not None:
            self.world.disk.intrudes_at, name, number = intruder
            run_id = self.run(number, "trash" if name == "restore" else "runs")
            if run_id is not None:
                touched.add(run_id)
                self.world.disk.intruder = lambda: self._do(name, run_id, None)
        try:
            with self.world.disk.working(fault):
                works[what]()
        except Killed:
            self._forget_server()
        except REFUSALS:
            pass  # the scheduler tries again
        self.world.next_start = "ok"
        self._check_begun()
        if self.state is not None:
            self._check_changes(before, touched)

    def _check_begun(self) -> None:
        begun, self.world.begun = self.world.begun, []
        assert not self.must_not_train & set(begun), "a run is trained that was cancelled or has finished"

    def _check_changes(self, before: dict[str, str], touched: set[str]) -> None:
        for run_id, run in self.rows().items():
            old = before.get(run_id, run.status)
            if old != run.status and run_id not in touched:
                assert run.status in CHANGES[old], f"from {old} to {run.status}"

    @precondition(lambda self: self.state is None)
    @rule(fault=FAULTS, has_index=st.sampled_from([True, True, True, False]))
    def restart(self, fault: Fault | None, has_index: bool) -> None:
        if not has_index:
            self.settings.database.unlink(missing_ok=True)
        try:
            self._start_server(fault)
        except Killed:
            self._forget_server()
        except (*REFUSALS, RuntimeError):  # a server that can't start says why, and ends
            self.server.close()
            self.state = None

    # the world -------------------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(["full", "space", "host", "server killed", "server ends", "1", "12", "40", "130"]))
    def outside(self, what: str) -> None:
        """The disk, the trainer host, the server, or only time."""
        if what in ("full", "space"):
            self.world.disk.is_full = what == "full"
        elif what == "host":
            self.world.has_host = False
        elif what == "server killed" and self.state is not None:
            self._forget_server()
        elif what == "server ends":
            self.server.close()
            self.state = None
        elif what.isdigit():
            self.world.pass_over(int(what))

    @precondition(lambda self: self.world.alive)
    @rule(
        number=st.integers(0, SLOTS - 1),
        what=st.sampled_from(
            ["proceed", "proceed", "proceed", "fail", "disk full", "exit", "killed", "torn", "hang", "hang"]
        ),
    )
    def process(self, number: int, what: str) -> None:
        self.unsettled += 1
        run_ids = sorted(self.world.alive)
        run_id = run_ids[number % len(run_ids)]
        process = self.world.alive[run_id]
        if process.has_ended:
            self.world.end(run_id)
        elif what == "hang":
            process.hangs = not process.hangs
        elif what in ("killed", "torn") or self.world.disk.is_full:
            if what == "torn" and process.has_started:
                with process.folder.events_path.open("ab") as file:
                    file.write(b'{"seq":99,"type":"ep')
            self.world.end(run_id, signal.SIGKILL)
        elif not process.hangs:
            process.proceed({"fail": "NonFiniteLoss", "disk full": "DiskFull"}.get(what, ""))
            log = read_log(process.folder.events_path)
            if log.last is not None and log.last["type"] == "finished":
                self.must_not_train.add(run_id)

    # what must hold --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.unsettled >= SETTLES_AFTER)
    @rule(is_rebuilt=st.booleans())
    def settle(self, is_rebuilt: bool) -> None:
        """The faults are over, and the server has time. Then everything must agree."""
        self.unsettled = 0
        self.world.disk.is_full = False
        if self.state is None:
            self._start_server(None)
        assert self.state is not None
        tick = self.state.scheduler.tick  # type: ignore[attr-defined]
        for seconds in (130, 31, 31, 31, 31):  # a run that hangs is ended in the meantime
            self.world.pass_over(seconds)
            for run_id in [run_id for run_id, process in self.world.alive.items() if process.has_ended]:
                self.world.end(run_id)
            tick()
        self._check_begun()
        self._check_agreement()
        if is_rebuilt:
            before = _visible(self.rows())
            self.state.indexer.rebuild()
            tick()
            tick()
            after = _visible(self.rows())
            assert not (changed := _differences(before, after)), f"a rebuild has changed rows: {changed}"
            self._check_begun()
            self._check_agreement()

    def _check_agreement(self) -> None:
        rows, folders = self.rows(), self.folders()
        here = {run_id for run_id, path in folders.items() if path.parent.name == "runs"}
        assert rows.keys() == here, "a run has no row, or a row no folder"
        assert set(self.wanted) == set(folders), "a run is lost, or came out of nowhere"
        by_sweep: dict[str, int] = defaultdict(int)
        for run_id, path in folders.items():
            folder = RunFolder(path)
            record = folder.read_run()
            assert record is not None
            assert damage_of(folder) == []
            assert {name: record[name] for name in self.wanted[run_id]} == self.wanted[run_id]
            by_sweep[record["sweep"]] += 1
        by_sweep.pop(None, None)  # type: ignore[call-overload]
        assert by_sweep == {name: self.sweeps.get(name, 1) for name in by_sweep}, "a part of a sweep is missing"
        running = {run_id for run_id, run in rows.items() if run.status == "running"}
        different = running ^ self.world.alive.keys()
        assert not different, f"running without a process, or the reverse: {[rows.get(run_id) for run_id in different]}"
        assert len(running) <= SLOTS
        queued = [run_id for run_id, run in rows.items() if run.status == "queued"]
        assert not queued or len(running) == SLOTS, "a slot is free, and a run waits"
        for run_id, run in rows.items():
            assert {name: getattr(run, name) for name in self.wanted[run_id]} == self.wanted[run_id]
            proof = rows_of(RunFolder(folders[run_id]), None, lambda _run_id: {}, trust_row=False)
            assert proof is not None
            if run.status not in ("queued", "running"):
                proven, known = _visible({run_id: proof.run}), _visible({run_id: run})
                assert not (differs := _differences(known, proven)), f"the row is not what the folder proves: {differs}"
            if run_id in self.must_not_train and run.status not in ("finished", "failed", "cancelled"):
                assert run.cancel_requested, "a cancel is forgotten"


@cache
def _empty_index() -> bytes:
    """The file of an index without runs: to migrate one takes a tenth of a second."""
    with tempfile.TemporaryDirectory() as folder:
        engine, _message = open_index(Path(folder) / "index")
        engine.dispose()
        return (Path(folder) / "index").read_bytes()


def _visible(rows: Mapping[str, RunColumns]) -> dict[str, dict[str, Any]]:
    """The columns that say something about a run; of a live one those that its folder tells."""
    return {run_id: run.model_dump(exclude=_unproven(run)) for run_id, run in rows.items()}


def _unproven(run: RunColumns) -> set[str]:
    """What no folder tells: the version, and of a live run what only its next events or the scheduler say."""
    live = {"device", "queue_reason", "hanging_since", "seconds_left"}
    before_start = {"device"} if run.started_at is None else set()
    return {"version"} | before_start | (live if run.status in ("queued", "running") else set())


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{run_id} {name}": (value, after.get(run_id, {}).get(name))
        for run_id, values in before.items()
        for name, value in values.items()
        if after.get(run_id, {}).get(name) != value
    }


@pytest.mark.slow
def test_a_server_keeps_its_word(
    pytestconfig: pytest.Config,
    watched_engines: None,  # noqa: F811
    record_property: Callable[[str, object], None],
) -> None:
    is_full, fault_seed = pytestconfig.option.full, pytestconfig.option.fault_seed
    is_chosen = is_full or any("--fault-seed" in argument for argument in pytestconfig.invocation_params.args)
    examples, steps = (2000, 50) if is_full else (4, 15)
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=not is_chosen,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine = seed(fault_seed)(Machine) if is_chosen else Machine
    level = logging.getLogger("app").level
    logging.getLogger("app").setLevel(logging.CRITICAL)
    try:
        run_state_machine_as_test(machine, settings=options)
    finally:
        logging.getLogger("app").setLevel(level)
    record_property(
        "fault", f"| sequences of commands, kills and faults, up to {steps} steps | {examples:,} | none wrong |"
    )
