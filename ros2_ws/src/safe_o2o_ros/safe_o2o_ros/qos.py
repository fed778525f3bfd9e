"""Quality of service, one name per kind of topic."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(
    depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
    )


# 64x64 pictures are far below the shared-memory segment; every one is recorded, so reliable.
STREAM = _profile(50, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Joint states, images, task status: all of them, in order."""

SENSOR = _profile(5, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""Readings of somebody else's driver, however it publishes them: the newest ones."""

RECORDED = _profile(2000, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""The same for whoever keeps them, and may be without a processor for seconds."""

COMMAND = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Proposals: the newest only."""

LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""State that a late joiner needs: the scene, the learner's state."""

LOGGED = _profile(200, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""What the recorder must not miss even if it is discovered late: the policy's outputs."""
