"""What was measured of this machine: the fastest precision of a net, and the rate of a matrix product.

One file, ``HOME/measurements.json``, with a section for each. ``trainer.host.measure`` measures, ``trainer.precision``
chooses. Imports neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainer.config import RunConfig, resolved_width
from trainer.run_folder import now, read_json, write_json

Section = Literal["precision", "matmul"]
_KERNELS = 2  # raised when a precision becomes faster or slower by a change of the engine
Measurements = dict[str, dict[str, dict[str, Any]]]  # section -> key -> what was measured
PRECISIONS = ("float32", "bfloat16", "float16")


def path(home: Path) -> Path:
    """The file of this home's measurements."""
    return home / "measurements.json"


def read(home: Path) -> Measurements:
    """Both sections; what is missing or damaged is left out."""
    found = read_json(path(home)) or {}
    return {
        "precision": _valid(found.get("precision"), _is_precision),
        "matmul": _valid(found.get("matmul"), _is_matmul),
    }


def _valid(section: object, is_valid: Any) -> dict[str, dict[str, Any]]:
    entries = section if isinstance(section, dict) else {}
    return {key: value for key, value in entries.items() if isinstance(value, dict) and is_valid(value)}


def _is_precision(value: dict[str, Any]) -> bool:
    rates = value.get("images_per_second")
    if not isinstance(rates, dict) or not all(map(_is_rate, rates.values())):
        return False
    return value.get("chosen") in PRECISIONS and {"float32", value["chosen"]} <= rates.keys()


def _is_matmul(value: dict[str, Any]) -> bool:
    return _is_rate(value.get("gflops"))


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def record(home: Path, section: Section, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Add a measurement with the time of now, atomically, and return it as it stands there."""
    known = read(home)
    known[section][key] = value | {"measured_at": now()}
    write_json(path(home), known)
    return known[section][key]


# Keys: ``environment`` is what environment.json holds --------------------------------------------------------------


def precision_key(config: RunConfig, image_shape: Sequence[int], environment: Mapping[str, Any]) -> str:
    """What the choice of a precision depends on: machine, PyTorch, net, images (channels, height, width), batch, device.

    And how Runoff calculates, so that a version with other kernels measures again.
    """
    net = f"{config.model}-{resolved_width(config)}"
    shape = "x".join(str(side) for side in image_shape)
    return _key(environment, f"kernels {_KERNELS}", net, shape, f"batch {config.batch_size}", environment["device"])


def matmul_key(environment: Mapping[str, Any]) -> str:
    """What the rate of a matrix product depends on: machine, PyTorch, device, precision, threads."""
    return _key(environment, environment["device"], environment["precision"], f"{environment['num_threads']} threads")


def _key(environment: Mapping[str, Any], *parts: str) -> str:
    """The parts after machine and PyTorch, for a GPU with its name."""
    names = [environment["device_name"]] if environment["device"] != "cpu" else []
    return " | ".join([environment["machine"], f"torch {environment['torch']}", *parts, *names])
