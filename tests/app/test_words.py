"""Numbers, times and values in words: what each format rounds, and how."""

from __future__ import annotations

from typing import Any

import pytest

from app import words

# Numbers -------------------------------------------------------------------------------------------------------------


def test_numbers_have_thousands_commas() -> None:
    assert words.number(6422) == "6,422"
    assert words.number(None) == ""
    assert words.number(1234.567, 1) == "1,234.6"
    assert words.number(-3) == "−3"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (170_498_071, "170.5 MB"), (2.5e12, "2.5 TB")]
)
def test_filesize(value: float, text: str) -> None:
    assert words.filesize(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0 FLOP"),
        (38_496, "38.5 kFLOP"),
        (999.4e6, "999 MFLOP"),
        (999.6e6, "1 GFLOP"),
        (2.314e12, "2.31 TFLOP"),
        (5e21, "5,000 EFLOP"),
    ],
)
def test_flops(value: float | None, text: str) -> None:
    assert words.flops(value) == text


@pytest.mark.parametrize(("value", "text"), [(True, "yes"), (False, "no"), (0.10, "0.1"), (32, "32"), ("sgd", "sgd")])
def test_value_words(value: Any, text: str) -> None:
    assert words.value_words(value) == text


# Accuracies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.9781, "97.81"), (0.0, "0.00"), (1.0, "100.00"), (0.99999, "99.99"), (None, ""), (0.845, "84.50")],
)
def test_percent(fraction: float | None, text: str) -> None:
    assert words.percent(fraction) == text


def test_other_percents() -> None:
    assert [words.rounded_percent(fraction) for fraction in (0.9781, 0.99999)] == ["97.81 %", "100.00 %"]
    assert [words.short_percent(fraction) for fraction in (0.9, 0.978, 0.9999, 1.0)] == ["90", "97.8", "99.99", "100"]
    assert words.accuracy_with_interval(0.945, (0.9404, 0.9493)) == "94.50 (94.04 to 94.93)"


# Differences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0483, "+4.83"), (-0.0138, "−1.38"), (-0.00001, "0.00"), (0.0, "0.00"), (None, "")]
)
def test_points(difference: float | None, text: str) -> None:
    assert words.points(difference) == text


def test_other_points() -> None:
    assert [words.signed(value) for value in (4.834, -0.01, 0.001, 0)] == ["+4.83", "−0.01", "0.00", "0.00"]
    assert [words.short_points(value) for value in (0.0483, -0.0001, 0.0, 0.0006)] == ["4.8", "0.01", "0.0", "0.1"]
    assert [words.points_at_most(value) for value in (0.00437, -0.005, 0.004301)] == ["0.44", "0.50", "0.44"]
    assert [words.plain_points(value) for value in (0.005, 0.0025, 0.01)] == ["0.5", "0.25", "1"]


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (1.0, "p = 1.0"),
        (0.052, "p = 0.052"),
        (0.0012, "p = 0.0012"),
        (1.4e-86, "p = 1.4 × 10⁻⁸⁶"),
        (0.0, "p < 10⁻³⁰⁰"),
        (0.05, "p = 0.05"),
        (0.0501, "p = 0.0501"),
        (0.050004, "p = 0.050004"),
        (0.0499, "p = 0.05"),
        (0.051, "p = 0.051"),
    ],
)
def test_p_is_not_rounded_to_the_other_verdict(p: float, text: str) -> None:
    assert words.p_text(p) == text


@pytest.mark.parametrize(
    ("pairs", "text"), [(1, "95 %"), (3, "98.33 %"), (49, "99.9 %"), (1225, "99.9959 %"), (100_000, "99.99995 %")]
)
def test_a_level_is_never_100_percent(pairs: int, text: str) -> None:
    assert words.level_text(1 - 0.05 / pairs) == text


# Axes ----------------------------------------------------------------------------------------------------------------


def test_numbers_of_axes() -> None:
    values = (0, 0.005, -2.5, 4690, 1e-7)
    assert [words.axis_number(value) for value in values] == ["0", "0.005", "−2.5", "4,690", "1e−07"]
    large = (9_999, 12_500, 2e6, 3e9, 1.5e12)
    assert [words.axis_number_with_prefix(value) for value in large] == ["9,999", "12.5k", "2M", "3G", "1.5T"]


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (46.12, "46.1 s"),
        (0.04, "0.0 s"),
        (59.96, "1 min 00 s"),
        (235, "3 min 55 s"),
        (3599.9, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (90_000, "25 h 00 min"),
        (None, ""),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.2, "1 s"), (27, "27 s"), (59, "59 s"), (60, "1 min 00 s"), (None, "")])
def test_whole_seconds(value: float | None, text: str) -> None:
    assert words.whole_seconds(value) == text


def test_a_moment_is_utc_until_the_browser_makes_it_local() -> None:
    assert words.moment("2026-03-01T10:20:30.123Z") == (
        '<time datetime="2026-03-01T10:20:30.123Z" data-time="absolute">2026-03-01 10:20 UTC</time>'
    )
    assert words.moment(None) == ""


def test_what_is_left_is_never_below_zero() -> None:
    assert words.remaining(5.0, "2020-01-01T00:00:00.000Z") == 0.0
    assert words.remaining(None, "2020-01-01T00:00:00.000Z") is None
