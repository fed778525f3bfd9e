"""Level 2 is what it claims to be: its layouts, what moves, how it is lit, who gets through."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safe_o2o_sim.bullet")

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import WORKSPACE
from safe_o2o.runtime.robot_env import RobotEnv
from safe_o2o.types import Array
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.make import make_env
from safe_o2o_sim.mixed_layouts import NEW_COLOURS, SEEN_COLOURS, sample_mixed_layout
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.randomization import VARIANTS, EpisodeLayout, sample_layout
from safe_o2o_sim.scene import (
    GREEN,
    RED,
    Block,
    CameraOffset,
    Light,
    Motion,
    SceneLayout,
)
from safe_o2o_sim.tasks.safe_reach import SafeReach
from safe_o2o_sim.tasks.safe_reach_2 import SafeReach2Config
from safe_o2o_sim.tasks.safe_reach_behaviors import Expert, RandomWalk, Unsafe
from safe_o2o_sim.twin_camera import TwinCamera

TOWER = 0.15  # m: what is taller cannot be flown over at the height that clears all others
GOAL = Block("cylinder", (0.06, 0.06, 0.06), (0.6, 0.2), RED)
LEVEL_1_TOOL = (0.474219497577014, -0.198904599931941, 0.112870213829378)
LEVEL_1_PLACES = [
    (0.444065109358415, -0.02490592473717),
    (0.554362347820344, 0.061819594861185),
    (0.427388826567202, 0.087269069643379),
]
"""Of the first seed of level 1: two obstacles and the goal, m."""
ARM = np.array([0.1, 0.1, 0.0, -2.4, 0.0, 2.5, 0.8])


def layouts(variant: str, count: int) -> list[EpisodeLayout]:
    return [sample_mixed_layout(np.random.default_rng(seed), variant) for seed in range(count)]


def way_of(block: Block, stations: int = 60) -> Array:
    """Middles `[stations, 2]` of a block over one whole period, by the formula written out here."""
    place = np.tile(block.position, (stations, 1))
    if block.motion is not None:
        turn = 2 * np.pi * (np.arange(stations) / stations + block.motion.phase)
        place = place + np.sin(turn)[:, None] * block.motion.reach
    return place


def footprint(block: Block) -> float:
    """Radius of the upright cylinder around a block, m."""
    return 0.5 * (math.hypot(*block.size[:2]) if block.shape == "box" else block.size[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_layouts_are_clear_of_start_goal_and_each_other_over_the_whole_motion(variant: str) -> None:
    low, high = np.array(WORKSPACE)
    for layout in layouts(variant, 100):
        scene, start = layout.scene, np.array(layout.tool)
        goal = np.array(scene.goal.position)
        assert ((low < start) & (start < high)).all()
        assert np.linalg.norm(goal - start[:2]) >= 0.25
        assert len(scene.obstacles) in ((7, 8) if variant == "number" else (4, 5, 6))
        assert sum(block.motion is not None for block in scene.obstacles) == 1
        assert sum(block.size[2] > TOWER for block in scene.obstacles) <= 1
        ways = [way_of(block) for block in scene.obstacles]
        for block, way in zip(scene.obstacles, ways, strict=True):
            assert (np.abs(way - (0.5, 0.0)) < (0.18, 0.24)).all()
            # Fingers and goal fit beside it; next to a tower the whole hand does, 0.2 m wide.
            room = (0.11 if block.size[2] > TOWER else 0.05) + footprint(block)
            assert np.linalg.norm(way - start[:2], axis=1).min() > room
            assert np.linalg.norm(way - goal, axis=1).min() > room
            assert block.size[2] <= 0.20
        for i, one in enumerate(ways):
            for j, other in enumerate(ways[:i]):
                apart = np.linalg.norm(one[:, None] - other[None], axis=2).min()
                assert apart > footprint(scene.obstacles[i]) + footprint(scene.obstacles[j])


def test_it_moves_at_a_speed_that_leaves_time_to_look() -> None:
    for layout in layouts("standard", 60):
        (block,) = (b for b in layout.scene.obstacles if b.motion is not None)
        assert block.motion is not None
        times = np.linspace(0.0, block.motion.period, 2001)
        places = np.array([block.at(float(t))[:2] for t in times])
        speed = np.linalg.norm(np.diff(places, axis=0), axis=1).max() / (times[1] - times[0])
        assert 0.0199 < speed < 0.0501
        assert speed == pytest.approx(block.motion.speed, rel=1e-3)
        assert np.allclose(places[0], places[-1])


def test_variants_lie_outside_of_the_mix_and_change_nothing_else() -> None:
    scenes = {name: [layout.scene for layout in layouts(name, 80)] for name in VARIANTS}
    blocks = {name: [b for s in found for b in s.obstacles] for name, found in scenes.items()}
    standard = blocks["standard"]
    assert {b.shape for b in standard} == {"box", "cylinder"}
    assert {b.colour for b in standard} == set(SEEN_COLOURS)
    assert {(s.goal.shape, s.goal.size, s.goal.colour) for s in scenes["standard"]} == {
        ("cylinder", (0.06, 0.06, 0.06), RED)
    }
    thinnest = min(min(b.size[:2]) for b in standard)
    new = {b.shape for b in blocks["shape"] if b.shape == "sphere" or b.size[0] < 0.8 * thinnest}
    assert new == {"sphere", "cylinder"}
    assert all(b.shape == "sphere" or b.size[0] < 0.8 * thinnest for b in blocks["shape"])
    assert {s.goal.shape for s in scenes["goal"]} == {"box"}
    assert min(len(s.obstacles) for s in scenes["number"]) == 7
    assert {b.colour for b in blocks["colour"]} == set(NEW_COLOURS)
    for one, other in ((a, b) for a in SEEN_COLOURS for b in (*NEW_COLOURS, RED)):
        assert np.linalg.norm(np.subtract(one, other)) > 0.4
    for seen, *others in zip(*(scenes[n] for n in ("standard", "shape", "colour")), strict=True):
        for scene in others:
            assert replace(scene, obstacles=()) == replace(seen, obstacles=())
            assert [(b.position, b.motion) for b in scene.obstacles] == [
                (b.position, b.motion) for b in seen.obstacles
            ]
    for seen, scene in zip(scenes["standard"], scenes["goal"], strict=True):
        assert replace(scene, goal=seen.goal) == seen
    with pytest.raises(ConfigError, match="colour"):
        sample_mixed_layout(np.random.default_rng(0), "color")


def test_distractors_are_flat_or_out_of_reach_and_the_goal_alone_is_red() -> None:
    reach, shared = WORKSPACE[1][1], 0
    for layout in layouts("standard", 100):
        scene = layout.scene
        for block in scene.distractors:
            beyond = abs(block.position[1]) > reach + 0.02
            assert block.size[2] < (0.02 if beyond else 0.004)
            shared += not beyond and block.colour in {b.colour for b in scene.obstacles}
        for block in (*scene.obstacles, *scene.distractors):
            assert block.colour[0] < 1.3 * max(block.colour[1:])
    assert shared > 50  # patches of the obstacles' own colours: colour alone is no cue


def test_level_1_draws_what_it_always_drew() -> None:
    layout = sample_layout(np.random.default_rng(0), "standard")
    assert layout.tool == pytest.approx(LEVEL_1_TOOL, abs=1e-12)
    places = [block.position for block in (*layout.scene.obstacles, layout.scene.goal)]
    assert np.allclose(places, LEVEL_1_PLACES, rtol=0.0, atol=1e-12)
    assert layout.scene == SceneLayout(layout.scene.obstacles, layout.scene.goal)
    assert all(block.motion is None for block in layout.scene.obstacles)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layout_survives_json_and_looks_the_same_elsewhere(variant: str) -> None:
    layout = sample_mixed_layout(np.random.default_rng(3), variant).scene
    copy = SceneLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert copy == layout
    one, other = TwinCamera(), TwinCamera()
    try:
        one.connect()
        other.connect()
        one.set_scene(layout)
        for seed in range(4):  # another history
            other.set_scene(sample_mixed_layout(np.random.default_rng(seed), "number").scene)
            other.follow(ARM + 0.1 * seed, 0.3 * seed)
            other.read()
        other.set_scene(copy, began=40.0)
        one.follow(ARM, 1.5)
        first = one.read()[0]
        other.follow(ARM, 41.5)
        image, stamp = other.read()
        assert stamp == 41.5
        assert np.array_equal(image, first)
        assert all(np.array_equal(one.read()[0], first) for _ in range(4))
        plain = sample_layout(np.random.default_rng(0), variant).scene
        one.set_scene(plain)  # no light lingers
        assert np.array_equal(one.read()[0], render(plain))
        assert not np.array_equal(render(replace(layout, light=Light()), 1.5), first)
    finally:
        one.close()
        other.close()


def render(layout: SceneLayout, stamp: float = 0.0, **camera: tuple[float, float, float]) -> Array:
    eye = TwinCamera(**camera)  # type: ignore[arg-type]
    eye.connect()
    try:
        eye.set_scene(layout)
        eye.follow(ARM, stamp)
        return eye.read()[0]
    finally:
        eye.close()


MOVING = Block(
    "box", (0.05, 0.05, 0.09), (0.5, 0.05), GREEN, yaw=0.3, motion=Motion((0.03, -0.04), 5.0, 0.2)
)


def expected(block: Block, time: float) -> tuple[float, float]:
    """The motion's formula, written out."""
    assert block.motion is not None
    turn = math.sin(2.0 * math.pi * (time / block.motion.period + block.motion.phase))
    x, y = block.motion.reach
    return block.position[0] + x * turn, block.position[1] + y * turn


