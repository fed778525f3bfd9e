"""A real arm's graph on mock hardware, one process a node, and a person beside it who measures.

What a fault is injected into: `safe-o2o deploy --graph real --mock yes` without the process that
looks after it, so that whatever stops the arm is the arm's own node (or its driver).
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from torch import Tensor, nn
from trajectory_msgs.msg import JointTrajectory

from safe_o2o import bundle
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.runtime.cartesian import sees_and_steps
from safe_o2o.runtime.deployment import REAL_NAMESPACE, DeployConfig, graph_parameters
from safe_o2o.runtime.process_group import RANGE, ProcessGroup, free_domain, read_graph
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import joints_from_msg
from safe_o2o_ros.node import make_executor

JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
SPEC = sees_and_steps(64, 0.02, 0.2)
MOVES = 0.05
"""Speed of a joint above which the arm is at work, rad/s."""
STANDS = 0.4
"""Time without motion after which the arm stands, s."""


class Missed(AssertionError):
    """A reaction was not the expected one, or came too late."""


def need(claim: bool, text: str) -> None:
    """Raise unless a claim holds."""
    if not claim:
        raise Missed(text)


class Swing(nn.Module):
    """A policy that swings the tool from side to side for ever; it needs its picture to do so."""

    def __init__(self) -> None:
        super().__init__()
        self.input_names = ["image", "tcp_pose", "phase"]
        self.output_names = ["action", "phase_after"]
        self.carry_names = {"phase": "phase_after"}
        self.noise_inputs: dict[str, tuple[int, ...]] = {}
        self.deterministic_noise: dict[str, str] = {}
        self.gain = nn.Parameter(torch.ones(1))

    def example_inputs(self) -> tuple[Tensor, ...]:
        picture = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        return picture, torch.zeros(1, 5), torch.zeros(1, 1)

    def forward(self, image: Tensor, pose: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        seen = 1e-9 * (image.float().mean((1, 2, 3)).unsqueeze(1) + pose[:, :1])
        y = self.gain * torch.cos(0.3 * phase) + seen
        return torch.cat([torch.zeros_like(y), y, torch.zeros_like(y)], 1), phase + 1.0

    def export_module(self) -> nn.Module:
        return self


def write_bundle(bundles: Path, policy: Swing) -> Path:
    """The next version of a folder of bundles; the first goes live."""
    rng, path = np.random.default_rng(0), bundle.next_version(bundles)
    steps = [
        {
            "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
            "tcp_pose": rng.uniform(-0.5, 0.5, 5).astype(np.float32),
        }
        for _ in range(PARITY_STEPS)
    ]
    export_bundle(
        policy, SPEC, path, algorithm="swing", parity_steps=steps, statistics={}, provenance={}
    )
    return path


class Far:
    """A network between policy and arm: `proposals_far` to `proposals`, late and with losses."""

    def __init__(self, node: Any, seed: int = 0) -> None:
        self.delay, self.loss, self.lost = 0.0, 0.0, 0
        self._rng, self._waiting = np.random.default_rng(seed), []  # type: ignore[var-annotated]
        space = REAL_NAMESPACE
        self._out = node.create_publisher(JointTrajectory, f"{space}/proposals", qos.COMMAND)
        node.create_subscription(JointTrajectory, f"{space}/proposals_far", self._take, qos.COMMAND)

    def _take(self, msg: JointTrajectory) -> None:
        if self._rng.random() < self.loss:
            self.lost += 1
            return
        self._waiting.append((time.monotonic() + self.delay, msg))
        self.pass_on()

    def pass_on(self) -> None:
        """Whatever is due."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._out.publish(self._waiting.pop(0)[1])


