"""Push-T as its published demonstrations describe it: nine points of the block, and the agent's position.

gym-pusht observes the block's pose. This environment adds the points, which have fixed places on the block:

    ddp eval runs/pusht/state --env pusht_keypoints:PushTKeypoints-v0
"""

import gym_pusht  # noqa: F401 - registers gym_pusht/PushT-v0
import gymnasium
import numpy as np

POINTS = np.array(  # [pixels], in the frame of the block
    [[9.27, 90.04], [-60.98, -1.19], [60.91, -1.39], [-0.27, 25.54], [-14.07, 122.82], [39.0, 32.86],
     [-39.97, 32.73], [-16.82, 62.86], [23.54, -1.7]]
)  # fmt: skip


def keypoints(position: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(..., 2) and (...) -> (..., 9, 2): the points of a block with that pose."""
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
    return POINTS @ rotation.swapaxes(-1, -2) + position[..., None, :]


class PushTKeypoints(gymnasium.ObservationWrapper):
    def __init__(self, **kwargs):
        super().__init__(gymnasium.make("gym_pusht/PushT-v0", obs_type="state", disable_env_checker=True, **kwargs))
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {"agent_pos": box(0, 512, (2,)), "object": box(-100, 612, (9, 2))}
        )

    def observation(self, observation):
        return {"agent_pos": observation[:2], "object": keypoints(observation[2:4], observation[4])}


gymnasium.register("PushTKeypoints-v0", PushTKeypoints, max_episode_steps=300)
