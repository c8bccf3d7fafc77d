"""What is shipped fits together: packages, pins, the image, the compose file, CI's script, licence and version."""

from __future__ import annotations

import fnmatch
import os
import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line]
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_above_its_floor() -> None:
    optional = [text for group in PROJECT["project"]["optional-dependencies"].values() for text in group]
    for requirement in map(Requirement, [*PROJECT["project"]["dependencies"], *optional]):
        pinned = pins().get(_normal(requirement.name))
        assert pinned is not None, requirement.name
        assert requirement.specifier.contains(pinned), requirement


def test_the_script_of_the_floors_takes_the_lowest_version_of_each_requirement() -> None:
    floors = runpy.run_path(str(ROOT / "scripts" / "check_floors.py"))["floors"](PROJECT)
    assert "torch==2.10" in floors
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", floor) for floor in floors)


def test_floors_carry_the_security_fixes() -> None:
    floors = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["project"]["dependencies"])}
    fixes = {"starlette": "1.3.1", "python-multipart": "0.0.27", "pillow": "12.3", "torch": "2.10"}
    for name, fixed in fixes.items():
        assert Version(floors[name].removeprefix(">=")) >= Version(fixed), name


def test_version_and_licence_are_stated_once() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.M)
    assert versions[:2] == ["Unreleased", PROJECT["project"]["version"]]
    assert PROJECT["project"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


# The image -----------------------------------------------------------------------------------------------------------


def test_the_image_serves_as_an_ordinary_user_from_a_volume() -> None:
    assert re.findall(r"^USER (\w+)", FINAL_STAGE, re.M) == ["runoff"]
    assert re.findall(r"^VOLUME (\S+)", FINAL_STAGE, re.M) == ["/data"]
    assert "RUNOFF_HOME=/data" in FINAL_STAGE
    assert FINAL_STAGE.index("install -d -o runoff") < FINAL_STAGE.index("VOLUME")
    assert re.findall(r"^EXPOSE (\d+)", FINAL_STAGE, re.M) == [str(Settings.model_fields["port"].default)]
    assert 'CMD ["runoff", "serve", "--host", "0.0.0.0"]' in FINAL_STAGE
    assert "/healthz" in FINAL_STAGE


def test_the_image_holds_all_that_is_served_and_nothing_else() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    shipped = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert "*" in rules
    assert kept == shipped | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], "LICENSE"}
    assert all((ROOT / name).exists() for name in kept)


def test_compose_publishes_to_this_machine_only() -> None:
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    published = re.findall(r'- "(.+:\d+)"', compose)
    assert published
    assert all(port == "127.0.0.1:8000:8000" for port in published)
    assert compose.count("- data:/data") == len(published)


# CI ------------------------------------------------------------------------------------------------------------------


def test_ci_can_be_run_and_runs_the_makefile() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = re.findall(r"^(?:\w+=\S+ )*make (\w+)", script.read_text(encoding="utf-8"), re.M)
    assert called == ["check", "demo", "bench", "faults", "test", "test", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in called)


def test_nothing_that_is_made_here_is_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for made in (".venv/", "__pycache__/", ".mypy_cache/", ".hypothesis/"):
        assert any(fnmatch.fnmatch(made, rule) for rule in ignored), made
