"""Templates and static files are found in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import resources


def test_in_a_checkout_the_folders_are_at_its_top() -> None:
    assert resources.folder("templates") == Path(__file__).resolve().parents[2] / "templates"


def test_in_an_installed_package_they_are_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "app")
    (tmp_path / "app" / "templates").mkdir(parents=True)
    assert resources.folder("templates") == tmp_path / "app" / "templates"
    assert resources.folder("static") == tmp_path / "static"
