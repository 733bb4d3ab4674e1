"""Functions of tensors recorded as CUDA graphs.

A small network at batch size 1 keeps a GPU waiting: launching a kernel takes longer than running it. A CUDA graph
launches all kernels of a function at once. Its inputs and outputs live at fixed addresses, so arguments are copied in
and results are copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

WARM_UPS = 3  # calls before recording, in which libraries choose their kernels and allocate their workspaces

Inputs = Mapping[str, Tensor]
T = TypeVar("T")


def run_on_side_stream(fn: Callable[[], T], device: torch.device) -> T:
    """The result of `fn`, run on a stream of its own as recording does."""
    with torch.cuda.device(device):  # streams belong to the current device, which need not be that of the tensors
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = fn()
        torch.cuda.current_stream().wait_stream(stream)
        return result


def record(fn: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of `fn` and what it returns: tensors that each replay fills. Nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: by default, a thread that allocates pinned memory meanwhile, as for the next batch, is an error.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
    ):
        result = fn()
    return graph, result


class GraphedFunction:
    """`fn` (tensors by name -> a tensor, all on `device`), recorded once for each combination of shapes; without
    gradients.
    """

    def __init__(self, fn: Callable[[Inputs], Tensor], device: torch.device) -> None:
        self.fn, self.device = fn, device
        self._recordings: dict[tuple[tuple[str, torch.Size], ...], _Recording] = {}

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        shapes = tuple((key, x.shape) for key, x in inputs.items())
        if shapes not in self._recordings:
            self._recordings[shapes] = _Recording(self.fn, inputs, self.device)
        return self._recordings[shapes](inputs)


class _Recording:
    def __init__(self, fn: Callable[[Inputs], Tensor], inputs: Inputs, device: torch.device) -> None:
        self.inputs = {key: x.clone() for key, x in inputs.items()}
        for _ in range(WARM_UPS):
            run_on_side_stream(lambda: fn(self.inputs), device)
        self.graph, self.output = record(lambda: fn(self.inputs), device)

    def __call__(self, inputs: Inputs) -> Tensor:
        for key, x in self.inputs.items():
            x.copy_(inputs[key])
        self.graph.replay()
        return self.output.clone()
