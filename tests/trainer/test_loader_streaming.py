"""Images left in their file give what images in memory give, and leave nothing behind."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from trainer import loader, streaming
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.engine import train
from trainer.environment import Environment, apply
from trainer.events import Epoch
from trainer.loader import Data

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test ends without a thread or a process that it began (other tests' hosts may live beside it)."""
    before = set(psutil.Process().children())
    yield
    assert not set(psutil.Process().children()) - before
    assert_no_threads()


@pytest.fixture
def nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for images."""
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0)


def assert_no_threads() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def batches(config: RunConfig, data: Data, epoch: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(images.cpu(), labels.cpu()) for images, labels in loader.training_epoch(config, data, epoch)]


def assert_same_batches(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    assert len(one) == len(other) > 1
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def epochs(config: RunConfig, data: Data, environment: Environment, resume: State | None = None) -> list[Epoch]:
    """The epochs of a run, their states copied: training goes on with the same tensors."""
    events = train(config, data, environment, resume)
    return [replace(event, state=copy.deepcopy(event.state)) for event in events if isinstance(event, Epoch)]


def assert_same_epochs(one: list[Epoch], other: list[Epoch]) -> None:
    mine, theirs = one[-1], other[-1]
    assert (mine.validation_loss, mine.test_loss) == (theirs.validation_loss, theirs.test_loss)
    assert mine.state.tensors.keys() == theirs.state.tensors.keys()
    for name, tensor in mine.state.tensors.items():
        assert torch.equal(tensor, theirs.state.tensors[name]), name


@pytest.mark.parametrize(("num_bytes", "available", "too_large"), [(50, 100, False), (51, 100, True), (1, 0, True)])
def test_what_is_too_large(num_bytes: int, available: int, too_large: bool) -> None:
    assert streaming.is_too_large(num_bytes, available) is too_large


def test_a_containers_limit_counts_without_the_files_it_holds(tmp_path: Path) -> None:
    assert streaming.available_bytes(CPU, tmp_path) > 1 << 20  # no cgroup: the machine's
    (tmp_path / "memory.max").write_text("10000\n")
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\nactive_file 1500\ninactive_file 500\n")
    assert streaming.available_bytes(CPU, tmp_path) == 5000
    (tmp_path / "memory.max").write_text("max\n")
    assert streaming.available_bytes(CPU, tmp_path) > 1 << 20


@pytest.mark.parametrize("prepared", [0, 40_000, 1 << 30])
def test_same_batches_as_from_memory(
    make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, prepared: int
) -> None:
    config = make_config(augmentation="crop_flip", validation_fraction=0.2)
    inside = make_data(config, shape=(3, 16, 16))
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0)
    outside = make_data(config, shape=(3, 16, 16))
    assert (inside.streamed, outside.streamed) == (False, True)
    expected = batches(config, inside)
    monkeypatch.setattr(loader, "_PREPARED", prepared)
    assert_same_batches(batches(config, outside), expected)
    assert_no_threads()


@pytest.mark.usefixtures("nothing_fits")
def test_from_the_mapped_file(home: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    outside = loader.load(home, config, CPU)
    assert outside.streamed
    assert_same_batches(batches(config, outside), batches(config, replace(outside, streamed=False)))


@pytest.mark.usefixtures("nothing_fits")
def test_closing_early_ends_the_thread(
    make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_PREPARED", 0)
    config = make_config(batch_size=4)
    epoch = iter(loader.training_epoch(config, make_data(config), 1))
    next(epoch)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    del epoch
    assert_no_threads()
    events = train(config, make_data(config), Environment("cpu", "float32", 1))
    for _number in range(4):
        next(events)
    events.close()


@pytest.mark.usefixtures("nothing_fits")
def test_what_reading_raises_is_raised(
    make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: streaming._Rows, index: Tensor) -> Tensor:
        raise OSError("the disk is gone")

    monkeypatch.setattr(streaming._Rows, "__getitem__", broken)
    config = make_config()
    with pytest.raises(OSError, match="the disk is gone"):
        batches(config, make_data(config))


@pytest.mark.usefixtures("nothing_fits")
def test_reads_ahead_but_not_far(make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_PREPARED", 0)
    reads = threading.Semaphore(0)
    count = 0
    read = streaming._Rows.__getitem__

    def counted(rows: streaming._Rows, index: Tensor) -> Tensor:
        nonlocal count
        count += 1
        reads.release()
        return read(rows, index)

    monkeypatch.setattr(streaming._Rows, "__getitem__", counted)
    config = make_config(batch_size=4)
    epoch = iter(loader.training_epoch(config, make_data(config), 1))
    next(epoch)
    assert all(reads.acquire(timeout=10) for _number in range(1 + streaming.READ_AHEAD))
    assert not reads.acquire(timeout=0.05)
    assert count == 1 + streaming.READ_AHEAD


def test_a_whole_run_and_a_resumed_one_are_the_same(
    make_config: MakeConfig, make_data: MakeData, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        model="vgg16", width=1, epochs=2, learning_rate=0.001, augmentation="crop_flip", validation_fraction=0.2
    )
    inside = epochs(config, make_data(config), environment)
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0)
    assert make_data(config).streamed
    outside = epochs(config, make_data(config), environment)
    assert_same_epochs(outside, inside)
    assert_same_epochs(epochs(config, make_data(config), environment, inside[0].state), inside)
    assert_no_threads()


# On a GPU -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_cuda_data(make_data: MakeData) -> Callable[..., Data]:
    """The synthetic images for the first GPU: in its memory, or ``streamed`` to it."""

    def make(config: RunConfig, streamed: bool) -> Data:
        cpu, device = make_data(config, shape=(3, 16, 16)), torch.device("cuda:0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "available_bytes", lambda device: 0 if streamed else 1 << 40)
            splits = [
                (cpu.train_images.numpy(), cpu.train_labels.numpy()),
                (cpu.test_images.numpy(), cpu.test_labels.numpy()),
            ]
            moments = ((0.2,) * 3, (0.3,) * 3)
            data = loader.from_arrays(config, device, *splits, class_names=cpu.class_names, moments=moments)
        assert data.train_images.is_cuda is data.test_images.is_cuda is not streamed
        return data

    return make


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    """Waiting for the GPU raises ``RuntimeError``."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@NEEDS_CUDA
def test_cuda_gets_the_cpus_batches(
    make_config: MakeConfig, make_data: MakeData, make_cuda_data: Callable[..., Data]
) -> None:
    config = make_config(augmentation="crop_flip", permute_pixels=True)
    expected = batches(config, make_data(config, shape=(3, 16, 16)))
    memory, streamed = (batches(config, make_cuda_data(config, streamed)) for streamed in (False, True))
    assert_same_batches(memory, streamed)
    for (images, labels), (on_cpu, cpu_labels) in zip(memory, expected, strict=True):
        torch.testing.assert_close(images, on_cpu, rtol=1e-6, atol=1e-6)
        assert torch.equal(labels, cpu_labels)


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.parametrize("streamed", [False, True])
def test_cuda_is_not_waited_for(
    make_config: MakeConfig, make_cuda_data: Callable[..., Data], request: pytest.FixtureRequest, streamed: bool
) -> None:
    config = make_config(augmentation="crop_flip", permute_pixels=True, validation_fraction=0.2)
    data = make_cuda_data(config, streamed)
    request.getfixturevalue("waiting_is_an_error")
    for images, labels in loader.training_epoch(config, data, 1):
        assert images.is_cuda
        assert labels.is_cuda
    for part in (data.test_images, data.validation_images):
        assert all(loader.net_input(pixels, data).is_cuda for pixels in loader.in_order(data, part, 7))


@pytest.mark.cuda
@NEEDS_CUDA
def test_cuda_trains_the_same(make_config: MakeConfig, make_cuda_data: Callable[..., Data]) -> None:
    config = make_config(model="vgg", width=4, epochs=2, augmentation="crop_flip", validation_fraction=0.2)
    environment = Environment("cuda:0", "float32", 1)
    apply(environment)
    inside, outside = (epochs(config, make_cuda_data(config, streamed), environment) for streamed in (False, True))
    assert_same_epochs(inside, outside)