class Rig:
    """The running graph; use as a context manager.

    Args:
        run: folder for everything.
        bundles: of the policy.
        parameters: ROS parameters by node name, over `real.yaml`'s.
        far: a `Far` between policy and arm.
        policy: whether the policy is started with the rest.
        settings: further fields of `DeployConfig`.
    """

    def __init__(
        self,
        run: Path,
        bundles: Path,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        far: bool = False,
        policy: bool = True,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        ours: dict[str, dict[str, Any]] = {
            "robot_node": {"shadow": False, "operator_begins": False, "state_rate": 100.0}
        }
        for name, block in (parameters or {}).items():
            ours[name] = {**ours.get(name, {}), **block}
        self.run = run
        config = DeployConfig(
            bundles=bundles, graph="real", use_mock_hardware=True, parameters=ours,
            **{"episodes": 1000, **settings},
        )  # fmt: skip
        graph, defaults = read_graph("real")
        self._nodes = tuple(node for node in graph.nodes if node.wanted(config))
        self._parameters = graph_parameters(run, config, defaults)
        self._far, self._with_policy = far, policy
        self._environment = dict(environment or {})
        self._way: list[tuple[float, np.ndarray]] = []  # when heard, s, and where the arm was, rad
        self._proposed = -np.inf  # when the newest proposal was heard, s
        self.says: dict[str, dict[str, str]] = {}
        self.far: Far | None = None

    def __enter__(self) -> Rig:
        started = [node for node in self._nodes if self._at_once(node.name)]
        self._domain = free_domain()
        domain = self._domain.__enter__()
        here = {RANGE: "LOCALHOST", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self.group = ProcessGroup(
            tuple(started),
            self._parameters,
            self.run / "deploy",
            domain,
            {**here, **self._environment},
            REAL_NAMESPACE,
        )
        self.group.__enter__()
        self.context = rclpy.Context()
        before = os.environ.get(RANGE)
        os.environ[RANGE] = "LOCALHOST"
        rclpy.init(
            context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO
        )
        if before is None:
            del os.environ[RANGE]
        self.node = rclpy.create_node("bench", context=self.context)
        self._executor = make_executor(self.context)
        self._executor.add_node(self.node)
        self.node.create_subscription(JointState, "/joint_states", self._hear, qos.SENSOR)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._heed, 50)
        self.node.create_subscription(
            JointTrajectory, f"{REAL_NAMESPACE}/proposals", self._note, qos.COMMAND
        )
        if self._far:
            self.far = Far(self.node)
            self.start_policy()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.group.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        self.group.__exit__(*exc)
        self._domain.__exit__(None, None, None)
        self.node.destroy_node()
        self._executor.shutdown()
        rclpy.try_shutdown(context=self.context)

    def _at_once(self, name: str) -> bool:
        return name != "policy_node" or (self._with_policy and not self._far)

    def start_policy(self) -> None:
        """The policy's process, where it was not started with the others."""
        (node,) = (node for node in self._nodes if node.name == "policy_node")
        if self._far:
            node = replace(node, package="benchmarks", executable="_far_policy")
        self.group.start(node)

    # What is heard.

    def _hear(self, msg: JointState) -> None:
        if set(JOINTS) <= set(msg.name):
            self._way.append((time.monotonic(), joints_from_msg(msg, JOINTS)[0]))
            del self._way[:-2000]

    def _heed(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            name = status.name.partition(":")[0]
            self.says[name] = {item.key: item.value for item in status.values}
            self.says[name]["message"] = status.message

    def _note(self, msg: JointTrajectory) -> None:
        self._proposed = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Listen for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0.0:
            self._executor.spin_once(timeout_sec=min(left, 0.005))
            if self.far is not None:
                self.far.pass_on()

    def until(self, claim: Callable[[], Any], what: str, timeout: float = 20.0) -> float:
        """Listen until a claim holds; how long that took, s."""
        begin = time.monotonic()
        while not claim():
            need(time.monotonic() < begin + timeout, f"{what}: not within {timeout:.0f} s")
            self.wait(0.005)
        return time.monotonic() - begin

    @property
    def speed(self) -> float:
        """Of the fastest joint over the last 50 ms, rad/s; 0 while nothing is heard."""
        end = self._way[-1] if self._way else (0.0, np.zeros(7))
        if time.monotonic() - end[0] > 0.2:
            return 0.0
        begin = next((row for row in reversed(self._way) if row[0] <= end[0] - 0.05), None)
        if begin is None:
            return 0.0
        return float(np.abs(end[1] - begin[1]).max() / (end[0] - begin[0]))

    def stood(self, since: float, within: float) -> float:
        """Listen until the arm stands; time from `since` until it moved last, s."""

        def last_motion() -> float:
            rows = [row for row in self._way if row[0] >= since - 0.1]
            moved = [
                after[0]
                for before, after in itertools.pairwise(rows)
                if np.abs(after[1] - before[1]).max() > 1e-6
            ]
            return moved[-1] if moved else since

        deadline = since + within + 2.0 * STANDS
        self.wait(STANDS)
        while self._way[-1][0] - last_motion() < STANDS:
            need(time.monotonic() < deadline, f"still moves {within:.2f} s later")
            self.wait(0.02)
        stood = max(0.0, last_motion() - since)
        need(stood <= within, f"stood after {stood:.2f} s only, bound {within:.2f} s")
        return stood

    def moved(self, seconds: float) -> float:
        """How far the fastest joint gets in so long, rad."""
        begin = self._way[-1][1]
        before = time.monotonic()
        self.wait(seconds)
        rows = [q for heard, q in self._way if heard >= before]
        return float(np.abs(np.stack([begin, *rows]) - begin).max())

    def longest_step(self, seconds: float) -> float:
        """Listen for so long; a joint's longest way between two states of the driver, rad."""
        before = time.monotonic()
        self.wait(seconds)
        rows = np.stack([q for heard, q in self._way if heard >= before])
        return float(np.abs(np.diff(rows, axis=0)).max())

    @property
    def mode(self) -> str:
        """Of the arm's supervisor, as its diagnostics say once a second."""
        return self.says.get("robot_node", {}).get("mode", "")

    @property
    def cause(self) -> str:
        """Of its newest stop."""
        return self.says.get("robot_node", {}).get("last cause", "")

    # What is done.

    def call(self, name: str, timeout: float = 20.0) -> Trigger.Response:
        """One of the robot node's services."""
        client = self.node.create_client(Trigger, f"{REAL_NAMESPACE}/robot_node/{name}")
        try:
            self.until(client.service_is_ready, f"service {name}", timeout)
            future = client.call_async(Trigger.Request())
            self.until(future.done, f"answer from {name}", timeout)
            answer: Trigger.Response = future.result()
            return answer
        finally:
            self.node.destroy_client(client)

    def armed(self) -> Rig:
        """A person has armed the arm."""
        for _ in range(200):
            if self.call("arm").success:
                return self
            self.wait(0.1)
        raise Missed("the arm cannot be armed")

    def at_work(self) -> Rig:
        """Armed, and the policy (not the way home) moves it."""
        self.armed()
        self.until(lambda: self.driven and self.speed > MOVES, "the arm does not move", 40.0)
        return self

    @property
    def driven(self) -> bool:
        """Whether a policy has been asking for motion."""
        return time.monotonic() - self._proposed < 0.3

    def kill(self, name: str, number: int = signal.SIGKILL) -> float:
        """Send a node a signal; when, on the monotonic clock, s."""
        when = time.monotonic()
        os.kill(self.group.processes[name].pid, number)
        return when

    def latched(self, code: str) -> None:
        """The arm is stopped for good: arming is refused before a reset, and nothing moves."""
        self.until(lambda: self.mode == "STOPPED", f"is {self.mode or 'silent'}, not STOPPED")
        need(self.cause.startswith(code), f"stopped by {self.cause}, expected {code}")
        need(not self.call("arm").success, "was armed without a reset")
        far = self.moved(0.5)
        need(far == 0.0, f"moved {far:.4f} rad after its stop")
