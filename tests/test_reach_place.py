"""ReachPlace is the task it claims to be: bounded visitors, a late tracker, a way through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("safe_o2o_sim.bullet")

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.types import Proposal
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.scene import EMPTY
from safe_o2o_sim.sensing import Watching
from safe_o2o_sim.tasks.reach_place import ReachPlace, ReachPlaceConfig
from safe_o2o_sim.tasks.reach_place_policy import ChunkPolicy
from safe_o2o_sim.visitor import POLITE, Leg, Visitor


@pytest.fixture
def twin() -> Iterator[PybulletTwin]:
    with PybulletTwin() as made:
        made.activate()
        yield made


def test_visitors_keep_to_their_bounds(twin: PybulletTwin) -> None:
    task = ReachPlace(twin, None, ReachPlaceConfig(variant="crowded"))
    for seed in range(5):
        task.reset(seed)
        for visitor in twin.visitors:
            for _ in range(2000):
                before, was = visitor.position, visitor.velocity
                visitor.step(0.01)
                assert np.linalg.norm(visitor.velocity) <= visitor.max_speed + 1e-9
                change = np.linalg.norm(visitor.velocity - was) / 0.01
                assert change <= visitor.max_acceleration + 1e-9
                start, velocity, acceleration = visitor.track
                assert np.array_equal(start, before)
                there = start + 0.01 * velocity + 0.5 * 0.01**2 * acceleration
                assert visitor.position == pytest.approx(there, abs=1e-12)


def test_nobody_pushes_into_an_arm_that_stands_and_nobody_stays(twin: PybulletTwin) -> None:
    tool = np.array([0.31, 0.0, 0.59])  # of the resting posture
    away = (float(tool[0]) + 0.8, 0.0, 0.5)
    legs = [Leg(away, 0.0, 0.8), Leg((0.3, 0.0, 0.5), 0.0, 0.8, yields=True), Leg(away, 9.0, 0.8)]
    visitor = Visitor("hand", (0.3, 0.0, 0.0), 0.05, legs, 0.8, 3.0, patience=0.3)
    twin.place(twin.read().q, EMPTY, [visitor])
    nearest = np.inf
    for _ in range(400):
        twin.pass_time()
        nearest = min(nearest, twin._nearest(twin._bodies[0], 1.0))
    assert POLITE - 0.02 < nearest < POLITE
    assert not twin.take_contact()
    assert visitor.position == pytest.approx(away, abs=0.02)


def test_the_tracker_is_late_and_wrong_within_its_bounds(twin: PybulletTwin) -> None:
    task = ReachPlace(twin)
    task.reset(1)
    config, truth = task.config, {}
    for _ in range(300):
        now = twin.read().stamp
        truth[now] = [(v.position, float(np.linalg.norm(v.velocity))) for v in twin.visitors]
        seen = task.seen(now)
        for obstacle, (position, speed) in zip(seen, truth[seen[0].stamp], strict=True):
            age = now - obstacle.stamp
            assert age <= config.seen_latency + config.seen_period + twin.period + 1e-9
            assert age >= config.seen_latency - 1e-9 or obstacle.stamp == 0.0
            assert np.linalg.norm(position - obstacle.centre) <= config.seen_error
            assert obstacle.speed >= min(speed, obstacle.max_speed) - 1e-9
        twin.pass_time()


@pytest.mark.parametrize("variant", ["alone", "standard"])
def test_the_scripted_policy_places_the_workpiece(twin: PybulletTwin, variant: str) -> None:
    task = ReachPlace(twin, None, ReachPlaceConfig(variant=variant))
    safety = SafetyFilter.for_robot(
        "panda",
        workspace=certified_box(task.config.workspace),
        tool_speed=task.config.tool_speed,
        obstacles=(),
    )
    watching, policy = Watching(safety, task.seen), ChunkPolicy(task.cartesian)
    task.reset(0)
    watching.reset(twin.read())
    placed = False
    for tick in range(1200):
        state = twin.read()
        if tick % 40 == 0:
            rows = policy.act(task.observe(state), state.q_command)
            proposal = Proposal(rows, task.config.period, state.stamp, twin.joint_names)
        twin.write(watching.certify(state, proposal, state.stamp).command)
        if tick % 10 == 9 and (placed := task.outcome()[2]):
            break
    assert placed
    assert task.object == pytest.approx(task.goal, abs=task.config.tolerance)


def test_a_filter_without_eyes_is_refused() -> None:
    blind = SafetyFilter.for_robot("panda", workspace=certified_box())
    with pytest.raises(ConfigError, match="watches no obstacles"):
        Watching(blind, lambda now: ())


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="crowded"):
        ReachPlaceConfig(variant="nobody")
