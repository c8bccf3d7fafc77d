"""What the engine keeps about a run in progress: times, losses and predictions of an epoch, and what to report when."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.events import Step
from trainer.schedule import num_batches

_SECONDS_BETWEEN_EVENTS = 0.34  # three a second, which leaves one for the end of an epoch
_SECONDS_WITHOUT_LOSSES = 1.0  # after which an event says where training is, even without a new loss
_MOST_EVENTS_PER_SECOND = 4


class Stopwatch:
    """Seconds since its creation, by the monotonic clock. It waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._paused_seconds = device, 0.0
        self._synchronize()
        self._begin = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        begin = time.monotonic()
        yield
        self._paused_seconds += time.monotonic() - begin

    def seconds(self) -> float:
        """Seconds so far, without those that were paused."""
        self._synchronize()
        return max(time.monotonic() - self._begin - self._paused_seconds, 1e-9)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


class Tally:
    """Losses and predictions of one training epoch. They stay on the device, so that no step has to wait for it."""

    def __init__(self, labels: Tensor, batch_size: int) -> None:
        """``labels`` int64 [n] are those of all images of the epoch, in their order."""
        self.num_steps = num_batches(len(labels), batch_size)
        self._labels, self._batch_size = labels, batch_size
        self._losses = torch.empty(self.num_steps, device=labels.device)
        self._predicted = torch.empty(len(labels), dtype=torch.int64, device=labels.device)
        self._num_added, self._num_read = 0, 0

    def add(self, loss: Tensor, predicted: Tensor) -> None:
        """The next batch: its mean loss, and the classes int64 [B] that the net predicts for its images."""
        begin = self._num_added * self._batch_size
        self._losses[self._num_added] = loss
        self._predicted[begin : begin + len(predicted)] = predicted
        self._num_added += 1

    def new_losses(self) -> list[float]:
        """The losses that were added since the last call. Waits for the device."""
        begin, self._num_read = self._num_read, self._num_added
        return self._losses[begin : self._num_added].tolist()

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy over all images of the complete epoch. Waits for the device."""
        count = len(self._labels)
        sizes = torch.full((self.num_steps,), self._batch_size, dtype=torch.float64, device=self._labels.device)
        sizes[-1] = count - self._batch_size * (self.num_steps - 1)
        loss_sum = float((self._losses * sizes).sum())
        return loss_sum / count, int((self._predicted == self._labels).sum()) / count


@dataclass
class LossReports:
    """Losses to be reported, and when: at most 4 events in any second, at least one a second, and no loss is lost."""

    pending: list[list[float]] = field(default_factory=list)  # [step, loss] to be reported
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS_PER_SECOND))

    def add(self, step: int, loss: float) -> None:
        """Keep the loss of a step for the next event."""
        self.pending.append([step, float(f"{loss:.6g}")])

    def event_if_due(self, epoch: int, step: int) -> Step | None:
        """The event after a step with the losses to be reported, or None if none is due."""
        wait = _SECONDS_BETWEEN_EVENTS if self.pending else _SECONDS_WITHOUT_LOSSES
        if self._times and (time.monotonic() - self._times[-1] < wait or self._is_full()):
            return None
        return self.event(epoch, step)

    def event_at_epoch_end(self, epoch: int, step: int) -> Step | None:
        """The pending losses if this second may have one more event. Else they stay for the next epoch."""
        return None if self._is_full() or not self.pending else self.event(epoch, step)

    def event(self, epoch: int, step: int) -> Step:
        """An event with the pending losses, now."""
        losses, self.pending = self.pending, []
        self._times.append(time.monotonic())
        return Step(epoch, step, losses)

    def _is_full(self) -> bool:
        """Whether the last second has all the events that it may have."""
        return len(self._times) == _MOST_EVENTS_PER_SECOND and time.monotonic() - self._times[0] < 1
