"""Sums over epochs, and what an accuracy cost."""

from __future__ import annotations

import pytest

from app.schemas import EpochOut
from app.store.epochs import THRESHOLDS, add_sums, highest_of_all, rate, thresholds_passed, to_accuracy, typed_accuracy
from app.store.tables import Epoch


def epochs(accuracies: list[float], *, num_train: int | None = 100, flops: float | None = 3e9) -> list[EpochOut]:
    """Epochs of 2 s each."""
    rows = [
        Epoch(
            run_id="a",
            epoch=number,
            step=number,
            attempt=1,
            train_loss=1,
            train_accuracy=0.5,
            test_loss=1,
            test_accuracy=accuracy,
            test_correct=1,
            test_total=2,
            learning_rate=0.1,
            seconds=2.0,
            evaluation_seconds=9.0,
            save_seconds=9.0,
            images_per_second=50,
            flops=flops,
            ended_at="",
        )
        for number, accuracy in enumerate(accuracies, 1)
    ]
    return add_sums(rows, num_train)


def test_sums_hold_training_only() -> None:
    found = epochs([0.5, 0.6])
    assert [(e.train_seconds, e.images, e.total_flops) for e in found] == [(2.0, 100, 3e9), (4.0, 200, 6e9)]
    assert found[0].gflops_per_second == 1.5
    assert add_sums([], 100) == []


def test_what_is_not_known_stays_unknown() -> None:
    found = epochs([0.5, 0.6], num_train=None, flops=None)
    assert [(e.images, e.total_flops, e.gflops_per_second) for e in found] == [(None, None, None)] * 2
    assert to_accuracy(found, 0.6).seconds == 4.0
    assert rate(1e9, 0.0) is None


def test_the_first_epoch_counts_even_if_a_later_one_falls_back() -> None:
    found = to_accuracy(epochs([0.4, 0.91, 0.89, 0.95]), 0.9)
    assert (found.epoch, found.seconds, found.images, found.flops, found.test_accuracy) == (2, 4.0, 200, 6e9, 0.91)
    assert to_accuracy(epochs([0.4, 0.9]), 0.9).epoch == 2
    assert to_accuracy(epochs([0.4, 0.8999]), 0.9).epoch is None


@pytest.mark.parametrize("correct", range(9_001, 9_999, 7))
def test_a_typed_per_cent_meets_its_fraction(correct: int) -> None:
    accuracy, _problem = typed_accuracy(f"{correct / 100:.2f}")
    assert accuracy is not None
    assert to_accuracy(epochs([correct / 10_000]), accuracy).epoch == 1
    assert to_accuracy(epochs([(correct - 1) / 10_000]), accuracy).epoch is None


def test_thresholds_of_one_epoch_are_one() -> None:
    passed = thresholds_passed(epochs([0.85, 0.86, 0.93, 0.975]))
    assert [(one.accuracy, one.epoch) for one in passed] == [(0.8, 1), (0.92, 3), (0.97, 4)]
    rising = thresholds_passed(epochs([t + 0.001 for t in THRESHOLDS]))
    assert [one.accuracy for one in rising] == [0.92, 0.95, 0.97, 0.98, 0.99]
    assert thresholds_passed(epochs([0.3])) == []


def test_the_highest_whole_per_cent_of_all() -> None:
    assert highest_of_all([epochs([0.955, 0.978]), epochs([0.9, 0.934])]) == 0.93
    assert highest_of_all([epochs([0.29]), epochs([0.9])]) == 0.29
    assert highest_of_all([epochs([]), epochs([0.9])]) is None
    assert highest_of_all([]) is None


@pytest.mark.parametrize(
    ("typed", "accuracy"),
    [
        ("0.9", 0.9),
        ("90", 0.9),
        ("90 %", 0.9),
        ("0.9 %", 0.009),
        ("1 %", 0.01),
        ("1", 1.0),
        ("100", 1.0),
        ("", None),
        ("  ", None),
    ],
)
def test_fractions_and_per_cent_can_be_typed(typed: str, accuracy: float | None) -> None:
    found, problem = typed_accuracy(typed)
    assert found == pytest.approx(accuracy)
    assert problem == ""


@pytest.mark.parametrize("typed", ["0", "-1", "101", "nan", "inf", "high"])
def test_what_is_no_accuracy_is_said(typed: str) -> None:
    assert typed_accuracy(typed) == (
        None,
        f"The accuracy must be above 0 and at most 100 %. You typed {typed}.",
    )
