"""CUDA graphs: a training step recorded once and replayed, so that the CPU starts one thing a step and not a hundred.

A graph holds kernels with the addresses that they read and write, so everything else of a step must be the same every
time: the shape of the batch, and what Python decides on the way. Nothing is saved or put back: the first steps of a shape
are run as they are, recording runs nothing, and replaying is the next step. What a step does is the engine's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3  # steps of a shape before it is recorded: they make what stays, such as momentum, and choose algorithms
Result = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], Result]
_log = logging.getLogger(__name__)


class NotRecorded(RuntimeError):
    """A step can't be recorded; run as it is, it may well be fine."""


class Replay(Protocol):
    """What was recorded."""

    def replay(self) -> None:
        """Run it once; returns before the GPU has done so."""


class Recorder:
    """A stream of a GPU beside its usual one, as recording needs it: there nothing else is ever under way.

    Steps before a recording run there too: what PyTorch and cuBLAS keep for a stream is then made before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], Result]) -> Result:
        """Run it there, in its turn: after what was asked for before, and before what is asked for next."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = call()
        usual.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], Result]) -> tuple[Replay, Result]:
        """Record it, which runs nothing: the graph, and the tensors into which each replay writes its result.

        Raises ``NotRecorded`` for what can't be. Other threads may go on: one of them reads images ahead.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with (
                torch.cuda.stream(self._stream),  # a recording that breaks off would leave its own stream in use
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = call()
        except RuntimeError as error:
            self._leave(pool)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotRecorded(str(error)) from error
        return graph, result

    def _leave(self, pool: Any) -> None:
        """Put in order what PyTorch before 2.14 leaves as in a recording that broke off: its memory and its dropout.

        Raises what the GPU itself has failed at.
        """
        torch.cuda.synchronize(self._device)
        index = self._stream.device_index
        with contextlib.suppress(RuntimeError):  # which says that this was done
            torch._C._cuda_endAllocateToPool(index, pool)
        random = torch.cuda.default_generators[index]
        random.graphsafe_set_state(random.clone_state())


class GraphedStep:
    """A step (images, labels) -> result that is replayed from a graph where that pays: for full batches.

    The last, short batch of an epoch comes too seldom. One graph is kept: sizes of images change between epochs, and none
    comes back. The result is good until the next call.

    Warm-up reads its batches from where the graph will read them: where memory begins decides which algorithm a matrix
    product takes, and a resumed run must calculate what an uninterrupted one does.
    """

    def __init__(self, step: Step, batch_size: int, recorder: Recorder) -> None:
        self._step, self._batch_size, self._recorder = step, batch_size, recorder
        self._inputs: Result | None = None
        self._graph: Replay | None = None
        self._result: Result | None = None
        self._count = 0  # of steps of this shape before it is recorded
        self._gave_up = False

    def __call__(self, images: Tensor, labels: Tensor) -> Result:
        if self._gave_up or len(labels) != self._batch_size:
            return self._step(images, labels)
        if self._inputs is None or self._inputs[0].shape != images.shape:
            self._graph, self._result, self._count = None, None, 0
            self._inputs = torch.empty_like(images), torch.empty_like(labels)
        for place, values in zip(self._inputs, (images, labels), strict=True):
            place.copy_(values)
        if self._graph is None and self._count == WARM_UP:
            self._record()
        if self._graph is None or self._result is None:
            self._count += 1
            return self._recorder.run(self._own_step)
        self._graph.replay()
        return self._result

    def _own_step(self) -> Result:
        assert self._inputs is not None
        return self._step(*self._inputs)

    def _record(self) -> None:
        """A graph of the step, or none any more where it can't be recorded; that is no reason to fail a run."""
        try:
            self._graph, self._result = self._recorder.record(self._own_step)
        except NotRecorded as error:
            self._gave_up = True
            _log.warning("Training goes on without a CUDA graph, more slowly: %s", error)
