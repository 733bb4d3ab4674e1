from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config

from ddp_cli import memory
from ddp_cli.data.image_cache import cache_folder, decode_arrays
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output
from ddp_cli.memory import available_memory
from ddp_cli.tasks import CAMERAS, proprioception
from ddp_cli.training.dataloader import BatchLoader, load_training_data

KEYS = [*CAMERAS, "action"]
COPIED = ("render", "obs", "env_args", "versions", "action", "source")


@pytest.fixture
def store(lift_zarr: Path, tmp_path: Path) -> Store:
    """A store at a path of its own, so that its decoded folder is new."""
    (tmp_path / "lift.zarr").symlink_to(lift_zarr)
    return Store(tmp_path / "lift.zarr")


def test_images_that_exceed_the_budget_are_memory_mapped(store: Store) -> None:
    messages: list[str] = []
    size = sum(store.nbytes(k) for k in CAMERAS)
    in_memory = decode_arrays(store, KEYS, size, messages.append)
    assert not in_memory.memory_maps
    assert not cache_folder(store).exists()
    assert messages == []
    mapped = decode_arrays(store, KEYS, size - 1, messages.append)
    assert len(mapped.memory_maps) == len(CAMERAS)
    assert "0.00 GB" in messages[0]
    assert str(cache_folder(store)) in messages[0]
    for key in KEYS:
        np.testing.assert_array_equal(mapped.data[key], in_memory.data[key])
    decode_arrays(store, KEYS, 0, pytest.fail)  # the second time nothing is written


def test_the_decoded_folder_of_another_store_is_replaced(store: Store) -> None:
    decode_arrays(store, KEYS, 0, lambda _: None)
    folder = cache_folder(store)
    (folder / "identity").write_text("another")
    (folder / "agentview_image.npy").write_bytes(b"")
    messages: list[str] = []
    again = decode_arrays(store, KEYS, 0, messages.append)
    assert len(messages) == 1
    np.testing.assert_array_equal(again.data["agentview_image"], store.read("agentview_image"))


def test_a_truncated_file_is_decoded_again(store: Store) -> None:
    decode_arrays(store, KEYS, 0, lambda _: None)
    path = cache_folder(store) / "agentview_image.npy"
    path.write_bytes(path.read_bytes()[:5000])
    again = decode_arrays(store, KEYS, 0, lambda _: None)
    np.testing.assert_array_equal(again.data["agentview_image"], store.read("agentview_image"))


@pytest.mark.parametrize("damage", ["zeros", "a flipped bit", "missing"])
def test_a_damaged_file_is_decoded_again(store: Store, damage: str) -> None:
    decode_arrays(store, KEYS, 0, lambda _: None)
    path = cache_folder(store) / "robot0_eye_in_hand_image.npy"
    content = bytearray(path.read_bytes())
    if damage == "zeros":  # as after a power loss: the right size, and a valid header
        content[128:] = bytes(len(content) - 128)
    content[-1] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(content)
    messages: list[str] = []
    again = decode_arrays(store, KEYS, 0, messages.append)
    assert len(messages) == 1
    for key in CAMERAS:
        np.testing.assert_array_equal(again.data[key], store.read(key))


def test_a_store_with_the_same_recording_and_other_images_is_decoded_again(lift_zarr: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lift_zarr, tmp_path / "lift.zarr"))
    decode_arrays(Store(path), KEYS, 0, lambda _: None)
    store = Store(path)
    lengths = [end - begin for begin, end in store.episode_bounds]
    other = StoreWriter(tmp_path / "other.zarr", store.task, lengths, {k: store.attrs[k] for k in COPIED}, 3)
    widths = {"object": 10, **proprioception(["Panda"]), "action": 7}
    for n in lengths:
        images = dict.fromkeys(CAMERAS, np.full((n, 84, 84, 3), 7, np.uint8))
        other.append(images | {key: np.ones((n, width), np.float32) for key, width in widths.items()})
    other.finish({})
    shutil.rmtree(path)
    (tmp_path / "other.zarr").rename(path)
    assert (decode_arrays(Store(path), KEYS, 0, lambda _: None).data["agentview_image"] == 7).all()


