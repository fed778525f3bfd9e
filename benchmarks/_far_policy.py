"""The policy's node, with a network between it and the arm: see `_ros_rig.Far`."""

import sys

from safe_o2o_ros import policy_node

if __name__ == "__main__":
    sys.exit(policy_node.main([*sys.argv[1:], "--ros-args", "-r", "proposals:=proposals_far"]))
