from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_cli.core.windows import Windows, batch_indices, count_windows, window_bounds, window_steps
from ddp_cli.training.validation_split import validation_episodes

STORED = np.load(Path(__file__).parents[1] / "data" / "windows_ema.npz")


@pytest.mark.parametrize("case", range(4))
def test_window_bounds_equal_the_published_ones(case: int) -> None:
    horizon, before, after = STORED[f"case{case}_args"]
    bounds = window_bounds(STORED[f"case{case}_episode_ends"], horizon, before, after)
    np.testing.assert_array_equal(bounds, STORED[f"case{case}_indices"])


def test_validation_split_equals_the_published_one() -> None:
    np.testing.assert_array_equal(validation_episodes(200, 0.02, 42), STORED["val_mask_n200_r0.02_seed42"])


def test_validation_split_leaves_an_episode_for_training() -> None:
    assert validation_episodes(2, 0.02, 42).sum() == 1
    assert validation_episodes(1, 0.02, 42).sum() == 0
    assert validation_episodes(100, 0.0, 42).sum() == 0


def reference_windows(
    lengths: np.ndarray, horizon: int, before: int, after: int, pad_short: bool = False
) -> np.ndarray:
    """Pads every episode by repetition and takes all windows of the result, (M, horizon).

    With `pad_short`, episodes shorter than the horizon are extended by their last step before anything else; windows
    that begin after the end of the episode are left out, since they hold nothing but its last step.
    """
    expected, start = [], 0
    for length in lengths:
        steps = np.arange(start, start + length)
        missing = max(0, horizon - length) if pad_short else 0
        padded = np.concatenate([[steps[0]] * before, steps, [steps[-1]] * (missing + after)]).astype(int)
        windows = [padded[i : i + horizon] for i in range(len(padded) - horizon + 1)]
        expected += windows[: before + length] if pad_short else windows
        start += length
    return np.array(expected).reshape(-1, horizon)


def random_episodes(seed: int, max_horizon: int) -> tuple[np.ndarray, int, int, int]:
    """Lengths of episodes, horizon, and the steps by which windows may begin before and end after an episode."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, rng.integers(1, 6))
    horizon = int(rng.integers(1, max_horizon))
    before, after = rng.integers(0, horizon, 2).tolist()
    return lengths, horizon, before, after


@pytest.mark.parametrize("seed", range(20))
def test_windows_equal_a_brute_force_reference(seed: int) -> None:
    lengths, horizon, before, after = random_episodes(seed, 12)
    steps = window_steps(window_bounds(np.cumsum(lengths), horizon, before, after), horizon)
    np.testing.assert_array_equal(steps, reference_windows(lengths, horizon, before, after))


@pytest.mark.parametrize("seed", range(20))
def test_padded_short_episodes_equal_a_brute_force_reference(seed: int) -> None:
    lengths, horizon, before, after = random_episodes(seed, 20)
    ends = np.cumsum(lengths)
    bounds = window_bounds(ends, horizon, before, after, pad_short=True)
    expected = reference_windows(lengths, horizon, before, after, pad_short=True)
    np.testing.assert_array_equal(window_steps(bounds, horizon), expected)
    assert (count_windows(ends, bounds) > 0).all()


def test_windows_are_counted_by_episode() -> None:
    ends = np.array([5, 7, 15])
    bounds = window_bounds(ends, 4, 1, 0)
    assert count_windows(ends, bounds).tolist() == [3, 0, 6]


def test_batch_has_the_first_observations_and_all_actions() -> None:
    n = 9
    arrays = {
        "cam": np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
        "pos": np.arange(n, dtype=np.float32)[:, None],
        "action": np.arange(n, dtype=np.float32)[:, None] * 10,
    }
    steps = np.array([[0, 1, 2], [4, 5, 6]])
    batch = Windows(arrays, steps, ["cam", "pos"], 2).batch(torch.tensor([1, 0]))
    assert batch["obs"]["cam"].shape == (2, 2, 3, 4, 4)
    assert batch["obs"]["cam"].dtype == torch.uint8
    assert batch["obs"]["cam"][:, :, 0, 0, 0].tolist() == [[4, 5], [0, 1]]
    assert batch["obs"]["pos"][..., 0].tolist() == [[4, 5], [0, 1]]
    assert batch["action"][..., 0].tolist() == [[40, 50, 60], [0, 10, 20]]


def test_every_window_is_used_once_per_epoch() -> None:
    n_windows, batch_size = 23, 5
    indices = torch.cat([batch_indices(n_windows, batch_size, step, seed=3) for step in range(23)])
    for epoch in range(5):
        assert sorted(indices[epoch * n_windows : (epoch + 1) * n_windows].tolist()) == list(range(n_windows))
    assert not torch.equal(indices[:n_windows], indices[n_windows : 2 * n_windows])


def test_batches_may_be_larger_than_the_data() -> None:
    assert sorted(batch_indices(3, 7, 0, 0).tolist())[:2] == [0, 0]
    assert len(batch_indices(3, 7, 5, 0)) == 7
