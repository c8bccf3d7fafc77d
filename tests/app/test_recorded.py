"""Predictions and labels that changed after a run wrote them: noticed wherever they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sqlmodel import select

from app.runs.indexer import Indexer
from app.store import predictions, recorded
from app.store.database import reading
from app.store.predictions import PredictionsDamaged, PredictionsMissing
from app.store.tables import Run
from tests.app.page_answers import give_answers
from tests.app.run_folders import epoch, new_run, say, started
from trainer import checkpoint
from trainer.run_folder import RunFolder, sha256

NUM_IMAGES = 1_000
READS = [predictions.load, predictions.load_correct, predictions.load_log_probabilities]


def labels_of() -> NDArray[np.uint16]:
    return (np.arange(NUM_IMAGES) % 10).astype(np.uint16)


def arrays_of() -> dict[str, NDArray[Any]]:
    """Predictions of which four fifths are right."""
    labels = labels_of()
    predicted = np.where(np.arange(NUM_IMAGES) < 800, labels, (labels + 1) % 10).astype(np.uint16)
    confidence = np.linspace(0.5, 0.99, NUM_IMAGES, dtype=np.float32)
    rows = np.full((NUM_IMAGES, 10), np.log(0.05), np.float16)
    return {"predicted": predicted, "confidence": confidence, "log_probabilities": rows}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of two epochs as its process writes them, with the hashes in the log."""
    folder = new_run(tmp_path / "runs")
    events: list[Any] = [started()]
    for number in (1, 2):
        files = checkpoint.save_labels(folder, labels_of()) | checkpoint.save_predictions(folder, number, arrays_of())
        counts: dict[str, Any] = {"test_correct": 800, "test_total": NUM_IMAGES, "test_accuracy": 0.8}
        events.append(epoch(number, files=files, **counts))
    say(folder, events)
    return folder


def rewrite(folder: RunFolder, number: int, **changed: NDArray[Any]) -> None:
    """Replace arrays in the predictions of an epoch."""
    path = folder.predictions_path(number)
    save_file({**load_file(path), **changed}, path)


def with_other_answers() -> NDArray[np.uint16]:
    """The predictions with 120 changed: 60 right ones become wrong, 60 wrong ones right."""
    predicted, labels = arrays_of()["predicted"], labels_of()
    predicted[:60] = (labels[:60] + 1) % 10
    predicted[800:860] = labels[800:860]
    return predicted


def test_what_was_written_is_read(folder: RunFolder) -> None:
    assert predictions.load(folder, 2).num_correct == predictions.load_correct(folder, 1).sum() == 800
    assert predictions.load_log_probabilities(folder, 1) is not None
    assert predictions.load(folder, 1) is predictions.load(folder, 1)


@pytest.mark.parametrize("read", READS)
def test_changed_predictions_with_the_same_number_right(folder: RunFolder, read: Any) -> None:
    read(folder, 1)
    rewrite(folder, 1, predicted=with_other_answers())
    assert (with_other_answers() == labels_of()).sum() == 800
    with pytest.raises(PredictionsDamaged, match=r"epoch-0001\.safetensors are damaged \(the file has changed since"):
        read(folder, 1)
    read(folder, 2)


@pytest.mark.parametrize("read", READS)
def test_one_flipped_bit(folder: RunFolder, read: Any) -> None:
    path = folder.predictions_path(2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PredictionsDamaged):
        read(folder, 2)


@pytest.mark.parametrize("read", READS[:2])
def test_flipped_labels(folder: RunFolder, read: Any) -> None:
    labels = labels_of()
    labels[[0, 900]] = labels[[900, 0]] + 1
    np.save(folder.labels_path, labels)
    with pytest.raises(PredictionsDamaged, match=r"labels\.npy are damaged"):
        read(folder, 1)


def test_damaged_labels_are_written_again_by_the_next_epoch(folder: RunFolder) -> None:
    before = sha256(folder.labels_path)
    np.save(folder.labels_path, labels_of()[::-1])
    assert checkpoint.save_labels(folder, labels_of()) == {"predictions/labels.npy": before}
    assert predictions.load(folder, 1).num_correct == 800


@pytest.mark.parametrize("broken", ["no file", "no hashes", "no line", "no log"])
def test_logs_without_hashes_stay_readable(folder: RunFolder, broken: str) -> None:
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    match broken:
        case "no log":
            folder.events_path.unlink()
        case "no line":
            folder.events_path.write_bytes(lines[0] + lines[2])
        case "no hashes":
            events = [{k: v for k, v in json.loads(line).items() if k != "files"} for line in lines]
            folder.events_path.write_text("".join(json.dumps(event) + "\n" for event in events))
        case _:
            folder.predictions_path(1).unlink()
            with pytest.raises(PredictionsMissing):
                predictions.load(folder, 1)
            return
    rewrite(folder, 1, predicted=with_other_answers())
    assert predictions.load(folder, 1).num_correct == 800


