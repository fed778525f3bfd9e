"""Every name that a user can type, one line each, as `"module:Class"`; nothing here imports them.

Add a line, not a branch: the contract tests run over these tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from safe_o2o.errors import MissingDependencyError, UnknownNameError

algorithms: dict[str, str] = dict(
    fosp="safe_o2o.algorithms.fosp:Fosp",
    safedreamer="safe_o2o.algorithms.baselines:SafeDreamer",
    dreamer="safe_o2o.algorithms.baselines:Dreamer",
    behavior_cloning="safe_o2o.algorithms.baselines:BehaviorCloning",
    cloning="safe_o2o.algorithms.cloning:Cloning",
    iql="safe_o2o.algorithms.iql:Iql",
    idql="safe_o2o.algorithms.idql:Idql",
    align_iql="safe_o2o.algorithms.align_iql:AlignIql",
    align_iql_hard="safe_o2o.algorithms.align_iql:AlignIqlHard",
    diffcps="safe_o2o.algorithms.diffcps:DiffCps",
    cfpi="safe_o2o.algorithms.cfpi:Cfpi",
    consistency_ac="safe_o2o.algorithms.consistency_ac:ConsistencyAc",
    cvpo="safe_o2o.algorithms.cvpo:Cvpo",
    dpmd="safe_o2o.algorithms.dpmd:Dpmd",
    sdac="safe_o2o.algorithms.sdac:Sdac",
    loop="safe_o2o.algorithms.loop:Loop",
    reachability="safe_o2o.algorithms.reachability:Reachability",
)
tasks: dict[str, str] = dict(
    reach_place="safe_o2o_sim.tasks.reach_place:ReachPlace",
    safe_reach="safe_o2o_sim.tasks.safe_reach:SafeReach",
    safe_reach_2="safe_o2o_sim.tasks.safe_reach_2:SafeReach2",
    pendulum="safe_o2o_sim.control_tasks:Pendulum",
    point_maze_large="safe_o2o_sim.point_maze:PointMazeLarge",
    point_maze_medium="safe_o2o_sim.point_maze:PointMazeMedium",
    point_maze_umaze="safe_o2o_sim.point_maze:PointMazeUMaze",
    reacher="safe_o2o_sim.control_tasks:Reacher",
    safety_car_goal2="safe_o2o_sim.safety_gymnasium_env:CarGoal2",
    safety_point_button1="safe_o2o_sim.safety_gymnasium_env:PointButton1",
    safety_point_goal1="safe_o2o_sim.safety_gymnasium_env:PointGoal1",
    safety_point_goal1_lidar="safe_o2o_sim.safety_gymnasium_env:PointGoal1Lidar",
    safety_point_goal2="safe_o2o_sim.safety_gymnasium_env:PointGoal2",
    safety_point_goal2_lidar="safe_o2o_sim.safety_gymnasium_env:PointGoal2Lidar",
    safety_point_push1="safe_o2o_sim.safety_gymnasium_env:PointPush1",
)
behaviors: dict[str, str] = dict(
    expert="safe_o2o_sim.tasks.safe_reach_behaviors:Expert",
    unsafe="safe_o2o_sim.tasks.safe_reach_behaviors:Unsafe",
    random="safe_o2o_sim.tasks.safe_reach_behaviors:RandomWalk",
    maze_waypoints="safe_o2o_sim.point_maze_behaviors:MazeWaypoints",
    maze_careful="safe_o2o_sim.point_maze_behaviors:MazeCareful",
    maze_wanderer="safe_o2o_sim.point_maze_behaviors:MazeWanderer",
)
robots: dict[str, str] = dict(
    mock="safe_o2o.runtime.mock_robot:MockRobot",
    pybullet_twin="safe_o2o_sim.pybullet_twin:PybulletTwin",
)
cameras: dict[str, str] = dict(
    twin_camera="safe_o2o_sim.twin_camera:TwinCamera",
    mock="safe_o2o_hardware.cameras.mock:MockCamera",
    opencv="safe_o2o_hardware.cameras.opencv:OpenCVCamera",
)
constraints: dict[str, str] = dict(
    joint_limits="safe_o2o.safety.joint_limits:JointLimits",
    joint_speed="safe_o2o.safety.joint_speed:JointSpeed",
    obstacles="safe_o2o.safety.obstacle:Obstacles",
    self_collision="safe_o2o.safety.self_collision:SelfCollision",
    tool_speed="safe_o2o.safety.tool_speed:ToolSpeed",
    workspace="safe_o2o.safety.workspace:Workspace",
)
backbones: dict[str, str] = dict(
    timm="safe_o2o.nets.backbone_sources:Timm",
    torchvision="safe_o2o.nets.backbone_sources:Torchvision",
)

TABLES: Mapping[str, Mapping[str, str]] = dict(
    algorithm=algorithms,
    task=tasks,
    behavior=behaviors,
    robot=robots,
    camera=cameras,
    constraint=constraints,
    backbone=backbones,
)


def load(kind: str, name: str) -> Any:
    """Import and return the class behind a catalogue name.

    Args:
        kind: one of `TABLES` ("algorithm", "task", ...).
        name: the name as the user typed it; dashes and underscores are the same.

    Raises:
        UnknownNameError: the name is not in the table (the message has the near miss).
        MissingDependencyError: the class needs a package that is not installed.
    """
    table = TABLES[kind]
    key = name.replace("-", "_")
    if key not in table:
        raise UnknownNameError(kind, name, table)
    module, _, attribute = table[key].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("safe_o2o") and missing not in ("safe_o2o_sim", "safe_o2o_hardware"):
            raise
        raise MissingDependencyError(
            f"{kind} {name!r} needs the package {missing!r}", todo=f"pip install {missing}"
        ) from error
