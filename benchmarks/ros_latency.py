"""Image to command over the ROS graph of the twin, beside bare rclpy relays in the same run.

Deploys FOSP of a preset with fresh weights (speed does not depend on them) in real time, and beside
it, in the same domain and at the same rate, three nodes that pass the same messages on and do
nothing. `--learner` adds a process that trains, niced as a learner is. What is ours is what neither
transport, rendering, inference nor the wait for the control tick explains.

    python benchmarks/ros_latency.py [--preset small] [--episodes 10] [--learner] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from policy_latency import SPEC, observations
from rclpy.signals import SignalHandlerOptions

from safe_o2o import catalog
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.runtime.deployment import deploy
from safe_o2o.runtime.process_group import RANGE, Whereabouts, launch_folder, where_it_runs
from safe_o2o_ros.node import make_executor

RATE = 5.0
"""Decisions a second of the task, Hz."""
LOAD = """
import os, torch
os.nice(10); torch.set_num_threads(1)
net = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8)))
optimiser = torch.optim.AdamW(net.parameters())
while True:
    optimiser.zero_grad(); net(torch.randn(1024, 512)).square().mean().backward(); optimiser.step()
"""
SHOWN = {
    "image_to_command": "image stamp to command written",
    "image_to_proposal": "image stamp to proposal heard",
    "floor": "bare relays of the same messages",
    "image_age": "image stamp to decision begun",
    "camera_render": "rendering",
    "inference": "inference",
    "ik": "inverse kinematics",
    "filter": "filter, a tick",
    "control_tick": "control tick",
    "tick_lateness": "lateness of a tick",
    "floor_lateness": "lateness of a loop that does nothing",
}


class Beside:
    """The relays, what listens to the robot node's diagnostics, and the load."""

    def __init__(self, run: Path, learner: bool) -> None:
        self.run, self.learner = run, learner
        self.late = self.ticks = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        while (found := where_it_runs(self.run)) is None:
            if self.done.wait(0.05):
                return
        processes = self._start(found)
        context = rclpy.Context()
        rclpy.init(
            context=context, domain_id=found.domain, signal_handler_options=SignalHandlerOptions.NO
        )
        node = rclpy.create_node("bench", context=context)
        executor = make_executor(context)
        executor.add_node(node)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 50)
        while not self.done.is_set():
            executor.spin_once(timeout_sec=0.2)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown(context=context)

    def _start(self, found: Whereabouts) -> list[subprocess.Popen[bytes]]:
        profile = launch_folder() / "dds" / "quick_discovery.xml"
        environment = {
            **os.environ,
            **{"ROS_DOMAIN_ID": str(found.domain), RANGE: found.reach},
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(profile),
        }
        relay = str(Path(__file__).with_name("_relay.py"))
        commands = [
            [sys.executable, relay, role, str(self.run / f"floor_{role}.json"), str(rate)]
            for role, rate in (("camera", 0), ("policy", 0), ("robot", RATE), ("ticker", 100.0))
        ]
        commands += [[sys.executable, "-c", LOAD]] if self.learner else []
        return [subprocess.Popen(command, env=environment) for command in commands]

    def _hear(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name.startswith("robot_node"):
                values = {item.key: item.value for item in status.values}
                self.late = int(values.get("late ticks", self.late))
                self.ticks = int(values.get("ticks", self.ticks))

    def end(self) -> None:
        """End what was begun."""
        self.done.set()
        self.thread.join()


def measure(run: Path, preset: str, episodes: int, learner: bool) -> dict[str, Any]:
    """Deploy; the stages, and what is ours."""
    torch.set_num_threads(1)
    fosp = catalog.load("algorithm", "fosp")
    algorithm = fosp(fosp.preset(preset), SPEC)
    parity = [{k: v[0] for k, v in obs.items()} for obs in observations(PARITY_STEPS)]
    export_bundle(
        algorithm.policy,
        SPEC,
        run / "bundles" / "v000001",
        algorithm="fosp",
        parity_steps=parity,
        statistics={},
        provenance={"preset": preset},
    )
    beside = Beside(run, learner)
    try:
        report = deploy(
            run,
            bundles=run / "bundles" / "v000001",
            ros=True,
            episodes=episodes,
            speed=1.0,
        )
    finally:
        beside.end()
    floors = [json.loads((run / f"floor_{role}.json").read_text()) for role in ("robot", "ticker")]
    stages = {**report.latency, **floors[0], **floors[1]}
    p50 = {name: stages[name]["p50_ms"] for name in stages}
    beyond = p50["image_to_proposal"] - p50["inference"] - p50["camera_render"] - p50["floor"]
    return {
        "stages": {name: stages[name] for name in SHOWN},
        "beyond_inference_p50_ms": round(beyond, 3),
        "ticks": beside.ticks,
        "late_ticks": beside.late,
        "floor_ticks": stages["floor_lateness"]["n"],
        "floor_late_ticks": stages.get("floor_late", {}).get("n", 0),
        "preset": preset,
        "learner": learner,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", help="preset of FOSP (tiny, small, paper)")
    parser.add_argument("--episodes", type=int, default=10, help="of up to 16 s each")
    parser.add_argument("--learner", action="store_true", help="a process that trains beside it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder),
            arguments.preset,
            arguments.episodes,
            arguments.learner,
        )
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{'ms':38} {'p50':>8} {'p99':>8} {'max':>8} {'n':>7}")
    for name, row in found["stages"].items():
        figures = " ".join(f"{row[key]:8.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
        print(f"{SHOWN[name]:38} {figures} {row['n']:7.0f}")
    shares = [
        f"{found[late]} of {found[ticks]} ({100 * found[late] / max(1, found[ticks]):.2f} %)"
        for late, ticks in (("late_ticks", "ticks"), ("floor_late_ticks", "floor_ticks"))
    ]
    print(
        f"beyond rendering, inference and transport: {found['beyond_inference_p50_ms']:.2f} ms "
        f"p50; more than half a period late: {shares[0]} ticks, {shares[1]} of a loop that does "
        f"nothing; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
