"""Calls that are captured into CUDA graphs once they repeat."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

# Reads the inputs and writes the outputs, by work on the current stream alone.
Call = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None]


class Replayable(Protocol):
    """A captured call."""

    def replay(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Does what the call did, with other inputs and outputs."""


class Captured:
    """A graph with inputs and outputs of its own; everything else keeps its address."""

    def __init__(
        self, call: Call, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        self._inputs = [t.clone() for t in inputs]
        self._outputs = [torch.empty_like(t) for t in outputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            # Kernels that these tensors' alignment asks for cannot be loaded within a capture.
            call(self._inputs, self._outputs)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                call(self._inputs, self._outputs)

    def replay(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        for given, own in zip(outputs, self._outputs, strict=True):
            given.copy_(own)


def capturable(tensor: torch.Tensor) -> bool:
    """Whether work on the tensor's device may be captured now: on a GPU, outside of a capture."""
    return tensor.is_cuda and not torch.cuda.is_current_stream_capturing()


class ChainGraph:
    """The graphs of one function, by key; the least recently used is forgotten.

    A key is captured when it comes a second time: the first call compiles the kernels, and one that
    never comes back is not worth a capture. What the key leaves open must be in the inputs and
    outputs, which are copied; all else that the call touches must be at an address that the key
    names. A capture that fails is not tried again.
    """

    def __init__(
        self,
        capacity: int = 8,
        capture: Callable[..., Replayable] = Captured,
        allowed: Callable[[torch.Tensor], bool] = capturable,
    ) -> None:
        self._capacity, self._capture, self._allowed = capacity, capture, allowed
        self._known: OrderedDict[Hashable, Replayable | None] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._lock = threading.Lock()

    def run(
        self,
        key: Callable[[], Hashable],
        call: Call,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Writes the outputs, by a graph where there is one."""
        if not self._allowed(inputs[0]):
            call(inputs, outputs)
            return
        with self._lock:
            graph = self._find(key(), call, inputs, outputs)
            if graph is not None:
                # Within the lock, because the graph's inputs and outputs are its own.
                graph.replay(inputs, outputs)
                return
        call(inputs, outputs)

    def _find(
        self,
        key: Hashable,
        call: Call,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Replayable | None:
        if key not in self._known:
            self._known[key] = None
            if len(self._known) > self._capacity:
                forgotten, _ = self._known.popitem(last=False)
                self._refused.discard(forgotten)
            return None
        self._known.move_to_end(key)
        if self._known[key] is None and key not in self._refused:
            try:
                self._known[key] = self._capture(call, inputs, outputs)
            except RuntimeError:
                self._refused.add(key)
        return self._known[key]
