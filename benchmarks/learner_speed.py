"""Updates a second of the learners on transitions, peers in turn with them; and what acting takes.

    python benchmarks/learner_speed.py [--learners iql,diffcps,...] [--preset paper] [--threads 2]
        [--corl DIR] [--diffcps DIR] [--consistency DIR] [--rounds 8] [--json]

The folders are checkouts of tinkoff-ai/CORL, felix-thu/DiffCPS and
quantumiracle/Consistency_Model_For_Reinforcement_Learning. A peer's own training function, on its
own sampling code, takes turns with ours of the same sizes (17 numbers seen, 6 done, batch 256), a
second each: whatever else the machine does hits both alike, and the ratio of each turn counts.
Ours has no safety critic then (`paper`): the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from _peer_learners import PEERS

from safe_o2o import catalog
from safe_o2o.algorithms.learner import Learner
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.replay import TransitionReplay
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.training.memory import keep_freed_memory
from safe_o2o.types import Transition

SEEN, DONE, BATCH = 17, 6, 256
SPEC = Spec(
    ObservationSpec({"state": ArraySpec((SEEN,), "float32", "1")}),
    ActionSpec(tuple(f"a{i}" for i in range(DONE)), "1", (-1.0,) * DONE, (1.0,) * DONE, 0.05),
)
OF = {"corl": "iql", "diffcps": "diffcps", "consistency": "consistency_ac"}
"""Which of ours a peer is beside."""
LEARNERS = [
    name for name in catalog.algorithms if issubclass(catalog.load("algorithm", name), Learner)
]


def dataset(folder: Path, episodes: int = 40, length: int = 250) -> Dataset:
    """Random transitions."""
    g = np.random.default_rng(0)
    made = Dataset.create(folder, SPEC, task="random")
    for _ in range(episodes):
        obs = g.standard_normal((length + 1, SEEN), dtype=np.float32)
        action = g.uniform(-1, 1, (length, DONE)).astype(np.float32)
        steps = [
            Transition(
                {"state": obs[t]},
                action[t],
                action[t],
                float(g.standard_normal()),
                0.0,
                False,
                t == length - 1,
                stamp=0.05 * t,
            )
            for t in range(length)
        ]
        made.append(steps, {"state": obs[-1]}, 0.05 * length, EpisodeMeta("random"))
    return made


def learner(name: str, preset: str) -> Any:
    cls = catalog.load("algorithm", name)
    return cls(replace(cls.preset(preset), reward="as_is", batch_size=BATCH), SPEC)


def rate(step: Callable[[], None], seconds: float) -> float:
    """Updates a second."""
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not count:
        step()
        count += 1
    return count / spent


def trained(name: str, replay: TransitionReplay, preset: str) -> Callable[[], None]:
    algorithm = learner(name, preset)

    def step() -> None:
        algorithm.update(replay.sample())

    return step


def acting(name: str, preset: str, steps: int = 600) -> dict[str, float]:
    """Milliseconds of a decision of the exported graph, one thread."""
    g = np.random.default_rng(1)
    rows = [{"state": g.standard_normal(SEEN).astype(np.float32)} for _ in range(PARITY_STEPS + 4)]
    with tempfile.TemporaryDirectory() as folder:
        report = export_bundle(
            learner(name, preset).policy,
            SPEC,
            Path(folder) / "v000001",
            algorithm=name,
            parity_steps=rows,
            statistics={},
            provenance={},
        )
        policy = OnnxPolicy.load(report.directory, SPEC)
        carry, samples = policy.initial_carry(), []
        for step in range(steps):
            obs = {"state": rows[step % len(rows)]["state"][None]}
            began = time.perf_counter()
            _, carry = policy.act(obs, carry)
            samples.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(samples[50:], [50, 99])
    return {"act_p50_ms": float(p50), "act_p99_ms": float(p99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", default=",".join(LEARNERS))
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--json", action="store_true")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, help="its checkout")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    keep_freed_memory()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        replay = TransitionReplay(dataset(Path(folder) / "data"), batch_size=BATCH, seed=0)
        for name in wanted.learners.split(","):
            peer = next((p for p, ours in OF.items() if ours == name and getattr(wanted, p)), None)
            steps = {"ours": trained(name, replay, wanted.preset)}
            if peer is not None:
                steps[peer] = PEERS[peer](getattr(wanted, peer), SEEN, DONE, BATCH)
            for step in steps.values():
                rate(step, wanted.seconds)
            turns = [
                {k: rate(s, wanted.seconds) for k, s in steps.items()} for _ in range(wanted.rounds)
            ]
            found[name] = {f"{k}_per_s": float(np.median([t[k] for t in turns])) for k in steps}
            if peer is not None:
                ratios = [turn["ours"] / turn[peer] for turn in turns]
                found[name]["ratio"] = float(np.median(ratios))
                found[name]["ratios"] = [round(ratio, 2) for ratio in ratios]
            found[name] |= acting(name, wanted.preset)
    if wanted.json:
        json.dump(found, sys.stdout, indent=1)
        return
    for name, row in found.items():
        said = {k: v if isinstance(v, list) else round(v, 2) for k, v in row.items()}
        print(f"{name:<16}" + ", ".join(f"{key} {value}" for key, value in said.items()))


if __name__ == "__main__":
    main()
