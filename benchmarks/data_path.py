"""Batches per second of the replay beside plainer ways to read the same episodes, and the recorder.

Every reader draws the same kind of batch (windows x length x 64x64x3 uint8 and the small arrays) on
one thread from a synthetic dataset in a temporary folder: noise, which no file system can compress.

    python benchmarks/data_path.py [--episodes 580] [--batch-size 32] [--length 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import numpy as np
import torch
from safetensors.numpy import load_file

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import EpisodeRecorder
from safe_o2o.data.replay import SequenceReplay, TransitionReplay
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Transition

SPEC = Spec(
    ObservationSpec(
        {
            "image": ArraySpec((64, 64, 3), "uint8", "intensity", low=0, high=255),
            "tcp_pose": ArraySpec((5,), "float32", "m", ("x", "y", "z", "sin_yaw", "cos_yaw")),
        }
    ),
    ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2),
)
SMALL = ("action", "reward", "cost", "terminated", "truncated")


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p99, top = np.percentile(seconds, [50, 99, 100]) * 1e6
    return {"p50_us": round(p50, 1), "p99_us": round(p99, 1), "max_us": round(top, 1)}


def record(directory: Path, episodes: int, steps: int) -> dict[str, Any]:
    """Record a dataset as fast as the recorder takes it, timing what a control loop feels."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (steps + 1, 64, 64, 3), np.uint8)
    appends, commits, dropped = [], [], 0
    with EpisodeRecorder(Dataset.create(directory, SPEC, task="bench")) as recorder:
        for number in range(episodes):
            frames[:, :8] = generator.integers(0, 255, (steps + 1, 8, 64, 3), np.uint8)
            recorder.start(EpisodeMeta("bench", seed=number))
            pose, action = np.zeros(5, np.float32), np.zeros(3, np.float32)
            for t in range(steps):
                obs = {"image": frames[t], "tcp_pose": pose}
                cost, ends = float(t == number % steps), t == steps - 1
                transition = Transition(obs, action, action, 0.0, cost, ends, False, stamp=0.2 * t)
                began = time.perf_counter()
                dropped += not recorder.append(transition)
                appends.append(time.perf_counter() - began)
            began = time.perf_counter()
            recorder.commit({"image": frames[steps], "tcp_pose": pose}, 0.2 * steps)
            commits.append(time.perf_counter() - began)
    return {"append": percentiles(appends), "commit": percentiles(commits), "dropped": dropped}


def rate(sample: Callable[[], object], batches: int) -> float:
    """Batches per second over `batches` draws, after a short warm-up."""
    for _ in range(max(3, batches // 20)):
        sample()
    began = time.perf_counter()
    for _ in range(batches):
        sample()
    return batches / (time.perf_counter() - began)


class PerWindow:
    """A baseline: for every window, one episode's arrays from `load`, then a slice."""

    def __init__(self, load: Callable[[int], Any], lengths: list[int], size: int, length: int):
        self.load, self.lengths, self.size, self.length = load, lengths, size, length
        self.generator = np.random.default_rng(0)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Draw a batch."""
        windows = []
        for number in self.generator.integers(0, len(self.lengths), self.size):
            start = self.generator.integers(0, self.lengths[number] - self.length + 1)
            arrays = self.load(int(number))
            rows = slice(start, start + self.length)
            windows.append(
                {name: arrays[name][rows] for name in ("obs.image", "obs.tcp_pose", *SMALL)}
            )
        return {
            name: torch.from_numpy(np.stack([window[name] for window in windows]))
            for name in windows[0]
        }


def forget(directory: Path) -> None:
    """Ask the kernel to drop the files from its page cache."""
    os.sync()
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_mib() -> float:
    """Anonymous memory of this process: what is copied, not what is mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    directory = folder / "dataset"
    out: dict[str, Any] = {"recorder": record(directory, options.episodes, options.steps)}
    size, length, batches = options.batch_size, options.length, options.batches
    forget(directory)
    before, began = resident_mib(), time.perf_counter()
    dataset = Dataset(directory)
    replay = SequenceReplay(dataset, length, size, seed=0, cost_fraction=0.25)
    out["open_s"] = round(time.perf_counter() - began, 3)
    out["memory_mib"] = round(resident_mib() - before, 1)
    out["frames_mib"] = round(replay.record_count * 64 * 64 * 3 / 2**20, 1)
    began = time.perf_counter()
    for _ in range(batches // 10):
        replay.sample()
    rates = {"replay, cold page cache": batches // 10 / (time.perf_counter() - began)}
    rates["replay"] = rate(replay.sample, batches)
    transitions = TransitionReplay(dataset, size * length // 2, seed=0)
    rates[f"transition replay, {size * length // 2} transitions"] = rate(
        transitions.sample, batches
    )

    episodes = list(dataset)
    lengths = [len(episode) for episode in episodes]
    in_memory = [{name: np.array(e.array(name)) for name in e.names} for e in episodes]
    for number, arrays in enumerate(in_memory):
        np.savez(folder / f"{number}.npz", **arrays)
    baselines: dict[str, Callable[[int], Any]] = {
        "everything in memory": in_memory.__getitem__,
        "safetensors load_file per window": lambda number: load_file(episodes[number].path),
        "np.load (npz) per window": lambda number: np.load(folder / f"{number}.npz"),
    }
    for name, load in baselines.items():
        few = batches if load == in_memory.__getitem__ else max(10, batches // 20)
        rates[name] = rate(PerWindow(load, lengths, size, length), few)
    out["batches_per_s"] = {name: round(value, 1) for name, value in rates.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=580)
    parser.add_argument("--steps", type=int, default=35, help="transitions an episode")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=8, help="records a window")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = run(options, Path(folder))
    if options.json:
        json.dump(out, sys.stdout, indent=2)
        print()
        return
    print(
        f"{options.episodes} episodes of {options.steps} steps, {out['frames_mib']} MiB of frames"
    )
    print(f"batches of {options.batch_size} windows x {options.length} x 64x64x3, one thread:")
    for name, value in out["batches_per_s"].items():
        print(f"  {name:<42}{value:>9.1f} batches/s")
    print(f"opening the dataset cold: {out['open_s']} s, {out['memory_mib']} MiB of memory")
    for name in ("append", "commit"):
        figures = out["recorder"][name]
        print(f"recorder {name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    print(f"recorder drops: {out['recorder']['dropped']}")


if __name__ == "__main__":
    main()
