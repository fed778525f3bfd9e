"""The safety filter in front of any policy: no torch, no ROS, no simulator.

python examples/standalone_filter.py
"""

from __future__ import annotations

import numpy as np

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.types import Proposal, RobotState


def main() -> int:
    """Let a policy that knows no limits drive an ideal arm for ten seconds; count what passed."""
    safety_filter = SafetyFilter.for_robot("panda", workspace=((0.3, -0.3, 0.02), (0.7, 0.3, 0.6)))
    names, generator = safety_filter.limits.joint_names, np.random.default_rng(0)
    q, now, passed = np.array(POSTURES["panda"]), 0.0, 0
    safety_filter.reset(RobotState(q, np.zeros(7), q, now))
    for _ in range(50):  # your policy at 5 Hz: joint targets, as wild as you like
        proposal = Proposal(q + generator.normal(0.0, 0.1, (1, 7)), 0.2, now, names)
        for _ in range(20):  # the control loop at 100 Hz
            now += 0.01
            decision = safety_filter.certify(RobotState(q, np.zeros(7), q, now), proposal, now)
            q = decision.command.q  # send this, and only this, to the arm
            passed += decision.verdict == 0
    print(f"{passed} of 1000 commands passed unchanged, all were safe; now at {np.round(q, 2)}")
    return passed


if __name__ == "__main__":
    main()
