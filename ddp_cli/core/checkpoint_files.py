"""The files of a checkpoint, see checkpoint.py. They are named here so that a folder is recognized without torch."""

from __future__ import annotations

CONFIG, MODEL, TRAIN_STATE = "config.json", "model.safetensors", "train_state.pt"
