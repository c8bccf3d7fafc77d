"""Reading a run's answers and asking for some of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from app.compare.confusion_matrix import confusion_matrix
from app.store import predictions
from app.store.predictions import PredictionQuery, Predictions, PredictionsDamaged, PredictionsMissing, Sort
from trainer.run_folder import RunFolder

LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)
PREDICTED = np.array([0, 2, 2, 1, 1, 0], np.uint16)
CONFIDENCE = np.array([0.9, 0.8, 0.4, 0.95, 0.9, 0.8], np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "0123456789")
    folder.predictions.mkdir(parents=True)
    np.save(folder.labels_path, LABELS)
    write(folder)
    return folder


def write(folder: RunFolder, **changed: np.ndarray | None) -> None:
    tensors = {"predicted": PREDICTED, "confidence": CONFIDENCE, **changed}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder.predictions_path(1))


def indices(folder: RunFolder, **wanted: object) -> list[int]:
    page = predictions.query(predictions.load(folder, 1), PredictionQuery(**wanted))  # type: ignore[arg-type]
    return [item.index for item in page.items]


def test_load(folder: RunFolder) -> None:
    found = predictions.load(folder, 1)
    assert (found.num_images, found.num_correct) == (6, 3)
    assert found.correct.tolist() == [True, False, True, False, True, False]
    with pytest.raises(ValueError, match="read-only"):
        found.predicted[0] = 9


def test_log_probabilities_are_optional(folder: RunFolder) -> None:
    assert predictions.load_log_probabilities(folder, 1) is None
    write(folder, log_probabilities=np.zeros((6, 3), np.float16))
    found = predictions.load_log_probabilities(folder, 1)
    assert found is not None
    assert found.shape == (6, 3)
    assert found.dtype == np.float16


def test_a_replaced_file_is_read_again(folder: RunFolder) -> None:
    first = predictions.load(folder, 1)
    assert predictions.load(folder, 1) is first
    write(folder, predicted=LABELS.astype(np.uint16))
    os.utime(folder.predictions_path(1), ns=(1, 1))
    assert predictions.load(folder, 1).num_correct == 6


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"correct": True}, [0, 2, 4]),
        ({"correct": False}, [1, 3, 5]),
        ({"label": 1}, [1, 4]),
        ({"predicted": 0}, [0, 5]),
        ({"label": 0, "predicted": 1}, [3]),
        ({"min_confidence": 0.85}, [0, 3, 4]),
        ({"sort": "confidence"}, [2, 1, 5, 0, 4, 3]),
        ({"sort": "-confidence"}, [3, 0, 4, 1, 5, 2]),
        ({"sort": "worst"}, [3, 1, 5, 2, 0, 4]),
        ({"sort": "worst", "limit": 2, "offset": 1}, [1, 5]),
        ({"offset": 10}, []),
    ],
)
def test_query(folder: RunFolder, wanted: dict[str, object], expected: list[int]) -> None:
    assert indices(folder, **wanted) == expected


def test_query_gives_total_and_items(folder: RunFolder) -> None:
    page = predictions.query(predictions.load(folder, 1), PredictionQuery(correct=False, sort="worst", limit=1))
    assert page.model_dump() == {
        "total": 3,
        "items": [{"index": 3, "label": 0, "predicted": 1, "confidence": pytest.approx(0.95)}],
        "num_correct": 3,
        "defect": "",
    }


def test_unknown_sort(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="index, confidence, -confidence, worst"):
        indices(folder, sort="best")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.3, 0.5, 0.9])), max_size=40))
def test_every_sort_keeps_all_and_ties_by_index(rows: list[tuple[int, int, float]]) -> None:
    labels, predicted = np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.uint16)
    answers = Predictions(labels, predicted, np.array([r[2] for r in rows], np.float32))
    keys: dict[Sort, list[tuple[float, ...]]] = {
        "index": [(i,) for i in range(len(rows))],
        "confidence": [(c, i) for i, (_l, _p, c) in enumerate(rows)],
        "-confidence": [(-c, i) for i, (_l, _p, c) in enumerate(rows)],
        "worst": [(l == p, c if l == p else -c, i) for i, (l, p, c) in enumerate(rows)],  # noqa: E741
    }
    for sort, key in keys.items():
        page = predictions.query(answers, PredictionQuery(sort=sort, limit=1000))
        assert [item.index for item in page.items] == sorted(range(len(rows)), key=key.__getitem__)
        assert page.total == len(rows)


def test_confusion_matrix(folder: RunFolder) -> None:
    found = predictions.load(folder, 1)
    assert confusion_matrix(found, 3).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    with pytest.raises(PredictionsDamaged, match="class"):
        confusion_matrix(found, 2)


def test_missing_epoch(folder: RunFolder) -> None:
    with pytest.raises(PredictionsMissing, match=r"no test predictions for epoch 2"):
        predictions.load(folder, 2)
    folder.labels_path.unlink()
    with pytest.raises(PredictionsMissing, match=r"labels\.npy"):
        predictions.load(folder, 1)
    with pytest.raises(PredictionsMissing):
        predictions.load_log_probabilities(folder, 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"predicted": None},
        {"predicted": PREDICTED.astype(np.int64)},
        {"confidence": CONFIDENCE[:5]},
        {"predicted": PREDICTED[:5], "confidence": CONFIDENCE[:5]},
    ],
)
def test_answers_of_another_shape_are_damage(folder: RunFolder, changed: dict[str, np.ndarray | None]) -> None:
    write(folder, **changed)
    with pytest.raises(PredictionsDamaged, match=r"epoch-0001\.safetensors are damaged"):
        predictions.load(folder, 1)


def test_torn_files_are_damage(folder: RunFolder) -> None:
    content = folder.predictions_path(1).read_bytes()
    folder.predictions_path(1).write_bytes(content[: len(content) // 2])
    with pytest.raises(PredictionsDamaged):
        predictions.load(folder, 1)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array at all"])
def test_damaged_labels(folder: RunFolder, content: bytes) -> None:
    folder.labels_path.write_bytes(content)
    with pytest.raises(PredictionsDamaged, match=r"labels\.npy"):
        predictions.load(folder, 1)


def test_labels_are_numbers_in_a_row(folder: RunFolder) -> None:
    np.save(folder.labels_path, np.zeros((2, 3)))
    with pytest.raises(PredictionsDamaged):
        predictions.load(folder, 1)


@pytest.mark.parametrize(
    "labels",
    [np.full(6, -1), np.full(6, 2**62), np.full(6, 2**64 - 1, np.uint64), np.full(6, 2**16)],
    ids=["negative", "huge", "beyond int64", "beyond uint16"],
)
def test_labels_that_are_no_class_are_damage(folder: RunFolder, labels: np.ndarray) -> None:
    np.save(folder.labels_path, labels)
    with pytest.raises(PredictionsDamaged, match=r"labels\.npy"):
        predictions.load(folder, 1)


def test_labels_that_promise_more_than_memory_are_damage(folder: RunFolder) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    folder.labels_path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header)
    with pytest.raises(PredictionsDamaged, match=r"labels\.npy"):
        predictions.load(folder, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_confidence_that_is_no_probability_is_damage(folder: RunFolder, value: float) -> None:
    write(folder, confidence=np.array([*CONFIDENCE[1:], value], np.float32))
    with pytest.raises(PredictionsDamaged, match="confidence"):
        predictions.load(folder, 1)


def test_a_confidence_may_be_rounded_above_1(folder: RunFolder) -> None:
    write(folder, confidence=np.array([*CONFIDENCE[1:], np.nextafter(np.float32(1), np.float32(2))], np.float32))
    assert predictions.load(folder, 1).num_images == 6


def test_a_file_that_can_not_be_asked_about_is_damage(folder: RunFolder) -> None:
    path = folder.predictions_path(1)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(PredictionsDamaged, match="levels of symbolic links"):
        predictions.load(folder, 1)
