"""A run directory as the stages leave it, made up, with numbers that a test can count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from safe_o2o.bundle import set_current
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.report.intervals import wilson
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Transition, Verdict

SPEC = Spec(
    ObservationSpec(
        {
            "image": ArraySpec((64, 64, 3), "uint8", "intensity", low=0, high=255),
            "tcp_pose": ArraySpec((5,), "float32", "m", ("x", "y", "z", "sin_yaw", "cos_yaw")),
        }
    ),
    ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2),
)
ROUNDS = ((5, 4), (7, 1), (9, 0), (10, 0))  # successes and violations of ten episodes each
EVALS = {  # actor: episodes, successes, violations
    "offline": (100, 96, 4),
    "mixture": (100, 57, 36),
    "random": (100, 4, 31),
    "expert": (100, 100, 0),
    "unsafe": (100, 70, 79),
    "before_finetune": (100, 50, 41),
    "after_finetune": (100, 97, 3),
}


def picture(x: float, y: float, *, goal: tuple[int, int], box: tuple[int, int]) -> np.ndarray:
    """A dark table with a red goal, a green box and a bright tool."""
    image = np.full((64, 64, 3), 58, np.uint8)
    image[8:56, 8:56] = 74
    gx, gy = goal
    image[gy - 3 : gy + 3, gx - 3 : gx + 3] = (214, 66, 58)
    bx, by = box
    image[by - 5 : by + 5, bx - 5 : bx + 5] = (70, 168, 92)
    tx, ty = int(x), int(y)
    image[max(0, ty - 26) : ty, tx - 2 : tx + 2] = (226, 228, 232)
    image[max(0, ty - 2) : ty + 3, tx - 4 : tx + 4] = (240, 240, 244)
    return image


def add_episode(
    dataset: Dataset,
    seed: int,
    *,
    success: bool,
    violation: bool,
    behavior: str,
    variant: str = "",
    provenance: dict | None = None,
) -> Path:
    generator = np.random.default_rng(seed)
    steps = int(generator.integers(15, 24)) if success else 40
    goal, box = (50, int(generator.integers(16, 48))), (32, int(generator.integers(20, 44)))
    x = np.linspace(12, goal[0] if success else 38, steps + 1)
    y = np.linspace(30, goal[1], steps + 1) - (0 if violation else 14 * np.sin((x - 12) / 12))
    obs = [
        {
            "image": picture(x[t], np.clip(y[t], 4, 58), goal=goal, box=box),
            "tcp_pose": np.array([x[t] / 80, y[t] / 80, 0.1, 0, 1], np.float32),
        }
        for t in range(steps + 1)
    ]
    transitions = []
    for t in range(steps):
        verdict = Verdict(int(generator.choice(3, p=(0.9, 0.08, 0.02))))
        reason = {
            Verdict.PASS: "",
            Verdict.CORRECTED: str(generator.choice(["joint_velocity", "workspace"])),
            Verdict.STOPPED: "proposal_age",
        }[verdict]
        asked = np.clip(generator.normal(0.3, 0.5, 3), -1, 1).astype(np.float32)
        transitions.append(
            Transition(
                obs=obs[t],
                action=asked * (1.0, 0.6, 0.0)[verdict],
                proposed_action=asked,
                reward=float(success and t == steps - 1),
                cost=float(violation and abs(t - steps // 2) <= 1),
                terminated=success and t == steps - 1,
                truncated=not success and t == steps - 1,
                verdict=verdict,
                reason=reason,
                margin=float(np.clip(generator.beta(5, 3), 0, 1)) * (verdict != Verdict.STOPPED),
                stamp=0.2 * t,
            )
        )
    meta = EpisodeMeta("safe_reach", variant, behavior, seed, provenance or {})
    return dataset.append(transitions, obs[-1], 0.2 * steps, meta)


def rate(count: int, n: int) -> dict[str, float]:
    interval = wilson(count, n)
    return {"rate": count / n, "low": interval.low, "high": interval.high}


def make_dataset(run: Path) -> None:
    dataset = Dataset.create(run / "dataset", SPEC, task="safe_reach")
    for seed in range(12):
        behavior = ("expert", "unsafe", "random")[seed % 3]
        add_episode(
            dataset,
            seed,
            success=behavior != "random",
            violation=behavior == "unsafe",
            behavior=behavior,
        )


def make_online(run: Path) -> None:
    dataset = Dataset.create(run / "online", SPEC, task="safe_reach")
    for number, (successes, violations) in enumerate(ROUNDS):
        for i in range(10):
            bundle = f"v{min(number + 1, 3):06d}"
            add_episode(
                dataset,
                1000 + 10 * number + i,
                success=i >= 10 - successes,
                violation=i < violations,
                behavior=f"policy {bundle}",
                variant="blue_obstacles",
                provenance={"bundle": bundle},
            )
    entries = [
        {"index": i, "episodes": 10 * (i + 1) + i % 2, "bundle": b, "refusal": r, "seconds": 11.3}
        for i, (b, r) in enumerate(
            [
                ("v000002", ""),
                ("v000003", ""),
                ("", "held-out loss rose"),
                ("v000004", ""),
            ]
        )
    ]
    (run / "deploy").mkdir()
    with (run / "deploy" / "episodes.jsonl").open("w") as file:
        for i, episode in enumerate(dataset):
            risk = np.linspace(0.05, 0.9, len(episode)).tolist()
            outputs = [{"risk": value, "q_cost": 0.0} for value in risk]
            line = {"round": i // 10, "speed": 5.9, "outputs": outputs}
            file.write(json.dumps({"episode": episode.path.name, **line}) + "\n")
        file.write('{"episode": "episode_0000')
    (run / "deploy" / "rounds.json").write_text(json.dumps({"rounds": entries}))


def make_bundles(run: Path) -> None:
    """Manifests with what the page reads of them, and the learner's reports of its rounds."""
    for number in range(1, 5):
        folder = run / "bundles" / f"v{number:06d}"
        folder.mkdir(parents=True)
        manifest = {
            "algorithm": "fosp",
            "parity": {"max_abs_action_difference": 2.4e-6 * number, "steps": 200},
            "graph_sha256": f"{number:x}" * 64,
            "provenance": {"step": 1500, **({"round": number - 2} if number > 1 else {})},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    set_current(run / "bundles", "v000004")
    (run / "finetune").mkdir()
    for number in range(4):
        drift, passed = (0.21, 0.34, 0.72, 0.30)[number], number != 2
        report = {
            "bundle": f"v{number + 2:06d}",
            "promoted": passed,
            "refusal": "" if passed else f"mean disagreement {drift} (bound 0.6)",
            "updates": 75 * (number + 1),
            "checks": [
                {"name": "held-out steps", "value": 412.0, "bound": 100.0, "passed": True},
                ["mean disagreement", drift, 0.6, passed],
            ],
            "metrics": {},
        }
        (run / "finetune" / f"round_{number:03d}.json").write_text(json.dumps(report))


def make_metrics(path: Path, seed: int = 0, steps: int = 1500) -> None:
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = {
        "model/loss": 9.0, "model/image": 5.0, "model/reward": 0.6, "model/cost": 0.5,
        "model/cont": 0.3, "model/plain_kl": 2.0, "critic/reward_loss": 1.2,
        "critic/cost_loss": 0.9,
        "value/reward_loss": 0.3, "value/cost_loss": 0.2, "reach/loss": 0.6, "reach/p": 0.3,
        "actor/loss": 1.5, "actor/weight_max": 9.0, "grad/model": 30.0, "grad/actor": 8.0,
    }  # fmt: skip
    with path.open("w") as file:
        for step in range(0, steps, 3):
            fall = 0.15 + np.exp(-step / 300)
            metrics = {k: v * fall * generator.lognormal(0, 0.25) for k, v in levels.items()}
            metrics["lagrange/multiplier"] = min(2.0, step / 600) + 0.02 * generator.normal()
            file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")


def make_eval(run: Path) -> None:
    (run / "eval").mkdir(parents=True, exist_ok=True)
    for name, (n, successes, violations) in EVALS.items():
        share = successes / n
        data = {
            "name": name,
            "n": n,
            "variant": "blue_obstacles" if "finetune" in name else "plain",
            "success": rate(successes, n),
            "violation": rate(violations, n),
            "return": {"mean": share, "low": share - 0.05, "high": share + 0.04, "std": 0.3},
            "length": {"mean": 24.2, "low": 22.9, "high": 25.6, "std": 6.1},
            "verdict_share": {"pass": 0.94, "corrected": 0.05, "stopped": 0.01},
            "command": f"safe-o2o evaluate {name} --out runs/demo --episodes {n} --seed 7000",
            "seed": 7000,
        }
        (run / "eval" / f"{name}.json").write_text(json.dumps(data))


def make_run(run: Path) -> Path:
    """Every stage's files."""
    run.mkdir(parents=True, exist_ok=True)
    make_dataset(run)
    make_online(run)
    make_metrics(run / "checkpoints" / "metrics.jsonl")
    make_eval(run)
    make_bundles(run)
    stages = dict(
        camera=(7.1, 11.8, 19),
        policy=(3.2, 6.4, 9.8),
        filter=(0.21, 0.44, 1.3),
        write=(0.02, 0.05, 0.3),
    )
    latency = {
        name: {"p50_ms": a, "p99_ms": b, "max_ms": c, "n": 4000}
        for name, (a, b, c) in stages.items()
    }
    (run / "deploy" / "latency.json").write_text(json.dumps(latency))
    facts = {
        "algorithm": "fosp",
        "task": "safe_reach",
        "preset": "default",
        "seed": 0,
        "machine": {"cpu_count": 2, "model": "AMD EPYC", "python": "3.11.2"},
        "versions": {"torch": "2.13.0", "numpy": "2.4.1", "onnxruntime": "1.23.0"},
        "hashes": {"checkpoint": "ab" * 32, "bundle v000001": "cd" * 32},
        "stages": {
            "collect": {"seconds": 61.2, "command": "safe-o2o collect --out runs/demo/dataset"},
            "train": {"seconds": 260.4, "command": "safe-o2o train fosp --data runs/demo/dataset"},
            "evaluate": {"seconds": 71.9},
            "deploy": {"seconds": 40.0},
            "finetune": {"seconds": 88.8},
        },
        "config": {"discount": 0.95, "horizon": 8, "batch": {"size": 32, "length": 8}},
    }
    (run / "run.json").write_text(json.dumps(facts))
    return run
