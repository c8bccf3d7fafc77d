"""What a run says while it trains: the events that the engine yields and ``events.jsonl`` keeps, one object a line.

The writer adds ``seq``, ``time`` and ``attempt``; ``Epoch`` also gets the names and hashes of the files saved with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Started:
    """The attempt begins; the numbers are those of the whole run."""

    type: ClassVar[str] = "started"
    num_parameters: int
    device: str
    precision: str
    num_threads: int
    num_train: int  # images a training epoch sees
    num_validation: int
    num_test: int
    steps_per_epoch: int
    total_steps: int
    first_epoch: int  # 1, or the epoch after the checkpoint that the attempt resumes from
    train_fingerprint: str
    test_fingerprint: str
    class_names: list[str]
    image_shape: list[int]  # [channels, height, width]
    machine: str = ""  # the kind of machine of this attempt: numbers of another kind may differ by rounding
    environment: dict[str, Any] = field(default_factory=dict)  # what environment.json holds


@dataclass(frozen=True)
class Progress:
    """Work before the first step: ``what`` is download or cache; ``done`` and ``total`` count ``unit``."""

    type: ClassVar[str] = "progress"
    what: str
    done: int
    total: int
    unit: str  # bytes or images


@dataclass(frozen=True)
class Step:
    """The position within training, with the losses since the last such event.

    ``losses`` holds [step, loss] of steps 1, 101, 201, ...: mean cross-entropy of that batch, in nats.
    """

    type: ClassVar[str] = "step"
    epoch: int
    step: int  # counted over the whole run, from 1
    losses: list[list[float]]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split and the evaluation after it. Losses in nats, accuracies 0..1, times in seconds."""

    type: ClassVar[str] = "epoch"
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_correct: int
    test_total: int
    learning_rate: float  # of the epoch's last step
    seconds: float
    evaluation_seconds: float
    images_per_second: float
    flops: float = 0.0  # nominal, of this epoch's training: 6 x multiply-adds of the forward pass, for every image
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    save_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)  # path in the run folder -> sha256
    # what only lives in memory: the caller saves it before the line is written
    state: Any = field(default=None, compare=False, repr=False)
    predictions: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Finished:
    """The run is complete. ``stopped_early`` when patience ran out before the last epoch."""

    type: ClassVar[str] = "finished"
    epochs: int
    stopped_early: bool = False


@dataclass(frozen=True)
class Failed:
    """The attempt ended in an error: its class, what happened, and what to do."""

    type: ClassVar[str] = "failed"
    error: str
    message: str
    advice: str


@dataclass(frozen=True)
class Cancelled:
    """A person asked for the stop; ``epochs`` are complete."""

    type: ClassVar[str] = "cancelled"
    epochs: int


Event = Started | Progress | Step | Epoch | Finished | Failed | Cancelled
TERMINAL = {"finished", "failed", "cancelled"}
TYPES = {"started", "progress", "step", "epoch", *TERMINAL}
_IN_MEMORY = {"state", "predictions"}


def payload(event: Event) -> dict[str, Any]:
    """The event as a JSON object, without what only lives in memory."""
    return {"type": event.type, **{name: value for name, value in vars(event).items() if name not in _IN_MEMORY}}
