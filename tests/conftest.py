"""Markers that follow from other markers, and how many faults ``tests/faults`` tries."""

from __future__ import annotations

import secrets

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--full", action="store_true", dest="full", help="as many faults as docs/reliability.md reports")
    group.addoption("--quick", action="store_false", dest="full", help="a few faults of each kind (default)")
    group.addoption(
        "--fault-seed",
        type=int,
        default=secrets.randbelow(10**6),
        help="repeats the random choices of an earlier session",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What drives a browser or kills processes is slow."""
    for item in items:
        if item.get_closest_marker("browser") or item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.slow)
