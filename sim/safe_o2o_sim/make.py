"""One call from names to an environment: robot, camera, task, filter; or a simulator directly."""

from __future__ import annotations

from typing import Any

from safe_o2o import catalog
from safe_o2o.interfaces import Env, Filter
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.runtime.robot_env import RobotEnv
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o_sim.sensing import Watching


def make_env(
    task: str = "safe_reach",
    variant: str = "standard",
    robot: str = "pybullet_twin",
    camera: bool = True,
    **settings: Any,
) -> Env:
    """The simulated environment of a task.

    A task of the catalogue that is an environment itself (it has `step`) is made as it is; any
    other is laid out for a robot, whose commands the safety filter certifies.

    Args:
        task: catalogue name of the task.
        variant: scene variant of the task.
        robot: catalogue name of the simulated robot, for a task that needs one.
        camera: False leaves the pictures out of the observations, for actors that do not look:
            rendering takes a quarter of their time. A task without `image_size` has none at all.
        settings: further fields of the task's config.

    Raises:
        UnknownNameError: no such task or robot.
        ConfigError: no such variant, or a setting out of range.
        MissingDependencyError: the simulator is not installed.
    """
    made: Any = catalog.load("task", task)
    config = made.config_class(variant=variant, **settings)
    if hasattr(made, "step"):
        env: Env = made(config, camera=camera)
        return env
    return on_robot(made, config, robot, camera)


def on_robot(made: Any, config: Any, robot: str, camera: bool) -> RobotEnv:
    """A task laid out for a robot of the catalogue, behind the filter; see `make_env`."""
    body = catalog.load("robot", robot)()
    size = getattr(config, "image_size", None) if camera else None
    eye = catalog.load("camera", "twin_camera")(size) if size is not None else None
    laid_out = made(body, eye, config)
    seen = getattr(laid_out, "seen", None)  # a task with obstacles that the filter knows of
    safety = SafetyFilter.for_robot(
        "panda",
        workspace=certified_box(config.workspace),
        tool_speed=config.tool_speed,
        period=body.period,
        obstacles=None if seen is None else (),
    )
    certify: Filter = safety if seen is None else Watching(safety, seen)
    return RobotEnv(body, laid_out, certify)
