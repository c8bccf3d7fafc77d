"""Run the tests with the lowest versions that pyproject.toml allows: ``python scripts/check_floors.py``.

Every ``>=`` becomes ``==``. The versions go into a virtual environment of their own in a temporary folder, which is
removed at the end; other requirements are what pip chooses. Takes minutes and gigabytes, so CI does not run it. Further
arguments go to pytest; without any, the tests that are not slow are run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def floors(project: dict[str, Any]) -> list[str]:
    """The requirements of Runoff and of its tests, each at its lowest version."""
    project = project["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [requirement.replace(">=", "==") for requirement in requirements]


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def main(arguments: list[str]) -> int:
    begin = time.monotonic()
    required = floors(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="runoff-floors-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *required], check=True)
        subprocess.run([*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)
        installed = time.monotonic()
        status = subprocess.run(
            [python, "-m", "pytest", "-q", *(arguments or ["-m", "not slow"])], cwd=ROOT, check=False
        ).returncode
        sys.stdout.write(
            f"{megabytes(Path(folder)):,.0f} MB, {(installed - begin) / 60:.1f} minutes to install, "
            f"{(time.monotonic() - installed) / 60:.1f} minutes of tests\n"
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
