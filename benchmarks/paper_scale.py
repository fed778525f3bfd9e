"""Memory and data path at the paper's size: a million records of two cameras, one process.

Records episodes of 250 decisions in a temporary folder (25 GB for a million records: give --folder
a disk that has them), then trains `paper` on them with the replay, for a few updates. Noise, which
no file system can compress. Memory is told three ways: what the process holds itself (anonymous),
pages of the episode files that lie in its address space (the kernel takes those back whenever
somebody needs memory), and the largest sum of both.

    python benchmarks/paper_scale.py [--records 1000000] [--updates 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.replay import SequenceReplay
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.training.memory import keep_freed_memory
from safe_o2o.types import Transition

DECISIONS = 250
IMAGE = ArraySpec((64, 64, 3), "uint8", "intensity", low=0, high=255)
SPEC = Spec(
    ObservationSpec({"front": IMAGE, "back": IMAGE}),
    ActionSpec(("turn", "push"), "1", (-1.0,) * 2, (1.0,) * 2, 0.08),
)


def memory() -> dict[str, float]:
    """GiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: line.split() for line in lines}
    names = {"RssAnon": "anonymous", "RssFile": "mapped files", "VmHWM": "largest sum"}
    return {name: int(found[key][1]) / 2**20 for key, name in names.items()}


def record(folder: Path, records: int) -> Dataset:
    """Episodes of noise: a common block of frames, rotated, with a row of each episode's own."""
    dataset = Dataset.create(folder, SPEC, task="noise")
    generator = np.random.default_rng(0)
    block = generator.integers(0, 255, (DECISIONS + 1, 64, 64, 3), np.uint8)
    action = np.zeros(2, np.float32)
    for number in range(records // (DECISIONS + 1)):
        frames = np.roll(block, number, axis=1)
        frames[:, 0] = generator.integers(0, 255, (64, 3), np.uint8)
        steps = [
            Transition(
                obs={"front": frames[t], "back": frames[-1 - t]},
                action=action,
                proposed_action=action,
                reward=0.0,
                cost=float(t % 50 == 0),
                terminated=False,
                truncated=t == DECISIONS - 1,
            )
            for t in range(DECISIONS)
        ]
        last = {"front": frames[-1], "back": frames[0]}
        dataset.append(steps, last, 0.0, EpisodeMeta("noise", seed=number), index=number)
    return dataset


def percentiles(seconds: list[float]) -> str:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def main() -> None:
    """Record, sample, update; print what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        needed = 1.02 * options.records * 2 * 64 * 64 * 3
        if shutil.disk_usage(folder).free < needed:
            parser.error(f"{folder} has no {needed / 1e9:.0f} GB: see --folder")
        record(Path(folder, "data"), options.records)
        before, began = memory()["anonymous"], time.perf_counter()
        config = preset("paper")
        replay = SequenceReplay(
            Dataset(Path(folder, "data")), config.sequence_length, config.batch_size, seed=0
        )
        opened = time.perf_counter() - began
        print(
            f"{replay.record_count} records in {replay.episode_count} episodes: opened in "
            f"{opened:.1f} s, {memory()['anonymous'] - before:.2f} GiB"
        )
        drawn = []
        for _ in range(options.batches):
            began = time.perf_counter()
            replay.sample()
            drawn.append(time.perf_counter() - began)
        algorithm = Fosp(replace(config, imagination_starts=0), SPEC)
        updates = []
        for _ in range(options.updates):
            batch = replay.sample()
            began = time.perf_counter()
            algorithm.update(batch)
            updates.append(time.perf_counter() - began)
        print(f"a batch of 16 x 64 x two frames: {percentiles(drawn)}")
        print(f"an update of `paper`: {percentiles(updates)}")
        ratio = float(np.median(updates) / np.median(drawn))
        print(f"the replay gives {ratio:.0f} times the batches that updates take")
        print(", ".join(f"{name} {value:.2f} GiB" for name, value in memory().items()))


if __name__ == "__main__":
    main()
