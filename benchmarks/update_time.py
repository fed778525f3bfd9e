"""One training update of FOSP, with the C library's malloc as it comes and as training sets it.

Each pairing of threads and malloc runs in a process of its own; the pairs take turns, so that
whatever else the machine does hits all alike.

    python benchmarks/update_time.py [--preset small] [--updates 40] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np


def measure(preset: str, threads: int, keep: bool, updates: int) -> dict[str, list[float]]:
    """Milliseconds of each update, and page faults of all of them, in this process."""
    import torch

    from safe_o2o import catalog
    from safe_o2o.training.memory import keep_freed_memory
    from tests.synthetic import SPEC, sequence_batch

    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    cls = catalog.load("algorithm", "fosp")
    config = cls.preset(preset)
    algorithm = cls(config, SPEC)
    batches = [sequence_batch(seed, config.batch_size, config.sequence_length) for seed in range(4)]
    milliseconds = []
    for number in range(updates + 5):
        if number == 5:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        algorithm.update(batches[number % len(batches)])
        milliseconds.append(1e3 * (time.perf_counter() - began))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"milliseconds": milliseconds[5:], "faults": [faults / updates]}


def main() -> None:
    """Print p50 and p99 of each pairing, and the ratios to malloc as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", type=int, nargs=2, metavar=("THREADS", "KEEP"))
    options = parser.parse_args()
    if options.child:
        threads, keep = options.child
        print(json.dumps(measure(options.preset, threads, bool(keep), options.updates)))
        return
    pairs = [(threads, keep) for threads in (1, 2) for keep in (0, 1)]
    found: dict[tuple[int, int], dict[str, list[float]]] = {}
    for _ in range(options.turns):
        for threads, keep in pairs:
            command = [sys.executable, "-m", "benchmarks.update_time", "--preset", options.preset]
            command += ["--updates", str(options.updates), "--child", str(threads), str(keep)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            for key, values in json.loads(result.stdout.splitlines()[-1]).items():
                found.setdefault((threads, keep), {}).setdefault(key, []).extend(values)
    for threads, keep in pairs:
        values = found[threads, keep]["milliseconds"]
        plain = float(np.median(found[threads, 0]["milliseconds"]))
        p50, p99 = np.percentile(values, [50, 99])
        print(
            f"{threads} threads, malloc {'kept' if keep else 'plain'}: p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms, {np.mean(found[threads, keep]['faults']):.0f} page faults an "
            f"update; {p50 / plain:.2f} of plain"
        )


if __name__ == "__main__":
    main()
