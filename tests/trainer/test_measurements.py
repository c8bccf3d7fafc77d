"""Keys, file, choice and sentence of what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import measurements
from trainer.config import RunConfig
from trainer.environment import precision_key, resolve
from trainer.precision import choose, chosen_precision, explain_precision

HERE = {
    "machine": "x86_64, Some CPU, 2 cores",
    "torch": "2.10.0",
    "device": "cpu",
    "device_name": "Some CPU",
    "precision": "float32",
    "num_threads": 2,
}
GPU = HERE | {"device": "cuda:0", "device_name": "Some GPU", "precision": "bfloat16"}
ENTRY = {"chosen": "bfloat16", "images_per_second": {"float32": 50.0, "bfloat16": 105.0}, "losses": {}}
MakeConfig = Callable[..., RunConfig]


def test_keys_name_what_the_figures_hold_for(make_config: MakeConfig) -> None:
    config = make_config(model="vgg", batch_size=128)
    assert measurements.precision_key(config, (3, 32, 32), HERE) == (
        "x86_64, Some CPU, 2 cores | torch 2.10.0 | kernels 2 | vgg-64 | 3x32x32 | batch 128 | cpu"
    )
    assert measurements.precision_key(config, [3, 32, 32], GPU).endswith(" | batch 128 | cuda:0 | Some GPU")
    assert measurements.matmul_key(HERE) == "x86_64, Some CPU, 2 cores | torch 2.10.0 | cpu | float32 | 2 threads"
    assert measurements.matmul_key(GPU).endswith(" | cuda:0 | bfloat16 | 2 threads | Some GPU")


def test_server_and_run_name_the_same_key(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model="cnn")
    stored = json.loads(json.dumps(resolve(config, (1, 28, 28), tmp_path, num_threads=1).to_json()))
    assert measurements.precision_key(config, [1, 28, 28], stored) == precision_key(config, (1, 28, 28), "cpu")


@pytest.mark.parametrize(
    ("rates", "losses", "chosen"),
    [
        ({"float32": 100.0}, {"float32": 2.0}, "float32"),
        ({"float32": 100.0, "bfloat16": 105.1}, {"float32": 2.0, "bfloat16": 2.0}, "bfloat16"),
        ({"float32": 100.0, "bfloat16": 104.9}, {"float32": 2.0, "bfloat16": 2.0}, "float32"),
        ({"float32": 100.0, "bfloat16": 3.0}, {"float32": 2.0}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": 2.09}, "bfloat16"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": 1.91}, "bfloat16"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": 2.11}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": 1.89}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": None}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": 2.0, "bfloat16": float("nan")}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {"float32": None, "bfloat16": 2.0}, "float32"),
        ({"float32": 100.0, "bfloat16": 300.0}, {}, "float32"),
        ({"float32": 9.0, "bfloat16": 20.0, "float16": 30.0}, {"float32": 2, "bfloat16": 2, "float16": 2}, "float16"),
        ({"float32": 9.0, "bfloat16": 20.0, "float16": 30.0}, {"float32": 2, "bfloat16": 2, "float16": 3}, "bfloat16"),
    ],
)
def test_the_fastest_precision_whose_loss_agrees_is_chosen(
    rates: dict[str, float], losses: dict[str, float | None], chosen: str
) -> None:
    assert choose(rates, losses) == chosen


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    assert measurements.read(tmp_path) == {"precision": {}, "matmul": {}}
    assert chosen_precision(tmp_path, "a") == "float32"
    first = measurements.record(tmp_path, "precision", "a", ENTRY)
    second = measurements.record(tmp_path, "matmul", "b", {"gflops": 180.5, "size": 2048})
    assert measurements.read(tmp_path) == {"precision": {"a": first}, "matmul": {"b": second}}
    assert first["measured_at"].endswith("Z")
    assert chosen_precision(tmp_path, "a") == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["measurements.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"precision": 1, "matmul": []}', "\x00", '{"precision": {"a": 1}}']
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, content: str) -> None:
    measurements.path(tmp_path).write_text(content)
    assert measurements.read(tmp_path) == {"precision": {}, "matmul": {}}
    measurements.record(tmp_path, "precision", "a", ENTRY)
    assert chosen_precision(tmp_path, "a") == "bfloat16"


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("precision", {}),
        ("precision", ENTRY | {"chosen": "int8"}),
        ("precision", ENTRY | {"images_per_second": 3}),
        ("precision", ENTRY | {"images_per_second": {"float32": "fast", "bfloat16": 1.0}}),
        ("matmul", {"gflops": 0}),
        ("precision", ENTRY | {"images_per_second": {"float32": 1.0}}),
        ("matmul", {"gflops": True}),
        ("matmul", {"gflops": None}),
        ("matmul", {}),
    ],
)
def test_an_entry_that_says_nothing_is_left_out(tmp_path: Path, section: str, entry: dict[str, Any]) -> None:
    sound: dict[str, dict[str, Any]] = {"precision": {"sound": ENTRY}, "matmul": {"sound": {"gflops": 1.5}}}
    sound[section] = {**sound[section], "bad": entry}
    measurements.path(tmp_path).write_text(json.dumps(sound))
    assert [[*found] for found in measurements.read(tmp_path).values()] == [["sound"], ["sound"]]


def test_the_log_says_what_auto_became_and_why(make_config: MakeConfig, tmp_path: Path) -> None:
    config, shape = make_config(model="cnn"), (1, 28, 28)

    def explained(precision: str) -> str | None:
        return explain_precision(tmp_path, config, shape, HERE | {"precision": precision})

    assert explained("float32") == "precision auto: float32, as nothing was measured here yet."
    key = measurements.precision_key(config, shape, HERE)
    measurements.record(tmp_path, "precision", key, ENTRY)
    assert explained("bfloat16") == "precision auto: bfloat16, measured 2.1 times as fast as float32 here."
    assert explained("float32") == "precision auto: float32, as nothing was measured here yet."  # a run begun before
    slow = {"chosen": "float32", "images_per_second": {"float32": 60.0, "bfloat16": 2.0}}
    measurements.record(tmp_path, "precision", key, slow)
    assert explained("float32") == "precision auto: float32; bfloat16 was measured 0.033 times as fast here."
    measurements.record(tmp_path, "precision", key, slow | {"images_per_second": {"float32": 60.0}})
    assert explained("float32") == "precision auto: float32, the only one that trained here."
    named = make_config(model="cnn", precision="bfloat16")
    assert explain_precision(tmp_path, named, shape, HERE) is None


def test_it_imports_neither_torch_nor_numpy() -> None:
    program = "import sys, trainer.measurements; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
