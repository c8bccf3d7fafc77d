"""Measuring, for real with a tiny net, and with played candidates where speeds and losses must be known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import engine, measurements
from trainer.config import RunConfig
from trainer.environment import Environment, resolve
from trainer.events import Epoch, Event, Started
from trainer.failures import NonFiniteLoss
from trainer.host import measure
from trainer.host.measure import Plan
from trainer.loader import Data
from trainer.precision import choose

SHAPE = (1, 12, 12)
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BUDGET_SECONDS", 0.5)


def keys(config: RunConfig, home: Path) -> tuple[str, str]:
    here = asdict(resolve(config, SHAPE, home, num_threads=1))
    return measurements.precision_key(config, SHAPE, here), measurements.matmul_key(here)


def test_a_small_net_is_measured_and_the_next_run_obeys(
    make_config: MakeConfig, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(model="fc", batch_size=32, optimizer="adam", learning_rate=0.1)
    key, _matmul = keys(config, tmp_path)
    monkeypatch.setattr(measure, "TOO_SLOW", 1e9)  # here bfloat16 may be slow: look at it all the same
    entry = measure.measure(tmp_path, "precision", key, config, SHAPE, 4, num_threads=1, device="cpu")
    assert entry == measurements.read(tmp_path)["precision"][key]
    assert entry["images_per_second"].keys() == entry["losses"].keys() == {"float32", "bfloat16"}
    assert entry["chosen"] == choose(entry["images_per_second"], entry["losses"])
    assert entry["losses"]["bfloat16"] == pytest.approx(entry["losses"]["float32"], rel=0.05)
    assert resolve(config, SHAPE, tmp_path, num_threads=1).precision == entry["chosen"]
    measurements.record(tmp_path, "precision", key, entry | {"chosen": "bfloat16"})
    assert resolve(config, SHAPE, tmp_path, num_threads=1).precision == "bfloat16"


@pytest.mark.parametrize(("optimizer", "most"), [("sgd", 1.2), ("adam", 1.37), ("muon", 1.2)])
def test_the_images_can_be_learned_so_that_losses_tell_something(
    make_config: MakeConfig, tmp_path: Path, optimizer: str, most: float
) -> None:
    momentum = {} if optimizer == "adam" else {"momentum": 0.9}
    config = make_config(model="fc", optimizer=optimizer, learning_rate=100.0, **momentum)
    [plain] = measure._train_in_turn(config, SHAPE, 4, [resolve(config, SHAPE, tmp_path, num_threads=1)], Plan(32, 100))
    assert plain.loss is not None
    assert plain.loss < most  # a guess has log(4) = 1.39


@pytest.mark.slow
def test_precisions_see_the_same_dropout_and_the_same_images(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two candidates in float32, trained in turn, end at the very same loss."""
    monkeypatch.setattr(measure, "TOO_SLOW", 1e9)  # whichever the machine lets be slower
    config = make_config(model="vgg16", width=1, optimizer="adam")
    twice = [resolve(config, (3, 32, 32), tmp_path, num_threads=1)] * 2
    found = measure._train_in_turn(config, (3, 32, 32), 4, twice, Plan(4, 6))
    assert found[0].loss is not None
    assert found[0].loss == found[1].loss


@pytest.mark.slow
def test_the_rate_of_a_matrix_product_is_measured(make_config: MakeConfig, tmp_path: Path, short: None) -> None:
    config = make_config(precision="float32")
    _precision, key = keys(config, tmp_path)
    entry = measure.measure(tmp_path, "matmul", key, config, SHAPE, 4, num_threads=1, device="cpu")
    assert entry == measurements.read(tmp_path)["matmul"][key]
    assert entry["gflops"] > 0
    assert entry["size"] in measure.MATMUL_SIZES


def test_a_product_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(measure, "LONGEST_PRODUCT_SECONDS", 0.0)
    assert measure.matmul_peak(Environment("cpu", "float32", 1), (64, 128))["size"] == 64


