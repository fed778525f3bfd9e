"""What a task's description means to those who act in it and record it."""

from __future__ import annotations

from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.spaces import Spec
from safe_o2o_ros.conversions import TaskDescription


def cartesian_of(task: TaskDescription, spec: Spec) -> CartesianDelta:
    """How the actions of a described task move its arm's tool.

    Raises:
        ConfigError: it is no such task.
    """
    return CartesianDelta(
        spec.action,
        task.arm,
        workspace=task.workspace,
        frame=task.tool_frame,
        posture=task.posture,
    )
