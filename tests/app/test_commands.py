"""Commands on runs: starting, cancelling, resuming, changing, deleting, and what a full disk leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from app.errors import Conflict, NotFound, Problem
from app.runs import commands, lifecycle
from app.runs.plan import plan
from app.schemas import RunChange, SweepIn
from app.state import Runoff
from app.store.database import reading, writing
from app.store.queries import get_run
from app.store.tables import STATUSES, Run
from tests.app.starting import start_run, start_sweep
from trainer.run_folder import RunFolder

Queue = Callable[..., Run]
BASE = {"dataset": "digits", "model": "fc"}


@pytest.fixture
def with_status(state: Runoff) -> Queue:
    def make(status: str) -> Run:
        run = start_run(state, **BASE)
        with writing(state.engine) as session:
            row = get_run(session, run.id)
            row.status, row.attempt = status, int(status != "queued")
            session.add(row)
            session.commit()
        return row

    return make


AFTER = {
    "cancel": {"queued": "cancelled", "running": "running"},
    "resume": {"failed": "queued", "cancelled": "queued"},
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("action", ["cancel", "resume"])
def test_each_action_from_each_status(state: Runoff, with_status: Queue, action: str, status: str) -> None:
    run = with_status(status)
    act = commands.cancel if action == "cancel" else commands.resume
    if status in AFTER[action]:
        changed = act(state, run.id)
        assert changed.status == AFTER[action][status]
        assert changed.cancel_requested == (status == "running")
        assert changed.version > run.version
        assert state.run_folder(run.id).stop_requested() == (status == "running")
    else:
        with pytest.raises(Conflict, match=f"The run is (already )?{status}"):
            act(state, run.id)


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_running_run_can_not_be_deleted(state: Runoff, with_status: Queue, status: str) -> None:
    run = with_status(status)
    if status == "running":
        with pytest.raises(Conflict, match="Cancel it first"):
            commands.delete(state, run.id)
        assert state.run_folder(run.id).path.is_dir()
        return
    commands.delete(state, run.id)
    assert [*state.settings.runs.iterdir()] == []
    with pytest.raises(NotFound):
        commands.cancel(state, run.id)


@pytest.mark.parametrize("status", ["running", "finished", "failed", "cancelled"])
def test_a_stale_change_of_status_is_refused(state: Runoff, with_status: Queue, status: str) -> None:
    run = with_status(status)
    with writing(state.engine) as session, pytest.raises(Conflict, match=f"The run is already {status}"):
        lifecycle.begin_attempt(session, state.run_folder(run.id), get_run(session, run.id), "cpu")


def test_a_sweep_is_the_product_of_grid_and_seeds(state: Runoff) -> None:
    sweep = SweepIn(
        base={"dataset": "digits", "model": "fc", "seed": 5},
        grid={"learning_rate": [0.1, 0.01], "batch_size": [32, 64]},
        repeats=3,
        name="try",
        tags=["a", "a", "b"],
    )
    out = commands.start(state, plan(state.settings.home, sweep))
    assert len(out.runs) == 12
    assert {(run.config["learning_rate"], run.config["batch_size"], run.seed) for run in out.runs} == {
        (rate, size, seed) for rate in (0.1, 0.01) for size in (32, 64) for seed in (5, 6, 7)
    }
    assert "try, learning_rate 0.1, batch_size 32, seed 5" in {run.name for run in out.runs}
    assert len({run.group for run in out.runs}) == 4
    assert all(run.tags == ["a", "b"] and run.sweep == out.sweep for run in out.runs)


@pytest.mark.parametrize("broken", ["write_sealed", "sync_folder"])
def test_a_full_disk_leaves_nothing(state: Runoff, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    import trainer.run_folder as module

    real, calls = getattr(module, broken), iter(range(100))

    def fail(*arguments: Any) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(Problem, match="No space left") as caught:
        start_sweep(state, base=BASE, repeats=4)
    assert caught.value.status == 503
    assert [*state.settings.runs.iterdir()] == []
    state.indexer.tick()
    with reading(state.engine) as session:
        assert session.exec(select(Run)).all() == []


def test_labels_change_and_survive_a_rebuild(state: Runoff) -> None:
    run = start_run(state, **BASE, name=" first ", tags=["x"], notes="n")
    assert (run.name, run.tags, run.notes) == ("first", ["x"], "n")
    commands.change(state, run.id, RunChange(name="second", tags=["b", "b", "a"], archived=True))
    state.indexer.rebuild()
    with writing(state.engine) as session:
        again = get_run(session, run.id)
    assert (again.name, again.tags, again.notes, again.archived) == ("second", ["b", "a"], "n", True)
    assert again.config == run.config


def test_cancelled_in_the_queue_survives_a_rebuild(state: Runoff) -> None:
    run = start_run(state, **BASE)
    cancelled = commands.cancel(state, run.id)
    state.indexer.rebuild()
    with writing(state.engine) as session:
        again = get_run(session, run.id)
    assert again.model_dump(exclude={"version"}) == cancelled.model_dump(exclude={"version"})


def test_ids_are_claimed_by_mkdir(state: Runoff, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = iter("a" * 10 + "a" * 10 + "b" * 10)
    monkeypatch.setattr("trainer.run_folder.secrets.choice", lambda _alphabet: next(letters))
    config = plan(state.settings.home, SweepIn(base=BASE)).runs[0].config
    first, second = (RunFolder.claim(Path(state.settings.runs), config) for _number in range(2))
    assert (first.id, second.id) == ("a" * 10, "b" * 10)