def test_what_moves_is_where_the_formula_says_in_physics_and_in_the_picture() -> None:
    scene = SceneLayout((Block("cylinder", (0.05, 0.05, 0.1), (0.4, -0.15), GREEN), MOVING), GOAL)
    for continuous in (False, True):
        with PybulletTwin(continuous_clock=continuous) as twin:
            for _ in range(7):  # the clock has run before the episode begins
                twin.pass_time()
            twin.place(ARM, scene)
            began = twin.read().stamp
            assert began == pytest.approx(0.07 if continuous else 0.0)
            for tick in range(150):
                if tick:
                    twin.pass_time()
                assert twin.read().stamp == pytest.approx(began + 0.01 * tick)
                if tick % 37 == 0:
                    bodies = [
                        pybullet.getBasePositionAndOrientation(b, physicsClientId=twin._client)[0]
                        for b in twin._obstacles
                    ]
                    assert bodies[1][:2] == pytest.approx(expected(MOVING, 0.01 * tick), abs=1e-9)
                    assert bodies[0][:2] == (0.4, -0.15)
    pictures = []
    for time in (0.0, 0.9, 2.6):
        still = replace(MOVING, position=expected(MOVING, time), motion=None)
        pictures.append(render(scene, time))
        assert np.array_equal(
            pictures[-1], render(replace(scene, obstacles=(scene.obstacles[0], still)))
        )
    assert not np.array_equal(pictures[0], pictures[1])


