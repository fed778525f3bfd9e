"""Mazes and control tasks: seeded, two kinds of end, costs, drivers that know the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="scripts/setup.sh --safety-gymnasium")
pytest.importorskip("pettingzoo", reason="scripts/setup.sh --safety-gymnasium")

from safe_o2o import catalog
from safe_o2o.cli.actors import BehaviorMaker
from safe_o2o.errors import ConfigError, MissingDependencyError, RobotStateError
from safe_o2o.types import Step, Verdict
from safe_o2o_sim.make import make_env
from safe_o2o_sim.point_maze import HAZARD_RADIUS, PointMaze
from safe_o2o_sim.vector_env import VectorEnv

MAZES = ("point_maze_umaze", "point_maze_medium", "point_maze_large")
TASKS = (*MAZES, "pendulum", "reacher")


def played(env: Any, seed: int, actor: Any = None) -> list[Step]:
    generator = np.random.default_rng(seed)
    steps = [env.reset(seed)]
    if actor is not None:
        actor.reset(seed)
    while not (steps[-1].terminated or steps[-1].truncated):
        drawn = generator.uniform(-1, 1, env.spec.action.dim)
        steps.append(env.step(drawn if actor is None else actor.act(steps[-1].obs)[0]))
    return steps


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_a_function_of_its_seed(task: str) -> None:
    env, other = make_env(task), make_env(task)
    played(other, 7)  # whatever ran before
    for a, b in zip(played(env, 3), played(other, 3), strict=True):
        assert np.array_equal(a.obs["state"], b.obs["state"])
        assert (a.reward, a.cost, a.terminated, a.stamp) == (
            b.reward,
            b.cost,
            b.terminated,
            b.stamp,
        )
    first, second = env.reset(1).obs["state"], env.reset(2).obs["state"]
    assert not np.array_equal(first, second)
    env.spec.observation.check(env.reset(4).obs)


@pytest.mark.parametrize("task", TASKS)
def test_time_that_is_up_is_no_end_of_the_task(task: str) -> None:
    env = make_env(task)
    assert isinstance(env, VectorEnv)
    env.reset(0)
    still = np.zeros(env.spec.action.dim)
    steps = [env.step(still) for _ in range(env.max_steps)]
    assert steps[-1].truncated and not steps[-1].terminated
    assert not any(step.truncated or step.terminated for step in steps[:-1])
    assert steps[-1].stamp == pytest.approx(env.max_steps * env.spec.action.period)
    with pytest.raises(RobotStateError, match="outside an episode"):
        env.step(still)


@pytest.mark.parametrize("task", TASKS)
def test_an_action_that_is_no_number_is_none(task: str) -> None:
    env = make_env(task)
    env.reset(0)
    step = env.step(np.full(env.spec.action.dim, np.nan))
    assert step.verdict == Verdict.STOPPED and (step.action == 0.0).all()
    assert np.isfinite(step.obs["state"]).all()
    with pytest.raises(ConfigError, match="of its speed"):
        env.step(np.zeros(env.spec.action.dim), speed=0.5)
    with pytest.raises(ConfigError, match="known: standard"):
        make_env(task, "nowhere")


def maze(task: str, variant: str = "standard") -> PointMaze:
    env = make_env(task, variant)
    assert isinstance(env, PointMaze)
    return env


@pytest.mark.parametrize("task", MAZES)
def test_drivers_reach_the_goal_by_more_than_one_way(task: str) -> None:
    env = maze(task)
    (driver,) = BehaviorMaker(("maze_waypoints",))(env)
    outcomes, routes = [], set()
    for seed in range(40):
        steps = played(env, seed, driver)
        outcomes.append(steps[-1].terminated)
        assert steps[-1].info["success"] == steps[-1].terminated
        assert sum(step.reward for step in steps) == float(steps[-1].terminated)
    assert np.mean(outcomes) >= 0.95
    for number in range(60):  # one layout, driven again and again
        driver.reset(number)
        step, cells = env.reset(5), []
        while not (step.terminated or step.truncated):
            step = env.step(driver.act(step.obs)[0])
            if not cells or env.cell(step.obs["state"][:2]) != cells[-1]:
                cells.append(env.cell(step.obs["state"][:2]))
        routes.add(tuple(dict.fromkeys(cells)))
    assert len(routes) >= {"point_maze_umaze": 2, "point_maze_medium": 3}.get(task, 5)


@pytest.mark.parametrize("task", MAZES)
def test_a_wanderer_is_a_worse_teacher(task: str) -> None:
    env = maze(task)
    (wanderer,) = BehaviorMaker(("maze_wanderer",))(env)
    ends = [played(env, seed, wanderer)[-1].terminated for seed in range(30)]
    assert np.mean(ends) <= 0.9


@pytest.mark.parametrize("task", MAZES)
def test_a_careful_driver_passes_most_zones(task: str) -> None:
    env = maze(task)
    careful, other = BehaviorMaker(("maze_careful", "maze_waypoints"))(env)
    ends: list[list[bool]] = [[], []]
    touched: list[list[bool]] = [[], []]
    for who, driver in enumerate((careful, other)):
        for seed in range(40):
            steps = played(env, seed, driver)
            ends[who].append(steps[-1].terminated)
            touched[who].append(any(step.cost > 0.0 for step in steps))
    assert np.mean(ends[0]) >= 0.85
    assert np.mean(touched[0]) <= 0.5 * np.mean(touched[1])


@pytest.mark.parametrize("task", MAZES)
def test_nobody_starts_in_a_zone_or_has_to_end_in_one(task: str) -> None:
    for variant in ("standard", "moved"):
        env = maze(task, variant)
        zones = {env.cell(zone) for zone in env.zones}
        for seed in range(60):
            state = env.reset(seed).obs["state"]
            assert env.cell(state[:2]) not in zones and env.cell(state[4:6]) not in zones


@pytest.mark.parametrize("task", MAZES)
def test_zones_cost_and_can_be_driven_around(task: str) -> None:
    env, moved = maze(task), maze(task, "moved")
    assert not np.array_equal(env.zones, moved.zones)
    for zones in (env.zones, moved.zones):
        for zone in zones:
            assert env.cell(zone) in env.cells
            # The ball, 0.1 m, fits between the zone and a wall half a metre away.
            assert HAZARD_RADIUS + 0.2 < 0.5
    (driver,) = BehaviorMaker(("maze_waypoints",))(env)
    clean = costly = 0
    for seed in range(40):
        steps = played(env, seed, driver)
        for step in steps:
            inside = np.linalg.norm(env.zones - step.obs["state"][:2], axis=-1) < HAZARD_RADIUS
            assert step.cost > 0.0 or not inside.any() or step is steps[0]
            assert step.info["violation"] == (step.cost > 0.0)
        total = sum(step.cost for step in steps)
        clean, costly = clean + (total == 0.0), costly + (total > 0.0)
    assert clean >= 5 and costly >= 5


def test_drivers_drive_through_mazes_only() -> None:
    with pytest.raises(ConfigError, match="mazes only"):
        BehaviorMaker(("maze_waypoints",))(make_env("pendulum"))


def test_the_pendulum_pays_for_speed_and_ends_upright_or_not() -> None:
    env = make_env("pendulum")
    costs = []
    for seed in range(5):
        for step in played(env, seed)[1:]:
            costs.append(step.cost)
            assert step.cost == float(abs(step.obs["state"][2]) > 5.0)
            assert step.info["success"] == (step.obs["state"][0] > np.cos(0.2))
    assert 0 < sum(costs) < len(costs)


def test_the_reacher_pays_inside_its_disc() -> None:
    env = make_env("reacher")
    seen = set()
    for seed in range(40):
        for step in played(env, seed)[1:]:
            state = step.obs["state"]
            tip = state[4:6] + state[8:10]
            inside = np.hypot(tip[0] - env.disc[0], tip[1] - env.disc[1]) < env.disc[2]
            assert step.cost == float(inside)
            seen.add(step.cost)
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize("task", ["safety_point_goal1_lidar", "safety_point_goal2_lidar"])
def test_navigation_by_lidar_is_the_task_with_another_eye(task: str) -> None:
    try:
        env, plain = make_env(task), make_env(task.removesuffix("_lidar"), camera=False)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    action = np.array([0.4, -0.2])
    first, same = env.reset(3), plain.reset(3)
    assert list(first.obs) == ["lidar"]
    for _ in range(5):
        assert np.array_equal(first.obs["lidar"], same.obs["lidar"])
        first, same = env.step(action), plain.step(action)


def test_the_catalogue_knows_them() -> None:
    assert set(TASKS) <= set(catalog.tasks)
