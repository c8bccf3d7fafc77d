"""What writes about runs: every change of a status, sweeps, labels, and what a full disk leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlmodel import select
from starlette.testclient import TestClient

from app.errors import Conflict, NotFound, Problem, Refused
from app.runs import commands as runs
from app.schemas import RunChange, SweepIn
from app.state import Runoff
from app.store.database import reading, writing
from app.store.queries import get_run
from app.store.tables import STATUSES, Run
from trainer.run_folder import RunFolder

Queue = Callable[..., Run]


@pytest.fixture
def state(api: TestClient, site_app: FastAPI) -> Runoff:
    found: Runoff = site_app.state.runoff
    return found


@pytest.fixture
def with_status(state: Runoff) -> Queue:
    def make(status: str) -> Run:
        run, _warnings = runs.start(state, {"dataset": "digits", "model": "fc"})
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
    act = runs.cancel if action == "cancel" else runs.resume
    if status in AFTER[action]:
        changed = act(state, run.id)
        assert changed.status == AFTER[action][status]
        assert changed.cancel_requested == (status == "running")
        assert changed.version > run.version
        assert runs.folder_of(state, run.id).stop_requested() == (status == "running")
    else:
        with pytest.raises(Conflict, match=f"The run is {status}"):
            act(state, run.id)


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_running_run_can_not_be_deleted(state: Runoff, with_status: Queue, status: str) -> None:
    run = with_status(status)
    if status == "running":
        with pytest.raises(Conflict, match="Cancel it first"):
            runs.delete(state, run.id)
        assert runs.folder_of(state, run.id).path.is_dir()
        return
    runs.delete(state, run.id)
    assert [*state.settings.runs.iterdir()] == []
    with pytest.raises(NotFound):
        runs.cancel(state, run.id)


@pytest.mark.parametrize("status", ["running", "finished", "failed", "cancelled"])
def test_a_stale_change_of_status_is_refused(state: Runoff, with_status: Queue, status: str) -> None:
    run = with_status(status)
    with writing(state.engine) as session, pytest.raises(Conflict, match=f"The run is {status} by now"):
        runs.mark_running(session, runs.folder_of(state, run.id), get_run(session, run.id), "cpu")


def test_a_sweep_is_the_product_of_grid_and_seeds(state: Runoff) -> None:
    sweep = SweepIn(
        base={"dataset": "digits", "model": "fc", "seed": 5},
        grid={"learning_rate": [0.1, 0.01], "batch_size": [32, 64]}, repeats=3, name="try", tags=["a", "a", "b"],
    )  # fmt: skip
    out = runs.start_sweep(state, sweep)
    assert len(out.runs) == 12
    assert {(run.config["learning_rate"], run.config["batch_size"], run.seed) for run in out.runs} == {
        (rate, size, seed) for rate in (0.1, 0.01) for size in (32, 64) for seed in (5, 6, 7)
    }
    assert "try, learning_rate 0.1, batch_size 32, seed 5" in {run.name for run in out.runs}
    assert len({run.group for run in out.runs}) == 4
    assert all(run.tags == ["a", "b"] and run.sweep == out.id for run in out.runs)


def refused(state: Runoff, **sweep: Any) -> dict[str, str]:
    with pytest.raises(Refused) as caught:
        runs.start_sweep(state, SweepIn(**sweep))
    assert [*state.settings.runs.iterdir()] == []
    return {problem.field: problem.message for problem in caught.value.errors}


BASE = {"dataset": "digits", "model": "fc"}


def test_one_bad_value_refuses_all_and_says_where(state: Runoff) -> None:
    problems = refused(state, base=BASE, grid={"learning_rate": [0.1, 0.2, -1], "epochs": [1, 0]})
    assert problems == {
        "grid.learning_rate[2]": "Must be more than 0. You typed -1.",
        "grid.epochs[1]": "Must be at least 1. You typed 0.",
    }


@pytest.mark.parametrize(
    ("sweep", "field", "words"),
    [
        ({"base": BASE, "grid": {"seed": [1, 2]}, "repeats": 2}, "repeats", "not both"),
        ({"base": BASE, "grid": {"nonsense": [1]}}, "grid.nonsense", "Unknown field"),
        ({"base": BASE, "grid": {"seed": [*range(1000)], "epochs": [1, 2]}}, "grid", "2,000 runs"),
        ({"base": {**BASE, "seed": 2**32 - 1}, "repeats": 2}, "seed", "4,294,967,296"),
        ({"base": {**BASE, "dataset": "nowhere"}}, "dataset", "nowhere"),
        ({"base": {"dataset": "digits"}}, "model", "Required"),
        ({"base": BASE, "preset": "nothing"}, "preset", "Unknown preset"),
        ({"base": {**BASE, "learning_rte": 1}}, "learning_rte", "learning_rate"),
    ],
)  # fmt: skip
def test_refusals_of_a_sweep(state: Runoff, sweep: dict[str, Any], field: str, words: str) -> None:
    assert words in refused(state, **sweep)[field]


def test_a_thousand_runs_are_the_most(state: Runoff) -> None:
    planned = runs.plan(state, SweepIn(base=BASE, repeats=1000))
    assert [run.config.seed for run in planned.runs] == [*range(1000)]


def test_a_given_field_wins_over_a_preset(state: Runoff) -> None:
    sweep = SweepIn(preset="mnist-fc-against-cnn", base={"model": "lenet", "epochs": 2}, dataset="fashion-mnist")
    planned = runs.plan(state, sweep)
    assert [(r.config.model, r.config.permute_pixels, r.config.dataset, r.config.epochs) for r in planned.runs] == [
        ("lenet", False, "fashion-mnist", 2), ("lenet", True, "fashion-mnist", 2),
    ]  # fmt: skip


def test_a_preset_with_a_grid_is_no_single_run(state: Runoff) -> None:
    with pytest.raises(Refused, match="POST /api/v1/sweeps"):
        runs.start(state, {"preset": "mnist-fc-against-cnn"})


@pytest.mark.parametrize("broken", ["write_json", "sync_folder"])
def test_a_full_disk_leaves_nothing(state: Runoff, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    import trainer.run_folder as module

    real, calls = getattr(module, broken), iter(range(100))

    def fail(*arguments: Any) -> None:
        if next(calls) == 4:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(Problem, match="No space left") as caught:
        runs.start_sweep(state, SweepIn(base=BASE, repeats=4))
    assert caught.value.status == 503
    assert [*state.settings.runs.iterdir()] == []
    state.indexer.tick()
    with reading(state.engine) as session:
        assert session.exec(select(Run)).all() == []


def test_labels_change_and_survive_a_rebuild(state: Runoff) -> None:
    run, _warnings = runs.start(state, {**BASE, "name": " first ", "tags": ["x"], "notes": "n"})
    assert (run.name, run.tags, run.notes) == ("first", ["x"], "n")
    runs.change(state, run.id, RunChange(name="second", tags=["b", "b", "a"], archived=True))
    state.indexer.rebuild()
    with writing(state.engine) as session:
        again = get_run(session, run.id)
    assert (again.name, again.tags, again.notes, again.archived) == ("second", ["b", "a"], "n", True)
    assert again.config == run.config


def test_cancelled_in_the_queue_survives_a_rebuild(state: Runoff) -> None:
    run, _warnings = runs.start(state, BASE)
    cancelled = runs.cancel(state, run.id)
    state.indexer.rebuild()
    with writing(state.engine) as session:
        again = get_run(session, run.id)
    assert again.model_dump(exclude={"version"}) == cancelled.model_dump(exclude={"version"})


def test_a_name_from_what_matters(state: Runoff) -> None:
    planned = runs.plan(state, SweepIn(base={**BASE, "permute_pixels": True}, repeats=2))
    assert [run.name for run in planned.runs] == ["FC permuted on digits, seed 0", "FC permuted on digits, seed 1"]


def test_ids_are_claimed_by_mkdir(state: Runoff, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = iter("a" * 10 + "a" * 10 + "b" * 10)
    monkeypatch.setattr("trainer.run_folder.secrets.choice", lambda _alphabet: next(letters))
    config = runs.plan(state, SweepIn(base=BASE)).runs[0].config
    first, second = (RunFolder.claim(Path(state.settings.runs), config) for _number in range(2))
    assert (first.id, second.id) == ("a" * 10, "b" * 10)
