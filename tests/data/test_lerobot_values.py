"""What the values of LeRobot datasets of other tools must fulfil, since no replay tells whether they are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.lerobot_datasets import (
    ACTION,
    DATA,
    EPISODES,
    STATE,
    convert_dataset,
    edit_feature,
    forget_origin,
    read_column,
    write_column,
)

from ddp_cli.data.actions import delta_to_absolute
from ddp_cli.data.lerobot_inspection import inspect_lerobot
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.tasks import get_task

GRIPPER_FIRST = [7, 8, 0, 1, 2, 6, 3, 4, 5]
NAMES_OF_GRIPPER_FIRST = ["gripper_left", "gripper_right", "x", "y", "z", "qw", "qx", "qy", "qz"]


@pytest.fixture
def foreign(lerobot: Path) -> Path:
    """A dataset without the attributes of ddp, nor names."""
    forget_origin(lerobot)
    edit_feature(lerobot, STATE, names=None)
    return lerobot


def permute(dataset: Path, name: str, order: list[int]) -> None:
    write_column(dataset, name, read_column(dataset, name)[:, order])


def scale(dataset: Path, name: str, factor: float, columns: slice) -> None:
    values = read_column(dataset, name)
    values[:, columns] *= factor
    write_column(dataset, name, values)


@pytest.mark.parametrize("names", [NAMES_OF_GRIPPER_FIRST, {"motors": NAMES_OF_GRIPPER_FIRST}])
def test_values_are_reordered_by_their_names(foreign: Path, lift_store: Store, tmp_path: Path, names: object) -> None:
    permute(foreign, STATE, GRIPPER_FIRST)
    edit_feature(foreign, STATE, names=names)
    permute(foreign, ACTION, [6, 0, 1, 2, 3, 4, 5])
    edit_feature(foreign, ACTION, names=["gripper", "x", "y", "z", "rx", "ry", "rz"])
    order = [3, 4, 5, 6, 0, 1, 2, 7, 8, 9]
    permute(foreign, "observation.environment_state", order)
    objects = [f"{key}_{i}" for key, width in get_task("lift").robosuite.object.items() for i in range(width)]
    edit_feature(foreign, "observation.environment_state", names=[objects[i] for i in order])
    dataset = convert_dataset(foreign, tmp_path / "d.zarr", "delta")
    for key in (*lift_store.task.low_dim, "object", "action"):
        np.testing.assert_array_equal(Store(tmp_path / "d.zarr").read(key), lift_store.read(key))
    assert dataset.notes == [
        f"{name}: values reordered as their names say" for name in (STATE, ACTION, "observation.environment_state")
    ]


def roll(dataset: Path, name: str, steps: int) -> None:
    write_column(dataset, name, np.roll(read_column(dataset, name), steps, axis=0))


def zero_to_one(dataset: Path) -> None:
    actions = read_column(dataset, ACTION)
    actions[:, 6] = actions[:, 6] > 0
    write_column(dataset, ACTION, actions)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another order": (lambda d: permute(d, STATE, GRIPPER_FIRST), r"quaternion of step 0 has norm 1\.4\d, expected 1"),
    "x for y": (lambda d: permute(d, STATE, [1, 0, *range(2, 9)]), r"position x fit the motion of y \(corr"),
    "gripper inverted": (lambda d: scale(d, ACTION, -1, slice(6, 7)), r"gripper opens when its actions close it"),
    "late": (lambda d: roll(d, ACTION, 6), "motion 5 steps before the actions fits them best"),
    "early": (lambda d: roll(d, ACTION, -6), "motion 7 steps after the actions fits them best"),
    "-x for x": (lambda d: scale(d, STATE, -1, slice(0, 1)), "position x fit the motion of -x"),
    "w first": (lambda d: permute(d, STATE, [0, 1, 2, 6, 3, 4, 5, 7, 8]), "actions of rotation . fit the motion of"),
    "millimetres": (lambda d: scale(d, STATE, 1000, slice(0, 3)), "robot0_eef_pos is -?[0-9.]+ to .*, expected metres"),
    "gripper in percent": (lambda d: scale(d, STATE, 2000, slice(7, 9)), "robot0_gripper_qpos is .*expected metres"),
    "delta in metres": (lambda d: scale(d, ACTION, 0.05, slice(0, 3)), r"position changes by \d\.\d times what its"),
    "scaled up": (lambda d: scale(d, ACTION, 10, slice(0, 6)), r"8\d% of the steps have actions outside of \[-1, 1\]"),
    "gripper of 0 and 1": (zero_to_one, "the gripper value of its actions is 0 to 1, expected -1"),
    "actions of other steps": (
        lambda d: write_column(d, ACTION, np.random.default_rng(0).permutation(read_column(d, ACTION))),
        "position does not change as its actions say|fit the motion of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_implausible_values_are_refused(foreign: Path, tmp_path: Path, name: str) -> None:
    edit, message = REFUSED[name]
    edit(foreign)
    with pytest.raises(DdpError, match=message):
        convert_dataset(foreign, tmp_path / "d.zarr", "delta")
    assert [path.name for path in tmp_path.iterdir()] == ["lift"]


def write_goals(dataset: Path, store: Store) -> np.ndarray:
    goals = delta_to_absolute(*(store.read(key) for key in (ACTION, "robot0_eef_pos", "robot0_eef_quat")))
    write_column(dataset, ACTION, goals)
    edit_feature(dataset, ACTION, shape=[10])
    return goals


def test_absolute_actions_are_not_taken_for_delta(foreign: Path, lift_store: Store, tmp_path: Path) -> None:
    """Axis-angle goals have the width of delta actions; clipped, they would be constant."""
    goals = np.tile([0.1, 0.2, 1.05, 2.2, 2.2, 0.0, -1.0], (len(read_column(foreign, ACTION)), 1))
    goals[:, 2] += np.linspace(0, 0.1, len(goals))
    write_column(foreign, ACTION, goals)
    message = (
        r"100% of the steps .* \(value 2 is 1.05 to 1\.\d+\); they look like absolute goal poses, not delta actions"
    )
    with pytest.raises(DdpError, match=message):
        convert_dataset(foreign, tmp_path / "d.zarr", "delta")


def test_delta_actions_are_not_taken_for_absolute(foreign: Path, lift_store: Store, tmp_path: Path) -> None:
    with pytest.raises(DdpError, match=r"goals \d\.?\d* m \(median\) from the observed end effector"):
        convert_dataset(foreign, tmp_path / "d.zarr", "absolute")
    goals = write_goals(foreign, lift_store)
    convert_dataset(foreign, tmp_path / "d.zarr", "absolute")
    np.testing.assert_array_equal(Store(tmp_path / "d.zarr").read("action"), goals.astype(np.float32))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2, 6, 7, 8, 3, 4, 5, 9], r"goals 1[78]\d degrees \(median\)"),  # the rows of the matrix exchanged
        ([0, 1, 2, 4, 3, 5, 6, 7, 8, 9], "rotation-6d of its actions is not two orthogonal unit vectors"),
        ([1, 0, *range(2, 10)], "actions of position x fit the motion of y"),
    ],
)
def test_absolute_actions_in_another_order(
    foreign: Path, lift_store: Store, tmp_path: Path, order: list[int], message: str
) -> None:
    write_goals(foreign, lift_store)
    permute(foreign, ACTION, order)
    with pytest.raises(DdpError, match=message):
        convert_dataset(foreign, tmp_path / "d.zarr", "absolute")


def test_a_few_clipped_values_are_reported(foreign: Path, lift_store: Store, tmp_path: Path) -> None:
    actions = read_column(foreign, ACTION)
    actions[[3, 9], 2] = [1.5, -1.2]
    write_column(foreign, ACTION, actions)
    dataset = convert_dataset(foreign, tmp_path / "d.zarr", "delta")
    assert dataset.notes == [f"action: clipped to [-1, 1] in 2 of {len(actions)} steps"]
    assert Store(tmp_path / "d.zarr").read("action")[[3, 9], 2].tolist() == [1, -1]
    assert "clipped to [-1, 1] in 2 of" in inspect_lerobot(foreign, get_task("lift"))["ddp convert"]


def test_rows_whose_order_is_not_known_are_reported(foreign: Path, tmp_path: Path) -> None:
    table = pq.read_table(foreign / DATA).drop_columns(["frame_index", "index"])
    pq.write_table(table, foreign / DATA)
    assert convert_dataset(foreign, tmp_path / "a.zarr", "delta").notes == []  # the timestamps tell it
    write_column(foreign, "timestamp", np.zeros(table.num_rows))
    note = "no frame_index, index or timestamp tells the order of the rows: they are taken as they are"
    assert convert_dataset(foreign, tmp_path / "b.zarr", "delta").notes == [note]
    pq.write_table(table.drop_columns(["timestamp"]), foreign / DATA)
    assert convert_dataset(foreign, tmp_path / "c.zarr", "delta").notes == [note]


def test_several_instructions_are_reported(foreign: Path, tmp_path: Path) -> None:
    write_column(foreign, "tasks", pa.array([["Lift the cube."], ["Push it."]]), EPISODES)
    dataset = convert_dataset(foreign, tmp_path / "d.zarr", "delta")
    assert dataset.notes == ["2 instructions (Lift the cube., Push it.): all episodes become 'lift'"]


def test_only_selected_episodes_must_be_valid(foreign: Path, tmp_path: Path) -> None:
    actions = read_column(foreign, ACTION)
    actions[0] = np.nan
    write_column(foreign, ACTION, actions)
    with pytest.raises(DdpError, match=r"episode 0: action is not finite in step 0\. Leave it out: --only"):
        convert_dataset(foreign, tmp_path / "d.zarr", "delta")
    convert_dataset(foreign, tmp_path / "d.zarr", "delta", "1:")
    assert len(Store(tmp_path / "d.zarr").episode_ends) == 1
