"""`DiffusionPolicy.encode_obs` (core/policy.py, core/vision.py) as nodes of an ONNX graph."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import nn
from torchvision.models.resnet import BasicBlock

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.vision import FEATURES, KEYPOINTS, ImageEncoder, SpatialSoftArgmax
from ddp_cli.inference.onnx_graph import GraphBuilder
from ddp_cli.tasks import IMAGE_SIZE


def encode(g: GraphBuilder, policy: DiffusionPolicy) -> str:
    """From inputs named as the observations to features (B, To, Do)."""
    steps, normalizer = policy.config.n_obs_steps, policy.normalizer
    features = []
    for key, encoder in policy.encoders.items():
        assert isinstance(encoder, ImageEncoder)
        pictures = _pictures(g, key, policy.config.crop_shape)
        features.append(
            g("Reshape", _camera(g, encoder, pictures, policy.config.crop_shape), g.whole(-1, steps, FEATURES))
        )
    for key in policy.config.low_dim:
        scale, offset = (g.constant(normalizer.get_buffer(f"{key}_{part}")) for part in ("scale", "offset"))
        features.append(g("Add", g("Mul", key, scale), offset))
    seen = g("Concat", *features, axis=-1)
    return seen if policy.fusion is None else g("Concat", seen, _module(g, policy.fusion, seen), axis=-1)


def _pictures(g: GraphBuilder, key: str, shape: tuple[int, int]) -> str:
    """The centres (B To, 3, h, w) of pictures, from -1 to 1."""
    x = g("Reshape", key, g.whole(-1, 3, IMAGE_SIZE, IMAGE_SIZE))
    first = [round((IMAGE_SIZE - side) / 2) for side in shape]
    x = g(
        "Slice", x, g.whole(*first), g.whole(*(a + side for a, side in zip(first, shape, strict=True))), g.whole(2, 3)
    )
    x = g("Mul", g("Cast", x, to=TensorProto.FLOAT), g.constant(2.0 / 255.0))
    return g("Sub", x, g.constant(1.0))


def _camera(g: GraphBuilder, encoder: ImageEncoder, x: str, shape: tuple[int, int]) -> str:
    x = _module(g, encoder.backbone, x)
    if isinstance(encoder.pool, SpatialSoftArgmax):
        with torch.no_grad():
            h, w = encoder.backbone(torch.zeros(1, 3, *shape)).shape[-2:]
        x = _keypoints(g, encoder.pool, x, h, w)
    else:
        x = g("Flatten", x, axis=1)
    return g("Relu", g.layer(x, encoder.linear))


def _keypoints(g: GraphBuilder, pool: SpatialSoftArgmax, x: str, h: int, w: int) -> str:
    """Softmax over the map, times where each of its places is: x and y."""
    heat = g("Reshape", _module(g, pool.keypoints, x), g.whole(0, KEYPOINTS, h * w))
    down, right = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    places = torch.stack([right.flatten(), down.flatten()], dim=-1)
    return g("Reshape", g("MatMul", g("Softmax", heat, axis=-1), g.constant(places)), g.whole(-1, 2 * KEYPOINTS))


def _module(g: GraphBuilder, module: Any, x: str) -> str:
    """A module that a backbone or the fusion is made of."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = _module(g, part, x)
        return x
    if isinstance(module, BasicBlock):
        y = _module(g, module.bn1, _module(g, module.conv1, x))
        y = _module(g, module.bn2, _module(g, module.conv2, g("Relu", y)))
        return g("Relu", g("Add", y, _module(g, module.downsample, x) if module.downsample else x))
    if isinstance(module, nn.Conv2d):
        weights = [module.weight] if module.bias is None else [module.weight, module.bias]
        assert not isinstance(module.padding, str)
        return g("Conv", x, *map(g.constant, weights), strides=module.stride, pads=[*module.padding] * 2)
    if isinstance(module, nn.GroupNorm):
        return _group_norm(g, module, x)
    if isinstance(module, nn.MaxPool2d):
        k, s, p = ([size] * 2 for size in (module.kernel_size, module.stride, module.padding))
        return g("MaxPool", x, kernel_shape=k, strides=s, pads=p * 2)
    if isinstance(module, nn.Linear):
        return g.layer(x, module)
    return g.gelu(x) if isinstance(module, nn.GELU) else g({nn.ReLU: "Relu"}[type(module)], x)


def _group_norm(g: GraphBuilder, norm: nn.GroupNorm, x: str) -> str:
    """As torch's exporter writes it: operator sets below 21 know only norms of single channels."""
    ones, zeros = g.constant(torch.ones(norm.num_groups)), g.constant(torch.zeros(norm.num_groups))
    groups = g("Reshape", x, g.whole(0, norm.num_groups, -1))
    y = g("Reshape", g("InstanceNormalization", groups, ones, zeros, epsilon=norm.eps), g("Shape", x))
    return g("Add", g("Mul", y, g.constant(norm.weight[:, None, None])), g.constant(norm.bias[:, None, None]))
