"""SafeReach is the task it claims to be: layouts, contact, goal, behaviours, and what one sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safe_o2o_sim.bullet")

from safe_o2o.errors import ConfigError, RobotStateError
from safe_o2o.runtime.cartesian import WORKSPACE, certified_box
from safe_o2o.runtime.robot_env import RobotEnv
from safe_o2o.types import Array, CertifiedCommand, Command, RobotState
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.make import make_env
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.randomization import HARMLESS, VARIANTS, sample_layout
from safe_o2o_sim.scene import GREEN, RED, YELLOW, Block, SceneLayout
from safe_o2o_sim.tasks.safe_reach import SafeReach, SafeReachConfig
from safe_o2o_sim.tasks.safe_reach_2 import SafeReach2Config
from safe_o2o_sim.tasks.safe_reach_behaviors import Expert, RandomWalk, Unsafe
from safe_o2o_sim.twin_camera import TwinCamera


class Straight(Unsafe):
    """Straight at the goal, without noise: what the layouts must make costly."""

    noise = 0.0
    aim_error = 0.0


class BlindSafeReach(SafeReach):
    """The same task with a black picture, for tests that play many episodes."""

    def observe(self, state: RobotState) -> dict[str, Array]:
        return dict(self.cartesian.observe(state, np.zeros((64, 64, 3), np.uint8)))


@pytest.fixture(scope="module")
def blind() -> Iterator[RobotEnv]:
    made = make_env()
    made.task.close()
    made.task = BlindSafeReach(made.robot)  # type: ignore[arg-type]
    yield made
    made.close()


def scores(env: RobotEnv, behavior: Unsafe | Expert | RandomWalk, seeds: range) -> Array:
    """Success and violation `[n, 2]` of each episode."""
    found = []
    for seed in seeds:
        step, touched = env.reset(seed), False
        behavior.reset(seed)
        while not (step.terminated or step.truncated):
            step = env.step(behavior.act(step.obs))
            touched |= step.info["violation"]
        found.append((step.info["success"], touched))
    return np.array(found, float)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layouts_keep_their_promises(variant: str) -> None:
    blocked = 0
    low, high = np.array(WORKSPACE)
    for seed in range(200):
        layout = sample_layout(np.random.default_rng(seed), variant)
        start, goal = np.array(layout.tool), np.array(layout.scene.goal.position)
        assert ((low < start) & (start < high)).all()
        assert np.linalg.norm(goal - start[:2]) >= 0.20
        places = [np.array(block.position) for block in layout.scene.obstacles]
        assert len(places) == (3 if variant == "number" else 2)
        for place in places:
            assert min(np.linalg.norm(place - goal), np.linalg.norm(place - start[:2])) >= 0.10
        along = goal - start[:2]
        shares = [np.clip((p - start[:2]) @ along / (along @ along), 0, 1) for p in places]
        off = [
            np.linalg.norm(p - start[:2] - s * along) for p, s in zip(places, shares, strict=True)
        ]
        blocked += min(off) <= 0.0201
    assert 0.70 < blocked / 200 < 0.92  # 0.75, and now and then one stands there by chance


def test_variants_change_what_they_say_and_nothing_else() -> None:
    scenes = {name: sample_layout(np.random.default_rng(0), name).scene for name in VARIANTS}
    standard = scenes["standard"]
    assert [b.shape for b in standard.obstacles] == ["box", "box"]
    assert {b.colour for b in standard.obstacles} == {GREEN}
    assert (standard.goal.shape, standard.goal.colour) == ("cylinder", RED)
    assert [b.shape for b in scenes["shape"].obstacles] == ["cylinder", "cylinder"]
    assert scenes["goal"].goal.shape == "box"
    assert scenes["goal"].obstacles == standard.obstacles
    assert len(scenes["number"].obstacles) == 3
    assert max(scenes["number"].obstacles[2].size) < max(standard.obstacles[0].size)
    assert {b.colour for b in scenes["colour"].obstacles} == {YELLOW}
    assert [b.position for b in scenes["colour"].obstacles] == [
        b.position for b in standard.obstacles
    ]
    with pytest.raises(ConfigError, match="colour"):
        sample_layout(np.random.default_rng(0), "color")


@pytest.mark.parametrize("variant", HARMLESS)
def test_a_harmless_novelty_is_seen_and_changes_nothing_that_can_be_touched(variant: str) -> None:
    high = np.array(WORKSPACE[1])
    camera = TwinCamera()
    camera.connect()
    for seed in range(30):
        plain = sample_layout(np.random.default_rng(seed), "standard")
        new = sample_layout(np.random.default_rng(seed), variant)
        assert new.tool == plain.tool
        assert new.scene != plain.scene
        same = dataclasses.replace(
            new.scene, cloth=plain.scene.cloth, light=plain.scene.light, distractors=()
        )
        assert same == plain.scene
        assert SceneLayout.from_json(new.scene.to_json()) == new.scene
        for block in new.scene.distractors:
            assert abs(block.position[1]) - 0.5 * block.size[1] > high[1]
        if seed < 3:
            pictures = []
            for scene in (plain.scene, new.scene, plain.scene):
                camera.set_scene(scene)
                pictures.append(camera.read()[0].astype(int))
            changed = (np.abs(pictures[1] - pictures[0]).max(-1) > 8).mean()
            assert changed > (0.002 if variant == "distractor" else 0.2)
            np.testing.assert_array_equal(pictures[2], pictures[0])
    camera.close()
    assert SafeReachConfig(variant=variant).variant == variant
    with pytest.raises(ConfigError, match="unknown scene variant"):
        SafeReach2Config(variant=variant)


def test_the_clearance_is_the_distance_of_the_nearest_obstacle(blind: RobotEnv) -> None:
    """Against the answer of PyBullet itself; 0 after a touch, though the arm has left by then."""
    step, twin, seen = blind.reset(3), blind.robot, []
    assert isinstance(twin, PybulletTwin)
    actor = Straight(blind.task)
    actor.reset(3)
    for _ in range(30):
        step = blind.step(actor.act(step.obs))
        found = [
            point[8]
            for body in twin._obstacles
            for point in pybullet.getClosestPoints(
                twin._arm, body, 0.2, physicsClientId=twin._client
            )
        ]
        here = max(min(found, default=0.2), 0.0)
        assert step.clearance == (0.0 if step.cost else pytest.approx(here, abs=1e-9))
        seen.append(step.clearance)
        if step.terminated:
            break
    assert min(seen) < 0.03 < max(seen) <= 0.2


def test_no_episode_begins_with_a_contact_or_at_the_goal(blind: RobotEnv) -> None:
    for seed in range(100):
        blind.reset(seed)
        assert blind.task.outcome() == (0.0, 0.0, False)


def test_the_straight_line_hits_and_the_behaviours_are_what_they_are_called(
    blind: RobotEnv,
) -> None:
    task = blind.task
    straight = scores(blind, Straight(task), range(1000, 1060)).mean(0)
    expert = scores(blind, Expert(task), range(1000, 1020)).mean(0)
    unsafe = scores(blind, Unsafe(task), range(1000, 1024)).mean(0)
    random = scores(blind, RandomWalk(task), range(1000, 1006)).mean(0)
    assert straight[0] > 0.95
    assert straight[1] >= 0.60
    assert expert[0] > 0.95
    assert expert[1] < 0.05
    assert 0.5 < unsafe[0] < 0.9
    assert 0.6 < unsafe[1] < 0.95
    assert random[0] < 0.5


def test_behaviours_are_seeded(blind: RobotEnv) -> None:
    obs = blind.reset(0).obs
    for kind in (Expert, Unsafe, RandomWalk):
        behavior = kind(blind.task)
        drawn = []
        for seed in (3, 4, 3):
            behavior.reset(seed)
            drawn.append([behavior.act(obs) for _ in range(3)])
        assert np.array_equal(drawn[0], drawn[2])
        assert not np.array_equal(drawn[0], drawn[1])
        assert np.abs(drawn).max() <= 1.0


def drive(twin: PybulletTwin, q: Array, ticks: int = 60) -> None:
    start = twin.read().q_command
    for tick in range(1, ticks + 1):
        here = start + (q - start) * min(1.0, tick / (ticks - 10))
        twin.write(CertifiedCommand(Command(here, np.zeros(7), 0.0)))


@pytest.mark.parametrize(("gap", "touched"), [(-0.004, True), (0.004, False)])
def test_contact_is_felt_to_a_few_millimetres_and_pushes_nothing(gap: float, touched: bool) -> None:
    """The finger tips reach 8.8 mm below the tool frame (58.4 mm + 53.8 mm - 103.4 mm)."""
    cartesian = SafeReach(PybulletTwin()).cartesian
    box = Block("box", (0.07, 0.07, 0.10), (0.5, 0.0), GREEN)
    scene = SceneLayout((box,), Block("cylinder", (0.06, 0.06, 0.06), (0.6, 0.2), RED))
    above = cartesian.solve(np.array([0.5, 0.0, 0.16]), cartesian.posture, 60)
    near = cartesian.solve(np.array([0.5, 0.0, 0.10 + 0.0088 + gap]), cartesian.posture, 60)
    with PybulletTwin() as twin, PybulletTwin() as alone:
        for robot, layout in ((twin, scene), (alone, SceneLayout((), scene.goal))):
            robot.place(above, layout)
            robot.activate()
            drive(robot, near)
        assert twin.take_contact() is touched
        assert not alone.take_contact()
        # How far the finger tips are inside the box where the arm came to rest, times 3000 N/m;
        # Bullet's meshes are a millimetre larger than they look.
        depth = 0.10 - (float(cartesian.position(twin.read().q)[2]) - 0.0088)
        assert twin.take_force() == pytest.approx(3000.0 * max(0.0, depth), abs=4.5)
        assert twin.take_force() == alone.take_force() == 0.0
        assert np.array_equal(twin.read().q, alone.read().q)
        drive(twin, above)
        twin.take_contact()  # whatever the way back touched
        drive(twin, above)
        assert not twin.take_contact()


def test_any_part_of_the_arm_counts_not_the_tool_alone() -> None:
    cartesian = SafeReach(PybulletTwin()).cartesian
    q = cartesian.solve(np.array([0.6, 0.0, 0.1]), cartesian.posture, 60)
    wall = Block("box", (0.05, 0.05, 0.75), (0.32, 0.0), GREEN)  # under the forearm
    with PybulletTwin() as twin:
        twin.place(q, SceneLayout((wall,), Block("cylinder", (0.06, 0.06, 0.06), (0.6, 0.2), RED)))
        assert np.linalg.norm(cartesian.position(q)[:2] - wall.position) > 0.2
        assert twin.take_contact()


def test_reaching_is_rewarded_once_and_ends_the_episode(blind: RobotEnv) -> None:
    task = blind.task
    blind.reset(11)
    q = task.cartesian.solve(task.target, task.cartesian.posture, 60)
    blind.robot.teleport(q)  # type: ignore[attr-defined]
    assert task.outcome() == (1.0, 0.0, True)
    off = task.target + np.array([0.0, 0.0, task.config.tolerance + 0.002])
    blind.robot.teleport(task.cartesian.solve(off, q, 60))  # type: ignore[attr-defined]
    assert task.outcome() == (0.0, 0.0, False)


def test_goal_obstacles_and_hand_are_seen_and_told_apart() -> None:
    env = make_env()
    seen = []
    for seed in range(20):
        image = env.reset(seed).obs["image"].astype(int)
        red, green, blue = image[..., 0], image[..., 1], image[..., 2]
        goal = ((red > 90) & (green < 60) & (blue < 60)).sum()
        obstacles = ((green > 60) & (red < 60) & (blue < 70)).sum()
        fingers = ((image < 32).all(-1)[10:]).sum()
        seen.append((goal, obstacles, fingers))
    env.close()
    seen_array = np.array(seen)
    assert (seen_array[:, 0] >= 25).mean() >= 0.95
    assert (seen_array[:, 1] >= 40).mean() >= 0.95
    assert (seen_array[:, 2] >= 2).mean() >= 0.8


def test_the_filter_is_told_the_walls_and_no_obstacle() -> None:
    env = make_env()
    known = {constraint.name for constraint in env.filter.constraints}  # type: ignore[attr-defined]
    assert known == {"joint_limits", "workspace", "tool_speed"}
    walls = next(c for c in env.filter.constraints if c.name == "workspace")  # type: ignore[attr-defined]
    assert np.array_equal([walls.low, walls.high], certified_box())
    env.close()


def test_a_task_without_camera_plays_but_does_not_see() -> None:
    with PybulletTwin() as twin:
        task = SafeReach(twin)
        with pytest.raises(RobotStateError, match="reset"):
            _ = task.layout
        task.reset(0)
        assert task.outcome() == (0.0, 0.0, False)
        assert set(task.observe(twin.read())) == {"tcp_pose"}


@pytest.mark.parametrize(
    "bad", [{"variant": "hard"}, {"max_steps": 0}, {"tolerance": float("nan")}, {"period": -1.0}]
)
def test_bad_settings_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SafeReachConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("behavior", [Expert, Unsafe, RandomWalk])
def test_a_script_for_another_task_is_refused_by_name(behavior: Any) -> None:
    with pytest.raises(ConfigError, match="safe_reach only"):
        behavior(object())
