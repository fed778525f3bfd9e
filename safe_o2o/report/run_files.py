"""What a run left on disk, read leniently: a damaged file becomes a note, never a crash."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o import bundle
from safe_o2o.errors import SafeO2OError
from safe_o2o.report.intervals import Interval, wilson
from safe_o2o.types import Array


@dataclass(frozen=True)
class ActorResult:
    """One file of `<run>/eval`: how one actor did on fresh layouts.

    Attributes:
        name: name of the actor.
        variant: scene variant, empty where the file does not say.
        n: number of episodes.
        success: rate of episodes that reached the goal.
        violation: rate of episodes with contact.
        returns: mean return, None where the file has none.
        length: mean length in policy steps, None where the file has none.
        verdict_share: share of policy steps by the filter's verdict, lower-case names.
        command: how to make this file again.
        seed: first seed of the layouts.
    """

    name: str
    variant: str
    n: int
    success: Interval
    violation: Interval
    returns: Interval | None
    length: Interval | None
    verdict_share: Mapping[str, float]
    command: str
    seed: int | None

    @property
    def counts(self) -> tuple[int, int]:
        """Episodes with success and with violation."""
        return round(self.success.value * self.n), round(self.violation.value * self.n)


@dataclass(frozen=True)
class Metrics:
    """A training log: columns over updates, one entry a seed or file.

    Attributes:
        runs: for each log file, metric name -> (step `[N]`, value `[N]`), finite values only.
        dropped: how many values were not finite.
    """

    runs: Sequence[Mapping[str, tuple[Array, Array]]]
    dropped: int


@dataclass
class RunFiles:
    """Everything but episodes that the report needs.

    Attributes:
        run_dir: the run's folder.
        notes: what could not be read, one line each.
    """

    run_dir: Path
    notes: list[str] = field(default_factory=list)

    def read_json(self, path: Path) -> Any:
        """A JSON file's content; None (with a note unless it is just not there)."""
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.note(path, f"cannot be read ({error})")
            return None

    def note(self, path: Path, what: str) -> None:
        """Remember what was wrong with a file."""
        name = path.relative_to(self.run_dir) if path.is_relative_to(self.run_dir) else path
        self.notes.append(f"{name}: {' '.join(what.split())}")

    def actors(self) -> list[ActorResult]:
        """Results of `<run>/eval/*.json`, sorted by file name."""
        found = []
        for path in sorted((self.run_dir / "eval").glob("*.json")):
            data = self.read_json(path)
            if data is None:
                continue
            try:
                found += _actors(data, path.stem)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.note(path, f"is no evaluation ({type(error).__name__}: {error})")
        return found

    def metrics(self, folder: str) -> Metrics | None:
        """Training logs under a folder of the run: `metrics*.jsonl` there or one level down."""
        root = self.run_dir / folder
        paths = sorted([*root.glob("metrics*.jsonl"), *root.glob("*/metrics*.jsonl")])
        runs, dropped = [], 0
        for path in paths:
            columns, bad = self._log(path)
            dropped += bad
            if columns:
                runs.append(columns)
        return Metrics(runs, dropped) if runs else None

    def _log(self, path: Path) -> tuple[dict[str, tuple[Array, Array]], int]:
        rows: dict[str, dict[int, float]] = {}
        dropped, damaged = 0, 0
        try:
            lines = path.read_text("utf-8", errors="replace").splitlines()
        except OSError as error:
            self.note(path, f"cannot be read ({error})")
            return {}, 0
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                step = int(entry["step"])
                values = entry["metrics"] if isinstance(entry.get("metrics"), dict) else entry
            except (ValueError, KeyError, TypeError, AttributeError):
                # The last line of a killed run may be cut off; that is no damage.
                damaged += number < len(lines) - 1
                continue
            for key, value in values.items():
                if key in ("step", "time", "wall_time") or isinstance(value, bool):
                    continue
                if isinstance(value, (int, float)):
                    if math.isfinite(value):
                        # A resumed run logs some steps again: the later line is the true one.
                        rows.setdefault(key, {})[step] = float(value)
                    else:
                        dropped += 1
        if damaged:
            self.note(path, f"{damaged} damaged lines were left out")
        columns = {}
        for key, series in rows.items():
            steps = np.asarray(sorted(series), np.float64)
            columns[key] = (steps, np.asarray([series[int(s)] for s in steps]))
        return columns, dropped

    def rounds(self) -> list[dict[str, Any]]:
        """What the learner noted, one entry a round, by number under `index`.

        `<run>/deploy/rounds.json` (or elsewhere) says when each round began and how it ended;
        `<run>/finetune/round_*.json` adds updates, the candidate and the promotion checks.
        """
        paths = [self.run_dir / folder / "rounds.json" for folder in ("deploy", "finetune", ".")]
        path = next((path for path in paths if path.exists()), paths[0])
        data = self.read_json(path)
        if isinstance(data, dict):
            data = data.get("rounds")
        found: dict[int, dict[str, Any]] = {}
        if isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
            for position, entry in enumerate(data):
                found[int(entry.get("round", entry.get("index", position)))] = dict(entry)
        elif data is not None:
            self.note(path, "is no list of rounds")
        for path in sorted((self.run_dir / "finetune").glob("round_*.json")):
            report = self.read_json(path)
            digits = re.search(r"\d+", path.stem)
            if not isinstance(report, dict) or digits is None:
                continue
            kept = {k: v for k, v in report.items() if k in ("promoted", "checks", "updates")}
            entry = found.setdefault(int(digits[0]), {"refusal": report.get("refusal", "")})
            entry.update(kept, candidate=report.get("bundle", ""))
        return [{**entry, "index": number} for number, entry in sorted(found.items())]

    def bundles(self) -> list[dict[str, Any]]:
        """Manifests of `<run>/bundles/v*`, each with its folder's `name` and if it is `live`.

        And with its `gate`: the thresholds of its reachability gate, where there are any.
        """
        folder = self.run_dir / "bundles"
        try:
            pointer = bundle.current(folder)
        except SafeO2OError as error:
            pointer = None
            self.note(folder, error.what)
        live = "" if pointer is None else pointer.version
        found = []
        for path in sorted(folder.glob("v*/manifest.json")):
            manifest = self.read_json(path)
            if isinstance(manifest, dict):
                name = path.parent.name
                entry = {**manifest, "name": name, "live": name == live}
                gate = self.read_json(path.parent / "gate.json")
                found.append(entry | ({"gate": gate} if isinstance(gate, dict) else {}))
        return found

    def checkpoint_sha256(self) -> tuple[str, str]:
        """Name and SHA-256 of the newest offline checkpoint's file; empty where there is none."""
        paths = sorted((self.run_dir / "checkpoints").glob("step_*.safetensors"))
        if not paths:
            return "", ""
        return paths[-1].stem, hashlib.sha256(paths[-1].read_bytes()).hexdigest()

    def episode_lines(self, folder: str = "deploy") -> dict[str, dict[str, Any]]:
        """`<folder>/episodes.jsonl` by file name: what has no place in an episode file.

        Round, bundle, speed of the twin's clock, and the policy's other outputs (risk) by step.
        """
        path = self.run_dir / folder / "episodes.jsonl"
        try:
            lines = path.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for number, text in enumerate(lines):
            try:
                line = json.loads(text)
                found[str(line["episode"])] = line
            except (ValueError, KeyError, TypeError):
                if number < len(lines) - 1:  # the last line of a killed run may be cut off
                    self.note(path, f"line {number + 1} is damaged")
        return found

    def latency(self, folder: str) -> dict[str, dict[str, float]]:
        """Stages with p50 and p99 of `<folder>/latency.json` and `<folder>/latency/*.json`.

        The inner folder is what the nodes of a graph write, one file each.
        """
        found: dict[str, dict[str, float]] = {}
        root = self.run_dir / folder
        for path in (root / "latency.json", *sorted((root / "latency").glob("*.json"))):
            data = self.read_json(path)
            if data is None:
                continue
            try:
                for stage, row in data.items():
                    if {"p50_ms", "p99_ms"} <= set(row):
                        found[str(stage)] = {key: float(value) for key, value in row.items()}
            except (AttributeError, TypeError, ValueError) as error:
                self.note(path, f"is no latency table ({error})")
        return found

    def facts(self) -> dict[str, Any]:
        """`<run>/run.json`, empty where there is none."""
        data = self.read_json(self.run_dir / "run.json")
        return data if isinstance(data, dict) else {}


