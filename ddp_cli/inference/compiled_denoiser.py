"""The folded denoiser, compiled by torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from ddp_cli.core.denoiser import Denoiser
from ddp_cli.errors import ConfigError
from ddp_cli.inference.folded_denoiser import FoldedDenoiseFn, FoldedMemory, make_torch_denoise_fn


def make_compiled_denoise_fn(denoiser: Denoiser) -> FoldedDenoiseFn:
    """`make_torch_denoise_fn` with torch.compile, on a GPU with CUDA graphs. Compiles on the first call."""
    on_gpu = denoiser.pos_emb.device.type == "cuda"
    mode = "reduce-overhead" if on_gpu else "default"
    compiled = torch.compile(make_torch_denoise_fn(denoiser), dynamic=False, mode=mode)

    def denoise(x: Tensor, memory: FoldedMemory) -> Tensor:
        try:
            return compiled(x, memory)
        except Exception as e:  # a missing compiler raises one of many types
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise ConfigError(f"torch.compile does not work on this machine: {reason}", "Use --engine torch.") from e

    return denoise
