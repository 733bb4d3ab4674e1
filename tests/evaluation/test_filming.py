"""Episodes on film: that they stay the same, what is to be seen, and what is left of a film that fails."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.errors import DdpError
from ddp_cli.evaluation import grid as grids
from ddp_cli.evaluation.evaluation import evaluate
from ddp_cli.evaluation.filming import EpisodeFilm, record
from ddp_cli.evaluation.grid import Grid, parse_grid, record_grid
from ddp_cli.evaluation.rollout import EpisodeResult, StepInfo, run_episode
from ddp_cli.safety import Safety
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
from ddp_cli.video.overlay import COLOURS, DARK, GREEN, RED, draw_text
from ddp_cli.video.video import VideoWriter, read_video

SHORT = dataclasses.replace(get_task("lift"), horizon=11)


class Wander:
    obs, actions, n_obs_steps, safety = "image", "delta", 2, Safety("delta")

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen: list[np.ndarray] = []

    def act(self, history: Sequence) -> np.ndarray:
        self.seen += [x for frame in history for x in frame.values()]
        return self.rng.uniform(-1, 1, (8, 7))


def test_an_episode_of_an_evaluation_is_the_same_alone_on_film_and_in_a_grid(tmp_path: Path) -> None:
    """Results, everything that the policy saw, and where the episode ended."""
    task = dataclasses.replace(SHORT, horizon=19)
    measured = Wander()
    expected = evaluate(lambda: measured, task, "fast", [2, 3], 1, lambda _: None).episodes[1]
    tiled: list[EpisodeResult] = []
    ways: list[Callable[[Simulator, Wander], EpisodeResult]] = [
        lambda sim, agent: run_episode(sim, agent, 3),
        lambda sim, agent: record(sim, agent, 3, tmp_path / "v.mp4", 128),
        lambda sim, agent: record_grid(sim, agent, [2, 3], Grid(1, 2), tmp_path / "g.gif", tiled.append) or tiled[1],
    ]
    ends = []
    for play in ways:
        sim, agent = Simulator(task), Wander()
        result = play(sim, agent)
        ends.append(sim.state())
        sim.close()
        assert dataclasses.replace(result, chunk_ms=0) == dataclasses.replace(expected, chunk_ms=0)
        assert len(agent.seen) == len(measured.seen) > 0
        for one, other in zip(agent.seen, measured.seen, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])
    assert read_video(tmp_path / "v.mp4").shape == (20, 128, 256, 3)


def test_moments_tell_of_the_chunk_that_is_under_way() -> None:
    sim, agent, told = Simulator(SHORT), Wander(), []
    agent.obs = "state"
    run_episode(sim, agent, 3, told.append)
    sim.close()
    assert [m.step for m in told] == list(range(12))
    assert [m.executed for m in told] == [*range(8), 0, 1, 2, 3]
    assert all(m.chunk.shape == (8, 7) and m.chunk_ms > 0 and m.first_success is None for m in told)
    assert (told[7].chunk == told[0].chunk).all()
    assert (told[8].chunk != told[0].chunk).any()


def test_film_shows_text_and_the_way_ahead_of_the_hand_and_nothing_else() -> None:
    sim = Simulator(SHORT)
    sim.reset(0)
    for _ in range(6):  # down into the picture
        sim.step(np.array([0, 0, -1, 0, 0, 0, -1.0]))
    chunk = np.tile([1.0, 1, -1, 0, 0, 0, -1], (8, 1))
    film = EpisodeFilm(sim, 7, 256, ["agentview_image"])
    frame, plain = film.frame(StepInfo(0, None, chunk, 0, 20.0)), sim.image("agentview_image", 256)
    hand = sim.view("agentview_image").project(sim.hand()[0][None], 256)[0]
    later = film.frame(StepInfo(1, 1, chunk, 1, 20.0))
    sim.close()
    changed = (frame != plain).any(2)
    assert changed[225:250, 8:60].mean() > 0.5
    changed[190:, :150] = False
    rows, columns = np.nonzero(changed)
    assert np.hypot(columns - hand[0], rows - hand[1]).min() < 3  # it begins at the hand
    assert 10 < np.ptp(columns) < 60
    assert 10 < np.ptp(rows) < 90
    green = np.abs(later.astype(int) - np.array(GREEN)).max(2) < 40
    assert green[190:, :150].sum() > 200
    assert not (np.abs(frame.astype(int) - np.array(GREEN)).max(2) < 40)[190:, :150].any()


class Stage:
    task = get_task("lift")


@pytest.mark.parametrize("size", [128, 160, 512])
def test_film_says_how_it_went_in_every_size(size: int) -> None:
    film, chunk = EpisodeFilm(Stage(), 100_000, size), np.zeros((8, 7))  # type: ignore[arg-type]
    moments = [
        StepInfo(399, None, chunk, 7, 88.0),
        StepInfo(400, 389, chunk, 8, 88.0),
        StepInfo(400, None, chunk, 8, 88.0),
    ]
    said = [film._text(m) for m in moments]
    assert [lines[0] for lines in said] == [("seed 100000", DARK), ("success at step 389", GREEN), ("no success", RED)]
    assert all(lines[-1][0].endswith("88 ms") for lines in said)
    for lines in said:
        changed = draw_text(np.zeros((size, size, 3), np.uint8), lines).any(2).any(0)
        assert np.nonzero(changed)[0].max() < size - 2


class Shades:
    """Instead of a film: plain frames, lighter with every step."""

    def __init__(self, _sim: object, seed: int, size: int, keys: list[str]) -> None:
        assert keys == ["agentview_image"]
        self.seed, self.size = seed, size

    def frame(self, now: StepInfo) -> np.ndarray:
        return np.full((self.size, self.size, 3), 10 * now.step + 60, np.uint8)


def _episode(_sim: object, _agent: object, seed: int, tell: Callable) -> EpisodeResult:
    """Of as many steps as its seed; even ones succeed."""
    for step in range(seed + 1):
        tell(StepInfo(step, None, np.zeros((8, 7)), 0, 1.0))
    return EpisodeResult(seed, seed % 2 == 0, False, seed, 1.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(grids, "Film", Shades)
    monkeypatch.setattr(grids, "run_episode", _episode)

    return Stage()


def test_a_grid_holds_the_last_pictures_until_the_last_episode_ends(tmp_path: Path, played: object) -> None:
    told: list[int] = []
    seeds = [2, 5, 9]
    record_grid(played, Wander(), seeds, Grid(2, 2), tmp_path / "g.mp4", lambda r: told.append(r.seed))  # type: ignore[arg-type]
    assert told == seeds
    video = read_video(tmp_path / "g.mp4").astype(int)
    assert video.shape == (10, 2 * 512, 2 * 512, 3)
    tiles = [video[:, :512, :512], video[:, :512, 512:], video[:, 512:, :512], video[:, 512:, 512:]]
    for tile, last, colour in zip(tiles, (2, 5, 9), (GREEN, RED, RED), strict=False):
        for at in range(10):
            assert abs(tile[at, 256, 256].mean() - (60 + 10 * min(at, last))) < 6
            edge = tile[at, 256, 4]
            assert (np.abs(edge - np.array(colour)).max() < 40) == (at >= last), (at, last, edge)
    assert np.abs(tiles[3] - np.array(DARK)).max() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["g.mp4"]


def test_a_grid_that_is_interrupted_leaves_nothing(
    tmp_path: Path, played: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> EpisodeResult:
        _episode(*args)  # type: ignore[arg-type]
        if args[2] == 4:
            raise KeyboardInterrupt
        return EpisodeResult(3, True, True, 3, 1.0)

    monkeypatch.setattr(grids, "run_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_grid(played, Wander(), [3, 4], Grid(1, 2), tmp_path / "g.gif", lambda _: None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "3x", "x3", "3x0", "0x3", "9x1", "-1x3", "3x3x3", "axb", "", "3 x 3", "²x2"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(DdpError, match="3x3; at most 8x8"):
        parse_grid(text)


def test_tiles_fit_the_whole_and_the_encoder() -> None:
    assert parse_grid("2X4") == Grid(2, 4)
    for rows in range(1, 9):
        for columns in range(1, 9):
            for gif, most in ((False, 1056), (True, 512)):
                size = Grid(rows, columns).tile_size(gif)
                assert size % 16 == 0
                assert 128 <= size <= 512
                assert size * max(rows, columns) <= most or size == 128


def test_a_gif_repeats_every_second_frame_and_the_last(tmp_path: Path) -> None:
    import imageio.v2 as imageio

    for n, expected in ((5, [0, 2, 4]), (6, [0, 2, 4, 5]), (1, [0])):
        path = tmp_path / f"{n}.gif"
        with VideoWriter(path) as video:
            for i in range(n):
                video.add(np.full((64, 96, 3), 40 * i, np.uint8))
        frames = read_video(path)
        assert frames.shape == (len(expected), 64, 96, 3)
        assert np.abs(frames[:, 30, 30, 0].astype(int) - 40 * np.array(expected)).max() < 6
        info = imageio.get_reader(path).get_meta_data()
        assert (info["loop"], info["duration"]) == (0, 100 if n > 1 else 1000)  # for ever; [ms]
        assert imageio.get_reader(path).get_meta_data(len(expected) - 1)["duration"] == 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.gif", "5.gif", "6.gif"]


def test_a_gif_keeps_the_colours_of_a_path(tmp_path: Path) -> None:
    """Dots in one of many frames of 200 other shades."""
    shades = np.random.default_rng(0).integers(0, 200, (40, 224, 448, 1), np.uint8)
    frames = shades + np.array([50, 40, 20], np.uint8)
    for i, colour in enumerate(COLOURS):
        frames[4, 20 * i + 4 : 20 * i + 6, 100:103] = colour
    with VideoWriter(tmp_path / "v.gif", COLOURS) as video:
        for frame in frames:
            video.add(frame)
    found = read_video(tmp_path / "v.gif")[2].astype(int)
    for i, colour in enumerate(COLOURS):
        assert np.abs(found[20 * i + 4 : 20 * i + 6, 100:103] - colour).max() < 30


def test_two_videos_of_one_name_can_be_written_at_a_time(tmp_path: Path) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "v.gif") as one, VideoWriter(tmp_path / "v.mp4") as other:
        for video in (one, other, other):
            video.add(frame)
    assert [len(read_video(tmp_path / name)) for name in ("v.gif", "v.mp4")] == [1, 2]


@pytest.mark.parametrize("name", ["v.gif", "v.mp4"])
def test_a_video_that_fails_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / name) as video:
        for _ in range(4):
            video.add(np.zeros((64, 64, 3), np.uint8))
        raise RuntimeError
    with pytest.raises(ValueError, match="shape|dim|size"), VideoWriter(tmp_path / name) as video:
        video.add(np.zeros((64, 64, 3), np.uint8))
        for _ in range(3):
            video.add(np.zeros((32, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_gif_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DdpError, match="the disk is full"), VideoWriter(tmp_path / "v.gif") as video:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            for frame in noise:
                video.add(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
