"""What tasks of a tool that is moved in small steps have in common, whatever they are about."""

from __future__ import annotations

from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Proposal, RobotState, Source
from safe_o2o_sim.pybullet_twin import PybulletTwin

Corner = tuple[float, float, float]


class CartesianTask:
    """The part of a task that turns actions into proposals and commands into actions.

    Args:
        twin: the arm.
        spec: what a policy of the task sees and does.
        workspace: lowest and highest corner of the tool's box, m.
        max_steps: policy steps after which an episode is cut off.
    """

    def __init__(
        self, twin: PybulletTwin, spec: Spec, workspace: tuple[Corner, Corner], max_steps: int
    ) -> None:
        self.twin, self.spec, self.max_steps = twin, spec, max_steps
        self.cartesian = CartesianDelta(spec.action, workspace=workspace)

    def proposal(
        self, action: Array, state: RobotState, source: Source = Source.POLICY
    ) -> Proposal:
        """Joint targets for an action `[3]`; see `CartesianDelta.proposal`."""
        return self.cartesian.proposal(action, state, source)

    def executed_action(self, before: RobotState, after: RobotState) -> Array:
        """The action `[3]` that the certified commands amounted to."""
        return self.cartesian.executed_action(before, after)
