"""World-model update and imagination-plus-policy update per second, at DreamerV3's sizes.

    python benchmarks/world_model_speed.py --sizes tiny small [--threads 1] [--turns 7]
    python benchmarks/world_model_speed.py --sizes paper --device cuda
    python benchmarks/world_model_speed.py --sizes tiny --peer my_module:my_function

Random images, made once. Every contender takes one turn after the other in one process, so that
whatever else the machine does hits all alike. `--peer` names a function `(size, device)` that
returns two callables, `model` and `policy`: one update of each; what the sizes mean is in `SIZES`.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safe_o2o.algorithms.baselines import Dreamer
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import dreamer
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.data.batch import Batch, Index
from safe_o2o.nets.precision import training_arithmetic
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.training.memory import keep_freed_memory

ACTIONS, STARTS = 7, 128


@dataclass(frozen=True)
class Size:
    """Sizes of networks and of a batch; `units` is every hidden layer."""

    deter: int
    latents: int
    classes: int
    depth: int
    units: int
    batch: int
    steps: int


SIZES = {
    "tiny": Size(256, 16, 16, 16, 256, 16, 32),
    "small": Size(512, 32, 32, 32, 512, 16, 64),
    "paper": Size(512, 48, 48, 32, 512, 16, 64),
}


def learner(name: str, size: Size, starts: int, precision: Any, device: str) -> Fosp:
    """Ours at a size: `dreamer` has DreamerV3's parts, `fosp` the paper's.

    Args:
        name: `dreamer` or `fosp`.
        size: of networks and batch.
        starts: of imagined rollouts, 0 takes every posterior state of the batch.
        precision: see `WorldModelConfig`.
        device: where to train.
    """
    config = FospConfig(
        world_model=WorldModelConfig(
            depth=size.depth, deter_dim=size.deter, latents=size.latents, classes=size.classes,
            hidden_dim=size.units, head_units=size.units, decoder_depth=size.depth,
            precision=precision,
        ),
        hidden_dims=(size.units, size.units),
        imagination_starts=starts,
        batch_size=size.batch,
        sequence_length=size.steps,
    )  # fmt: skip
    images = {"image": ArraySpec((64, 64, 3), "uint8", "intensity", (), 0.0, 255.0)}
    names = tuple(f"a{i}" for i in range(ACTIONS))
    action = ActionSpec(names, "rad/s", (-1.0,) * ACTIONS, (1.0,) * ACTIONS, 0.1)
    spec = Spec(ObservationSpec(images), action)
    if name == "fosp":
        return Fosp(config, spec, device=device)
    # DreamerV3 has neither Q nor REF, and ours would only watch.
    config = replace(
        dreamer(config), critic_target="recorded", critic_replay="never", reach_labels="replay"
    )
    return Dreamer(config, spec, device=device)


def batch_of(size: Size, seed: int, device: str) -> Batch:
    """A made-up batch of sequences, each of one episode."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size.batch, size.steps)
    never, always = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    first = never.clone()
    first[:, 0] = True
    number = torch.arange(size.batch * size.steps).view(shape)
    image = torch.randint(0, 256, (*shape, 64, 64, 3), generator=generator, dtype=torch.uint8)
    made = Batch(
        obs={"image": image},
        action=torch.rand(*shape, ACTIONS, generator=generator) * 2.0 - 1.0,
        reward=torch.randn(shape, generator=generator),
        cost=(torch.rand(shape, generator=generator) > 0.9).float(),
        terminated=never,
        truncated=never,
        is_first=first,
        mask=always,
        action_mask=always,
        index=Index(
            episode=number,
            step=number,
            record=number,
            origin=torch.zeros(size.batch, dtype=torch.int64),
        ),
    )
    return made.map(lambda tensor: tensor.to(device))


def ours(algorithm: Fosp, batch: Batch) -> dict[str, Callable[[], object]]:
    """The two halves of an update, each with its own way back and its optimisers, and the whole."""
    part, precision = algorithm.objectives, algorithm.config.world_model.precision
    kept: dict[str, Any] = {}

    def model() -> list[float]:
        with training_arithmetic(precision, algorithm.device):
            data = part.records(batch)
            seen, loss, metrics = part.model(data, algorithm.step)
        loss.backward()
        algorithm.optimize("model", metrics)
        latent = type(seen.latent)(*(x.detach() for x in seen.latent))
        kept["seen"], kept["data"] = seen._replace(embed=seen.embed.detach(), latent=latent), data
        return torch.stack(list(metrics.values())).tolist()

    def policy() -> list[float]:
        metrics: dict[str, Any] = {}
        with training_arithmetic(precision, algorithm.device):
            seen = kept["seen"]
            feature = algorithm.net.feature(seen.latent, seen.embed)
            loss = part.behavior(feature, seen, kept["data"], metrics)
        loss.backward()
        for name in ("actor", "critic", "reach"):
            algorithm.optimize(name, metrics)
        values = [value.detach().float() for value in metrics.values()]
        return torch.stack(values).tolist()

    return {"model": model, "policy": policy, "update": lambda: algorithm.update(batch)}


