"""CUDA graphs: a training step is recorded once and then replayed.

The CPU then launches one graph per step in place of about a hundred kernels. A graph holds kernels and the addresses that
they read and write. Everything else must be the same in every step: the shape of the batch, and every decision that Python
makes. The first steps with a shape run as usual. Recording computes nothing, so no state has to be saved and restored, and
each replay is one training step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3  # steps with a shape before it is recorded: they allocate momentum and other state, and choose algorithms
Result = tuple[Tensor, Tensor]
StepFunction = Callable[[Tensor, Tensor], Result]  # (images, labels) -> (loss, predicted classes)
_log = logging.getLogger(__name__)


class NotRecorded(RuntimeError):
    """The step can't be recorded. It may still run as usual."""


class Replay(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Run the step again. Returns before the GPU has finished."""


class GraphedStep:
    """A training step that is replayed from a graph for full batches. Its result is valid until the next call.

    The shorter last batch of an epoch runs as usual, because one step per epoch is not worth a graph. Only one graph is
    kept: with ``progressive_size`` the size of the images changes between epochs, and an earlier size never returns.

    The warm-up steps read their batches from the same memory as the graph, because the address affects which algorithm is
    chosen for a matrix product, and a resumed run must compute the same bits as an uninterrupted one.
    """

    def __init__(self, step: StepFunction, batch_size: int, recorder: Recorder) -> None:
        self._step, self._batch_size, self._recorder = step, batch_size, recorder
        self._inputs: Result | None = None
        self._graph: Replay | None = None
        self._result: Result | None = None
        self._steps_of_shape = 0  # warm-up steps so far
        self._gave_up = False  # after a recording that failed

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
            _log.warning("Training continues without a CUDA graph, more slowly: %s", error)


class Recorder:
    """Records on a separate CUDA stream, because nothing else may run on a stream while it is recorded.

    The warm-up steps run on that stream too, so that PyTorch and cuBLAS have allocated what they keep for each stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], Result]) -> Result:
        """Run ``call`` on the separate stream, after all earlier and before all later work of the current stream."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = call()
        usual.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], Result]) -> tuple[Replay, Result]:
        """Record ``call`` without running it. Returns the graph, and the tensors to which each replay writes its result.

        Other threads may use the GPU at the same time, such as the one that reads images ahead. Raises ``NotRecorded`` if
        ``call`` can't be recorded, and ``torch.OutOfMemoryError``.
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
        """End a failed recording in the memory allocator and the random generator. PyTorch before 2.14 does not do this.

        Raises the error of the GPU, if there was one.
        """
        torch.cuda.synchronize(self._device)
        index = self._stream.device_index
        with contextlib.suppress(RuntimeError):  # PyTorch has done it already
            torch._C._cuda_endAllocateToPool(index, pool)
        random = torch.cuda.default_generators[index]
        random.graphsafe_set_state(random.clone_state())
