"""The timing of streams. Time is given by timestamps, so latencies are exact and nothing sleeps."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from deploy.stamped_agent import PERIOD, TA, StampedAgent, intended_time, make_stream, observe, run_ticks

from ddp_cli.action_limits import ActionLimits
from ddp_cli.deploy.streaming import ActionStream, StreamError
from ddp_cli.robots import ABSOLUTE_PARTS


@pytest.mark.parametrize("latency", range(9))
@pytest.mark.parametrize("replan_every", [1, 2, 3, 4, 5, 7, 8])
def test_actions_match_their_tick_and_the_budget_prevents_gaps(replan_every: int, latency: int) -> None:
    stream = make_stream(StampedAgent(), lambda: latency * PERIOD, replan_every=replan_every)
    intended = run_ticks(stream, 100)
    assert all(for_tick in (tick, None) for tick, for_tick in enumerate(intended))
    waiting = latency if latency < TA else 100  # beyond that, every chunk is outdated when it arrives
    assert intended[:waiting] == [None] * waiting
    late = sum(for_tick is None for for_tick in intended[waiting:])
    stats = stream.stats()
    assert (stats.waiting_ticks, stats.late_ticks) == ((latency, late) if latency < TA else (8, 92))
    assert stream.budget == pytest.approx(min(TA - replan_every, TA // 2) * PERIOD)
    assert (late == 0) == (latency * PERIOD <= stream.budget + 1e-9) or latency >= TA


def test_the_default_budget_is_half_a_chunk() -> None:
    assert make_stream(StampedAgent()).stats().budget_ms == pytest.approx(200.0)
    assert make_stream(StampedAgent(), control_hz=10).stats().budget_ms == pytest.approx(400.0)


def test_a_new_chunk_is_executed_as_soon_as_it_arrives() -> None:
    agent = StampedAgent()
    stream = make_stream(agent, lambda: 2 * PERIOD, replan_every=3)
    origins = []
    for tick in range(12):
        observe(stream, tick * PERIOD)
        origins.append(round(100 * stream.action(tick * PERIOD)[0] / PERIOD))
    assert origins == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert [h[-1] for h in agent.histories] == pytest.approx([0.0, 0.15, 0.30, 0.45])


def test_late_ticks_stop_the_robot_and_keep_the_gripper() -> None:
    latencies = iter([0.0, 10 * PERIOD, 0.0, 0.0])
    stream = make_stream(StampedAgent(), lambda: next(latencies))
    # The chunk requested at tick 4 is outdated when it arrives.
    assert run_ticks(stream, 14) == [0, 1, 2, 3, 4, 5, 6, 7, *[None] * 6]
    assert stream.hold().tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert run_ticks(stream, 4, 14) == [14, 15, 16, 17]
    stats = stream.stats()
    assert (stats.late_ticks, stats.waiting_ticks, stats.chunks) == (6, 0, 3)


def test_absolute_goals_are_held() -> None:
    start = np.array([0.1, 0.0, 1.0, 1, 0, 0, 0, 1, 0, 0.0])
    goal = np.array([0.2, 0.1, 0.9, 0, 1, 0, 1, 0, 0, -1.0])
    settings = {
        "n_obs_steps": 1,
        "n_action_steps": TA,
        "control_hz": 20,
        "action_limits": ActionLimits.from_parts(ABSOLUTE_PARTS),
    }
    stream = ActionStream(lambda _: np.tile(goal, (TA, 1)), **settings, start=start, latency=lambda: PERIOD)
    observe(stream, 0.0)
    actions = [stream.action(tick * PERIOD) for tick in range(12)]  # only one observation, so there is one chunk
    np.testing.assert_array_equal(actions, [start, *[goal] * 11])
    assert (stream.stats().waiting_ticks, stream.stats().late_ticks) == (1, 4)
    with pytest.raises(StreamError, match="actions that are goals need a pose"):
        ActionStream(lambda _: goal, **settings)


def test_a_robot_that_waits_starts_with_the_first_action() -> None:
    goal = np.array([0.2, 0.1, 0.9, 0, 1, 0, 1, 0, 0, -1.0])
    chunk = np.tile(goal, (TA, 1))
    chunk[:, 0] = np.arange(TA) / 100
    latencies = iter([3 * PERIOD, PERIOD, PERIOD])
    stream = ActionStream(
        lambda _: chunk, n_obs_steps=1, n_action_steps=TA, control_hz=20, waits=True,
        action_limits=ActionLimits.from_parts(ABSOLUTE_PARTS), latency=lambda: next(latencies),
    )  # fmt: skip
    observe(stream, 0.0)
    assert stream.request(0.0) is not None
    with pytest.raises(StreamError, match="wait for the first chunk"):
        stream.action(0.0)
    assert not stream.has_chunk
    indices = []
    for tick in range(3, 9):
        observe(stream, tick * PERIOD)
        indices.append(round(100 * stream.action(tick * PERIOD)[0]))
    assert indices == [0, 1, 1, 2, 3, 4]  # the second chunk, of tick 4, arrives at tick 5


@pytest.mark.parametrize("ensemble", [None, 0.1])
@pytest.mark.parametrize("age", [0.0, 0.6, 1.0, 2.0, 3.0])  # [periods]
def test_images_from_before_a_waiting_robot_moved_show_where_it_starts(age: float, ensemble: float | None) -> None:
    """The policy moves by 1 per tick from where it is; the executed goals do so, too, from the first tick on."""
    executed = [0.0]  # where the robot is at each tick

    def act(history: Sequence) -> np.ndarray:
        goals = np.zeros((TA, 1))
        goals[:, 0] = history[-1]["position"][0] + np.arange(1, TA + 1)
        return goals

    stream = ActionStream(
        act, n_obs_steps=1, n_action_steps=TA, control_hz=20, waits=True, latency=lambda: PERIOD, replan_every=1,
        action_limits=ActionLimits((-np.inf,), (np.inf,), ("goal",)), ensemble=ensemble,
    )  # fmt: skip

    def observe(tick: int) -> None:
        seen = executed[max(0, int(np.floor(tick - age)))]  # what an image shows that was taken `age` before
        stream.observe({"position": np.array([seen])}, (tick - age) * PERIOD)

    observe(0)
    stream.request(0.0)
    for tick in range(1, 17):
        executed += [executed[-1]] if tick == 1 else []
        observe(tick)
        executed.append(float(stream.action(tick * PERIOD)[0]))
    np.testing.assert_allclose(executed[2:], np.arange(1, 17))


def test_the_action_of_an_operator_is_held() -> None:
    start = np.array([0.1, 0.0, 1.0, 1, 0, 0, 0, 1, 0, 0.0])
    limits = ActionLimits.from_parts(ABSOLUTE_PARTS)
    stream = ActionStream(
        StampedAgent().act,
        n_obs_steps=1,
        n_action_steps=TA,
        control_hz=20,
        action_limits=limits,
        start=start,
        latency=lambda: 0.0,
    )
    operator = start + np.eye(10)[0]
    stream.follow(operator)
    np.testing.assert_array_equal(stream.action(0.0), operator)
    with pytest.raises(ValueError, match="is not an action"):
        stream.follow(operator[:3])


def test_variable_latency_never_makes_an_action_stale() -> None:
    rng = np.random.default_rng(0)
    stream = make_stream(StampedAgent(), lambda: rng.exponential(3 * PERIOD))
    intended = run_ticks(stream, 400)
    assert all(for_tick in (tick, None) for tick, for_tick in enumerate(intended))
    assert 0 < stream.stats().late_ticks < 200


def test_latency_statistics() -> None:
    latencies = iter([*(0.01 * n for n in range(1, 21)), 9.0])
    stream = make_stream(StampedAgent(), lambda: next(latencies))
    assert np.isnan(stream.stats().p50_ms)
    run_ticks(stream, 81)  # the last chunk is requested at tick 76
    stats = stream.stats()
    assert stats.chunks == 20
    assert (stats.p50_ms, stats.p95_ms) == pytest.approx((105.0, 190.5))


@pytest.mark.parametrize(
    ("stamps", "now", "history", "index"),
    [
        ([0.0], 0.0, [0.0, 0.0], 0),  # the first is repeated
        ([0.0, 0.05, 0.1], 0.1, [0.05, 0.1], 0),
        ([n / 100 for n in range(31)], 0.3, [0.25, 0.3], 0),  # faster than control
        ([0.0, 0.1, 0.2, 0.3], 0.3, [0.2, 0.3], 0),  # slower: not newer than one period before
        ([0.0, 0.07, 0.13], 0.13, [0.07, 0.13], 0),
        ([0.0, 0.0502, 0.0998], 0.1, [0.0502, 0.0998], 0),  # jitter
        ([0.0, 0.05, 0.1], 0.2, [0.05, 0.1], 2),  # two periods old: two actions are skipped
        ([0.0, 0.05, 0.1], 0.13, [0.05, 0.1], 1),
        ([0.0, 0.05, 0.1], 0.12, [0.05, 0.1], 0),
        ([0.0, 0.1, 0.05], 0.1, [0.05, 0.1], 0),  # in any order
        ([0.0, 0.05, 0.1, 0.14], 0.1, [0.05, 0.1], 0),  # 0.14 belongs to the next tick
    ],
)
def test_the_history_is_selected_by_timestamps(
    stamps: list[float], now: float, history: list[float], index: int
) -> None:
    agent = StampedAgent()
    stream = make_stream(agent)
    for stamp in stamps:
        observe(stream, stamp)
    action = stream.action(now)
    assert agent.histories == [pytest.approx(history)]
    assert round(100 * action[1]) - 1 == index


def test_longer_histories_are_one_period_apart() -> None:
    agent = StampedAgent()
    stream = make_stream(agent, n_obs_steps=4)
    for n in range(1000):
        observe(stream, n / 200)
    stream.action(4.995)
    assert agent.histories == [pytest.approx([4.845, 4.895, 4.945, 4.995])]


def test_old_observations_are_freed() -> None:
    stream = make_stream(StampedAgent(), n_obs_steps=4)
    tracemalloc.start()
    try:
        for n in range(1000):
            stream.observe({"time": np.zeros(1), "image": np.zeros(100_000, np.uint8)}, n / 200)
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated < 64 * 100_000


def test_observations_of_one_time_are_one() -> None:
    agent = StampedAgent()
    stream = make_stream(agent, n_obs_steps=2)
    tracemalloc.start()
    try:
        for n in range(1000):
            stream.observe({"time": np.full(1, float(n)), "image": np.zeros(100_000, np.uint8)}, 0.0)
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated < 4 * 100_000
    stream.action(0.0)
    assert agent.histories == [[999.0, 999.0]]


def test_without_new_observations_no_chunk_is_requested_and_the_robot_stops() -> None:
    agent = StampedAgent()
    stream = make_stream(agent)
    run_ticks(stream, 1)
    intended = [intended_time(stream.action(tick * PERIOD)) for tick in range(1, 12)]
    assert len(agent.histories) == 1
    assert [time is None for time in intended] == [False] * 7 + [True] * 4
    assert run_ticks(stream, 1, 12) == [12]


def test_control_with_jitter_and_skipped_ticks_stays_in_time() -> None:
    stream, rng = make_stream(StampedAgent(), lambda: 0.08), np.random.default_rng(1)
    for tick in [*range(30), *range(33, 60)]:
        now = tick * PERIOD + rng.uniform(-0.01, 0.01)
        observe(stream, now)
        intended = intended_time(stream.action(now))
        assert tick < 2 or abs(intended - now) <= PERIOD / 2


def test_observations_are_copied() -> None:
    agent, camera = StampedAgent(), np.array([0.0])
    stream = make_stream(agent)
    stream.observe({"time": camera}, 0.0)
    camera[:] = 99.0
    stream.action(0.0)
    assert agent.histories == [[0.0, 0.0]]


def test_invalid_chunks_raise_once() -> None:
    faults = iter([lambda c: c, lambda c: c * np.nan, lambda c: c[:5], lambda c: c[:, :6], lambda c: c])

    def transform(chunk: np.ndarray) -> np.ndarray:
        fault = next(faults)
        return fault(chunk)

    stream = make_stream(StampedAgent(transform), lambda: PERIOD)
    assert run_ticks(stream, 5) == [None, 1, 2, 3, 4]
    for tick, message in ((5, "not finite.*chunk 2"), (9, "predicts 5 actions, n_action_steps is 8"), (13, "shape")):
        observe(stream, tick * PERIOD)
        with pytest.raises(StreamError, match=message):
            stream.action(tick * PERIOD)
        assert stream.hold().tolist() == [0, 0, 0, 0, 0, 0, 1]
        remaining = [n for n in range(tick + 1, tick + 4) if n < TA]  # of the only valid chunk
        assert run_ticks(stream, 3, tick + 1) == [*remaining, *[None] * (3 - len(remaining))]
    assert run_ticks(stream, 3, 17)[-1] == 19
    assert stream.stats().chunks == 2


def test_invalid_settings_and_timestamps_are_refused() -> None:
    for replan_every in (0, 9):
        message = f"replan_every = {replan_every} must be between 1 and n_action_steps = 8"
        with pytest.raises(StreamError, match=message):
            make_stream(StampedAgent(), replan_every=replan_every)
    with pytest.raises(StreamError, match="control_hz"):
        make_stream(StampedAgent(), control_hz=0)
    stream = make_stream(StampedAgent())
    for method in (observe, ActionStream.action):
        with pytest.raises(StreamError, match="the timestamp nan is not finite"):
            method(stream, stamp=float("nan"))
    observe(stream, 1e9)  # seconds since 1970; actions use seconds since the start
    with pytest.raises(StreamError, match="ahead of the action.*one clock"):
        stream.action(5.0)
    stream.close()
    with pytest.raises(StreamError, match="closed"):
        stream.action(5.0)
