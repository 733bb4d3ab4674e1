"""The timing of streams. Ticks are told by stamps, so latency is exact and nothing sleeps, but for one test."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ddp_cli.deploy.streaming import ActionStream
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.safety import Safety

PERIOD = 0.05
TA = 8


class Marked:
    """Its actions say when their observation was made and which of the chunk they are."""

    def __init__(self, then: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk) -> None:
        self.histories: list[list[float]] = []
        self.then = then

    def act(self, history: Sequence) -> np.ndarray:
        self.histories.append([float(obs["time"][0]) for obs in history])
        chunk = np.zeros((TA, 7))
        chunk[:, 0] = self.histories[-1][-1] / 100
        chunk[:, 1] = np.arange(1, TA + 1) / 100
        chunk[:, 6] = 1.0
        return self.then(chunk)


def stream(agent: Marked, latency: Callable[[], float] | None = lambda: 0.0, **settings: object) -> ActionStream:
    settings = {"n_obs_steps": 2, "n_action_steps": TA, "safety": Safety("delta"), "latency": latency, **settings}
    return ActionStream(agent.act, **settings)


def see(s: ActionStream, stamp: float) -> None:
    s.observe({"time": np.array([stamp])}, stamp)


def meant_for(action: np.ndarray) -> float | None:
    """The time that a marked action was predicted for [s]; None if the robot was held."""
    return None if action[1] == 0 else 100 * action[0] + PERIOD * (round(100 * action[1]) - 1)


def ticks(s: ActionStream, n: int, first: int = 0) -> list[float | None]:
    """n ticks, an observation at each; the ticks their actions were meant for."""
    out = []
    for tick in range(first, first + n):
        see(s, tick * PERIOD)
        meant = meant_for(s.action(tick * PERIOD))
        out.append(None if meant is None else round(meant / PERIOD, 6))
    return out


@pytest.mark.parametrize("latency", range(9))
@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 7, 8])
def test_every_action_is_for_its_tick_and_the_budget_is_what_never_leaves_a_gap(every: int, latency: int) -> None:
    s = stream(Marked(), lambda: latency * PERIOD, replan_every=every)
    played = ticks(s, 100)
    assert all(meant in (tick, None) for tick, meant in enumerate(played))
    waited = latency if latency < TA else 100  # by then all of the first chunk has passed, and so of each
    assert played[:waited] == [None] * waited
    late = sum(meant is None for meant in played[waited:])
    assert (s.stats().waited, s.stats().late) == ((latency, late) if latency < TA else (8, 92))
    assert s.budget == pytest.approx(min(TA - every, TA // 2) * PERIOD)
    assert (late == 0) == (latency * PERIOD <= s.budget + 1e-9) or latency >= TA


def test_the_default_budget_is_half_a_chunk() -> None:
    assert stream(Marked()).stats().budget_ms == pytest.approx(200.0)
    assert stream(Marked(), control_hz=10).stats().budget_ms == pytest.approx(400.0)


def test_a_fresher_chunk_is_played_as_soon_as_it_is_there() -> None:
    agent = Marked()
    s = stream(agent, lambda: 2 * PERIOD, replan_every=3)
    origins = []
    for tick in range(12):
        see(s, tick * PERIOD)
        origins.append(round(100 * s.action(tick * PERIOD)[0] / PERIOD))
    assert origins == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert [h[-1] for h in agent.histories] == pytest.approx([0.0, 0.15, 0.30, 0.45])


def test_late_ticks_stop_the_robot_and_keep_the_gripper() -> None:
    delays = iter([0.0, 10 * PERIOD, 0.0, 0.0])
    s = stream(Marked(), lambda: next(delays))
    played = ticks(s, 14)
    assert played == [0, 1, 2, 3, 4, 5, 6, 7, *[None] * 6]  # the chunk from tick 4 ended before it arrived
    assert s.hold().tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert ticks(s, 4, 14) == [14, 15, 16, 17]
    assert (s.stats().late, s.stats().waited, s.stats().chunks) == (6, 0, 3)


def test_absolute_goals_are_held() -> None:
    start = np.array([0.1, 0.0, 1.0, 1, 0, 0, 0, 1, 0, 0.0])
    goal = np.array([0.2, 0.1, 0.9, 0, 1, 0, 1, 0, 0, -1.0])
    s = ActionStream(
        lambda _: np.tile(goal, (TA, 1)), n_obs_steps=1, n_action_steps=TA, safety=Safety("absolute"), start=start,
        latency=lambda: PERIOD,
    )  # fmt: skip
    see(s, 0.0)
    told = [s.action(tick * PERIOD) for tick in range(12)]  # nothing more is seen, so there is one chunk
    np.testing.assert_array_equal(told, [start, *[goal] * 11])
    assert (s.stats().waited, s.stats().late) == (1, 4)
    with pytest.raises(ConfigError, match="need a goal to hold"):
        ActionStream(lambda _: goal, n_obs_steps=1, n_action_steps=TA, safety=Safety("absolute"))


def test_latency_that_varies_never_makes_an_action_stale() -> None:
    rng = np.random.default_rng(0)
    s = stream(Marked(), lambda: rng.exponential(3 * PERIOD))
    played = ticks(s, 400)
    assert all(meant in (tick, None) for tick, meant in enumerate(played))
    assert 0 < s.stats().late < 200


def test_statistics_are_those_of_the_latencies() -> None:
    delays = [0.01 * n for n in range(1, 21)]
    times = iter([*delays, 9.0])
    s = stream(Marked(), lambda: next(times))
    assert np.isnan(s.stats().p50_ms)
    ticks(s, 81)  # the last is asked for at tick 76
    assert s.stats().chunks == 20
    assert (s.stats().p50_ms, s.stats().p95_ms) == pytest.approx((105.0, 190.5))


@pytest.mark.parametrize(
    ("seen", "now", "history", "index"),
    [
        ([0.0], 0.0, [0.0, 0.0], 0),  # the first is repeated
        ([0.0, 0.05, 0.1], 0.1, [0.05, 0.1], 0),
        ([n / 100 for n in range(31)], 0.3, [0.25, 0.3], 0),  # faster than control
        ([0.0, 0.1, 0.2, 0.3], 0.3, [0.2, 0.3], 0),  # slower: not newer than a period before
        ([0.0, 0.07, 0.13], 0.13, [0.07, 0.13], 0),
        ([0.0, 0.0502, 0.0998], 0.1, [0.0502, 0.0998], 0),  # jitter
        ([0.0, 0.05, 0.1], 0.2, [0.05, 0.1], 2),  # two periods old: two actions have passed
        ([0.0, 0.05, 0.1], 0.13, [0.05, 0.1], 1),
        ([0.0, 0.05, 0.1], 0.12, [0.05, 0.1], 0),
        ([0.0, 0.1, 0.05], 0.1, [0.05, 0.1], 0),  # in any order
        ([0.0, 0.05, 0.1, 0.14], 0.1, [0.05, 0.1], 0),  # the next tick's
    ],
)
def test_what_the_policy_looks_at(seen: list[float], now: float, history: list[float], index: int) -> None:
    agent = Marked()
    s = stream(agent)
    for stamp in seen:
        see(s, stamp)
    action = s.action(now)
    assert agent.histories == [pytest.approx(history)]
    assert round(100 * action[1]) - 1 == index


def test_longer_histories_are_a_period_apart() -> None:
    agent = Marked()
    s = stream(agent, n_obs_steps=4)
    for n in range(1000):
        see(s, n / 200)
    s.action(4.995)
    assert agent.histories == [pytest.approx([4.845, 4.895, 4.945, 4.995])]
    assert len(s._seen) < 64  # what is too old is let go


def test_nothing_new_to_see_asks_for_nothing_and_stops() -> None:
    agent = Marked()
    s = stream(agent)
    ticks(s, 1)
    played = [meant_for(s.action(tick * PERIOD)) for tick in range(1, 12)]
    assert len(agent.histories) == 1
    assert [meant is None for meant in played] == [False] * 7 + [True] * 4
    assert ticks(s, 1, 12) == [12]


def test_control_that_jitters_or_skips_a_tick_stays_in_time() -> None:
    s, rng = stream(Marked(), lambda: 0.08), np.random.default_rng(1)
    for tick in [*range(30), *range(33, 60)]:
        now = tick * PERIOD + rng.uniform(-0.01, 0.01)
        see(s, now)
        meant = meant_for(s.action(now))
        assert tick < 2 or abs(meant - now) <= PERIOD / 2


def test_observations_are_copied() -> None:
    agent, camera = Marked(), np.array([0.0])
    s = stream(agent)
    s.observe({"time": camera}, 0.0)
    camera[:] = 99.0
    s.action(0.0)
    assert agent.histories == [[0.0, 0.0]]


def test_chunks_that_are_not_finite_or_too_short_are_refused_once() -> None:
    faults = iter([lambda c: c, lambda c: c * np.nan, lambda c: c[:5], lambda c: c[:, :6], lambda c: c])

    def then(chunk: np.ndarray) -> np.ndarray:
        fault = next(faults)
        return fault(chunk)

    s = stream(Marked(then), lambda: PERIOD)
    assert ticks(s, 5) == [None, 1, 2, 3, 4]
    for tick, message in ((5, "not finite.*chunk 2"), (9, "predicts 5 actions, n_action_steps is 8"), (13, "shape")):
        see(s, tick * PERIOD)
        with pytest.raises(DdpError, match=message):
            s.action(tick * PERIOD)
        assert s.hold().tolist() == [0, 0, 0, 0, 0, 0, 1]
        left = [n for n in range(tick + 1, tick + 4) if n < TA]  # of the only good chunk
        assert ticks(s, 3, tick + 1) == [*left, *[None] * (3 - len(left))]
    assert ticks(s, 3, 17)[-1] == 19
    assert s.stats().chunks == 2


def test_streams_refuse_what_makes_no_sense() -> None:
    for every in (0, 9):
        with pytest.raises(ConfigError, match=f"replan_every = {every} must lie between 1 and n_action_steps = 8"):
            stream(Marked(), replan_every=every)
    with pytest.raises(ConfigError, match="control_hz"):
        stream(Marked(), control_hz=0)
    s = stream(Marked())
    for wrong in (see, ActionStream.action):
        with pytest.raises(DdpError, match="the stamp nan is no time"):
            wrong(s, stamp=float("nan"))
    see(s, 1e9)  # seconds since 1970 here, since the start there
    with pytest.raises(DdpError, match="ahead of the action.*one clock"):
        s.action(5.0)
    s.close()
    with pytest.raises(DdpError, match="closed"):
        s.action(5.0)


# -- with its thread ------------------------------------------------------------------------------


def test_a_slow_policy_in_the_thread_never_holds_up_control() -> None:
    """Real time: 150 ms a chunk, 20 actions a second. Late ticks depend on the machine, staleness must not."""
    agent = Marked(lambda chunk: time.sleep(0.15) or chunk)
    began = time.monotonic()
    slowest = 0.0
    with stream(agent, None, clock=lambda: time.monotonic() - began) as s:
        for tick in range(40):
            time.sleep(max(0.0, tick * PERIOD - (time.monotonic() - began)))
            now = time.monotonic() - began
            see(s, now)
            action = s.action(now)
            slowest = max(slowest, time.monotonic() - began - now)
            meant = meant_for(action)
            assert meant is None or abs(meant - now) <= PERIOD / 2 + 1e-6
        stats = s.stats()
    assert slowest < 0.1, "action() waited for the policy"
    assert 3 <= stats.chunks <= 11
    assert stats.waited >= 2
    assert 150 <= stats.p50_ms <= stats.p95_ms
    assert not [t for t in threading.enumerate() if t.name.startswith("ddp-stream")]


def test_a_policy_that_hangs_stops_the_robot_not_the_loop() -> None:
    release = threading.Event()
    s = stream(Marked(lambda chunk: release.wait(30) and chunk), None)
    assert ticks(s, 20) == [None] * 20
    assert s.stats().waited == 20
    release.set()
    s.close()


def test_an_error_in_the_thread_is_raised_by_the_next_action() -> None:
    answers, go = iter([ZeroDivisionError("of the policy"), None]), threading.Semaphore(0)

    def then(chunk: np.ndarray) -> np.ndarray:
        go.acquire()
        if fault := next(answers):
            raise fault
        return chunk

    with stream(Marked(then), None) as s:
        assert ticks(s, 1) == [None]
        go.release()
        s._asked.answer.exception(10)  # waits for it
        with pytest.raises(ZeroDivisionError, match="of the policy"):
            s.action(PERIOD)
        assert ticks(s, 3, 2) == [None] * 3  # asks again at tick 4
        go.release()
        s._asked.answer.result(10)
        assert ticks(s, 2, 5) == [5, 6]


def test_a_stream_loads_no_torch_and_no_simulator() -> None:
    heavy = {"torch", "robosuite", "mujoco", "onnx"}
    code = f"import sys, ddp_cli.deploy.streaming; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
