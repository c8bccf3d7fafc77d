"""What ``precision=auto`` becomes: the rule, and the sentence about it. Imports neither torch nor numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import measurements
from trainer.config import RunConfig
from trainer.i18n import _

LEAST_GAIN = 1.05  # a mixed precision must be so many times as fast as float32
LOSS_TOLERANCE = 0.05  # its loss may differ from float32's by this part of it


def choose(images_per_second: Mapping[str, float], losses: Mapping[str, float | None]) -> str:
    """The precision to train in: the fastest whose loss agrees with float32's, float32 unless another clearly gains.

    ``losses`` are those after the same steps; None or missing where there is none or it is not finite.
    """
    plain, loss = images_per_second["float32"], losses.get("float32")
    eligible = {
        name: rate
        for name, rate in images_per_second.items()
        if name != "float32" and rate >= LEAST_GAIN * plain and _agree(losses.get(name), loss)
    }
    return max(eligible, key=eligible.__getitem__, default="float32")


def _agree(loss: float | None, plain: float | None) -> bool:
    if loss is None or plain is None or not (math.isfinite(loss) and math.isfinite(plain)):
        return False
    return abs(loss - plain) <= LOSS_TOLERANCE * abs(plain)


def chosen_precision(home: Path, key: str) -> str:
    """What ``auto`` is for a key of ``precision_key``: float32 where nothing was measured."""
    found = measurements.read(home)["precision"].get(key)
    return str(found["chosen"]) if found else "float32"


def explain_precision(
    home: Path, config: RunConfig, image_shape: Sequence[int], environment: Mapping[str, Any]
) -> str | None:
    """What ``auto`` became and why, as a line for the run's log; None for a config that names its precision."""
    if config.precision != "auto":
        return None
    precision = environment["precision"]
    found = measurements.read(home)["precision"].get(measurements.precision_key(config, image_shape, environment))
    if found is None or found["chosen"] != precision:
        return _("precision auto: {precision}, as nothing was measured here yet.").format(precision=precision)
    rates = found["images_per_second"]
    others = rates.keys() - {"float32"}
    if not others:
        return _("precision auto: float32, the only one that trained here.")
    compared = precision if precision in others else max(others, key=rates.__getitem__)
    sentence = _("precision auto: {precision}, measured {ratio} times as fast as float32 here.")
    if precision == "float32":
        sentence = _("precision auto: float32; {compared} was measured {ratio} times as fast here.")
    ratio = f"{rates[compared] / rates['float32']:.2g}"
    return sentence.format(precision=precision, compared=compared, ratio=ratio)
