"""Executors start runs somewhere. This module has the protocol that each follows and the errors that it may raise."""

from __future__ import annotations

from typing import Any, Protocol

from trainer.run_folder import RunFolder
from trainer.wire import Measure


class ExecutorUnavailable(RuntimeError):
    """The executor can't start runs or handle requests now. The message says why. Trying again later may help."""


class RunNotStarted(ExecutorUnavailable):
    """The process of a run ended before it held the lock. ``exit-N.json`` and ``log.txt`` in the run folder say why."""


class Interrupted(ExecutorUnavailable):
    """A measurement was stopped or not started because of a run. It can be tried again when no run is active."""


class Refused(ValueError):
    """The request can't succeed, for example because the image is not readable or the checkpoint is missing."""


class Executor(Protocol):
    """Starts runs and handles requests that need torch. All methods may be called from any thread.

    Only ``measure`` may take longer than about ten seconds.
    """

    def ensure_host(self) -> None:
        """Start what the executor needs, without waiting until it is ready. Raises ``ExecutorUnavailable``."""

    def ready(self) -> bool:
        """Whether runs can be started and requests handled now."""

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        """Start a run and return when its process holds the lock of the run folder.

        ``device`` is the device for a run whose configuration says ``auto``. Raises ``RunNotStarted`` if the process ends
        before it holds the lock, and ``ExecutorUnavailable`` if it can't be started now.
        """

    def force_stop(self, folder: RunFolder, attempt: int) -> bool:
        """End the process of a run by force; whether it has ended. Returns within seconds."""

    def describe(self, config: dict[str, Any], image_shape: list[int], num_classes: int) -> dict[str, Any]:
        """Layers, parameters and multiply-adds of a config, as ``trainer.host.describe.describe`` returns them.

        ``image_shape`` is [channels, height, width]. Raises ``Refused`` for an invalid config, and
        ``ExecutorUnavailable``.
        """

    def devices(self) -> list[dict[str, Any]]:
        """The devices that runs can use, the CPU first, with the memory that is free now. Raises ``ExecutorUnavailable``."""

    def known_devices(self) -> list[dict[str, Any]]:
        """The last result of ``devices``, without a new request; empty if there is none yet."""

    def predict(self, folder: RunFolder, epoch: int, image_png: bytes) -> dict[str, Any]:
        """Predict one image with the checkpoint of ``epoch``, as ``trainer.host.predict.predict`` does.

        Raises ``Refused`` if that is not possible, and ``ExecutorUnavailable``.
        """

    def measure(self, request: Measure) -> dict[str, Any]:
        """Make a measurement, record it and return the entry. Takes up to two minutes.

        Raises ``Interrupted`` as soon as a run starts, ``Refused`` for what can't be measured on this machine, and
        ``ExecutorUnavailable``.
        """

    def close(self) -> None:
        """Close all connections. Waiting calls raise ``ExecutorUnavailable``. Runs continue."""
