"""Layers, parameters and multiply-adds as people count them, at the defaults, other widths and other shapes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from trainer.config import MODELS, parse_config
from trainer.cores import num_cores
from trainer.host.describe import describe, devices

Shape = tuple[int, int, int]


def described(model: str, shape: Shape, num_classes: int = 10, width: int | None = None) -> dict[str, Any]:
    config, _warnings = parse_config({"dataset": "any", "model": model, "width": width})
    return describe(config, shape, num_classes)


def rows(description: dict[str, Any]) -> list[tuple[str, list[int], int]]:
    return [(layer["name"], layer["shape"], layer["num_parameters"]) for layer in description["layers"]]


def test_cnn_is_described_as_people_count_layers() -> None:
    description = described("cnn", (1, 28, 28))
    assert rows(description) == [
        ("Conv 5 × 5, ReLU", [6, 24, 24], 156),
        ("MaxPool 2", [6, 12, 12], 0),
        ("Conv 5 × 5, ReLU", [6, 8, 8], 906),
        ("MaxPool 2, flatten", [96], 0),
        ("Linear, ReLU", [50], 4850),
        ("Linear", [10], 510),
    ]
    assert (description["num_parameters"], description["multiply_adds"]) == (6422, 149_300)
    assert description["padded_shape"] is None


def test_fc_begins_with_a_line_of_its_own_for_flatten() -> None:
    description = described("fc", (1, 28, 28))
    assert rows(description)[0] == ("Flatten", [784], 0)
    assert (description["num_parameters"], description["multiply_adds"]) == (6442, 6416)


def test_vgg_names_its_batch_norm_and_leaves_out_a_pool_that_does_nothing() -> None:
    description = described("vgg", (3, 32, 32))
    assert rows(description)[0] == ("Conv 3 × 3, BatchNorm, ReLU", [64, 32, 32], 3 * 64 * 9 + 64 + 2 * 64)
    assert rows(description)[-2] == ("MaxPool 2, flatten", [512], 0)
    assert description["num_parameters"] == 9_231_114


def test_vgg_on_larger_images_averages_at_the_end() -> None:
    description = described("vgg", (3, 64, 64))
    assert rows(description)[-2] == ("MaxPool 2, AvgPool, flatten", [512], 0)
    assert description["num_parameters"] == 9_231_114


@pytest.mark.parametrize(
    ("model", "shape", "classes", "expected"),
    [("lenet", (3, 32, 32), 10, 62_006), ("vgg16", (3, 32, 32), 10, 33_646_666), ("fc", (3, 8, 8), 4, 192 * 8 + 116)],
)
def test_number_of_parameters(model: str, shape: Shape, classes: int, expected: int) -> None:
    assert described(model, shape, classes)["num_parameters"] == expected


def test_small_images_are_said_to_be_padded() -> None:
    description = described("lenet", (1, 8, 12), num_classes=4)
    assert description["padded_shape"] == [1, 16, 16]
    assert rows(description)[0] == ("ZeroPad", [1, 16, 16], 0)


@pytest.mark.parametrize("model", [*MODELS])
@pytest.mark.parametrize("width", [1, 1024])
def test_the_narrowest_and_the_widest_are_described_without_being_made(model: str, width: int) -> None:
    description = described(model, (3, 64, 48), num_classes=1000, width=width)
    assert description["layers"][-1]["shape"] == [1000]
    assert description["num_parameters"] == sum(layer["num_parameters"] for layer in description["layers"])


def test_devices_begin_with_the_cpu() -> None:
    cpu = devices()[0]
    assert cpu["name"] == "cpu"
    assert cpu["num_cores"] >= 1
    assert cpu["title"].startswith("CPU, ")
    assert cpu["model"]
    assert (cpu["memory_total"], cpu["memory_free"]) == (None, None)


@dataclass
class Properties:
    """What torch says of a GPU."""

    name: str = "Some GPU"
    total_memory: int = 80
    uuid: str = "12ab"


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _index: Properties())


@pytest.mark.parametrize("known", [b"GPU-12ab", b"MIG-12ab"])
def test_a_gpu_has_the_memory_that_the_driver_reports(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch, known: bytes
) -> None:
    def find(name: bytes) -> bytes:
        if name != known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return name

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", find)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _handle: SimpleNamespace(total=85, free=30))
    gpu = devices()[1]
    assert (gpu["name"], gpu["title"], gpu["memory_bytes"]) == ("cuda:0", "Some GPU", 80)
    assert (gpu["memory_total"], gpu["memory_free"]) == (85, 30)


def test_a_driver_that_does_not_answer_leaves_the_list_whole(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    gpu = devices()[1]
    assert (gpu["name"], gpu["memory_total"], gpu["memory_free"]) == ("cuda:0", 80, None)


def test_cores_respect_a_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    unlimited = num_cores(quota)
    assert 1 <= unlimited <= (os.cpu_count() or 1)
    quota.write_text("max 100000\n")
    assert num_cores(quota) == unlimited
    quota.write_text("50000 100000\n")
    assert num_cores(quota) == 1
