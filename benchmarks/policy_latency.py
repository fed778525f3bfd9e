"""One decision of the exported policy beside the same network in eager torch, on one thread.

Exports FOSP of a preset with fresh weights (speed does not depend on them) to a temporary folder,
then gives both the same observations in turn, each carrying its own state: whatever else the
machine does hits both alike. With `--gate` the same policy behind a reachability gate takes part:
its graph with 26 candidates, their risk and what is known of them, and the gate's rule.

    python benchmarks/policy_latency.py [--preset small] [--steps 1000] [--gate] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import numpy as np
import torch

from safe_o2o import catalog
from safe_o2o.algorithms.gated import GatedModule
from safe_o2o.algorithms.latents import Tracker
from safe_o2o.export.onnx import PARITY_STEPS, BundleReport, export_bundle
from safe_o2o.runtime.gated_policy import GatedPolicy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.gate_file import GateFile
from safe_o2o.safety.reachability_gate import GateThresholds
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Observation

SPEC = Spec(
    ObservationSpec(
        {
            "image": ArraySpec((64, 64, 3), "uint8", "intensity", low=0, high=255),
            "tcp_pose": ArraySpec((5,), "float32", "m", ("x", "y", "z", "sin_yaw", "cos_yaw")),
        }
    ),
    ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2),
)
WARM_UP = 50


def observations(count: int) -> list[Observation]:
    generator = np.random.default_rng(0)
    return [
        {
            "image": generator.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8),
            "tcp_pose": generator.uniform(-0.5, 0.5, (1, 5)).astype(np.float32),
        }
        for _ in range(count)
    ]


def measure(policies: dict[str, Any], steps: list[Observation]) -> dict[str, dict[str, float]]:
    """Milliseconds of `act` by policy: p50, p99, max."""
    carries = {name: policy.initial_carry(1) for name, policy in policies.items()}
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    for obs in steps:
        for name, policy in policies.items():
            start = time.perf_counter()
            _, carries[name] = policy.act(obs, carries[name])
            seconds[name].append(time.perf_counter() - start)
    out = {}
    for name, samples in seconds.items():
        values = np.asarray(samples[WARM_UP:]) * 1e3
        p50, p99 = np.percentile(values, [50, 99])
        out[name] = {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(values.max())}
    return out


def export(policy: Any, folder: Path, preset: str) -> BundleReport:
    """A bundle of a policy with fresh weights."""
    return export_bundle(
        policy,
        SPEC,
        folder / "v000001",
        algorithm="fosp",
        parity_steps=[{k: v[0] for k, v in obs.items()} for obs in observations(PARITY_STEPS)],
        statistics={},
        provenance={"preset": preset},
    )


def behind_a_gate(algorithm: Any, folder: Path, preset: str) -> GatedPolicy:
    """The policy with heads of the gate's own sizes, fresh too; thresholds that let it pass."""
    reachability = catalog.load("algorithm", "reachability")
    tracker = Tracker(algorithm.policy.watching_module().watching, SPEC, "state")
    heads = reachability(reachability.preset("small"), tracker.latent_spec)
    module = GatedModule(algorithm.policy.watching_module(), heads.heads)
    policy = OnnxPolicy.load(export(module, folder / "gated", preset).directory)
    limits = GateThresholds(risk_on=1e3, risk_off=1e2, disagreement=1e3, surprise=1e3)
    return GatedPolicy(policy, GateFile(policy.manifest.graph_sha256, limits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", help="preset of FOSP (tiny, small, paper)")
    parser.add_argument("--steps", type=int, default=1000, help="decisions to time")
    parser.add_argument("--gate", action="store_true", help="also behind a reachability gate")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fosp = catalog.load("algorithm", "fosp")
    algorithm = fosp(fosp.preset(arguments.preset), SPEC)
    steps = observations(arguments.steps + WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        report = export(algorithm.policy, Path(folder), arguments.preset)
        policies = {"onnxruntime": OnnxPolicy.load(report.directory), "torch": algorithm.policy}
        if arguments.gate:
            policies["gated"] = behind_a_gate(algorithm, Path(folder), arguments.preset)
        rows = measure(policies, steps)
    ratio = {key: rows["torch"][key] / rows["onnxruntime"][key] for key in ("p50_ms", "p99_ms")}
    if arguments.json:
        print(json.dumps({**rows, "ratio": ratio, "graph_bytes": report.graph_bytes}))
        return
    print(
        f"FOSP {arguments.preset}, graph {report.graph_bytes / 1e6:.1f} MB, 1 thread, "
        f"{arguments.steps} decisions, parity {report.parity:.1e}"
    )
    for name, row in rows.items():
        print(f"{name:12} p50 {row['p50_ms']:7.3f} ms   p99 {row['p99_ms']:7.3f} ms")
    if arguments.gate:
        more = {key: rows["gated"][key] - rows["onnxruntime"][key] for key in ("p50_ms", "p99_ms")}
        print(f"the gate adds p50 {more['p50_ms']:.2f}, p99 {more['p99_ms']:.2f} ms")
    print(f"torch / onnxruntime: p50 {ratio['p50_ms']:.1f}, p99 {ratio['p99_ms']:.1f}")


if __name__ == "__main__":
    main()