def test_touching_what_moves_costs_even_an_arm_that_stands() -> None:
    """It comes from 0.11 m beside the fingers, is among them after one second, and goes on."""
    cartesian = SafeReach(PybulletTwin()).cartesian
    q = cartesian.solve(np.array([0.5, 0.0, 0.08]), cartesian.posture, 60)
    mover = Block(
        "cylinder", (0.04, 0.04, 0.09), (0.5, 0.0), GREEN, motion=Motion((0.0, 0.11), 4.0, 0.25)
    )
    with PybulletTwin() as twin:
        twin.place(q, SceneLayout((mover,), GOAL))
        touched = []
        for _ in range(200):
            twin.pass_time()
            touched.append(twin.take_contact())
        places = np.array([expected(mover, 0.01 * (tick + 1))[1] for tick in range(200)])
        assert all(np.array(touched)[np.abs(places) < 0.02])
        assert not any(np.array(touched)[np.abs(places) > 0.06])
        assert np.allclose(twin.read().q, q, atol=2e-3)  # sensed, not felt


def test_light_and_camera_change_the_picture_as_they_say() -> None:
    scene = SceneLayout((MOVING,), GOAL)
    plain = render(scene).astype(float)
    dark = Light((0.5, 0.0, 1.0), ambient=0.3, diffuse=0.2, specular=0.0)
    assert render(replace(scene, light=dark)).mean() < 0.8 * plain.mean()
    warm = replace(dark, colour=(1.0, 0.8, 0.4))
    reddened = render(replace(scene, light=warm)).astype(float).mean((0, 1))
    assert reddened[2] / reddened[0] < 0.85 * plain.mean((0, 1))[2] / plain.mean((0, 1))[0]
    eye, target, shift = (1.02, 0.0, 0.80), (0.515, 0.0, 0.06), (0.01, -0.02, 0.015)
    moved = replace(scene, camera=CameraOffset(shift, (0.0, 0.0, 0.0)))
    there = {"eye": tuple(np.add(eye, shift)), "target": tuple(np.add(target, shift))}
    assert (render(moved) != render(scene, **there)).mean() < 1e-3
    turned = replace(scene, camera=CameraOffset((0.0, 0.0, 0.0), (0.0, 0.0, 0.05)))
    ahead = complex(*np.subtract(target, eye)[:2]) * complex(math.cos(0.05), math.sin(0.05))
    aside = {"target": (eye[0] + ahead.real, eye[1] + ahead.imag, target[2])}
    assert (render(turned) != render(scene, **aside)).mean() < 1e-3
    assert (render(turned) != plain).mean() > 0.02


