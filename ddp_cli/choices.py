"""The values of options that have a fixed set, shared by the command line (help, completion) and the configuration.

Nothing is imported here, so `ddp --help` can read it at once. `typing.get_args` lists the values of each.
"""

from __future__ import annotations

from typing import Literal

Obs = Literal["image", "state"]
"""What a policy observes: camera images, or the pose of the object. Both come with proprioception."""

ActionConvention = Literal["delta", "absolute"]
"""delta: the motion of the end effector in the base frame. absolute: its goal pose in the world frame."""

PolicyActions = Literal["delta", "absolute", "recorded"]
"""What a policy predicts: actions of robosuite's controller in a convention, or those of the schema as recorded."""

RenderProfile = Literal["full", "fast", "coarse"]
"""full: the pixels of robosuite's camera observations. fast: no shadows, reflections or multisampling. coarse: also
fewer faces for the arm. The pixels of a profile never change; other pixels get another name."""

Preset = Literal["paper", "laptop"]
Size = Literal["s", "m", "l"]
"""Size of the networks of the laptop preset."""

Fit = Literal["stretch", "pad", "crop"]
"""How images get other proportions: both sides are scaled independently, black bars are added, or what does not fit is
cut off."""

Sampler = Literal["ddpm", "ddim", "dpm"]
Engine = Literal["auto", "torch", "compile", "onnx"]
"""What computes action chunks. auto: onnx on a CPU where the policy allows it, torch elsewhere."""

ImageBackbone = Literal["resnet18", "small"]
BetaSchedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
PredictionType = Literal["epsilon", "sample"]
TimestepSpacing = Literal["auto", "leading", "trailing"]
"""Which training timesteps are used in inference. leading, as published, ends at 0: with one step, pure noise would be
treated as nearly clean actions. trailing starts at the last. auto: trailing below 10 steps, for dpm, and where leading
would not start in the noisiest fifth of the timesteps, as with 60 steps of 100; otherwise leading."""

TrainingPrecision = Literal["auto", "fp32", "bf16"]
"""auto: bfloat16 autocast in training where the hardware supports it. Weights are always float32."""

ExportFormat = Literal["onnx", "pt2", "aoti", "safetensors", "ddp"]
Precision = Literal["fp32", "fp16", "int8"]
PolicyEpisodes = Literal["successes", "takeovers"]
"""What is kept of the episodes of a policy: those that succeeded, or the steps in which an operator took over."""

DatasetFormat = Literal["lerobot", "robomimic"]
"""What a store can be converted to."""
