"""One attempt with its effects: the files it leaves, how it ends, and how the next one goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from trainer import __main__ as shell
from trainer import checkpoint, measurements, pictures, runtime
from trainer.config import RunConfig
from trainer.datasets import worker
from trainer.datasets.errors import DatasetError
from trainer.environment import precision_key
from trainer.run_folder import EventWriter, RunFolder, iter_valid_events, sha256, write_bytes

MakeRun = Callable[..., RunFolder]


def execute(folder: RunFolder, attempt: int = 1, **arguments: Any) -> int:
    return runtime.execute(folder, attempt, num_threads=1, **arguments)


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [event for event, _end in iter_valid_events(folder.events_path)]


def epochs(folder: RunFolder) -> dict[int, dict[str, Any]]:
    return {event["epoch"]: event for event in events(folder) if event["type"] == "epoch"}


def stop_after(folder: RunFolder, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for a stop as soon as the epoch is saved."""
    save = checkpoint.save_predictions

    def save_and_stop(to: RunFolder, number: int, arrays: Any) -> dict[str, str]:
        if number == epoch:
            folder.request_stop()
        return save(to, number, arrays)

    monkeypatch.setattr(checkpoint, "save_predictions", save_and_stop)


def numbers(folder: RunFolder) -> list[tuple[Any, ...]]:
    keys = ("epoch", "step", "train_loss", "test_loss", "test_correct")
    return [tuple(line[key] for key in keys) for _epoch, line in sorted(epochs(folder).items())]


def test_leaves_a_whole_run_folder(make_run: MakeRun) -> None:
    folder = make_run(epochs=3)
    locked = []
    assert execute(folder, on_locked=lambda: locked.append(True)) == 0
    assert locked == [True]
    assert [event["type"] for event in events(folder) if event["type"] != "step"] == [
        "started",
        *["epoch"] * 3,
        "finished",
    ]
    assert np.load(folder.labels_path).dtype == np.uint16
    for line in epochs(folder).values():
        answers = safetensors.numpy.load_file(folder.predictions_path(line["epoch"]))
        assert (answers["predicted"] == np.load(folder.labels_path)).sum() == line["test_correct"]
        assert (
            sha256(folder.predictions_path(line["epoch"]))
            == line["files"][f"predictions/epoch-000{line['epoch']}.safetensors"]
        )
    best = max(epochs(folder).values(), key=lambda line: (line["test_accuracy"], -line["epoch"]))["epoch"]
    assert {path.stem for path in folder.checkpoints.iterdir()} == {"epoch-0003", f"epoch-{best:04d}"}
    assert (folder.read_environment() or {})["device"] == "cpu"
    assert (folder.pictures / "train.png").exists()
    assert not [*folder.path.rglob("*.tmp")]


def test_log_reads_like_the_notebook(make_run: MakeRun) -> None:
    folder = make_run(batch_size=1)
    lines: list[str] = []
    execute(folder, echo=lines.append)
    first = epochs(folder)[1]
    assert lines[0].startswith("precision auto: float32")
    assert lines[1].startswith("Training fc on bars")
    assert lines[2].startswith("Train epoch 1: [  0/104 ( 0 %)] loss ")
    assert lines[3].startswith("Train epoch 1: [100/104 (96 %)] loss ")
    accuracy = f"{first['test_correct']}/40 ({100 * first['test_accuracy']:.2f} %)"
    assert lines[4] == f"Test after epoch 1: average loss {first['test_loss']:.4f}, accuracy {accuracy}"
    assert folder.log_path.read_text().splitlines() == lines


