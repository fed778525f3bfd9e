"""The policy: one decision whenever the robot is ready for one; drives the episodes.

Between episodes it looks for a newer promoted bundle; a bad one is refused and the last good one
stays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray

from safe_o2o.config import require_given, require_one_of
from safe_o2o.errors import ConfigError
from safe_o2o.runtime.actors import gate_decision, with_executed
from safe_o2o.runtime.live_policy import LivePolicy
from safe_o2o.runtime.rounds import count_episodes
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.spaces import Spec
from safe_o2o.types import Observation, RobotState, Source
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import LearnerStatus, TaskStatus, record_from_msg
from safe_o2o_ros.episode_driver import EpisodeDriver, EpisodeDriverConfig, Turn, Who
from safe_o2o_ros.node import OK, WARN, Health, run_node
from safe_o2o_ros.parameters import setting

HEARTBEAT_TIMEOUT = 5.0
"""Silence after which the learner counts as dead, s."""


@dataclass(frozen=True)
class PolicyNodeConfig(EpisodeDriverConfig):
    """Parameters of the policy node; the bundles folder of its run is watched between episodes."""

    bundles: str = setting("", "folder of versioned bundles, or one bundle")
    episodes_per_round: int = setting(0, "episodes between two looks at the learner; 0 never waits")
    wait_for_learner: float = setting(0.0, "longest wait for the learner after a round, s")
    deterministic: bool = setting(True, "mean action; false adds the policy's own noise")
    gate: str = setting("on", "the bundle's reachability gate: on, shadow (decides only) or off")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "bundles")
        require_one_of(self, "gate", get_args(GateMode))
        for name in ("episodes_per_round", "wait_for_learner"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"must be 0 or more, got {getattr(self, name)}", where=name)


class PolicyNode(EpisodeDriver):
    """Waits for the learner and swaps bundles between episodes."""

    def __init__(self) -> None:
        super().__init__("policy_node", PolicyNodeConfig)
        self.rounds_seen = 0
        self._heartbeat = -np.inf
        self._learner_state = ""

    def on_start(self) -> None:
        """Load and warm up the policy; subscribe."""
        self.live = LivePolicy(self.config.bundles, gate=cast(GateMode, self.config.gate))
        super().on_start()
        self.create_subscription(
            DiagnosticArray, "learner_status", self.guarded(self._on_learner), qos.LATCHED
        )

    def health(self) -> Health:
        """Phase, bundle, progress."""
        _, doing, values = super().health()
        values = {**values, "bundle": self.live.version, "refused bundles": len(self.live.refused)}
        return (WARN if self.live.refused else OK), doing, values

    def on_task(self, spec: Spec) -> None:
        """From now on only bundles for this task."""
        self.live.require(spec)

    # One decision.

    @property
    def who(self) -> Who:
        """The acting bundle."""
        per_round = self.config.episodes_per_round
        return Who(
            f"policy {self.live.version}",
            Source.POLICY,
            **self.live.provenance,
            round=self._recorded // per_round if per_round else 0,
        )

    def begin(self, seed: int) -> None:
        """A fresh carry."""
        self._recorded = count_episodes(self.config.run_dir) if self.config.run_dir else 0
        self._stalled = False
        self._before: RobotState | None = None
        self.live.policy.seed(seed)
        self.carry: Any = self.live.policy.initial_carry(1)

    def stalled(self) -> bool:
        """The gate holds the arm and sees no way on."""
        return self._stalled

    def decide(self, status: TaskStatus, state: RobotState, obs: Observation) -> Turn:
        """Ask the graph, and the gate."""
        if self._before is not None:  # what the arm did, not what it was asked to do
            did = self.cartesian.executed_action(self._before, state)
            self.carry = with_executed(self.carry, did)
        self._before = state
        with self.latency.time("inference"):
            batch = {name: array[None] for name, array in obs.items()}
            chunk, self.carry = self.live.policy.act(batch, self.carry, self.config.deterministic)
        action = chunk[0, 0] if chunk.ndim == 3 else chunk[0]  # of a chunk, the first is executed
        with self.latency.time("ik"):
            proposal = self.cartesian.proposal(action, state)
        gate = gate_decision(self.live.policy)
        if gate is None:
            return Turn(action, proposal, self.live.figures())
        self._stalled = gate.stalled
        return Turn(gate.wish, proposal.slowed(gate.speed), self.live.figures())

    # Between episodes.

    def may_go_on(self, waited: float) -> bool:
        """Whether the learner has had its say, is dead, or has had its time."""
        per_round = self.config.episodes_per_round
        if per_round == 0 or self.rounds_seen >= count_episodes(self.config.run_dir) // per_round:
            return True
        silent = time.monotonic() - max(self._heartbeat, self._phase_since) > HEARTBEAT_TIMEOUT
        gone = self._learner_state in ("failed", "done")
        if silent or gone or waited > self.config.wait_for_learner:
            why = "is silent" if silent else self._learner_state if gone else "takes too long"
            self.get_logger().warning(f"learner {why}: going on with {self.live.version}")
            return True
        return False

    def before_reset(self) -> None:
        """Take a newer promoted bundle."""
        before = dict(self.live.refused)
        with self.latency.time("bundle_swap"):
            swapped = self.live.swap()
        if swapped:
            self.get_logger().info(f"now acting: {self.live.version}")
        for name, why in self.live.refused.items():
            if name not in before:
                self.get_logger().error(f"refused bundle {name}: {why}")

    def _on_learner(self, msg: DiagnosticArray) -> None:
        status = record_from_msg(LearnerStatus, msg)
        self._heartbeat = time.monotonic()
        self.rounds_seen, self._learner_state = status.rounds, status.state


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(PolicyNode, argv)


if __name__ == "__main__":
    sys.exit(main())