def test_another_machine_is_not_measured_here(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with pytest.raises(measure.WrongMachine, match=r"a GPU far away was requested, but it is .*torch"):
        measure.measure(tmp_path, "precision", "a GPU far away", config, SHAPE, 4, num_threads=1, device="cpu")
    assert not measurements.path(tmp_path).exists()


@pytest.mark.parametrize(
    ("batch_size", "seconds_per_image", "plan"),
    [
        (64, 1e-6, Plan(64, measure.MOST_STEPS)),
        (64, 1e-3, Plan(64, 156)),
        (128, 1 / 60, Plan(128, 4)),
        (1024, 1 / 60, Plan(128, 4)),
        (128, 100.0, Plan(measure.PROBE_IMAGES, measure.LEAST_STEPS)),
        (2, 100.0, Plan(2, measure.LEAST_STEPS)),
    ],
)
def test_a_plan_keeps_to_the_budget(batch_size: int, seconds_per_image: float, plan: Plan) -> None:
    assert Plan.make(batch_size, seconds_per_image) == plan


@pytest.mark.parametrize("num_steps", [2, 3, 6, 7, 200])
def test_blocks_are_all_the_steps(num_steps: int) -> None:
    blocks = Plan(8, num_steps).blocks()
    assert sum(blocks) == num_steps
    assert len(blocks) == min(num_steps, measure.NUM_BLOCKS + 1)
    assert max(blocks) - min(blocks) <= 1
    assert min(blocks) >= 1


class Played:
    """In place of ``engine.train``: what a step of each precision takes, and what comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self.seconds = {"float32": 0.1, "bfloat16": 0.05}
        self.losses = {"float32": 2.0, "bfloat16": 2.0}
        self.raising: dict[str, Exception] = {}
        self.steps: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(engine, "train", self.train)

    def train(self, config: RunConfig, data: Data, environment: Environment) -> Iterator[Event | None]:
        precision = environment.precision
        yield Started(1, "cpu", precision, 1, 1, 0, 1, 1, 1, 1, "", "", [], [])
        for number in range(len(data.train_indices) // config.batch_size):
            if precision in self.raising and number == 1:
                raise self.raising[precision]
            self.clock += self.seconds[precision] * config.batch_size / 8
            self.steps.append(precision)
            yield None
        loss = self.losses[precision]
        yield Epoch(1, 1, loss, 0.5, loss, 0.5, 1, 2, 0.1, 1.0, 1.0, 1.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


@pytest.fixture
def measured(make_config: MakeConfig, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    config = make_config(model="fc", batch_size=16)
    plain = resolve(config, SHAPE, tmp_path, num_threads=1)
    environments = [plain, replace(plain, precision="bfloat16")]
    return lambda: measure.compare_precisions(config, SHAPE, 4, environments)


def test_the_faster_precision_is_chosen(played: Played, measured: Callable[[], dict[str, Any]]) -> None:
    found = measured()
    assert found["chosen"] == "bfloat16"
    assert found["images_per_second"] == {"float32": 80.0, "bfloat16": 160.0}
    assert found["losses"] == {"float32": 2.0, "bfloat16": 2.0}
    assert played.steps.count("float32") == played.steps.count("bfloat16")


def test_a_much_slower_precision_costs_a_small_batch_only(
    played: Played, measured: Callable[[], dict[str, Any]]
) -> None:
    played.seconds["bfloat16"] = 2.0
    found = measured()
    assert found["chosen"] == "float32"
    assert found["images_per_second"] == {"float32": 80.0, "bfloat16": 4.0}
    assert found["losses"] == {"float32": 2.0}
    assert played.steps.count("bfloat16") == 1


@pytest.mark.parametrize(
    "problem", [RuntimeError("no such kernel"), torch.OutOfMemoryError("memory"), NonFiniteLoss("NaN", "less")]
)
def test_a_precision_that_fails_is_not_chosen(
    played: Played, measured: Callable[[], dict[str, Any]], problem: Exception
) -> None:
    played.raising["bfloat16"] = problem
    found = measured()
    assert found["chosen"] == "float32"
    assert found["images_per_second"].keys() == found["losses"].keys() == {"float32"}


def test_a_loss_that_is_no_number_is_not_recorded(played: Played, measured: Callable[[], dict[str, Any]]) -> None:
    played.losses["bfloat16"] = float("nan")
    found = measured()
    assert (found["chosen"], found["losses"]) == ("float32", {"float32": 2.0})


def test_what_float32_raises_is_raised(played: Played, measured: Callable[[], dict[str, Any]]) -> None:
    played.raising["float32"] = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        measured()