def processor(device: str) -> str:
    """Name of what computes, and whether it has AMX."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in found.items()}
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    model = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', 'unknown')} ({model}), AMX {'yes' if amx else 'no'}"


def seconds(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall clock and processor time of a call, with everything that it started."""
    began, used = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - used


def matmul_peak(device: str) -> float:
    """Floating-point operations a second of a large bfloat16 product, the best of fifty."""
    size = 8192 if device != "cpu" else 1024  # short enough to be left alone now and then
    a = torch.randn(size, size, device=device).bfloat16()
    best = min(seconds(lambda: a @ a, device)[0] for _ in range(50))
    return 2.0 * size**3 / best


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products and convolutions of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def contenders(
    name: str, options: argparse.Namespace
) -> dict[str, dict[str, Callable[[], object]]]:
    """All that take turns at a size, by label; the first is compared with the others."""
    size, device = SIZES[name], options.device
    batch = batch_of(size, 0, device)
    found: dict[str, dict[str, Callable[[], object]]] = {}
    if options.peer:
        module, function = options.peer.split(":")
        parts = getattr(importlib.import_module(module), function)(name, device)
        found["peer"] = parts
    rows = [("dreamer", 0), ("dreamer", options.starts), ("fosp", options.starts)]
    for algorithm, starts in rows[: options.rows]:
        label = f"{algorithm}, {starts or size.batch * size.steps} starts"
        made = learner(algorithm, size, starts, options.precision, device)
        found[label] = ours(made, batch)
    return found


def measure(
    calls: dict[str, dict[str, Callable[[], object]]], turns: int, device: str
) -> dict[str, dict[str, np.ndarray]]:
    """Wall clock and processor time `[turns, 2]` of every part of every contender."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for turn in range(turns + 1):
        for label, parts in calls.items():
            for part, call in parts.items():
                took = seconds(call, device)
                if turn > 0:  # the first fills caches and memory
                    found.setdefault(label, {}).setdefault(part, []).append(took)
    return {
        label: {part: np.array(values) for part, values in parts.items()}
        for label, parts in found.items()
    }


def report(name: str, found: dict[str, dict[str, np.ndarray]]) -> None:
    """Print the parts' medians and quartiles, updates a second, and ratios to the peer."""
    peer = found.get("peer")
    for label, parts in found.items():
        whole = parts.get("update", parts["model"] + parts["policy"])
        print(f"{name}: {label}")
        for part, values in (parts | {"update": whole}).items():
            low, middle, high = np.percentile(values[:, 0], [25, 50, 75])
            line = f"  {part:7s} {middle:7.3f} s ({low:.3f} to {high:.3f}), {1 / middle:6.2f} /s"
            line += f", processor {np.median(values[:, 1]):.3f} s"
            if peer is not None and label != "peer":
                other = peer[part] if part in peer else peer["model"] + peer["policy"]
                # Turn by turn: both had the same neighbours then.
                wall, used = np.median(other / values, 0)
                first, third = np.percentile((other / values)[:, 0], [25, 75])
                line += f"; {wall:.2f} x the peer ({first:.2f} to {third:.2f}), "
                line += f"by processor time {used:.2f} x"
            print(line, flush=True)


def main() -> None:
    """Measure every size that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=list(SIZES))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--starts", type=int, default=STARTS, help="imagined rollouts an update")
    parser.add_argument("--rows", type=int, default=3, help="only the first so many of ours")
    parser.add_argument("--peer", help="MODULE:FUNCTION, see above")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    peak = matmul_peak(options.device)
    print(
        f"{processor(options.device)}; {options.threads} threads, torch {torch.__version__}, "
        f"precision {options.precision}, bf16 matmul {peak / 1e12:.2f} TFLOP/s"
    )
    for name in options.sizes:
        calls = contenders(name, options)
        found = measure(calls, options.turns, options.device)
        report(name, found)
        for label, parts in found.items():
            if "update" in parts:
                rate = operations(calls[label]["update"]) / np.median(parts["update"][:, 0])
                print(
                    f"{name}: {label}: {rate / 1e12:.3f} TFLOP/s in products and convolutions, "
                    f"{100 * rate / peak:.0f} % of the bf16 matmul"
                )


if __name__ == "__main__":
    main()