def test_a_later_line_replaces_an_earlier_one(folder: RunFolder) -> None:
    files = checkpoint.save_predictions(folder, 2, {**arrays_of(), "predicted": with_other_answers()})
    with pytest.raises(PredictionsDamaged):
        predictions.load(folder, 2)
    say(folder, [epoch(2, correct=8, files=files)], attempt=2)
    assert predictions.load(folder, 2).num_correct == 800


@pytest.mark.parametrize("line", [b'{"files": 7}', b'{"files": {"predictions/epoch-0001.safetensors": 7}}', b'"files"'])
def test_lines_of_no_kind_tell_no_hashes(folder: RunFolder, line: bytes) -> None:
    with folder.events_path.open("ab") as file:
        file.write(line + b"\n" + b'{"files"')
    assert predictions.load(folder, 1).num_correct == 800


def test_a_reduced_file_is_known_by_its_original_and_its_content(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SPACE_FOR_LOG_PROBABILITIES", 0)
    checkpoint.thin_predictions(folder, 2, 2, 2, arrays_of()["log_probabilities"].nbytes)
    assert predictions.load_log_probabilities(folder, 1) is None
    assert predictions.load(folder, 1).num_correct == 800
    path = folder.predictions_path(1)
    whole = path.read_bytes()
    for changed in (
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b'"thinned_from":"', b'"thinned_from":"0', 1),
        whole.replace(b"__metadata__", b"__metadatb__"),
    ):
        path.write_bytes(changed)
        with pytest.raises(PredictionsDamaged):
            predictions.load(folder, 1)
    original = sha_of_line(folder, 1)
    save_file({"predicted": arrays_of()["predicted"]}, path, metadata={"thinned_from": original})  # an older version
    assert predictions.load_correct(folder, 1).sum() == 800


def sha_of_line(folder: RunFolder, number: int) -> str:
    lines = [json.loads(line) for line in folder.events_path.read_bytes().splitlines()]
    hashes = [line["files"] for line in lines if line.get("files") and line["epoch"] == number]
    return str(hashes[-1][f"predictions/epoch-{number:04d}.safetensors"])


def test_hashes_are_computed_once_for_each_version(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded._accepted.cache_clear()
    for _time in range(3):
        predictions.load_correct(folder, 1)
        predictions.load(folder, 1)
    assert recorded._accepted.cache_info().misses == 2  # predictions and labels


def test_the_index_keeps_the_numbers_of_the_log(engine: Any, tmp_path: Path, folder: RunFolder) -> None:
    rewrite(folder, 2, predicted=np.zeros(NUM_IMAGES, np.uint16))
    index = Indexer(engine, tmp_path / "runs")
    index.rebuild()
    with reading(engine) as session:
        run = session.exec(select(Run)).one()
        assert (run.test_correct, run.defect) == (800, None)


def test_pages_and_api_name_the_file(site: Any, site_app: FastAPI, add_run: Any) -> None:
    run, other = add_run("FC seed 0", epochs=1), add_run("FC seed 1", epochs=1, seed=1)
    labels = [0, 1, 2] * 20
    for one in (run, other):
        give_answers(site_app, one, labels, labels)
    folder = RunFolder(site_app.state.runoff.settings.runs / run.id)
    names = (folder.labels_path, folder.predictions_path(1))
    files = {path.relative_to(folder.path).as_posix(): sha256(path) for path in names}
    say(folder, [started(), epoch(1, files=files)])
    address = f"/compare?run={run.id}&run={other.id}"
    difficulty = address.replace("compare", "api/v1/difficulty")
    for path in (address, f"/runs/{run.id}", difficulty):
        assert "the file has changed since the run wrote it" not in site.get(path).text
    rewrite(folder, 1, predicted=np.roll(np.array(labels, np.uint16), 1))
    for path, status in ((address, 409), (f"/api/v1{address}", 409), (f"/runs/{run.id}", 200), (difficulty, 200)):
        page = site.get(path)
        assert page.status_code == status
        assert "the file has changed since the run wrote it" in page.text
    answer = site.get(f"/api/v1/runs/{run.id}/predictions", headers={"Accept": "application/json"})
    assert answer.status_code == 409, answer.text
    assert "epoch-0001.safetensors are damaged" in answer.json()["detail"]
