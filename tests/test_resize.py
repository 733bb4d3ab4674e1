"""Resized images: at conversion, and in the same way wherever a policy gets images of the size of the recording."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, ddp, ok, ok_json, refused
from data.test_recordings import write_replay_buffer
from PIL import Image

from ddp_cli import load_policy
from ddp_cli.data.store import Store
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import ConfigError
from ddp_cli.image_size import auto_size
from ddp_cli.presets import train_config
from ddp_cli.resize import resize
from ddp_cli.schema import Camera
from ddp_cli.sim.gymnasium_env import GymnasiumEnv, GymnasiumSettings
from ddp_cli.training.dataloader import load_training_data


def noise_image(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(24, 32), (7, 50), (100, 90), (60, 80)])
def test_it_equals_bilinear_resizing_of_pillow(size: tuple[int, int]) -> None:
    image = noise_image(60, 80)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    resized = resize(np.stack([image, image[::-1]])[None], size)
    assert resized.shape == (1, 2, *size, 3)
    assert resized.dtype == np.uint8
    assert np.abs(resized[0, 0] - expected).max() <= 1
    np.testing.assert_array_equal(resized[0, 1], resize(image[::-1], size))
    assert resize(np.full((9, 9, 1), 255, np.uint8), size).min() == 255


def test_pad_and_crop_keep_the_proportions() -> None:
    image = noise_image(60, 80)
    padded = resize(image, (32, 32), "pad")
    np.testing.assert_array_equal(padded[4:28], resize(image, (24, 32)))
    assert not padded[:4].any()
    assert not padded[28:].any()
    np.testing.assert_array_equal(resize(image, (30, 30), "crop"), resize(image[:, 10:70], (30, 30)))
    np.testing.assert_array_equal(resize(image, (30, 60), "crop"), resize(image[10:50], (30, 60)))
    with pytest.raises(ValueError, match="fit 'fill'"):
        resize(image, (3, 3), "fill")


def test_a_camera_of_the_recorded_size_is_not_resized() -> None:
    camera = Camera(height=60, width=80).resized(30, 40, "pad")
    assert (camera.shape, camera.recorded_shape, camera.fit) == ((30, 40, 3), (60, 80, 3), "pad")
    assert camera.resized(60, 80) == Camera(height=60, width=80)
    assert camera.resized(15, 20).recorded == (60, 80)


@pytest.fixture(scope="module")
def resized_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run on images of 16x20 that were resized to 32x24, and the recorded images."""
    folder = tmp_path_factory.mktemp("resized")
    images = write_replay_buffer(folder / "p.zarr")["img"].astype(np.uint8)
    command = ("convert", folder / "p.zarr", "--rate", 10, "--keys", "img", "--out", folder / "s.zarr")
    text = ok(ddp(*command, "--image-size", "32x24", "--fit", "pad")).output
    assert "img 32x24x3 (from 16x20, pad)" in " ".join(text.split())
    settings = [f"--set={key}={value}" for key, value in {**TINY, "encoder": "small"}.items()]
    command = ("train", "--task", "p", "--data", folder / "s.zarr", "--steps", 1, "--preset", "laptop", *settings)
    ok(ddp(*command, "--runs", folder / "runs", "--name", "r"))
    return folder, images


def test_a_store_holds_resized_images(resized_run: tuple[Path, np.ndarray]) -> None:
    folder, images = resized_run
    store = Store(folder / "s.zarr")
    np.testing.assert_array_equal(store.read("img"), resize(images, (32, 24), "pad"))
    assert store.task.schema.cameras["img"].recorded == (16, 20)


def test_policies_take_images_of_the_recorded_size(resized_run: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, images = resized_run
    run, window = folder / "runs/p/r", images[:2]
    small = resize(window, (32, 24), "pad")
    policy = load_policy(run)
    expected = policy.act({"img": small})
    policy.reset()
    np.testing.assert_array_equal(policy.act({"img": window}), expected)

    ok(ddp("export", run, "--out", tmp_path / "policy"))
    exported = Policy.load(tmp_path / "policy")
    noise = exported.sample_noise(np.random.default_rng(0))
    np.testing.assert_array_equal(exported.act({"img": window}, noise), exported.act({"img": small}, noise))
    with pytest.raises(PolicyError, match=r"shape \(2, 8, 8, 3\), expected \(2, 32, 24, 3\) or \(2, 16, 20, 3\)"):
        exported.act({"img": np.zeros((2, 8, 8, 3), np.uint8)})
    assert "uint8 (32, 24, 3) or (16, 20, 3)" in (tmp_path / "policy/README.md").read_text()

    env = GymnasiumEnv(policy.source.task, "image", GymnasiumSettings("reach_env:Reach-v0"))
    env.reset(0)
    recorded = env._env.unwrapped._observe()["pixels"]
    np.testing.assert_array_equal(env.observe("image")["img"], resize(recorded, (32, 24), "pad"))


def test_sizes_in_a_schema_are_those_to_convert_to(tmp_path: Path) -> None:
    images = write_replay_buffer(tmp_path / "p.zarr")["img"].astype(np.uint8)
    schema = ok_json("inspect", tmp_path / "p.zarr")["schema"] | {"rate": 10}
    schema["cameras"]["img"] |= {"height": 8, "width": 10, "fit": "crop"}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    ok(ddp("convert", tmp_path / "p.zarr", "--schema", tmp_path / "schema.json", "--out", tmp_path / "s.zarr"))
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("img"), resize(images, (8, 10), "crop"))


