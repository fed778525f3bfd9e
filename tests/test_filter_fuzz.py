"""No input gets the filter to leave its limits, to raise, or to leave a tick unanswered."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.types import Decision, Proposal, RobotState, Verdict
from tests.invariance import BOX, HOME, bang_run, wild_run
from tests.judge import DT, Judge

ROOT = Path(__file__).parents[1]
JUDGE = Judge("panda", BOX)
numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8)
arrays = hnp.arrays(np.float64, shapes, elements=numbers)
near = hnp.arrays(np.float64, (2, 7), elements=st.floats(-0.5, 0.5)).map(lambda x: HOME + x)
names = st.one_of(
    st.just(JUDGE.names),
    st.permutations(JUDGE.names).map(tuple),
    st.lists(st.text(max_size=3), max_size=8).map(tuple),
)
proposals = st.one_of(
    st.none(),
    st.builds(Proposal, q=st.one_of(near, arrays), period=st.one_of(st.just(0.2), numbers),
              stamp=st.one_of(st.just(0.0), numbers), joint_names=names),
    st.builds(Proposal, q=st.just(None), period=st.none(), stamp=st.none(), joint_names=st.none()),
)  # fmt: skip
readings = st.one_of(st.just(HOME), arrays, st.just(None), st.just("joint"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(proposals, readings, numbers), min_size=1, max_size=6), st.booleans())
def test_any_input_gets_a_safe_answer(ticks: list[tuple[Any, Any, float]], moving: bool) -> None:
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, period=DT)
    q, v, now = HOME, np.zeros(7), 0.0
    filter_.reset(RobotState(q, v, q, now))
    if moving:
        start = Proposal(HOME[None] + 0.05, 0.2, 0.0, JUDGE.names)
        for _ in range(10):
            now += DT
            after = filter_.certify(RobotState(q, v, q, now), start, now).command.q
            v, q = (after - q) / DT, after
    for proposal, reading, clock in ticks:
        decision = filter_.certify(RobotState(reading, v, q, 0.0), proposal, clock)
        assert isinstance(decision, Decision) and decision.verdict in Verdict
        assert decision.margin >= 0.0 and JUDGE.violations(q, v, decision.command.q) == []
        v, q = (decision.command.q - q) / DT, decision.command.q


def test_twenty_thousand_wild_ticks_without_a_violation() -> None:
    tally = wild_run(20_000, seed=0)
    assert tally.ticks == sum(tally.verdicts.values()) == 20_000
    assert not tally.violations, tally.violations
    # A filter that always stops would be safe and useless.
    assert min(tally.verdicts[v.name] for v in Verdict) > 500, tally.verdicts


def test_driven_from_wall_to_wall_it_is_fast_and_stays_inside() -> None:
    tally = bang_run(10_000, seed=0)
    assert not tally.violations, tally.violations
    # A tenth of it are targets refused as too far; where a wall blocks the path the arm waits.
    assert tally.fastest > 0.95 and tally.verdicts["STOPPED"] < 2700


def test_the_judge_can_say_no() -> None:
    assert "velocity" in JUDGE.violations(HOME, np.zeros(7), HOME + 0.1)
    assert "acceleration" in JUDGE.violations(HOME, np.zeros(7), HOME + 0.005)
    assert "not finite" in JUDGE.violations(HOME, np.zeros(7), HOME * np.nan)
    low = HOME + np.array([0.0, 0.35, 0.0, -0.2, 0.0, 0.2, 0.0])
    assert "workspace" in JUDGE.violations(low, np.zeros(7), low)


def test_smooth_motion_inside_the_limits_is_left_alone() -> None:
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, period=DT)
    q, now, passed, ticks = HOME, 0.0, 0, 0
    filter_.reset(RobotState(q, np.zeros(7), q, now))
    for step in range(100):
        phase = 2 * np.pi * (step + 1) / 50 + np.arange(7)
        start = 2 * np.pi * 0 / 50 + np.arange(7)
        proposal = Proposal(
            (HOME + 0.05 * (np.sin(phase) - np.sin(start)))[None], 0.2, now, JUDGE.names
        )
        for _ in range(20):
            now += DT
            decision = filter_.certify(RobotState(q, np.zeros(7), q, now), proposal, now)
            q, ticks = decision.command.q, ticks + 1
            passed += decision.verdict is Verdict.PASS
        assert np.array_equal(q, proposal.q[0])
    assert passed == ticks


def test_streams_at_ninety_percent_of_the_limits_pass_bit_for_bit() -> None:
    generator, wide = np.random.default_rng(4), ((-1.0, -1.0, 0.0), (1.0, 1.0, 1.3))
    for _ in range(10):
        pace = generator.uniform(3.0, 12.0, 7)  # rad/s
        time = DT * np.arange(1, 301)[:, None]
        # Begins at rest: A (1 - cos) with peak speed A w and peak acceleration A w^2.
        size = 0.9 * np.minimum(JUDGE.velocity / pace, JUDGE.acceleration / pace**2)
        size = np.minimum(size, 0.15) * generator.choice([-1.0, 1.0], 7)
        stream = HOME + size * (1.0 - np.cos(pace * time))
        filter_ = SafetyFilter.for_robot("panda", workspace=wide, tool_speed=None, period=DT)
        q, now = HOME, 0.0
        filter_.reset(RobotState(q, np.zeros(7), q, now))
        for target in stream:
            proposal = Proposal(target[None], DT, now, JUDGE.names)
            now += DT
            decision = filter_.certify(RobotState(q, np.zeros(7), q, now), proposal, now)
            q = decision.command.q
            assert decision.verdict is Verdict.PASS and np.array_equal(q, target)


def test_the_stand_alone_example_runs() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "standalone_filter.py"))
    assert 100 < example["main"]() <= 1000


def test_importing_the_filter_imports_nothing_heavy() -> None:
    code = (
        "import sys, safe_o2o.safety.filter\n"
        "heavy = {'torch', 'scipy', 'pybullet', 'rclpy', 'cv2', 'onnxruntime', 'matplotlib'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
