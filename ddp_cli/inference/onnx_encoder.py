"""`DiffusionPolicy.encode_obs` (core/policy.py, core/vision.py) as nodes of an ONNX graph.

Built by hand because torch's exporter starts seconds later, see inference/onnx_graph.py.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import nn

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.vision import IMAGE_FEATURE_DIM, N_KEYPOINTS, ImageEncoder, SpatialSoftArgmax, center_crop_offset
from ddp_cli.inference.onnx_graph import GraphBuilder
from ddp_cli.schema import Camera


def add_encoder(g: GraphBuilder, policy: DiffusionPolicy) -> str:
    """Features (B, To, Do) of the observations, which are inputs of the graph named by their keys."""
    config, n_steps, normalizer = policy.config, policy.config.n_obs_steps, policy.normalizer
    parts = []
    for key, camera in config.cameras.items():
        encoder, shape = policy.encoder(key), config.crop(key)
        assert isinstance(encoder, ImageEncoder)
        x = _image_encoder(g, encoder, _cropped_images(g, key, camera, shape), (camera.channels, *shape))
        parts.append(g("Reshape", x, g.int64(-1, n_steps, IMAGE_FEATURE_DIM)))
    for key in config.low_dim:
        scale, offset = (g.constant(normalizer.get_buffer(f"{key}_{part}")) for part in ("scale", "offset"))
        parts.append(g("Add", g("Mul", key, scale), offset))
    features = g("Concat", *parts, axis=-1)
    if policy.fusion is None:
        return features
    return g("Concat", features, _module(g, policy.fusion, features), axis=-1)


def _cropped_images(g: GraphBuilder, key: str, camera: Camera, shape: tuple[int, int]) -> str:
    """Central crops (B To, C, h, w) in [-1, 1] of the images `key`."""
    size = camera.height, camera.width
    x = g("Reshape", key, g.int64(-1, camera.channels, *size))
    starts = [center_crop_offset(side, cropped) for side, cropped in zip(size, shape, strict=True)]
    ends = [start + side for start, side in zip(starts, shape, strict=True)]
    x = g("Slice", x, g.int64(*starts), g.int64(*ends), g.int64(2, 3))
    x = g("Mul", g("Cast", x, to=TensorProto.FLOAT), g.constant(2.0 / 255.0))
    return g("Sub", x, g.constant(1.0))


def _image_encoder(g: GraphBuilder, encoder: ImageEncoder, x: str, shape: tuple[int, int, int]) -> str:
    x = _module(g, encoder.backbone, x)
    if isinstance(encoder.pool, SpatialSoftArgmax):
        with torch.no_grad():
            h, w = encoder.backbone(torch.zeros(1, *shape)).shape[-2:]
        x = _spatial_soft_argmax(g, encoder.pool, x, h, w)
    else:
        x = g("Flatten", x, axis=1)
    return g("Relu", g.linear_layer(x, encoder.linear))


def _spatial_soft_argmax(g: GraphBuilder, pool: SpatialSoftArgmax, x: str, h: int, w: int) -> str:
    """Softmax over the feature map, multiplied by the coordinates (x, y) of its cells."""
    heatmaps = g("Reshape", _module(g, pool.keypoints, x), g.int64(0, N_KEYPOINTS, h * w))
    grid_y, grid_x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    grid = torch.stack([grid_x.flatten(), grid_y.flatten()], dim=-1)
    return g("Reshape", g("MatMul", g("Softmax", heatmaps, axis=-1), g.constant(grid)), g.int64(-1, 2 * N_KEYPOINTS))


def _module(g: GraphBuilder, module: Any, x: str) -> str:
    """A module of a backbone or of the fusion MLP."""
    if isinstance(module, nn.Sequential):
        for child in module:
            x = _module(g, child, x)
        return x
    if hasattr(module, "downsample"):  # torchvision's BasicBlock
        y = _module(g, module.bn1, _module(g, module.conv1, x))
        y = _module(g, module.bn2, _module(g, module.conv2, g("Relu", y)))
        return g("Relu", g("Add", y, _module(g, module.downsample, x) if module.downsample else x))
    if isinstance(module, nn.Conv2d):
        weights = [module.weight] if module.bias is None else [module.weight, module.bias]
        assert not isinstance(module.padding, str)
        return g("Conv", x, *map(g.constant, weights), strides=module.stride, pads=[*module.padding] * 2)
    if isinstance(module, nn.GroupNorm):
        return g.group_norm(x, module)
    if isinstance(module, nn.MaxPool2d):
        k, s, p = ([size] * 2 for size in (module.kernel_size, module.stride, module.padding))
        return g("MaxPool", x, kernel_shape=k, strides=s, pads=p * 2)
    if isinstance(module, nn.Linear):
        return g.linear_layer(x, module)
    return g.gelu(x) if isinstance(module, nn.GELU) else g({nn.ReLU: "Relu"}[type(module)], x)
