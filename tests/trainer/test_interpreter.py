"""No child process imports a file of the folder in which it happens to be started."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import strangers
from trainer.interpreter import python_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", ["trainer", "trainer.host", "trainer.datasets", "app.cli"])
def test_a_strangers_files_are_not_imported(tmp_path: Path, module: str) -> None:
    done = subprocess.run(
        python_command(module, "--help"), cwd=strangers.fill(tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout


def test_strangers_are_imported_without_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--help"],
        cwd=strangers.fill(tmp_path),
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "a stranger was imported" in done.stderr


def test_every_child_is_started_by_python_command() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in _users_of_executable()} == {"trainer/interpreter.py"}


def _users_of_executable() -> Iterator[Path]:
    """The modules that name ``sys.executable``: how else could a module start another interpreter?"""
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.Attribute) and node.attr == "executable" for node in ast.walk(tree)):
            yield path
