"""CUDA graphs: a training step recorded once and then replayed, so that the CPU starts one thing per step, not a hundred.

A graph holds kernels with the addresses that they read and write, so everything else about a step must be the same every
time: the shape of the batch, and what Python decides on the way. Nothing is saved and put back. The first steps of a shape
run as usual, recording runs nothing, and each replay is the next step. The step itself is the engine's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3  # steps of a shape before it is recorded: they allocate what stays, such as momentum, and choose algorithms
Result = tuple[Tensor, Tensor]
StepFunction = Callable[[Tensor, Tensor], Result]  # (images, labels) -> (loss, predicted classes)
_log = logging.getLogger(__name__)


class NotRecorded(RuntimeError):
    """A step can't be recorded. It may still run as usual."""


class Replay(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Start it once more; returns before the GPU has finished."""


class GraphedStep:
    """A step that is replayed from a graph for full batches. The result is valid until the next call.

    The short last batch of an epoch runs as usual: it comes too seldom to be worth a graph. One graph is kept, because
    sizes of images change between epochs and none comes back.

    The warm-up reads its batches from the same place as the graph. The address decides which algorithm a matrix product
    uses, and a resumed run must compute the same bits as an uninterrupted one.
    """

    def __init__(self, step: StepFunction, batch_size: int, recorder: Recorder) -> None:
        self._step, self._batch_size, self._recorder = step, batch_size, recorder
        self._inputs: Result | None = None
        self._graph: Replay | None = None
        self._result: Result | None = None
        self._steps_of_shape = 0  # before the recording
        self._gave_up = False

    def __call__(self, images: Tensor, labels: Tensor) -> Result:
        if self._gave_up or len(labels) != self._batch_size:
            return self._step(images, labels)
        if self._inputs is None or self._inputs[0].shape != images.shape:
            self._graph, self._result, self._steps_of_shape = None, None, 0
            self._inputs = torch.empty_like(images), torch.empty_like(labels)
        for place, values in zip(self._inputs, (images, labels), strict=True):
            place.copy_(values)
        if self._graph is None and self._steps_of_shape == WARM_UP:
            self._record()
        if self._graph is None or self._result is None:
            self._steps_of_shape += 1
            return self._recorder.run(self._step_on_inputs)
        self._graph.replay()
        return self._result

    def _step_on_inputs(self) -> Result:
        assert self._inputs is not None
        return self._step(*self._inputs)

    def _record(self) -> None:
        """Record the step. If that fails, the run continues without a graph."""
        try:
            self._graph, self._result = self._recorder.record(self._step_on_inputs)
        except NotRecorded as error:
            self._gave_up = True
            _log.warning("Training goes on without a CUDA graph, more slowly: %s", error)


class Recorder:
    """Records on a separate CUDA stream, because nothing else may happen on the stream during a recording.

    Steps before a recording run on that stream too, so that what PyTorch and cuBLAS keep for each stream exists by then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], Result]) -> Result:
        """Run ``call`` on the stream, after all earlier and before all later work of the device's usual stream."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = call()
        usual.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], Result]) -> tuple[Replay, Result]:
        """Record ``call`` without running it: the graph, and the tensors into which each replay writes its result.

        Raises ``NotRecorded`` if it can't be recorded. Other threads may go on meanwhile: one of them reads images ahead.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with (
                torch.cuda.stream(self._stream),  # a recording that fails would leave its own stream selected
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = call()
        except RuntimeError as error:
            self._clean_up(pool)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotRecorded(str(error)) from error
        return graph, result

    def _clean_up(self, pool: Any) -> None:
        """End the failed recording for memory and dropout, which PyTorch before 2.14 leaves in the middle of it.

        Raises the error of the GPU, if it has one.
        """
        torch.cuda.synchronize(self._device)
        index = self._stream.device_index
        with contextlib.suppress(RuntimeError):  # PyTorch has done it already
            torch._C._cuda_endAllocateToPool(index, pool)
        random = torch.cuda.default_generators[index]
        random.graphsafe_set_state(random.clone_state())
