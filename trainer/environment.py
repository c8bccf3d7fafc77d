"""How a run computes: what ``auto`` became, the ways of ``trainer.fast``, and the versions that its numbers depend on.

Decided once and kept in ``environment.json``. Later attempts obey it, so that they compute the same numbers. Which
precision is fastest was measured before; see ``trainer.measurements``.
"""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import dtype

from trainer import fast, measurements, models
from trainer.config import RunConfig
from trainer.failures import DeviceMissing, PrecisionUnsupported
from trainer.fast import memory
from trainer.i18n import _
from trainer.models import Shape
from trainer.precision import chosen_precision

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Environment:
    """Everything apart from the configuration that affects the results of a run, and where it ran."""

    device: str  # cpu, cuda:N or mps
    precision: str  # float32, bfloat16 or float16
    num_threads: int
    deterministic: bool = True
    channels_last: bool = False  # this and the next three are the ways of trainer.fast
    convolution: str = "direct"
    fused_norm: bool = False
    graphs: bool = False
    device_name: str = ""
    machine: str = ""
    num_cpus: int = 1
    platform: str = ""
    python: str = ""
    torch: str = ""
    numpy: str = ""
    train_fingerprint: str = ""
    test_fingerprint: str = ""

    @property
    def ways(self) -> fast.Ways:
        """The faster ways to compute that the run uses."""
        return fast.Ways(self.channels_last, self.convolution, self.fused_norm, self.graphs)

    @property
    def autocast_dtype(self) -> dtype | None:
        """The dtype of mixed precision, or None for plain float32."""
        return _DTYPES.get(self.precision)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which nets compute in the run's precision."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, self.autocast_dtype)

    def to_json(self) -> dict[str, Any]:
        """The content of ``environment.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Environment:
        """The environment of an ``environment.json``; fields that this version does not know are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def resolve(
    config: RunConfig,
    image_shape: Shape,
    home: Path,
    *,
    num_threads: int,
    device: str | None = None,
    fingerprints: tuple[str, str] = ("", ""),
) -> Environment:
    """Decide what ``auto`` means on this machine, and which ways are fastest.

    ``image_shape`` is (channels, height, width); ``device`` replaces a device of ``auto``; ``fingerprints`` are those of
    the training and the test images. Raises ``DeviceMissing`` or ``PrecisionUnsupported``.
    """
    name = resolve_device(device if device and config.device == "auto" else config.device)
    precision: str = config.precision
    if precision == "auto":
        precision = chosen_precision(home, precision_key(config, image_shape, name))
    check_precision(precision, name)
    with torch.device("meta"):
        net = models.build(config, image_shape, num_classes=2)  # no way depends on the number of classes
    return Environment(
        device=name,
        precision=precision,
        num_threads=num_threads,
        deterministic=config.deterministic,
        **asdict(fast.ways_of(net, name, precision)),
        device_name=device_name(name),
        machine=machine(),
        num_cpus=os.cpu_count() or 1,
        platform=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=np.__version__,
        train_fingerprint=fingerprints[0],
        test_fingerprint=fingerprints[1],
    )


def resolve_device(wanted: str) -> str:
    """cpu, cuda:N or mps for the device of a configuration. Raises ``DeviceMissing`` if this machine does not have it."""
    kind, _colon, number = wanted.partition(":")
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    advice = _("Start a new run with device auto or cpu, or make the device available and resume.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            message = _("The run asks for {device}, but PyTorch finds {count} CUDA devices in this machine.")
            raise DeviceMissing(message.format(device=wanted, count=count), advice)
        return f"cuda:{int(number or 0)}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceMissing(_("The run asks for mps, but this machine has no Apple GPU that PyTorch can use."), advice)
    return wanted


def check_precision(precision: str, device: str) -> None:
    """Raises ``PrecisionUnsupported`` if the device can't train in that precision."""
    if precision == "float16" and device == "cpu":
        raise PrecisionUnsupported(
            _("float16 can't be used for training on the CPU: small gradients become zero."),
            _("Start a new run with precision bfloat16 or float32, or on a GPU."),
        )
    if precision == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise PrecisionUnsupported(
            _("This GPU does not support bfloat16."), _("Start a new run with precision float16 or float32.")
        )


def device_name(device: str) -> str:
    """The product name of a device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return "Apple GPU" if device == "mps" else _cpu_model()


def machine() -> str:
    """The kind of machine that a measured speed is valid for, such as "x86_64, AMD EPYC, 2 cores"."""
    return f"{platform.machine()}, {_cpu_model()}, {os.cpu_count() or 1} cores"


def kind_of_machine(device: str) -> str:
    """What decides how results are rounded, such as "AMD EPYC, AVX2, PyTorch 2.14.1"."""
    instructions = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""
    return ", ".join(filter(None, [device_name(device), instructions, f"PyTorch {torch.__version__}"]))


@cache
def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def precision_key(config: RunConfig, image_shape: Shape, device: str) -> str:
    """The key of a measured precision on this machine, for a device as ``resolve_device`` returns it."""
    here = {"machine": machine(), "torch": str(torch.__version__), "device": device, "device_name": device_name(device)}
    return measurements.precision_key(config, image_shape, here)


def apply(environment: Environment) -> None:
    """Make this process compute as the environment says. To be called before anything is computed."""
    torch.set_num_threads(environment.num_threads)
    memory.keep_freed_memory()
    if not environment.device.startswith("cuda"):
        return  # CPU kernels give the same numbers for the same number of threads
    torch.cuda.set_device(torch.device(environment.device))
    torch.backends.cudnn.benchmark = not environment.deterministic
    if environment.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
