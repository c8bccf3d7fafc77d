"""Plans: which runs a request asks for, their names, and what is refused at which field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.errors import Refused
from app.runs.plan import plan, plan_run
from app.schemas import SweepIn

BASE = {"dataset": "digits", "model": "fc"}


def refused(home: Path, **sweep: Any) -> dict[str, str]:
    with pytest.raises(Refused) as caught:
        plan(home, SweepIn(**sweep))
    assert not (home / "runs").exists()
    return {problem.field: problem.message for problem in caught.value.errors}


def test_one_bad_value_refuses_all_and_says_where(home: Path) -> None:
    problems = refused(home, base=BASE, grid={"learning_rate": [0.1, 0.2, -1], "epochs": [1, 0]})
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
)
def test_refusals_of_a_sweep(home: Path, sweep: dict[str, Any], field: str, words: str) -> None:
    assert words in refused(home, **sweep)[field]


def test_a_thousand_runs_are_the_most(home: Path) -> None:
    planned = plan(home, SweepIn(base=BASE, repeats=1000))
    assert [run.config.seed for run in planned.runs] == [*range(1000)]


def test_a_given_field_wins_over_a_preset(home: Path) -> None:
    sweep = SweepIn(preset="mnist-fc-against-cnn", base={"model": "lenet", "epochs": 2}, dataset="fashion-mnist")
    planned = plan(home, sweep)
    assert [(r.config.model, r.config.permute_pixels, r.config.dataset, r.config.epochs) for r in planned.runs] == [
        ("lenet", False, "fashion-mnist", 2),
        ("lenet", True, "fashion-mnist", 2),
    ]


def test_a_preset_with_a_grid_is_no_single_run(home: Path) -> None:
    with pytest.raises(Refused, match="POST /api/v1/sweeps"):
        plan_run(home, {"preset": "mnist-fc-against-cnn"})


def test_a_name_from_what_matters(home: Path) -> None:
    planned = plan(home, SweepIn(base={**BASE, "permute_pixels": True}, repeats=2))
    assert [run.name for run in planned.runs] == ["FC permuted on digits, seed 0", "FC permuted on digits, seed 1"]


def test_a_single_run_is_planned_as_no_sweep(home: Path) -> None:
    single = plan_run(home, {**BASE, "name": " mine ", "tags": ["a", "b", "a"], "notes": "n"})
    [run] = single.runs
    assert (run.name, single.tags, single.notes, single.is_sweep) == ("mine", ["a", "b"], "n", False)
    assert plan(home, SweepIn(base=BASE)).is_sweep