@pytest.fixture
def share(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the store, made read-only by `os.open` and `os.mkdir`: permissions do not stop root."""
    folder = store.path.parent
    for name, writes in (
        ("open", lambda flags: flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY)),
        ("mkdir", lambda *_: True),
    ):
        real = getattr(os, name)

        def read_only(path, *args, real=real, writes=writes, **kwargs):
            if folder in Path(path).parents and writes(args[0] if args else 0):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, name, read_only)
    return folder


def test_a_read_only_share_with_decoded_images_is_used_as_it_is(store: Store, request: pytest.FixtureRequest) -> None:
    decode_arrays(store, KEYS, 0, lambda _: None)
    share = request.getfixturevalue("share")
    before = sorted(share.rglob("*"))
    arrays = decode_arrays(store, KEYS, 0, pytest.fail)
    np.testing.assert_array_equal(arrays.data["agentview_image"], store.read("agentview_image"))
    assert sorted(share.rglob("*")) == before


def test_images_of_a_read_only_share_are_decoded_elsewhere(
    store: Store, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(
        DataError, match=r"cannot be decoded to '.*\.decoded': Read-only file system.*--set cache_dir=DIR"
    ):
        decode_arrays(store, KEYS, 0, lambda _: None)
    before, messages = sorted(share.rglob("*")), []
    cache = tmp_path_factory.mktemp("caches") / "new"
    config = tiny_config(memory_gb=1e-9, cache_dir=str(cache))
    data = load_training_data(config, store, torch.device("cpu"), messages.append)
    assert str(cache) in messages[0]
    np.testing.assert_array_equal(data.train.arrays["agentview_image"], store.read("agentview_image"))
    assert sorted(share.rglob("*")) == before
    (folder,) = cache.iterdir()
    assert folder.name.startswith("lift.zarr-")
    load_training_data(config, store, torch.device("cpu"), pytest.fail)


def test_stores_of_one_name_have_folders_of_their_own(lift_zarr: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(lift_zarr, tmp_path / name / "lift.zarr")
    folders = {cache_folder(Store(tmp_path / name / "lift.zarr"), str(tmp_path)) for name in ("a", "b")}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path}


def test_a_second_process_waits_for_the_decoded_images(store: Store) -> None:
    """The other one is a thread here, which decodes when it is waited for."""
    locked, is_waited_for = threading.Event(), threading.Event()
    messages: dict[str, list[str]] = {"first": [], "second": []}

    def decode_first() -> None:
        with lock_output(cache_folder(store)):
            locked.set()
            is_waited_for.wait()
            decode_arrays(store, KEYS, 0, messages["first"].append)

    def receive(message: str) -> None:
        messages["second"].append(message)
        is_waited_for.set()

    thread = threading.Thread(target=decode_first)
    thread.start()
    locked.wait()
    arrays = decode_arrays(store, KEYS, 0, receive)
    thread.join()
    np.testing.assert_array_equal(arrays.data["agentview_image"], store.read("agentview_image"))
    assert "decoding them once" in messages["first"][0]
    assert len(messages["second"]) == 1
    assert messages["second"][0].endswith(": waiting for it")
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["lift.zarr", "lift.zarr.decoded"]


def test_an_interruption_leaves_no_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Store.read

    def interrupted(self: Store, key: str, **kwargs: object) -> np.ndarray:
        if kwargs:
            raise KeyboardInterrupt
        return read(self, key)

    monkeypatch.setattr(Store, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_arrays(store, KEYS, 0, lambda _: None)
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["lift.zarr"]


def test_too_little_disk_space_is_reported_before_decoding(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match="the disk has 0.00 GB"):
        decode_arrays(store, KEYS, 0, lambda _: None)
    assert not cache_folder(store).exists()


def test_batches_from_disk_equal_those_from_memory(store: Store) -> None:
    """Prefetched by threads or not, in any order of steps."""
    loaders = []
    for memory_gb in (1.0, 1e-9):
        config = tiny_config(memory_gb=memory_gb)
        data = load_training_data(config, store, torch.device("cpu"), lambda _: None)
        loaders.append(BatchLoader(data.train, 16, 42, slice(3, 9), torch.device("cpu")))
    memory, disk = loaders
    assert (memory.n_threads, memory.windows.on_disk) == (0, False)
    assert disk.n_threads >= 1
    assert disk.windows.on_disk
    for step in (0, 1, 2, 7, 3):
        a, b = memory.batch(step), disk.batch(step)
        assert len(a["action"]) == 6
        assert torch.equal(a["action"], b["action"])
        for key in CAMERAS:
            assert torch.equal(a["obs"][key], b["obs"][key])


MEASURE_PEAK_MB = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import tiny_config
from ddp_cli.training.dataloader import BatchLoader, load_training_data
from ddp_cli.data.store import Store
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
store, cpu = Store(Path(sys.argv[2])), torch.device("cpu")
config = tiny_config(memory_gb=float(sys.argv[3]), batch_size=16)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = memory("VmRSS")
loader = BatchLoader(load_training_data(config, store, cpu, lambda _: None).train, 16, 42, slice(0, 16), cpu)
for step in range(800):
    loader.batch(step)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_stays_within_the_budget_for_a_store_ten_times_as_large(lift_store: Store, tmp_path: Path) -> None:
    steps, budget_mb = 10_000, 42
    attributes = {k: lift_store.attrs[k] for k in COPIED}
    writer = StoreWriter(tmp_path / "large.zarr", lift_store.task, [1000] * 10, attributes, 3)
    for i in range(10):
        images = np.full((1000, 84, 84, 3), i, np.uint8)
        low_dim = {"object": 10, **proprioception(["Panda"]), "action": 7}
        writer.append(dict.fromkeys(CAMERAS, images) | {k: np.zeros((1000, n), np.float32) for k, n in low_dim.items()})
    writer.finish({})
    store = Store(tmp_path / "large.zarr")
    assert sum(store.nbytes(k) for k in CAMERAS) == steps * 2 * 84 * 84 * 3 > 10 * budget_mb * 1e6

    def peak_mb(memory_gb: float) -> float:
        values = [str(x) for x in (Path(__file__).parents[1], store.path, memory_gb)]
        command = [sys.executable, "-c", MEASURE_PEAK_MB, *values]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_mb(budget_mb / 1e3) < budget_mb
    assert peak_mb(1.0) > 400  # in memory, which shows that the measurement works


def test_available_memory_is_plausible() -> None:
    assert 1e8 < available_memory() < 1e14


@pytest.mark.parametrize(
    ("entry", "mount", "limit", "used"),
    [
        ("0::/slurm/job_7/step_0", "", "memory.max", "memory.current"),
        ("4:cpu,memory:/slurm/job_7/step_0", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_smallest_limit_of_the_control_groups_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, mount: str, limit: str, used: str
) -> None:
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemAvailable: 1000000 kB\n")
    assert available_memory() == 1_024_000_000
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/\n{entry}\n")
    job = tmp_path / "sys/fs/cgroup" / mount / "slurm/job_7"
    (job / "step_0").mkdir(parents=True)
    for folder, values in {job: ("50000000", "30000000"), job / "step_0": ("max", "20000000")}.items():
        for name, value in zip((limit, used), values, strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 5000000\n")
    assert available_memory() == 25_000_000
    (job / "memory.stat").write_text("")
    assert available_memory() == 20_000_000
