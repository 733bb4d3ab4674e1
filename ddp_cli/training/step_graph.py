"""A training step as a CUDA graph: a GPU runs the kernels of a small policy faster than a CPU can launch them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddp_cli.core.cuda_graph import WARM_UPS, record, run_on_side_stream

Tensors = dict[str, Tensor]


class StepGraph:
    """`update` (inputs -> scalars), run as it is in the first calls, then recorded and replayed.

    All tensors that `update` changes, such as weights and the state of the optimizer, must stay where they are.
    """

    def __init__(self, update: Callable[[Tensors], Tensors], device: torch.device) -> None:
        self.update, self.device = update, device
        self.reset()

    def reset(self) -> None:
        """Forget the recording, because tensors that `update` changes have been replaced."""
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = {}
        self._names: list[str] = []
        self._values: Tensor | None = None

    def __call__(self, inputs: Tensors) -> Tensors:
        self._calls += 1
        if self._calls <= WARM_UPS:
            return run_on_side_stream(lambda: self.update(inputs), self.device)
        if self._graph is None:
            self._inputs = {key: x.clone() for key, x in inputs.items()}
            self._graph, self._values = record(self._update_in_place, self.device)
        for key, x in self._inputs.items():
            x.copy_(inputs[key])
        self._graph.replay()
        assert self._values is not None
        return dict(zip(self._names, self._values.clone(), strict=True))

    def _update_in_place(self) -> Tensor:
        results = self.update(self._inputs)
        self._names = list(results)
        return torch.stack([results[name].float() for name in self._names])