def test_stopped_and_resumed_equals_uninterrupted(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = make_run(epochs=4, optimizer="adam"), make_run(epochs=4, optimizer="adam")
    execute(whole)
    with monkeypatch.context() as patch:
        stop_after(stopped, 2, patch)
        assert execute(stopped) == 0
    assert events(stopped)[-1]["type"] == "cancelled"
    assert events(stopped)[-1]["epochs"] == 2
    stopped.clear_stop()
    execute(stopped, attempt=2)
    assert [event["first_epoch"] for event in events(stopped) if event["type"] == "started"] == [1, 3]
    assert numbers(stopped) == numbers(whole)
    assert sha256(stopped.checkpoint_path(4)) == sha256(whole.checkpoint_path(4))
    assert sha256(stopped.predictions_path(4)) == sha256(whole.predictions_path(4))


def test_damaged_checkpoint_falls_back_and_is_redone(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = make_run(epochs=4), make_run(epochs=4)
    execute(whole)
    with monkeypatch.context() as patch:
        stop_after(folder, 3, patch)
        execute(folder)
    folder.clear_stop()
    folder.checkpoint_path(3).write_bytes(b"damaged")
    execute(folder, attempt=2)
    assert [event["epoch"] for event in events(folder) if event["type"] == "epoch"] == [1, 2, 3, 3, 4]
    assert numbers(folder) == numbers(whole)
    assert "The checkpoint of epoch 3 is damaged" in folder.log_path.read_text()


def test_nothing_valid_left_begins_again(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(epochs=2)
    with monkeypatch.context() as patch:
        stop_after(folder, 1, patch)
        execute(folder)
    folder.clear_stop()
    for path in folder.checkpoints.iterdir():
        path.unlink()
    execute(folder, attempt=2)
    assert [event["first_epoch"] for event in events(folder) if event["type"] == "started"] == [1, 1]
    assert events(folder)[-1]["type"] == "finished"


def test_killed_after_the_last_epoch_only_finishes(make_run: MakeRun) -> None:
    folder = make_run(epochs=2)
    execute(folder)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:-1]))  # between the manifest and the last line
    assert execute(folder, attempt=2) == 0
    assert events(folder)[-1] == {**events(folder)[-1], "type": "finished", "epochs": 2, "attempt": 2}
    assert [event["epoch"] for event in events(folder) if event["type"] == "epoch"] == [1, 2]


def test_a_damaged_folder_is_left_as_it_is(make_run: MakeRun) -> None:
    folder = make_run()
    execute(folder)
    data = bytearray(folder.events_path.read_bytes())
    data[len(data) // 2] ^= 1
    folder.events_path.write_bytes(data)
    assert execute(folder, attempt=2) == runtime.DAMAGED
    assert folder.events_path.read_bytes() == data
    assert "damaged" in folder.log_path.read_text()


def test_later_attempts_obey_the_environment(make_run: MakeRun) -> None:
    folder = make_run()
    execute(folder)
    environment = folder.read_environment() or {}
    folder.manifest_path.unlink()  # with it these changes would be damage
    folder.write_environment({**environment, "num_threads": 2})
    execute(folder, attempt=2)
    assert [event["num_threads"] for event in events(folder) if event["type"] == "started"] == [1, 2]
    folder.manifest_path.unlink()
    folder.write_environment({**environment, "test_fingerprint": "other"})
    execute(folder, attempt=3)
    assert events(folder)[-1]["error"] == "DatasetChanged"


def failed(folder: RunFolder) -> dict[str, Any]:
    assert execute(folder) == 0
    event = events(folder)[-1]
    assert event["type"] == "failed"
    assert event["message"]
    assert event["advice"]
    return event


def test_divergence_keeps_the_last_finite_checkpoint(make_run: MakeRun) -> None:
    event = failed(make_run(learning_rate=1e9, epochs=50))
    assert event["error"] == "NonFiniteLoss"
    assert event["advice"].startswith("Lower the learning rate")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"precision": "float16"}, "PrecisionUnsupported", "float16 can't be used for training on the CPU"),
        ({"device": "cuda:9"}, "DeviceMissing", "cuda:9"),
        ({"dataset": "unheard-of"}, "UnknownDataset", "unheard-of"),
        ({"normalization": "cifar10"}, "ConfigError", "CIFAR-10 constants are for RGB"),
    ],
)
def test_foreseen_failures(make_run: MakeRun, fields: dict[str, Any], error: str, words: str) -> None:
    event = failed(make_run(**fields))
    assert event["error"] == error
    assert words in event["message"]


