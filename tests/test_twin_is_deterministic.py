"""Same seed, same episode, bit for bit: in another process, and after many other episodes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safe_o2o_sim.bullet")

from safe_o2o.types import CertifiedCommand, Command
from safe_o2o_sim.make import make_env
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.randomization import VARIANTS, sample_layout
from safe_o2o_sim.scene import Block, SceneLayout
from safe_o2o_sim.steady_normals import steady_normal
from safe_o2o_sim.tasks.safe_reach_behaviors import Expert, RandomWalk, Unsafe
from safe_o2o_sim.twin_camera import TwinCamera


def digest(env, behavior, seed: int) -> str:  # type: ignore[no-untyped-def]
    """Everything that an episode shows, as one hash."""
    found = hashlib.sha256()
    step = env.reset(seed)
    behavior.reset(seed)
    while True:
        for name in sorted(step.obs):
            found.update(step.obs[name].tobytes())
        facts = (step.reward, step.cost, step.terminated, step.truncated, step.stamp)
        filtered = (step.verdict, step.reason, step.margin)
        found.update(repr((*facts, *filtered)).encode())
        found.update(step.action.tobytes())
        if step.terminated or step.truncated:
            return found.hexdigest()
        step = env.step(behavior.act(step.obs))


def fresh(task: str, seed: int = 7) -> str:
    env = make_env(task)
    try:
        return digest(env, Unsafe(env.task), seed)
    finally:
        env.close()


@pytest.mark.parametrize("task", ["safe_reach", "safe_reach_2"])
def test_an_episode_is_the_same_after_other_episodes_and_in_another_process(task: str) -> None:
    here = fresh(task)
    code = f"from tests.test_twin_is_deterministic import fresh; print(fresh({task!r}))"
    root = Path(__file__).resolve().parent.parent
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert there.stdout == f"{here}\n"
    assert "pybullet build time" not in there.stderr
    env = make_env(task)
    behaviors = [kind(env.task) for kind in (Expert, Unsafe, RandomWalk)]
    for seed in range(6):
        digest(env, behaviors[seed % 3], 100 + seed)
    assert digest(env, behaviors[1], 7) == here
    assert digest(env, behaviors[1], 8) != here
    env.close()


def wander(twin: PybulletTwin, seed: int, ticks: int) -> np.ndarray:
    """Positions and velocities along a random motion, `[ticks, 14]`."""
    generator = np.random.default_rng(seed)
    q, w, seen = twin.read().q, np.zeros(7), []
    for _ in range(ticks):
        w = 0.95 * w + generator.normal(0.0, 0.06, 7)
        q = q + w * twin.period
        twin.write(CertifiedCommand(Command(q, w, 0.0)))
        seen.append(np.concatenate([twin.read().q, twin.read().dq]))
    return np.array(seen)


def test_pressing_on_the_table_leaves_no_trace_in_the_next_episode() -> None:
    with PybulletTwin() as twin:
        twin.activate()
        start = twin.read().q
        first = wander(twin, 0, 100)
        q = twin.read().q
        for _ in range(150):  # forward and down into the table
            q = q + np.array([0.0, 0.005, 0.0, -0.001, 0.0, 0.0, 0.0])
            twin.write(CertifiedCommand(Command(q, np.zeros(7), 0.0)))
        assert np.abs(twin.read().q - q).max() > 0.05, "the table did not hold the arm"
        twin.teleport(start)
        assert np.array_equal(wander(twin, 0, 100), first)


def test_teleport_restarts_the_clock_unless_it_is_to_run_on() -> None:
    for continuous, expected in ((False, 0.0), (True, 0.05)):
        with PybulletTwin(continuous_clock=continuous) as twin:
            twin.activate()
            wander(twin, 0, 5)
            twin.teleport(twin.read().q)
            assert twin.read().stamp == pytest.approx(expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layout_survives_json_and_shows_the_same_picture_elsewhere(variant: str) -> None:
    layout = sample_layout(np.random.default_rng(3), variant).scene
    copy = SceneLayout.from_json(layout.to_json())
    assert copy == layout
    one, other = TwinCamera(), TwinCamera()
    q = np.array([0.1, 0.1, 0.0, -2.4, 0.0, 2.5, 0.8])
    try:
        one.connect()
        other.connect()
        one.set_scene(layout)
        for seed in range(5):  # another history
            other.set_scene(sample_layout(np.random.default_rng(seed), "number").scene)
            other.follow(q + 0.1 * seed)
            other.read()
        other.set_scene(copy)
        one.follow(q, 1.5)
        other.follow(q, 1.5)
        image, stamp = one.read()
        assert stamp == 1.5
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, other.read()[0])
    finally:
        one.close()
        other.close()


def test_a_picture_does_not_depend_on_how_many_were_taken_before() -> None:
    # With the meshes' own normals, one pixel of this scene changes with every second picture.
    q = [0.21983286, 0.42920837, 0.03734313, -2.18250843, -0.03074114, 2.61124677, 1.06572831]
    green = (0.10, 0.60, 0.20)
    boxes = (
        Block("box", (0.07, 0.07, 0.1), (0.38732, -0.20904), green, yaw=-0.16527),
        Block("box", (0.07, 0.07, 0.1), (0.54416, -0.09581), green, yaw=-0.10808),
    )
    goal = Block("cylinder", (0.06, 0.06, 0.06), (0.59809, 0.13151), (0.85, 0.10, 0.10))
    camera = TwinCamera()
    camera.connect()
    try:
        camera.set_scene(SceneLayout(boxes, goal))
        camera.follow(np.array(q))
        first = camera.read()[0]
        assert all(np.array_equal(camera.read()[0], first) for _ in range(5))
    finally:
        camera.close()


def test_single_precision_keeps_a_steady_normal() -> None:
    generator = np.random.default_rng(0)
    unsteady = 0
    for _ in range(2000):
        normal = generator.normal(size=3) * generator.choice([1.0, 1e-3, 1e-6], 3)
        unit = normal / np.linalg.norm(normal)
        found = steady_normal(normal)
        assert np.abs(found - unit).max() < 2e-4
        assert np.array_equal(normalized(found), found)
        once = normalized(unit.astype(np.float32))
        unsteady += not np.array_equal(normalized(once), once)
    assert unsteady > 0, "nothing to cure: every unit vector stands still"
    for bad in ([0.0, 0.0, 0.0], [np.nan, 0.0, 1.0]):
        with pytest.raises(ValueError, match="direction"):
            steady_normal(np.array(bad))


def normalized(vector: np.ndarray) -> np.ndarray:
    """As the renderer does it, in float32."""
    x, y, z = np.square(vector)
    return vector * (np.float32(1) / np.sqrt((z + y) + x))
