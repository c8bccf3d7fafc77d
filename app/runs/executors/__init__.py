"""Executors: what the scheduler hands a queued run to. Here stand what each must offer and how it says no."""

from __future__ import annotations

from typing import Any, Protocol

from trainer.run_folder import RunFolder
from trainer.wire import Measure


class ExecutorUnavailable(RuntimeError):
    """Nothing can be started or asked just now; the sentence says why. Trying again later may help."""


class RunNotStarted(ExecutorUnavailable):
    """The run's process ended before it held the run's lock; ``exit-<attempt>.json`` and ``log.txt`` say more."""


class Interrupted(ExecutorUnavailable):
    """A measurement was stopped or not started because of a run. It can be tried again when no run is active."""


class Refused(ValueError):
    """The request can never succeed, because of a bad image or a missing checkpoint, for example."""


class Executor(Protocol):
    """Starts runs and handles requests that need torch. Safe to call from any thread.

    No call but ``measure`` waits for long.
    """

    def ensure_host(self) -> None:
        """See to it that the executor will be ready; does not wait for it. Raises ``ExecutorUnavailable``."""

    def ready(self) -> bool:
        """Whether a call would be served now."""

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        """Start a run; returns when its process holds the run's lock. ``device`` is what ``auto`` means for it.

        Raises ``ExecutorUnavailable``; of these ``RunNotStarted`` where the process ended at once.
        """

    def force_stop(self, folder: RunFolder, attempt: int) -> bool:
        """End the process of a run by force; whether it has ended. Returns within seconds."""

    def describe(self, config: dict[str, Any], image_shape: list[int], num_classes: int) -> dict[str, Any]:
        """Layers, parameters and multiply-adds of a config, as ``trainer.host.describe`` gives them."""

    def devices(self) -> list[dict[str, Any]]:
        """What runs can compute on, the CPU first, with the memory that is free now."""

    def known_devices(self) -> list[dict[str, Any]]:
        """The last result of ``devices``, without a new request; empty if there is none yet."""

    def predict(self, folder: RunFolder, epoch: int, image_png: bytes) -> dict[str, Any]:
        """Predict one image with the checkpoint of ``epoch``. Raises ``Refused`` if that is not possible."""

    def measure(self, request: Measure) -> dict[str, Any]:
        """Measure and record; returns after up to two minutes, with ``Interrupted`` at once when a run starts.

        Raises ``ExecutorUnavailable``, and ``Refused`` for what can't be measured here.
        """

    def close(self) -> None:
        """Let go of what is held; calls that wait end with ``ExecutorUnavailable``. Never ends a run."""
