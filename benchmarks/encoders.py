"""Processor time of one training update with each image encoder, on one thread.

Time that the process had the processor: on a machine that is shared the clock says more of the
others. Each encoder runs in a process of its own; they take turns, because the others also slow the
memory. The backbone is one that this script defines, or with `--model` one of torchvision
or timm; its weights are random, which costs as much as others.

    python benchmarks/encoders.py [--preset small] [--updates 5] [--turns 3]
                                  [--model torchvision:resnet18] [--sizes 64 128]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

UNTIMED = 1


def settings(preset: str, encoder: str, model: str, weights: str) -> Any:
    """`keypoint`, `strided`, or `frozen 64`, `tuned 128`: a backbone at a size."""
    from safe_o2o import catalog
    from safe_o2o.nets.backbone import BackboneConfig

    made = catalog.load("algorithm", "fosp").preset(preset)
    kind, _, size = encoder.partition(" ")
    eye = {"encoder": encoder}
    if size:
        frozen = kind == "frozen"
        backbone = BackboneConfig(model, weights if frozen else "", frozen, size=int(size))
        eye = {"encoder": "backbone", "backbone": backbone}
    return replace(made, world_model=replace(made.world_model, **eye))


def measure(preset: str, encoder: str, model: str, updates: int) -> list[float]:
    """Milliseconds of processor time of each update in this process."""
    import torch
    from safetensors.torch import save_file

    from safe_o2o import catalog
    from safe_o2o.algorithms.fosp import Fosp
    from safe_o2o.training import pretrained
    from safe_o2o.training.memory import keep_freed_memory
    from tests import small_backbone
    from tests.synthetic import SPEC, sequence_batch

    torch.set_num_threads(1)
    keep_freed_memory()
    source, _, name = model.partition(":")
    with small_backbone.registered(), tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.safetensors")
        if encoder.startswith("frozen"):
            save_file(catalog.load("backbone", source)(name).trunk.state_dict(), weights)
        algorithm = Fosp(settings(preset, encoder, model, weights), SPEC)
        pretrained.start(algorithm)
    config = algorithm.config
    batches = [sequence_batch(seed, config.batch_size, config.sequence_length) for seed in range(2)]
    milliseconds = []
    for number in range(updates + UNTIMED):
        began = time.process_time()
        algorithm.update(batches[number % len(batches)])
        milliseconds.append(1e3 * (time.process_time() - began))
    return milliseconds[UNTIMED:]


def main() -> None:
    """Print p50 and the range of each encoder, and the ratio to `keypoint`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="tests:w8")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.preset, options.child, options.model, options.updates)))
        return
    encoders = ["keypoint", "patch", "strided"]
    encoders += [f"{kind} {size}" for kind in ("frozen", "tuned") for size in options.sizes]
    found: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(options.turns):
        for name in encoders:
            command = [sys.executable, "-m", "benchmarks.encoders", "--child", name]
            command += ["--preset", options.preset, "--updates", str(options.updates)]
            command += ["--model", options.model]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] += json.loads(result.stdout.splitlines()[-1])
    for name, values in found.items():
        p50, low, high = np.percentile(values, [50, 0, 100])
        print(
            f"{name:<12} p50 {p50:6.0f} ms ({low:.0f} to {high:.0f}), "
            f"{p50 / np.median(found['keypoint']):.1f} of keypoint"
        )


if __name__ == "__main__":
    main()