def test_absent_data_set_fails_with_its_advice(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **keywords: Any) -> Any:
        raise DatasetError("CIFAR-10 could not be downloaded: no connection.", "Import it, then resume.")
        yield

    monkeypatch.setattr(worker, "prepare", offline)
    event = failed(make_run(dataset="cifar10"))
    assert (event["error"], event["advice"]) == ("DatasetError", "Import it, then resume.")


@pytest.mark.parametrize(("number", "name"), [(errno.ENOSPC, "DiskFull"), (errno.EIO, "DiskError")])
def test_an_error_of_the_disk_is_named_and_the_run_continues_later(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    folder = make_run(epochs=3)

    def refused(path: Path, data: bytes) -> None:
        if path.name == "epoch-0002.safetensors" and path.parent.name == "predictions":
            raise OSError(number, os.strerror(number), str(path))
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", refused)
        event = failed(folder)
    assert event["error"] == name
    assert event["message"].startswith("The disk")
    assert "[Errno" not in event["message"]
    assert [*epochs(folder)] == [1]
    execute(folder, attempt=2)
    assert [event["first_epoch"] for event in events(folder) if event["type"] == "started"] == [1, 2]
    assert events(folder)[-1]["type"] == "finished"


def test_unforeseen_errors_leave_their_traceback_in_the_log(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(pictures, "save_training_images", broken)
    folder = make_run()
    assert failed(folder)["error"] == "KeyError"
    assert "Traceback" in folder.log_path.read_text()


def test_a_full_event_log_is_no_false_ending(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = make_run()
    monkeypatch.setattr(EventWriter, "write", full)
    assert execute(folder) == runtime.NOT_WRITTEN


def test_another_process_holds_the_lock(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    monkeypatch.setattr(RunFolder, "acquire_lock", lambda self: None)
    assert execute(folder) == runtime.ALREADY_RUNNING
    assert not folder.events_path.exists()


def test_precision_that_was_measured_is_taken(make_run: MakeRun, home: Path) -> None:
    folder = make_run(model="cnn")
    key = precision_key(folder.read_config(), (1, 16, 16), "cpu")
    rates = {"float32": 1.0, "bfloat16": 2.0}
    measurements.record(home, "precision", key, {"chosen": "bfloat16", "images_per_second": rates})
    execute(folder)
    assert (folder.read_environment() or {})["precision"] == "bfloat16"


def test_train_from_a_shell(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.main(["--dataset", "bars", "--model", "fc", "--batch_size", "32", "--validation-fraction", "0.2"]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert RunFolder(Path(path)).read_config().batch_size == 32
    assert lines[-1] == "Finished after 1 epoch. Best epoch: 1."
    assert shell.main([path]) == 0
    assert [event["attempt"] for event in events(RunFolder(Path(path))) if event["type"] == "finished"] == [1, 2]


def test_shell_says_what_is_wrong(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["--dataset", "bars", "--model", "fc", "--epochs", "0"]) == 2
    assert capsys.readouterr().err == "epochs: Must be at least 1. You typed 0.\n"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "low", "high"), [("fc", 0.84, 0.89), ("cnn", 0.93, 0.965)])
def test_real_mnist_reaches_the_notebooks_accuracy(
    real_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., RunConfig],
    model: str,
    low: float,
    high: float,
) -> None:
    monkeypatch.setenv("RUNOFF_HOME", str(real_home))
    folder = RunFolder.create(real_home / "runs", make_config(dataset="mnist", model=model, batch_size=64))
    execute(folder)
    assert low <= epochs(folder)[1]["test_accuracy"] <= high
