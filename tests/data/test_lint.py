"""Every fault that the lint looks for is found in the right episode and place, and nothing in clean demonstrations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import ddp, ok, ok_json
from data.test_lerobot_recording import write_v2, write_v3

from ddp_cli.data import lint_images
from ddp_cli.data.inspection import describe_source, inspect_source
from ddp_cli.data.lerobot_recording import LeRobotRecording
from ddp_cli.data.lint import lint
from ddp_cli.data.lint_source import Finding, LintSource
from ddp_cli.errors import DataError

EPISODES, STEPS, RATE = 8, 100, 20.0
Arrays = dict[str, np.ndarray]


def make_episodes() -> list[Arrays]:
    """An arm of three joints that waves, a gripper that closes and opens, as recorded at 20 Hz; a camera."""
    episodes = []
    for i in range(EPISODES):
        rng, time = np.random.default_rng(i), np.arange(STEPS + 3 * i) / RATE
        phase = rng.uniform(0, 6, 3)
        joints = np.sin(np.outer(time, rng.uniform(1.5, 2.5, 3)) + phase) + rng.normal(0, 1e-3, (len(time), 3))
        gripper = (np.arange(len(time)) // 40 % 2).astype(float)
        goal = np.roll(joints, -1, axis=0) + rng.normal(0, 1e-3, joints.shape)
        goal[-1] = joints[-1]
        images = rng.integers(0, 256, (len(time), 12, 16, 3), np.uint8)
        action = np.column_stack([goal, gripper])
        episodes.append({"joints": joints, "action": action, "top": images})
    return episodes


def source_of(episodes: list[Arrays], cameras: bool = True) -> LintSource:
    def read(key: str, episode: int) -> np.ndarray:
        return episodes[episode][key]

    def images(key: str, episode: int) -> Iterator[Any]:
        return iter(episodes[episode][key])

    names = {"joints": ("joints pan", "joints lift", "joints elbow"), "action": tuple(f"action[{i}]" for i in range(4))}
    lengths = [len(episode["action"]) for episode in episodes]
    cameras_ = {"top": 12 * 16} if cameras else {}
    return LintSource([f"demo_{i}" for i in range(len(episodes))], lengths, RATE, names, cameras_, read, images)


def findings(change: Callable[[list[Arrays]], None]) -> list[Finding]:
    episodes = make_episodes()
    change(episodes)
    return lint(source_of(episodes))


def only(change: Callable[[list[Arrays]], None], kind: str) -> Finding:
    """The only finding after a change."""
    found = findings(change)
    assert [finding.kind for finding in found] == [kind], found
    return found[0]


def insert_pause(episode: Arrays, step: int, length: int) -> None:
    for key, values in episode.items():
        if key == "top":
            pause = np.random.default_rng(9).integers(0, 256, (length, *values.shape[1:]), np.uint8)
        else:
            noise = np.random.default_rng(9).normal(0, 1e-3, (length, 3))  # of servos, not of the gripper
            pause = np.repeat(values[step : step + 1], length, axis=0)
            pause[:, :3] += noise
        episode[key] = np.insert(values, step, pause, axis=0)


def test_nothing_is_found_in_clean_demonstrations() -> None:
    assert findings(lambda _: None) == []


@pytest.mark.parametrize(
    ("step", "length", "kind", "message"),
    [
        (0, 20, "pause at start", "2 of 8 episodes begin with a pause: "),
        (50, 44, "pause", "2 of 8 episodes pause: "),
        (-1, 30, "pause at end", "2 of 8 episodes end with a pause: "),
    ],
)
def test_pauses(step: int, length: int, kind: str, message: str) -> None:
    def pause(episodes: list[Arrays]) -> None:
        for i in (2, 5):
            insert_pause(episodes[i], step % len(episodes[i]["action"]), length)

    finding = only(pause, kind)
    assert finding.episodes == ["demo_2", "demo_5"]
    numbers = re.fullmatch(
        rf"{message}(\d+) steps \((.*) s\), the longest of (\d+) steps .* step (\d+) of.*", finding.message
    )
    assert numbers
    total, seconds, longest, begin = map(float, numbers.groups())
    # Steps on either side may be still as well.
    assert 2 * length <= total <= 2 * length + 8
    assert seconds == pytest.approx(total / RATE, abs=0.1)
    assert length <= longest <= length + 4
    assert abs(begin - (step if step >= 0 else STEPS + 3 * 2 - 1)) <= 10


def test_short_pauses_are_no_finding() -> None:
    assert findings(lambda episodes: insert_pause(episodes[3], 50, 10)) == []


def test_jumps() -> None:
    def jump(episodes: list[Arrays]) -> None:
        episodes[4]["joints"][30, 1] += 4  # a spike

    # The value is not beyond the range by so much that it were an outlier.
    finding = only(jump, "jump")
    assert finding.episodes == ["demo_4"]
    assert finding.message.startswith("joints lift ")
    assert "in step 30 of episode demo_4, and in 1 more steps" in finding.message


def test_angles_that_wrap_and_quaternions_that_change_their_sign() -> None:
    """Also where this happens so often that it looks usual."""

    def wrap(episodes: list[Arrays]) -> None:
        for episode in episodes:
            episode["joints"][:, 0] = np.linspace(-3, 3, len(episode["joints"]))
        episodes[3]["joints"][:, 0] = np.linspace(0, 5, len(episodes[3]["joints"]))
        episodes[3]["joints"][69:, 0] -= 2 * np.pi  # above 3.14

    assert only(wrap, "jump").message.endswith("in step 69 of episode demo_3: an angle that wraps")

    def flip(episodes: list[Arrays]) -> None:
        for episode in episodes:
            angle = episode["joints"][:, :1] / 4
            episode["joints"] = np.hstack([np.sin(angle), np.cos(angle), 0 * angle, 0 * angle])
        for begin in range(0, 90, 4):
            episodes[6]["joints"][begin : begin + 2] *= -1
        episodes[7]["joints"] *= -1  # as a whole: nothing changes within

    episodes = make_episodes()
    flip(episodes)
    source = source_of(episodes)
    source.vectors["joints"] = tuple(f"joints[{i}]" for i in range(4))
    jump = next(finding for finding in lint(source) if finding.kind == "jump")
    assert jump.episodes == ["demo_6"]
    assert jump.message.endswith(
        "in step 2 of episode demo_6, and in 44 more steps: a quaternion that changes its sign"
    )


def test_outliers() -> None:
    def spoil(episodes: list[Arrays]) -> None:
        episodes[7]["action"][44:46, 2] = 50

    finding = only(spoil, "outlier")
    assert finding.episodes == ["demo_7"]
    assert "but 50 in step 44 of episode demo_7, and in 1 more steps" in finding.message
    assert finding.message.startswith("action[2] is -0.999 to 1 in 98% of all steps")


def test_rows_that_repeat() -> None:
    def hold(episodes: list[Arrays]) -> None:
        joints = episodes[1]["joints"]
        joints[1::2] = joints[: len(joints) - len(joints) % 2 : 2][: len(joints[1::2])]

    finding = only(hold, "repeated")
    assert finding.episodes == ["demo_1"]
    assert "rows of joints repeat the row before while the action moves, first in step " in finding.message

    def freeze(episodes: list[Arrays]) -> None:
        episodes[1]["joints"][20:50] = episodes[1]["joints"][20]

    frozen = next(finding for finding in findings(freeze) if finding.kind == "repeated")
    assert frozen.message.startswith("29 rows of joints repeat")
    assert frozen.message.endswith("first in step 21 of episode demo_1")


def test_images_that_repeat() -> None:
    def drop(episodes: list[Arrays]) -> None:
        for step in (30, 31, 50, 70):
            episodes[5]["top"][step] = episodes[5]["top"][step - 1]

    finding = only(drop, "repeated")
    assert finding.episodes == ["demo_5"]
    assert finding.message.startswith("4 images of top repeat the one before while the robot moves, in 1 of 8 episodes")
    assert finding.message.endswith("first in step 30 of episode demo_5")


def test_images_that_repeat_while_nothing_moves_are_no_finding() -> None:
    def rest(episodes: list[Arrays]) -> None:
        insert_pause(episodes[5], 40, 8)
        episodes[5]["top"][40:48] = episodes[5]["top"][40]

    assert findings(rest) == []


def test_cameras_that_show_nothing() -> None:
    def cover(episodes: list[Arrays]) -> None:
        episodes[2]["top"][:] = 7
        episodes[6]["top"][:] = episodes[6]["top"][0]
        episodes[6]["top"][:, 0, 0] = np.arange(len(episodes[6]["top"]))[:, None]  # a clock in a corner of one pixel
        episodes[6]["top"][:, 0, 0] //= 60

    found = findings(cover)
    assert [(f.kind, f.episodes) for f in found] == [("camera", ["demo_2"]), ("camera", ["demo_6"])]
    assert found[0].message == "top has a single color in 1 of 8 episodes looked at, first in episode demo_2"
    assert found[1].message == "top hardly changes in 1 of 8 episodes looked at, first in episode demo_6"


def test_duplicates() -> None:
    def copy(episodes: list[Arrays]) -> None:
        episodes[4] = {key: values.copy() for key, values in episodes[0].items()}
        episodes[6] = {key: values.copy() for key, values in episodes[1].items()}
        episodes[6]["action"] += np.random.default_rng(0).uniform(-1e-3, 1e-3, episodes[6]["action"].shape)

    found = findings(copy)
    assert [(f.kind, f.episodes) for f in found] == [("duplicate", ["demo_4"]), ("duplicate", ["demo_6"])]
    assert found[0].message == "1 episodes have equal actions as an earlier one: demo_4 as demo_0"
    assert found[1].message == "1 episodes have nearly equal actions as an earlier one: demo_6 as demo_1"


def test_constants() -> None:
    def hold(episodes: list[Arrays]) -> None:
        for episode in episodes:
            episode["joints"][:, 2] = 0.3

    assert only(hold, "constant") == Finding("constant", "joints elbow never changes", [])


def test_saturation_but_not_of_grippers() -> None:
    def clip(episodes: list[Arrays]) -> None:
        for episode in episodes:
            episode["action"][:, 1] = episode["action"][:, 1].clip(None, 0.7)
            gripper = episode["action"][:, 3]
            gripper[:] = (gripper + np.random.default_rng(0).normal(0, 0.02, len(gripper))).clip(0, 1)

    finding = only(clip, "saturated")
    assert finding.message.startswith("action[1] is at its maximum, 0.7, in 2")


def test_chatter() -> None:
    def chatter(episodes: list[Arrays]) -> None:
        episodes[3]["action"][52:54, 3] = 0
        episodes[5]["action"][100:, 3] = 1  # once, on purpose

    finding = only(chatter, "chatter")
    assert finding.episodes == ["demo_3"]
    assert finding.message.startswith("action[3] switches in step 52 of episode demo_3 and back within 4 steps")


def test_lengths() -> None:
    def cut(episodes: list[Arrays]) -> None:
        episodes[2] = {key: values[:30] for key, values in episodes[2].items()}

    finding = only(cut, "length")
    assert finding.episodes == ["demo_2"]
    assert finding.message == "1 episodes are much shorter than the median of 110.5 steps: episode demo_2 has 30 steps"


def test_episodes_of_a_policy_may_take_long_and_wait() -> None:
    """Failed ones do, and what is imitated is not what the policy did."""
    episodes = make_episodes()
    insert_pause(episodes[2], 50, 400)
    source = source_of(episodes)
    assert {finding.kind for finding in lint(source)} == {"length", "pause"}
    assert lint(dataclasses.replace(source, policy_episodes={"demo_2"})) == []
    assert lint(dataclasses.replace(source, policy_episodes=source.episode_names)) == []


def test_values_that_are_not_finite_and_episodes_that_cannot_be_read() -> None:
    episodes = make_episodes()
    episodes[3]["joints"][9, 1] = np.nan
    source = source_of(episodes)

    def read(key: str, episode: int) -> np.ndarray:
        if episode in (1, 2):
            raise DataError(f"episode {episode} is damaged.", "Copy it again.")
        return episodes[episode][key]

    damaged = LintSource(
        source.episode_names, source.lengths, RATE, source.vectors, source.cameras, read, source.images
    )
    assert lint(damaged) == [
        Finding("unreadable", "2 episodes, the first: episode 1 is damaged", ["demo_1", "demo_2"]),
        Finding("not finite", "joints lift in step 9 of episode demo_3", ["demo_3"]),
    ]


def test_images_of_some_episodes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(make_episodes())
    monkeypatch.setattr(lint_images, "MAX_PIXELS", 3.5 * 110.5 * 192)
    assert lint_images.image_episodes(source, list(range(8))) == [0, 4, 7]
    assert lint_images.image_episodes(source_of(make_episodes(), cameras=False), [0, 1]) == []


# -- as `ddp inspect` prints it ---------------------------------------------------------------------


@pytest.fixture
def replay_buffer(tmp_path: Path) -> Path:
    """Clean demonstrations; episode 3 has a covered camera, and episode 4 a jump."""
    episodes = make_episodes()
    episodes[3]["top"][:] = 0
    episodes[4]["joints"][30, 1] += 4
    root = zarr.open_group(tmp_path / "wave.zarr", mode="w", zarr_format=2)
    for key in ("joints", "action", "top"):
        values = np.concatenate([episode[key] for episode in episodes])
        root.create_array(f"data/{key}", data=values if key == "top" else values.astype(np.float32))
    ends = np.cumsum([len(episode["action"]) for episode in episodes])
    root.create_array("meta/episode_ends", data=ends)
    return tmp_path / "wave.zarr"


def test_recordings_and_their_stores_are_linted_alike(replay_buffer: Path, tmp_path: Path) -> None:
    ok(ddp("convert", replay_buffer, "--rate", RATE, "--out", tmp_path / "s.zarr"))
    recorded, stored = ok_json("inspect", replay_buffer), ok_json("inspect", tmp_path / "s.zarr")
    assert recorded["lint"] == stored["lint"]
    assert recorded["lint_images"] == [8, 8]
    assert [(f["kind"], f["episodes"]) for f in stored["lint"]] == [("jump", ["4"]), ("camera", ["3"])]
    assert stored["lint"][0]["message"].startswith("joints[1] ")
    text = " ".join(ok(ddp("inspect", replay_buffer)).stdout.split())
    assert "lint camera: top has a single color in 1 of 8 episodes looked at, first in episode 3" in text


def test_clean_sources_say_so(replay_buffer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = zarr.open_group(replay_buffer, mode="r+")
    clean = make_episodes()
    for key in ("joints", "top"):
        group[f"data/{key}"][:] = np.concatenate([episode[key] for episode in clean])
    monkeypatch.setattr(lint_images, "MAX_EPISODES", 3)
    rows = describe_source(inspect_source(replay_buffer))
    assert [value for name, value in rows if name == "lint"] == [
        "nothing found",
        "images of 3 of 8 episodes were looked at",
    ]


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_images_of_videos_are_read_without_reading_the_others(write: Callable[[Path], Path], tmp_path: Path) -> None:
    recording = LeRobotRecording(write(tmp_path / "peg"))
    for i in (2, 1):
        for array in ("observation.images.top", "observation.images.right_wrist"):
            np.testing.assert_array_equal(np.stack(list(recording.iter_images(array, i))), recording.read(array, i))


def test_damaged_videos_are_a_finding(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "peg")
    (path / "videos/chunk-000/observation.images.top/episode_000001.mp4").write_bytes(b"no video")
    contents = ok_json("inspect", path)
    found = [finding for finding in contents["lint"] if finding["kind"] == "unreadable"]
    assert [finding["episodes"] for finding in found] == [["1"]]
    assert "images of top in 1 of 3 episodes looked at: '" in found[0]["message"]
