"""How long each stage of the loop takes: samples in, p50, p99 and maximum out."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CAPACITY = 20_000
"""Newest samples kept for each stage."""


class StageLatency:
    """Durations by stage name, in seconds."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}

    def __bool__(self) -> bool:
        return any(self._samples.values())

    def add(self, stage: str, seconds: float) -> None:
        """Take one sample."""
        self._samples.setdefault(stage, deque(maxlen=CAPACITY)).append(seconds)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Measure the body on the monotonic clock."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: `n`, `p50_ms`, `p99_ms`, `max_ms`; stages without samples are left out."""
        out: dict[str, dict[str, float]] = {}
        for stage, samples in self._samples.items():
            if samples:
                values = np.asarray(samples) * 1e3
                p50, p99 = np.percentile(values, [50, 99])
                out[stage] = {
                    "n": len(samples),
                    "p50_ms": round(float(p50), 4),
                    "p99_ms": round(float(p99), 4),
                    "max_ms": round(float(values.max()), 4),
                }
        return out

    def flat(self) -> dict[str, str]:
        """One `p50/p99 ms` line per stage, for diagnostics; over the newest thousand samples."""
        out: dict[str, str] = {}
        for stage, samples in self._samples.items():
            newest = np.asarray(list(itertools.islice(reversed(samples), 1000))) * 1e3
            if newest.size:
                p50, p99 = np.percentile(newest, [50, 99])
                out[f"{stage} p50/p99 ms"] = f"{p50:.3f}/{p99:.3f}"
        return out

    def write(self, path: str | Path) -> None:
        """Write `summary` as JSON, by way of a temporary name."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.summary(), indent=2) + "\n")
        os.replace(temporary, path)


def read_summaries(folder: str | Path) -> dict[str, dict[str, float]]:
    """The summaries that several processes wrote to one folder, merged."""
    merged: dict[str, dict[str, float]] = {}
    for path in sorted(Path(folder).glob("*.json")):
        content: Mapping[str, Any] = json.loads(path.read_text())
        merged.update(content)
    return merged
