"""One decision of the exported policy beside the same network in eager torch, on one thread.

Exports FOSP of a preset with fresh weights (speed does not depend on them) to a temporary folder,
then gives both the same observations in turn, each carrying its own state: whatever else the
machine does hits both alike.

    python benchmarks/policy_latency.py [--preset small] [--steps 1000] [--json]
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
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", help="preset of FOSP (tiny, small, paper)")
    parser.add_argument("--steps", type=int, default=1000, help="decisions to time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fosp = catalog.load("algorithm", "fosp")
    algorithm = fosp(fosp.preset(arguments.preset), SPEC)
    steps = observations(arguments.steps + WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        report = export_bundle(
            algorithm.policy,
            SPEC,
            Path(folder) / "v000001",
            algorithm="fosp",
            parity_steps=[{k: v[0] for k, v in obs.items()} for obs in observations(PARITY_STEPS)],
            statistics={},
            provenance={"preset": arguments.preset},
        )
        policies = {"onnxruntime": OnnxPolicy.load(report.directory), "torch": algorithm.policy}
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
    print(f"torch / onnxruntime: p50 {ratio['p50_ms']:.1f}, p99 {ratio['p99_ms']:.1f}")


if __name__ == "__main__":
    main()
