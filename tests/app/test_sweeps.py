"""Sweeps: the order in which their runs start, names, what varies, more repeats, cancelling the rest."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import NotFound
from app.runs import commands, sweeps
from app.runs.plan import plan
from app.schemas import SweepIn
from app.state import Runoff
from app.store.database import writing
from app.store.queries import get_run
from tests.app.starting import start_run, start_sweep
from trainer.config import parse_config

BASE = {"dataset": "digits", "model": "fc"}


def config_of(**fields: Any) -> dict[str, Any]:
    return parse_config({**BASE, **fields})[0].model_dump()


# Order ---------------------------------------------------------------------------------------------------------------

GROUPS = [f"g{number // 3}" for number in range(24 * 3)]  # 24 combinations, the 3 repeats of each side by side


def test_every_run_starts_once() -> None:
    assert sorted(sweeps.spread_order(GROUPS, "abc")) == [*range(72)]
    assert sweeps.spread_order([], "abc") == []


def test_a_round_has_one_repeat_of_every_combination() -> None:
    order = sweeps.spread_order(GROUPS, "abc")
    for start in (0, 24, 48):
        assert len({GROUPS[position] for position in order[start : start + 24]}) == 24
    assert {position % 3 for position in order[:24]} == {0}  # the first repeat of each comes first


def test_the_order_is_shuffled_and_belongs_to_the_sweep() -> None:
    order = sweeps.spread_order(GROUPS, "abc")
    assert order == sweeps.spread_order(GROUPS, "abc")
    assert order != sweeps.spread_order(GROUPS, "abd")
    rounds = [[position // 3 for position in order[start : start + 24]] for start in (0, 24, 48)]
    assert [*range(24)] not in rounds
    assert len({tuple(one) for one in rounds}) == 3


def test_half_of_a_round_is_a_fair_sample() -> None:
    """Over many sweeps each combination stands in the first half of its round about as often as in the second."""
    first = [0] * 8
    for number in range(400):
        for position in sweeps.spread_order([f"g{i}" for i in range(8)], f"sweep{number}")[:4]:
            first[position] += 1
    assert all(150 < count < 250 for count in first), first  # 200 expected, standard deviation 10


def test_repeats_alone_start_by_seed() -> None:
    assert sweeps.spread_order(["g"] * 5, "abc") == [0, 1, 2, 3, 4]


def test_the_queue_has_the_order_of_the_sweep(state: Runoff) -> None:
    out = start_sweep(state, base=BASE, grid={"learning_rate": [0.1, 0.01, 0.001]}, repeats=2)
    times = [run.created_at for run in out.runs]
    assert times == sorted(set(times))  # never the same twice, so nothing else decides
    assert [run.seed for run in out.runs] == [0, 0, 0, 1, 1, 1]
    assert len({run.group for run in out.runs[:3]}) == 3


# Names ---------------------------------------------------------------------------------------------------------------


def names(state: Runoff, **sweep: Any) -> set[str]:
    return {run.name for run in plan(state.settings.home, SweepIn(base=BASE, **sweep)).runs}


def test_names_carry_only_what_varies(state: Runoff) -> None:
    grid: dict[str, list[Any]] = {"learning_rate": [0.1, 0.001], "batch_size": [32]}
    assert names(state, grid=grid) == {"learning_rate 0.1", "learning_rate 0.001"}
    assert names(state, grid=grid, name="try") == {"try, learning_rate 0.1", "try, learning_rate 0.001"}
    assert names(state, repeats=2) == {"FC on digits, seed 0", "FC on digits, seed 1"}


def test_the_seed_stands_last_and_a_field_that_does_not_apply_is_left_out(state: Runoff) -> None:
    grid: dict[str, list[Any]] = {"seed": [3, 4], "optimizer": ["sgd", "adam"], "momentum": [0.5, 0.9]}
    found = names(state, grid=grid)
    assert "optimizer sgd, momentum 0.9, seed 4" in found
    assert "optimizer adam, seed 3" in found
    assert {sweeps.without_seed(name) for name in found if "adam" in name} == {"optimizer adam"}


def test_combinations_that_are_the_same_run_start_once(state: Runoff) -> None:
    grid: dict[str, list[Any]] = {"optimizer": ["sgd", "adam"], "momentum": [0.5, 0.9]}
    planned = plan(state.settings.home, SweepIn(base=BASE, grid=grid, repeats=2))
    assert len(planned.runs) == 6
    assert (
        "2 runs would be duplicates (a value given twice, or a field that does not apply); each starts once."
        in planned.warnings
    )
    assert len({run.config.model_dump_json() for run in planned.runs}) == 6


def test_a_long_name_keeps_what_tells_runs_apart() -> None:
    config, _warnings = parse_config({**BASE, "seed": 7})
    name = sweeps.run_name("x" * 120, config, ["learning_rate"], with_seed=True)
    assert len(name) == sweeps.LONGEST_NAME
    assert name.endswith("x, learning_rate 0.01, seed 7")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("FC, seed 3", "FC"),
        ("FC seed 12", "FC"),
        ("FC · Seed 1", "FC"),
        ("seed 3 of FC", "seed 3 of FC"),
        ("seed 3", ""),
    ],
)
def test_without_seed(name: str, stem: str) -> None:
    assert sweeps.without_seed(name) == stem


def test_common_name() -> None:
    assert sweeps.common_name(["try, lr 1, seed 0", "try, lr 1, seed 1"]) == "try, lr 1"
    assert sweeps.common_name(["lr 1", "lr 2"]) == ""
    assert sweeps.common_name(["one"]) == "one"
    assert sweeps.common_name([]) == ""


# What varies ---------------------------------------------------------------------------------------------------------


def test_factors_are_the_fields_that_vary_but_the_seed() -> None:
    configs = [config_of(learning_rate=rate, seed=seed, width=w) for rate, seed, w in ((0.1, 0, 12), (0.01, 1, None))]
    found = sweeps.factors_of(configs)
    assert [(factor.field, factor.values) for factor in found] == [
        ("width", [None, 12]),
        ("learning_rate", [0.01, 0.1]),
    ]
    assert found[0].labels == ["default", "12"]
    assert [factor.label(configs[0]) for factor in found] == ["12", "0.1"]
    assert sweeps.factors_of(configs[:1]) == []


def test_a_field_that_does_not_apply_is_no_value() -> None:
    configs = [
        config_of(optimizer="adam"),
        config_of(optimizer="sgd", momentum=0.5),
        config_of(optimizer="sgd", momentum=0.9),
    ]
    found = {factor.field: factor for factor in sweeps.factors_of(configs)}
    assert found["momentum"].values == [0.5, 0.9]
    assert found["momentum"].label(configs[0]) == "–"
    assert "momentum" not in {factor.field for factor in sweeps.factors_of(configs[:2])}


def results(*rows: tuple[float, int, float]) -> list[sweeps.Result]:
    """(learning rate, batch size, accuracy)."""
    return [
        sweeps.Result(config_of(learning_rate=rate, batch_size=size), f"{rate}.{size}", accuracy)
        for rate, size, accuracy in rows
    ]


def test_a_mean_counts_each_combination_once() -> None:
    found = results((0.1, 32, 0.5), (0.1, 32, 0.7), (0.1, 64, 0.9), (0.01, 32, 0.3))
    rate, _size = sorted(
        sweeps.factors_of([r.config for r in found]), key=lambda factor: factor.field != "learning_rate"
    )
    low, high = sweeps.levels_of(rate, found)
    assert (low.label, low.accuracies, low.mean) == ("0.01", [0.3], 0.3)
    assert high.accuracies == [0.5, 0.7, 0.9]
    assert high.mean == pytest.approx((0.6 + 0.9) / 2)
    assert sweeps.levels_of(rate, [])[0].mean is None


def test_means_differ_by_one_field_only_where_all_combinations_are_there() -> None:
    full = results((0.1, 32, 0.5), (0.1, 64, 0.9), (0.01, 32, 0.3), (0.01, 64, 0.2), (0.1, 32, 0.6))
    factors = sweeps.factors_of([r.config for r in full])
    assert all(sweeps.is_balanced(factor, factors, full) for factor in factors)  # repeats don't count
    assert not any(sweeps.is_balanced(factor, factors, full[:3]) for factor in factors)


# More repeats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "count", "expected"),
    [
        ({0}, 3, [1, 2, 3]),
        ({0, 5}, 2, [6, 7]),
        (set(), 1, [0]),
        ({1, 2**32 - 1}, 2, [0, 2]),
        ({2**32 - 2}, 1, [2**32 - 1]),
    ],
)
def test_next_seeds(taken: set[int], count: int, expected: list[int]) -> None:
    assert sweeps.next_seeds(taken, count) == expected


def set_status(state: Runoff, run_id: str, status: str) -> None:
    with writing(state.engine) as session:
        row = get_run(session, run_id)
        row.status = status
        session.add(row)
        session.commit()


def test_more_repeats_of_a_group(api: TestClient, state: Runoff) -> None:
    body = {**BASE, "learning_rate": 0.03, "seed": 4, "name": "mine, seed 4", "tags": ["t"], "optimizer": "adam"}
    first = api.post("/api/v1/runs", json=body).json()
    answer = api.post(f"/api/v1/groups/{first['group']}/repeats", json={})
    assert answer.status_code == 201
    added = answer.json()["runs"]
    assert [run["seed"] for run in added] == [5, 6, 7]
    assert [run["name"] for run in added] == ["mine, seed 5", "mine, seed 6", "mine, seed 7"]
    assert {run["group"] for run in added} == {first["group"]}
    assert {run["config"]["learning_rate"] for run in added} == {0.03}
    assert all(run["tags"] == ["t"] for run in added)
    assert {run["sweep"] for run in added} == {answer.json()["id"]}
    assert answer.headers["location"] == f"/api/v1/sweeps/{answer.json()['id']}"
    again = api.post(f"/api/v1/groups/{first['group']}/repeats", json={"count": 1}).json()["runs"]
    assert [(run["seed"], run["name"]) for run in again] == [(8, "mine, seed 8")]


def test_repeats_of_a_sweep_s_group_join_the_sweep(state: Runoff) -> None:
    out = start_sweep(state, base=BASE, grid={"learning_rate": [0.1, 0.2]}, repeats=2)
    added = commands.add_repeats(state, out.runs[0].group, 2)
    assert added.sweep == out.sweep
    assert [run.seed for run in added.runs] == [2, 3]
    assert added.runs[0].name == f"{sweeps.without_seed(out.runs[0].name)}, seed 2"


def test_requests_at_the_same_moment_start_different_seeds(state: Runoff, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(state, **BASE)
    choose = sweeps.next_seeds

    def slowly(used: Collection[int], count: int) -> list[int]:
        time.sleep(0.1)
        return choose(used, count)

    monkeypatch.setattr(sweeps, "next_seeds", slowly)
    with ThreadPoolExecutor(3) as pool:
        added = [*pool.map(lambda _i: commands.add_repeats(state, run.group, 2), range(3))]
    assert sorted(one.seed for out in added for one in out.runs) == [1, 2, 3, 4, 5, 6]


def test_a_seed_that_failed_is_not_passed_over(state: Runoff) -> None:
    run = start_run(state, **BASE)
    set_status(state, run.id, "failed")
    assert [one.seed for one in commands.add_repeats(state, run.group, 1).runs] == [1]


def test_refusals_of_more_repeats(api: TestClient, state: Runoff) -> None:
    run = start_run(state, **BASE)
    path = f"/api/v1/groups/{run.group}/repeats"
    for count in (0, 1001, "x", None):
        assert api.post(path, json={"count": count}).status_code == 422
    answer = api.post("/api/v1/groups/nothing/repeats", json={"count": 1})
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "There is no group nothing. Its runs may have been deleted.",
    )
    assert api.get("/api/v1/runs").json()["total"] == 1


# Cancelling ----------------------------------------------------------------------------------------------------------


def test_cancelling_the_rest_leaves_what_has_ended(state: Runoff) -> None:
    out = start_sweep(state, base=BASE, repeats=4)
    other = start_run(state, **BASE)
    for run, status in zip(out.runs, ("finished", "failed", "running"), strict=False):
        set_status(state, run.id, status)
    assert commands.cancel_sweep(state, out.sweep or "") == 2
    with writing(state.engine) as session:
        ids = [*(run.id for run in out.runs), other.id]
        statuses = [get_run(session, run_id).status for run_id in ids]
        asked = get_run(session, out.runs[2].id).cancel_requested
    assert statuses == ["finished", "failed", "running", "cancelled", "queued"]
    assert asked
    with pytest.raises(NotFound):
        commands.cancel_sweep(state, "nothing")
