"""A bundle's policy behind its reachability gate: the same `act()`, what it returns was let pass.

The gate's memory travels in the carry, as the policy's own does, so that one policy can act in
several episodes at once. In the one-process loop, in the ROS graph and in replays it is this class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.runtime.actors import PREVIOUS_ACTION
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.gate_file import GateFile, has_gate, read_gate
from safe_o2o.safety.reachability_gate import (
    GateDecision,
    GateMode,
    GateReading,
    ReachabilityGate,
)
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Observation

_MEMORY = "gate"


class GatedPolicy:
    """See the module and `safe_o2o.interfaces.Policy`.

    Args:
        policy: of a bundle whose graph says what a gate asks for.
        gate: its thresholds.
        shadow: True decides and lets every action pass.

    Attributes:
        last_decisions: what the gate made of the last `act`, one a row.
    """

    def __init__(self, policy: OnnxPolicy, gate: GateFile, *, shadow: bool = False) -> None:
        self.policy, self.gate, self.shadow = policy, gate, shadow
        self.manifest, self.spec, self.directory = policy.manifest, policy.spec, policy.directory
        self.last_decisions: tuple[GateDecision, ...] = ()

    @property
    def version(self) -> str:
        """Name of the bundle's folder."""
        return self.policy.version

    @property
    def mode(self) -> GateMode:
        """`on` or `shadow`."""
        return "shadow" if self.shadow else "on"

    @property
    def last_outputs(self) -> dict[str, Array]:
        """The graph's diagnostics of the last `act`, and the gate's `[n, 1]`.

        `gate_state` is what it decided, `gate_done` what became of the action, each a `GateState`;
        then its scores by name.
        """
        said = dict(self.policy.last_outputs)
        for name, attribute in (("gate_state", "state"), ("gate_done", "done")):
            states = [[float(getattr(decision, attribute))] for decision in self.last_decisions]
            said[name] = np.array(states, np.float32)
        for name in self.last_decisions[0].scores if self.last_decisions else ():
            rows = [[decision.scores.get(name, np.nan)] for decision in self.last_decisions]
            said[f"gate_{name}"] = np.array(rows, np.float32)
        return said

    def seed(self, seed: int) -> None:
        """See `OnnxPolicy.seed`."""
        self.policy.seed(seed)

    def initial_carry(self, n: int = 1) -> dict[str, Any]:
        """The state at the start of n episodes, the gates' included."""
        gates = [
            ReachabilityGate(self.gate.thresholds, self.gate.config, shadow=self.shadow)
            for _ in range(n)
        ]
        return {**self.policy.initial_carry(n), _MEMORY: gates}

    def act(
        self, obs: Observation, carry: Mapping[str, Any], deterministic: bool = True
    ) -> tuple[Array, dict[str, Any]]:
        """Choose actions and let the gate have its say; see `OnnxPolicy.act`.

        The carry's `previous_action` is what became of the last action: whether the arm rests.
        """
        gates: list[ReachabilityGate] = carry[_MEMORY]
        own = {name: array for name, array in carry.items() if name != _MEMORY}
        for gate, executed in zip(gates, own[PREVIOUS_ACTION], strict=True):
            gate.executed(executed)
        _, after = self.policy.act(obs, own, deterministic)
        outputs = self.policy.last_outputs
        decisions = []
        for row, gate in enumerate(gates):
            said = {name: array[row : row + 1] for name, array in outputs.items()}
            decisions.append(gate.decide(GateReading.from_outputs(said)))
        self.last_decisions = tuple(decisions)
        action = np.stack([decision.action for decision in decisions])
        return action, {**after, PREVIOUS_ACTION: action, _MEMORY: gates}


def load_policy(
    directory: str | Path, expect: Spec | None = None, *, seed: int = 0, gate: GateMode = "on"
) -> OnnxPolicy | GatedPolicy:
    """Open a bundle, with its gate where it has one.

    Args:
        directory: the bundle.
        expect: see `OnnxPolicy.load`.
        seed: see `OnnxPolicy.load`.
        gate: see `GateMode`.

    Raises:
        BundleError: see `OnnxPolicy.load`; or the gate has no thresholds, or another graph's.
    """
    policy = OnnxPolicy.load(directory, expect, seed=seed)
    if gate == "off" or (gate == "shadow" and not has_gate(policy.manifest)):
        return policy
    found = read_gate(policy.directory, policy.manifest)
    return policy if found is None else GatedPolicy(policy, found, shadow=gate == "shadow")
