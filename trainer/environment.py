"""What ``auto`` became: device, precision and threads of a run, with the versions that its numbers depend on.

Decided once and kept in ``environment.json``; later attempts obey it, so that they calculate the same. Which
precision is fastest was measured, see ``trainer.measurements``.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import dtype

from trainer import measurements
from trainer.config import RunConfig, resolved_width
from trainer.failures import DeviceMissing, PrecisionUnsupported
from trainer.i18n import _

# Memory order of the weights: channels last is faster for every net with convolutions on a CPU, once pooling comes before
# ReLU, and for the nets with many channels in bfloat16 on a GPU (docs/lab/training-on-a-cpu.md has the figures).
_CHANNELS_LAST = ("cnn", "lenet", "vgg", "vgg16")
_NORMED = ("vgg", "vgg16")  # and with 3 x 3 convolutions
_FUSED = ("cnn", "lenet")
_WIDEST_FUSED = 20  # channels; at 32 PyTorch's convolution is as fast, at 64 it is faster
_MALLOC = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}  # mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Environment:
    """Everything outside the config that decides a run's numbers, and where it ran."""

    device: str  # cpu, cuda:N or mps
    precision: str  # float32, bfloat16 or float16
    num_threads: int
    deterministic: bool = True
    channels_last: bool = False  # memory order of the net's weights, where that was measured to be faster
    convolution: str = "direct"  # columns or winograd, of 3 x 3; fused, of 5 x 5 (trainer.fast)
    fused_norm: bool = False  # BatchNorm, pooling and ReLU as one layer (trainer.fast.norm_pool)
    graphs: bool = False  # whether steps are replayed from CUDA graphs (trainer.fast.graphs)
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
    def autocast_dtype(self) -> dtype | None:
        """The dtype of mixed precision, or None for plain float32."""
        return _DTYPES.get(self.precision)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Environment:
        """Fields that this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def resolve(
    config: RunConfig,
    image_shape: tuple[int, int, int],
    home: Path,
    *,
    num_threads: int,
    device: str | None = None,
    fingerprints: tuple[str, str] = ("", ""),
) -> Environment:
    """Decide what ``auto`` is on this machine; ``device`` is what the caller would take for ``auto``.

    Raises ``DeviceMissing`` or ``PrecisionUnsupported``.
    """
    wanted = device if device and config.device == "auto" else config.device
    name = resolve_device(wanted)
    precision: str = config.precision
    if precision == "auto":
        precision = measurements.chosen_precision(home, precision_key(config, image_shape, name))
    check_precision(precision, name)
    return Environment(
        device=name, precision=precision, num_threads=num_threads, deterministic=config.deterministic,
        **fastest_ways(config, name, precision),
        device_name=device_name(name), machine=machine(), num_cpus=os.cpu_count() or 1,
        platform=f"{platform.system()} {platform.release()}", python=platform.python_version(),
        torch=str(torch.__version__), numpy=np.__version__,
        train_fingerprint=fingerprints[0], test_fingerprint=fingerprints[1],
    )  # fmt: skip


def fastest_ways(config: RunConfig, device: str, precision: str) -> dict[str, Any]:
    """How a net calculates fastest on a device: ``channels_last convolution fused_norm graphs`` of an ``Environment``."""
    on_cpu, convolution = device == "cpu", "direct"
    if on_cpu and config.model in _NORMED:
        convolution = "winograd" if precision == "float32" else "columns"
    elif on_cpu and config.model in _FUSED and precision == "float32" and resolved_width(config) <= _WIDEST_FUSED:
        convolution = "fused"
    last = config.model in _CHANNELS_LAST if on_cpu else config.model in _NORMED and precision == "bfloat16"
    return {
        "channels_last": last and convolution != "fused" and (on_cpu or device.startswith("cuda")),
        "convolution": convolution,
        "fused_norm": on_cpu and config.model in _NORMED,
        "graphs": uses_graphs(device, precision),
    }


def uses_graphs(device: str, precision: str) -> bool:
    """Whether steps can be replayed from CUDA graphs: the scaling of float16 asks the GPU after each step what to do."""
    return device.startswith("cuda") and precision != "float16"


def resolve_device(wanted: str) -> str:
    """cpu, cuda:N or mps for a device of a config. Raises ``DeviceMissing`` where it is not in this machine."""
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
    """Raises ``PrecisionUnsupported`` where the device can't train in that precision."""
    if precision == "float16" and device == "cpu":
        raise PrecisionUnsupported(
            _("float16 can't be trained on the CPU: its small gradients become zero there."),
            _("Start a new run with precision bfloat16 or float32, or on a GPU."),
        )
    if precision == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise PrecisionUnsupported(
            _("This GPU does not calculate in bfloat16."), _("Start a new run with precision float16 or float32.")
        )


def device_name(device: str) -> str:
    """What the device calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return "Apple GPU" if device == "mps" else _cpu_model()


def machine() -> str:
    """The kind of machine, such as "x86_64, AMD EPYC, 2 cores": what a measured speed holds for."""
    return f"{platform.machine()}, {_cpu_model()}, {os.cpu_count() or 1} cores"


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


def precision_key(config: RunConfig, image_shape: tuple[int, int, int], device: str) -> str:
    """The key of a measured precision on this machine now; ``device`` as ``resolve_device`` gives it."""
    here = {
        "machine": machine(), "torch": str(torch.__version__), "device": device, "device_name": device_name(device),
    }  # fmt: skip
    return measurements.precision_key(config, image_shape, here)


def apply(environment: Environment) -> None:
    """Set this process to calculate as ``environment`` says. Before the first kernel."""
    torch.set_num_threads(environment.num_threads)
    _keep_freed_memory()
    if not environment.device.startswith("cuda"):
        return  # CPU kernels give the same numbers for the same number of threads
    torch.cuda.set_device(torch.device(environment.device))
    torch.backends.cudnn.benchmark = not environment.deterministic
    if environment.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Have the C library keep memory for the next step that a step has freed; GNU's only.

    By default it gives large pieces back at once, and the kernel fills their pages with zeros anew in every step: 30,000
    page faults and a seventh of the time for ``vgg``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def release_freed_memory() -> None:
    """Give the system what ``_keep_freed_memory`` has kept, where the pieces that come next are of other sizes."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if malloc_trim is not None:
        malloc_trim(0)