def _actors(data: Mapping[str, Any], stem: str) -> list[ActorResult]:
    """One result, or those of a mixture by behaviour with `all` for the mixture itself."""
    if "n" in data or "all" not in data:
        return [_actor(data, stem)]
    common = {key: data[key] for key in ("variant", "command", "seed") if key in data}
    parts = {key: part for key, part in data.items() if isinstance(part, Mapping) and "n" in part}
    return [
        _actor({**common, **part, "name": stem if key == "all" else key}, stem)
        for key, part in parts.items()
    ]


def _actor(data: Mapping[str, Any], stem: str) -> ActorResult:
    n = int(data["n"])
    share = data.get("verdict_share", data.get("filter", {}))
    seed = data.get("seed")
    return ActorResult(
        name=str(data.get("name") or stem),
        variant=str(data.get("variant") or ""),
        n=n,
        success=_rate(data["success"], n),
        violation=_rate(data["violation"], n),
        returns=_mean(data.get("return")),
        length=_mean(data.get("length")),
        verdict_share={
            name: float(share[name]) for name in ("pass", "corrected", "stopped") if name in share
        },
        command=str(data.get("command") or ""),
        seed=None if seed is None else int(seed),
    )


def _rate(data: Mapping[str, Any], n: int) -> Interval:
    rate = float(data["rate"])
    if not 0 <= rate <= 1:
        raise ValueError(f"rate {rate} is outside 0 to 1")
    if "low" in data and "high" in data:
        return Interval(rate, float(data["low"]), float(data["high"]))
    return wilson(round(rate * n), n)