def test_cameras_are_off_by_half_a_degree_and_five_millimetres() -> None:
    cameras = [layout.scene.camera for layout in layouts("standard", 300)]
    shifts = np.array([camera.shift for camera in cameras if camera is not None])
    turns = np.array([camera.turn for camera in cameras if camera is not None])
    assert len(shifts) == 300
    assert np.allclose(shifts.std(0), 0.005, rtol=0.15)
    assert np.allclose(np.degrees(turns.std(0)), 0.5, rtol=0.15)
    assert np.abs(np.degrees(turns.mean(0))).max() < 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_goal_is_seen_and_nothing_else_is_red(variant: str) -> None:
    env = make_env("safe_reach_2", variant)
    try:
        for seed in range(12):
            image = env.reset(seed).obs["image"].astype(float)
            red = image[..., 0] > 2.2 * np.maximum(image[..., 1], image[..., 2])
            assert red.sum() >= 20, f"seed {seed}"
            rows, columns = np.nonzero(red)
            assert np.ptp(rows) < 12 and np.ptp(columns) < 12, f"seed {seed}"
    finally:
        env.close()


@pytest.fixture(scope="module")
def blind() -> Iterator[RobotEnv]:
    made = make_env("safe_reach_2", camera=False)
    yield made
    made.close()


class OneHeight(Expert):
    """Over everything at the height that clears what is not a tower, without a look."""

    def _plan(self, tool: Array, target: Array) -> tuple[float, tuple[Array, ...]]:
        self._tower = False
        return 0.18, ()


def scores(env: RobotEnv, behavior: Expert | Unsafe | RandomWalk, seeds: list[int]) -> Array:
    """Success, violation and length of the episodes, on average."""
    found = []
    for seed in seeds:
        step, touched, length = env.reset(seed), False, 0
        behavior.reset(seed)
        while not (step.terminated or step.truncated):
            step = env.step(behavior.act(step.obs))
            touched, length = touched or bool(step.info["violation"]), length + 1
        found.append((step.info["success"], touched, length))
    return np.array(found, float).mean(0)


def test_the_behaviours_are_what_they_are_called(blind: RobotEnv) -> None:
    task = blind.task
    seeds = list(range(2000, 2012))
    expert = scores(blind, Expert(task), seeds)
    unsafe = scores(blind, Unsafe(task), seeds)
    random = scores(blind, RandomWalk(task), seeds[:3])
    assert (expert[0], expert[1]) == (1.0, 0.0)
    assert expert[2] < 32
    assert 0.4 < unsafe[0] < 1.0
    assert 0.4 < unsafe[1] < 1.0
    assert random[0] < 1.0


def test_the_data_say_that_a_tower_is_in_the_way_up_there_too(blind: RobotEnv) -> None:
    task, touched = blind.task, []
    behavior = Unsafe(task)
    heights = {}
    for seed in range(3000, 3100):
        behavior.reset(seed)
        heights[seed] = behavior._height
    crossing = [height for height in heights.values() if height > 0.0]
    assert 35 < len(crossing) < 65
    assert min(crossing) >= 0.12 and max(crossing) <= 0.22
    for seed in [seed for seed, height in heights.items() if 0.15 < height < 0.18]:
        step = blind.reset(seed)
        towers = [block for block in task.layout.scene.obstacles if block.size[2] > 0.15]
        behavior.reset(seed)
        while towers and not (step.terminated or step.truncated):
            step = blind.step(behavior.act(step.obs))
            if step.info["violation"]:
                touched.append(float(step.obs["tcp_pose"][2]))
                break
    # Above every obstacle but a tower, 5 to 11 cm high: what was touched there was one.
    assert sum(height > 0.13 for height in touched) >= 2


def test_a_flight_at_one_height_meets_the_towers(blind: RobotEnv) -> None:
    with_tower = [
        seed
        for seed in range(40)
        if any(
            b.size[2] > TOWER
            for b in sample_mixed_layout(np.random.default_rng(seed), "standard").scene.obstacles
        )
    ][:6]
    assert scores(blind, OneHeight(blind.task), with_tower)[1] >= 0.5
    assert scores(blind, Expert(blind.task), with_tower)[1] == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_episode_begins_with_a_contact_or_at_the_goal(variant: str) -> None:
    env = make_env("safe_reach_2", variant, camera=False)
    try:
        for seed in range(40):
            env.reset(seed)
            assert env.task.outcome() == (0.0, 0.0, False)
    finally:
        env.close()


def test_the_filter_is_told_the_walls_and_no_obstacle(blind: RobotEnv) -> None:
    known = {constraint.name for constraint in blind.filter.constraints}  # type: ignore[attr-defined]
    assert known == {"joint_limits", "workspace", "tool_speed"}


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="variant"):
        SafeReach2Config(variant="hard")
    with pytest.raises(ConfigError, match="period"):
        Motion((0.1, 0.0), 0.0)
