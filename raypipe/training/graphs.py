"""CUDA graphs: the hundreds of kernels of a step, or of a prediction, launched as one.

A step of the Conformer is 2,300 kernels of 2 microseconds each, which a GPU computes in a tenth of the time that Python
takes to launch them. A graph launches them at once. It runs the same kernels on the same memory, so its results are
those of the first calls, which are not graphs, bit for bit.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raypipe.core.errors import first_line
from raypipe.training.loader import Batch
from raypipe.training.step import StepResult, TrainState

log = logging.getLogger(__name__)

UNCAPTURED_CALLS = 2
"""Calls of a shape before it is captured: libraries allocate their workspaces in the first, and rare shapes stay."""
MAX_GRAPHS = 8
"""Shapes of one function that are captured; the others are computed kernel by kernel."""

Arguments = Sequence[Tensor | None]
_live: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
"""Graphs that may still be replayed."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    output: Tensor


class CudaGraphs:
    """A function of tensors, as one CUDA graph for each shape of its arguments.

    Parameters
    ----------
    function
        Computes a tensor from the arguments. It waits for nothing and always launches the same kernels.
    clean_up
        Called after a capture that failed, to undo what the function left in Python objects.
    """

    def __init__(self, function: Callable[[Arguments], Tensor], clean_up: Callable[[], None] = lambda: None) -> None:
        self._function, self._clean_up = function, clean_up
        self._captured: dict[object, _Captured | None] = {}
        self._calls: Counter[object] = Counter()
        self._version: object = None

    def __call__(self, arguments: Arguments, version: object, variant: object = None) -> Tensor:
        """Return the function's result.

        Parameters
        ----------
        arguments
            On the device; None for one that is not used.
        version
            Changes whenever tensors that the function reads or writes, other than its arguments, are replaced.
        variant
            Which of its sequences of kernels the function launches.
        """
        if version != self._version:
            self._captured, self._calls, self._version = {}, Counter(), version
        shapes = tuple(None if argument is None else (argument.shape, argument.dtype) for argument in arguments)
        key = (variant, shapes)
        if key not in self._captured:
            self._calls[key] += 1
            if self._calls[key] <= UNCAPTURED_CALLS or len(self._captured) >= MAX_GRAPHS:
                return self._function(arguments)
            self._captured[key] = self._capture(arguments)
        captured = self._captured[key]
        if captured is None:
            return self._function(arguments)
        for own, given in zip(captured.inputs, arguments, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        captured.graph.replay()
        return captured.output.clone()

    def _capture(self, arguments: Arguments) -> _Captured | None:
        """Capture a call, which computes nothing yet; return None if it cannot be captured."""
        inputs = [None if argument is None else argument.clone() for argument in arguments]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process, which load windows and write checkpoints, may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=_shared_pool(), capture_error_mode="thread_local"):
                output = self._function(inputs)
        except torch.OutOfMemoryError:
            self._give_up()
            raise
        except RuntimeError as error:
            self._give_up()
            log.warning("computed kernel by kernel, not as a CUDA graph: %s", first_line(error))
            return None
        _live.add(graph)
        return _Captured(graph, inputs, output)

    def _give_up(self) -> None:
        _live.clear()  # their pool is of no more use: torch takes it for one that is still recorded to
        self._clean_up()


def _shared_pool() -> Any:
    """Return the memory pool of this process's graphs, or None for a new one if there are none.

    They run one after another, and what they return is copied. So each may use the memory of the others. A pool whose
    graphs are all gone cannot be used again.
    """
    return next((graph.pool() for graph in list(_live)), None)


class Stepper:
    """Take steps of one model, or of several whose gradients are computed together; on a GPU as CUDA graphs.

    Parameters
    ----------
    states
        One per model.
    compute
        Takes a batch per model and does what `optimise` does.
    whole
        Whether whole batches are computed; micro-batches are not captured.
    """

    def __init__(
        self,
        states: Sequence[TrainState[Any]],
        compute: Callable[[Sequence[Batch]], list[StepResult]],
        *,
        whole: bool = True,
    ) -> None:
        self.states, self._compute = list(states), compute
        self._graphs = CudaGraphs(self._outcome, self._forget) if whole and states[0].deferred else None

    def step(self, batches: Sequence[Batch]) -> list[StepResult]:
        """Take a step; see `step.take_step`."""
        second = self.states[0].needs_second_pass
        if self._graphs is None:
            results = self._compute(batches)
        else:
            tensors = [tensor for batch in batches for tensor in batch]
            outcome_S2 = self._graphs(tensors, tuple(state.version for state in self.states), variant=second)
            results = [StepResult(loss, False, norm) for loss, norm in outcome_S2]
        for state, result in zip(self.states, results, strict=True):
            state.finish_step(result, second_pass=second)
        return results

    def _outcome(self, arguments: Arguments) -> Tensor:
        """Return loss and gradient norm of each model (S, 2)."""
        batches = [Batch(*arguments[start : start + 3]) for start in range(0, len(arguments), 3)]  # type: ignore[arg-type]
        rows = [(result.loss, result.grad_norm) for result in self._compute(batches)]
        return torch.stack([torch.stack([torch.as_tensor(value) for value in row]) for row in rows])

    def _forget(self) -> None:
        for state in self.states:
            if state.sam is not None:
                state.sam.forget()
