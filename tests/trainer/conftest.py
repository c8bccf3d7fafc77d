"""Small synthetic images whose class can be learned, in memory and as a cache under a temporary home."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer import loader
from trainer.config import RunConfig, parse_config
from trainer.datasets import cache
from trainer.environment import Environment
from trainer.loader import Data
from trainer.run_folder import RunFolder

NUM_CLASSES = 4


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """One thread in each test process, or OMP_NUM_THREADS: the processes of a test run would only compete for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield
    torch.set_num_threads(before)


def synthetic(count: int, shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise with a bright bar whose row tells the class: images uint8 [count, *shape], labels uint8 [count]."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % NUM_CLASSES).astype(np.uint8)
    images = random.integers(0, 60, (count, *shape), dtype=np.uint8)
    for index, label in enumerate(labels):
        row = shape[1] // NUM_CLASSES * label
        images[index, :, row : row + 2] += 150
    order = random.permutation(count)
    return images[order], labels[order]


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """A canonical config: the fields given, on the synthetic images."""

    def make(**fields: Any) -> RunConfig:
        return parse_config({"dataset": "bars", "model": "fc", "batch_size": 16, "device": "cpu", **fields})[0]

    return make


@pytest.fixture
def make_data() -> Callable[..., Data]:
    """The synthetic images as a config's data, on the CPU."""

    def make(config: RunConfig, shape: tuple[int, int, int] = (1, 16, 16), count: int = 104) -> Data:
        names = [f"class {number}" for number in range(NUM_CLASSES)]
        moments = ((0.2,) * shape[0], (0.3,) * shape[0])
        train, test = synthetic(count, shape, 0), synthetic(40, shape, 1)
        return loader.from_arrays(config, torch.device("cpu"), train, test, class_names=names, moments=moments)

    return make


@pytest.fixture
def environment() -> Environment:
    return Environment("cpu", "float32", 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the synthetic images cached as the data set ``bars``."""
    monkeypatch.setenv("RUNOFF_HOME", str(tmp_path))
    monkeypatch.delenv("RUNOFF_DATASETS", raising=False)
    folder = cache.folder_of(tmp_path, "bars")
    folder.mkdir(parents=True)
    splits = {}
    for split, count, seed in (("train", 104, 0), ("test", 40, 1)):
        images, labels = synthetic(count, (1, 16, 16), seed)
        splits[split] = cache.Rows(images, np.arange(count), labels)
    facts = {
        "title": "Bars",
        "kind": "imported",
        "unreadable": [],
        "num_unreadable": 0,
        "created_at": None,
        "source": "",
        "num_ignored": 0,
    }
    cache.write_cache(
        folder, splits, [f"class {number}" for number in range(NUM_CLASSES)], facts, lambda progress: None
    )
    return tmp_path


@pytest.fixture
def make_run(home: Path, make_config: Callable[..., RunConfig]) -> Callable[..., RunFolder]:
    """A new run folder for a config on the cached images."""

    def make(**fields: Any) -> RunFolder:
        return RunFolder.create(home / "runs", make_config(**fields))

    return make


@pytest.fixture(scope="session")
def real_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the real MNIST cached; skips where the files are not on this machine."""
    from trainer.datasets import worker

    root = Path(os.environ.get("RUNOFF_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets").resolve()
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs MNIST below {root}: set RUNOFF_DATASETS to a torchvision root")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNOFF_DATASETS", str(root))
        for _progress in worker.prepare(home, "mnist", download=False):
            pass
    return home