def test_invalid_sizes_and_episodes_are_refused(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    assert "--image-size '8' is not a size" in refused(ddp(*command, "--image-size", "8"))
    assert "--image-size '0x8' is not a size" in refused(ddp(*command, "--image-size", "0x8"))
    assert "--fit pad needs a size" in refused(ddp(*command, "--fit", "pad"))
    assert "has no episode '7'" in refused(ddp(*command, "--drop-episodes", "1,7"))
    assert "no episode of" in refused(ddp(*command, "--drop-episodes", "0,1,2"))
    ok(ddp(*command, "--drop-episodes", "1"))
    assert Store(tmp_path / "s.zarr").attrs["source"]["demos"] == ["0", "2"]


def test_training_resizes_what_a_store_holds(tmp_path: Path) -> None:
    """In memory and on disk, for its windows, the held-out episodes and the export."""
    images = write_replay_buffer(tmp_path / "p.zarr")["img"].astype(np.uint8)
    ok(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--keys", "img", "--out", tmp_path / "s.zarr"))
    store = Store(tmp_path / "s.zarr")
    config = train_config(store.task, "image", "laptop", None, {"image_size": "32x24", **TINY, "encoder": "small"})
    assert config.policy.task.schema.cameras["img"].recorded == (16, 20)
    expected = resize(images, (32, 24))
    view = store.for_task(config.policy.task)
    np.testing.assert_array_equal(view.read("img"), expected)
    for rows in (slice(3, 5), slice(1, None, 3), slice(-4, None)):
        np.testing.assert_array_equal(view.read("img", rows=rows), expected[rows])
    assert (view.shape("img"), view.nbytes("img")) == (expected.shape, expected.nbytes)
    assert view.observations_hash() == store.observations_hash()
    notes: list[str] = []
    for budget in (1e9, 0):
        data = load_training_data(config, view, torch.device("cpu"), notes.append, budget)
        np.testing.assert_array_equal(data.train.arrays["img"], expected)
    assert "s.zarr.32x24.decoded" in notes[0]

    command = ("train", "--task", "p", "--data", tmp_path / "s.zarr", "--steps", 1, "--preset", "laptop")
    settings = [f"--set={key}={value}" for key, value in {**TINY, "encoder": "small", "image_size": "32x24"}.items()]
    output = ok(ddp(*command, *settings, "--runs", tmp_path / "runs", "--name", "r")).output
    assert "img: images of 16x20 are resized to 32x24" in " ".join(output.split())
    run = tmp_path / "runs/p/r"
    settings_file = tmp_path / "train.json"
    settings_file.write_text(json.dumps(json.loads((run / "config.json").read_text())["train"]))
    ok(ddp(*command, "--config", settings_file, "--runs", tmp_path / "runs", "--name", "again"))
    configs = [json.loads((tmp_path / f"runs/p/{name}/config.json").read_text())["train"] for name in ("r", "again")]
    assert configs[0] == configs[1]
    assert ok_json("eval", run)["held_out"]
    ok(ddp("export", run, "--out", tmp_path / "policy"))
    policy = Policy.load(tmp_path / "policy")
    noise = policy.sample_noise(np.random.default_rng(0))
    np.testing.assert_array_equal(policy.act({"img": images[:2]}, noise), policy.act({"img": expected[:2]}, noise))


def test_the_laptop_preset_chooses_the_size_of_large_images(resized_run: tuple[Path, np.ndarray]) -> None:
    sizes = {(480, 640): (96, 128), (720, 1280): (84, 148), (224, 224): (112, 112), (96, 96): (96, 96), (8, 9): (8, 9)}
    for size, expected in sizes.items():
        assert auto_size(Camera(height=size[0], width=size[1])) == expected
    task = Store(resized_run[0] / "s.zarr").task
    large = replace(task, schema=task.schema.model_copy(update={"cameras": {"img": Camera(height=480, width=640)}}))
    for preset, size in (("laptop", (96, 128)), ("paper", (480, 640))):
        camera = train_config(large, "image", preset).policy.cameras["img"]
        assert (camera.height, camera.width) == size
    assert train_config(large, "image", "laptop", None, {"image_size": "recorded"}).policy.task == large
    # The task in a configuration fixes its images, unless a size is given: that is of the images in the store.
    for size in ((480, 640), (48, 64)):
        camera = large.schema.cameras["img"].resized(*size)
        file = {"task": replace(large, schema=large.schema.model_copy(update={"cameras": {"img": camera}})).to_json()}
        assert train_config(large, "image", "laptop", file).policy.cameras["img"] == camera
        chosen = train_config(large, "image", "laptop", file, {"image_size": "32x40"}).policy.cameras["img"]
        assert chosen == large.schema.cameras["img"].resized(32, 40)
    for value, message in (
        ("9x16", "sides have at least 16 pixels"),
        ("9", "image_size '9' is not a size"),
        (9, "image_size = 9: expected a size"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_config(large, "image", "laptop", None, {"image_size": value})
    with pytest.raises(ConfigError, match="the images 'img' were resized to 32x24 by ddp convert"):
        train_config(task, "image", "laptop", None, {"image_size": "96x96"})
    with pytest.raises(ConfigError, match="the images of the task 'lift' are rendered"):
        train_config("lift", "image", "laptop", None, {"image_size": "96x96"})


def test_a_store_of_another_size_is_refused(resized_run: tuple[Path, np.ndarray]) -> None:
    store = Store(resized_run[0] / "s.zarr")
    for size in ((16, 20), (40, 40)):
        camera = store.task.schema.cameras["img"].resized(*size)
        other = replace(store.task, schema=store.task.schema.model_copy(update={"cameras": {"img": camera}}))
        with pytest.raises(ConfigError, match=r"cameras\.img\.shape \[32, 24, 3\] instead of"):
            store.for_task(other)