def _mean(data: Any) -> Interval | None:
    if not isinstance(data, Mapping) or "mean" not in data:
        return None
    mean = float(data["mean"])
    low, high = data.get("low"), data.get("high")
    return Interval(
        mean, mean if low is None else float(low), mean if high is None else float(high)
    )


def rolling(step: Array, value: Array, *, points: int = 160) -> tuple[Array, Array, Array, Array]:
    """Rolling median with the 10 and 90 % quantiles of the same window.

    Args:
        step: updates `[N]`, increasing.
        value: the metric `[N]`.
        points: at most this many windows are evaluated.

    Returns:
        steps, median, low, high, each `[min(N, points)]`. The window holds 5 % of the samples, 5 at
        least, and is cut off at the ends, never padded.
    """
    half = max(2, len(value) // 40)
    centres = np.unique(np.linspace(0, len(value) - 1, min(len(value), points)).astype(int))
    windows = [value[max(0, c - half) : c + half + 1] for c in centres]
    quantiles = np.asarray([np.quantile(window, (0.5, 0.1, 0.9)) for window in windows])
    return step[centres], quantiles[:, 0], quantiles[:, 1], quantiles[:, 2]


def across_seeds(
    runs: Sequence[tuple[Array, Array]], *, points: int = 160
) -> tuple[Array, Array, Array, Array]:
    """Median and range over several seeds' rolling medians, on the steps all of them reached."""
    smooth = [rolling(step, value, points=points)[:2] for step, value in runs]
    start, stop = max(s[0] for s, _ in smooth), min(s[-1] for s, _ in smooth)
    grid = np.linspace(start, max(stop, start), points)
    table = np.asarray([np.interp(grid, step, value) for step, value in smooth])
    return grid, np.median(table, 0), table.min(0), table.max(0)
