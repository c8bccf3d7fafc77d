"""The queue: the order of runs, and where the next one can start."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from app.runs import slots as device_slots
from app.runs.queue import place_in_queue, queued_ids, queued_runs, running_runs
from app.runs.slots import free_device
from app.store.database import reading, writing
from app.store.tables import Run
from trainer import cores
from trainer.config import config_hash, group_hash, parse_config


def run_of(run_id: str, status: str = "queued", **values: Any) -> Run:
    columns = {name: values.pop(name) for name in ("queued_at", "created_at") if name in values}
    used = values.pop("used", None)  # the device that it runs on
    config, _warnings = parse_config({"dataset": "digits", "model": "fc", **values})
    return Run(
        id=run_id,
        status=status,
        config=config.model_dump(),
        dataset=config.dataset,
        model=config.model,
        config_hash=config_hash(config),
        group=group_hash(config),
        seed=config.seed,
        device=used,
        **{"created_at": "2026-03-01T10:00:00.000Z", **columns},
    )


def test_runs_wait_by_time_then_seed_then_id(engine: Engine) -> None:
    with writing(engine) as session:
        session.add(run_of("a", queued_at="2"))
        session.add(run_of("b", queued_at="1", created_at="2"))
        session.add(run_of("d", queued_at="1", created_at="1", seed=1))
        session.add(run_of("c", queued_at="1", created_at="1", seed=1))
        session.add(run_of("e", queued_at="1", created_at="1", seed=0))
        session.add(run_of("f", "running", queued_at="0"))
        session.commit()
    order = ["e", "c", "d", "b", "a"]
    with reading(engine) as session:
        assert queued_ids(session) == [run.id for run in queued_runs(session)] == order
        assert [place_in_queue(session, session.get_one(Run, run_id)) for run_id in [*order, "f"]] == [1, 2, 3, 4, 5, 0]
        assert [run.id for run in running_runs(session)] == ["f"]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (device_slots, cores):
        monkeypatch.setattr(module, "num_cores", lambda: 2)


GPUS = ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("device", "used", "accelerators", "slots", "expected"),
    [
        ("auto", [], [], None, "cpu"),
        ("auto", ["cpu"], [], None, "cpu"),
        ("auto", ["cpu", "cpu"], [], None, None),
        ("auto", [], GPUS, None, "cuda:0"),
        ("auto", ["cuda:0"], GPUS, None, "cuda:1"),
        ("auto", GPUS, GPUS, None, None),  # never moved to the CPU
        ("cuda", [], [], None, "cuda:0"),  # which is missing: the run says so
        ("cuda:1", ["cuda:1"], GPUS, None, None),
        ("cpu", GPUS, GPUS, None, "cpu"),
        ("auto", ["cuda:0"], GPUS, 3, "cuda:1"),
        ("auto", GPUS, GPUS, 3, "cuda:0"),
        ("auto", ["cpu", "cpu"], [], 3, "cpu"),
        ("auto", ["cpu"], [], 1, None),
    ],
)
def test_where_the_next_run_starts(
    device: str, used: list[str], accelerators: list[str], slots: int | None, expected: str | None
) -> None:
    running = [run_of(str(number), "running", used=name) for number, name in enumerate(used)]
    assert free_device(run_of("next", device=device), running, accelerators, slots) == expected


@pytest.mark.usefixtures("two_cores")
def test_a_net_with_many_threads_has_the_cpu_alone() -> None:
    wide, narrow = run_of("wide", model="vgg"), run_of("narrow")
    assert free_device(wide, [], [], None) == "cpu"
    assert free_device(wide, [narrow], [], None) is None
    assert free_device(narrow, [run_of("other", "running", model="vgg")], [], None) is None
