"""Who has the arm, a person or the policy: the robot's side of `takeover_node`."""

from __future__ import annotations

from collections.abc import Sequence

from trajectory_msgs.msg import JointTrajectory

from safe_o2o.runtime.supervision import Supervision
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Source
from safe_o2o_ros.conversions import proposal_from_msg
from safe_o2o_ros.progress import ProposalProgress

TAKEOVER = "takeover"
"""Topic of a person's proposals. One without points asks for the arm and for it to stand; one
without joints either says that nobody wants the arm."""
MAY_DRIVE = (Mode.ARMED, Mode.DEGRADED, Mode.SHADOW)


def stand(joint_names: Sequence[str]) -> JointTrajectory:
    """A person has the arm and does not move it."""
    return JointTrajectory(joint_names=list(joint_names))


def let_go() -> JointTrajectory:
    """No person has the arm."""
    return JointTrajectory()


class Handover:
    """Gives the arm to a person who asks for it, and back.

    Neither way has a jump: a person's proposals start where the arm was sent last, what is left of
    a policy's is not moved along, and the filter joins them. Who holds a device while the arm is
    armed, when it stops, or when an episode begins, has to let go first.

    Args:
        watch: the arm's supervision.
        progress: what is moved along.
    """

    def __init__(self, watch: Supervision, progress: ProposalProgress) -> None:
        self.watch, self.progress = watch, progress
        self.takeovers = 0
        self._wanted = self._let_go_first = False

    def begin(self) -> None:
        """An episode begins: nobody has the arm, and who holds the device has to let go first."""
        self._let_go_first = self._wanted
        if self.progress.taken_over:
            self._give_back()

    def hear(self, msg: JointTrajectory) -> None:
        """Take a message of `takeover`.

        Raises:
            MessageError: it is malformed.
        """
        self._wanted = bool(msg.points or msg.joint_names)
        if not self._wanted:
            self._let_go_first = False
            if self.progress.taken_over:
                self._give_back()
            return
        proposal = proposal_from_msg(msg, Source.HUMAN) if msg.points else None
        if self.watch.mode not in MAY_DRIVE:
            self._let_go_first = True
        elif not self._let_go_first:
            self.takeovers += not self.progress.taken_over
            self.progress.take_over(proposal)
            if proposal is None:
                self.watch.idle()  # nothing is missed while the arm is to stand

    def look(self) -> None:
        """Once a tick: an arm that was stopped is nobody's."""
        if self.progress.taken_over and self.watch.mode not in MAY_DRIVE:
            self._let_go_first = True
            self._give_back()

    def _give_back(self) -> None:
        self.progress.give_back()
        self.watch.idle()  # the policy is expected again from its next proposal on
