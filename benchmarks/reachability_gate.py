"""The reachability gate against its bars (specs/reachability_gate.md 6.9): one table, resumable.

    python benchmarks/reachability_gate.py [--seeds 0,1,2] [--method behavior_cloning] [--n 100]
        [--runs runs/protocol] [--out runs/gate] [--results runs/gate/results.jsonl]
        [--updates 8000] [--workers 1] [--threads 1] [--show]

The nominal policy is one that violates: behaviour cloning of the mixture (`safe-o2o protocol
safe_reach` trains it, where it is not there yet). Each seed: states of its world model, heads, one
graph, a calibration on safe episodes (100 for the ranks, 200 for the threshold, gate in shadow),
then the same layouts without the gate, with it, and with the literature's switching rule, on seen
and unseen scenes and on three that look new where it does not matter; forty episodes of
fine-tuning with the gate on in each unseen scene; three bundles in a row, calibrated again. What
is in `--results` is not measured again; every line is one measurement, raw.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _gate_cells import COMBINED, Alarm, driven, judged, redrawn
from _gate_table import HARMLESS, SEEN, UNSEEN, Row, Table, show

from safe_o2o import bundle
from safe_o2o.cli import calibrate, console, finetune, main
from safe_o2o.cli.actors import BundleMaker, SceneMaker
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.errors import BundleError
from safe_o2o.runtime.gate_calibration import Trace, trace
from safe_o2o.runtime.gated_policy import load_policy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.runtime.rollout import run_episodes
from safe_o2o.safety.gate_file import GATE, gate_of, write_gate
from safe_o2o.training.finetune import FineTunerConfig

TASK = "safe_reach"
FIT, SAFE = 100, 200
"""Safe episodes behind the ranks, and behind the threshold."""
ALPHA, DRAWS, ROUNDS, PER_ROUND = 0.05, 20, 4, 10


def say(words: Sequence[str]) -> None:
    """Run a verb of the command line here.

    Raises:
        SystemExit: it failed; it has said why.
    """
    code = main.main([str(word) for word in words])
    if code:
        raise SystemExit(code)


class Seed:
    """Everything that is measured of one seed."""

    def __init__(self, arguments: argparse.Namespace, table: Table, seed: int) -> None:
        self.arguments, self.table, self.seed = arguments, table, seed
        self.base = arguments.runs / TASK / f"{arguments.method}-{seed}"
        self.folder: Path = arguments.out / f"{arguments.method}-{seed}"

    def run(self) -> None:
        """Whatever is missing."""
        self._policy()
        self.table.measure(self.seed, "heads", "", self._heads)
        self.table.measure(self.seed, "calibration", "", self._calibrate)
        for scene in (SEEN, *UNSEEN):
            for mode in ("off", "smooth", "switching"):
                self.table.measure(
                    self.seed,
                    mode,
                    scene,
                    lambda s=scene, m=mode: self._cell(s, m),  # type: ignore[misc]
                )
        for scene in HARMLESS:
            self.table.measure(self.seed, "off", scene, lambda s=scene: self._cell(s, "off"))  # type: ignore[misc]
        self.table.measure(self.seed, "redraws", "", self._redraws)
        for scene in UNSEEN:
            self.table.measure(self.seed, "finetune", scene, lambda s=scene: self._finetune(s))  # type: ignore[misc]
        if self.seed == self.arguments.first:
            self.table.measure(self.seed, "recalibrated", "", self._recalibrated)
            self.table.measure(self.seed, "latency", "", self._latency)

    @property
    def bundle(self) -> Path:
        """The gated bundle."""
        return self.folder / "bundles" / "v000001"

    def _policy(self) -> None:
        """The nominal policy; `protocol` resumes."""
        arguments = self.arguments
        words = ["protocol", TASK, "--methods", arguments.method, "--seeds", str(self.seed)]
        words += ["--scenes", "", "--out", arguments.runs, "--results", arguments.protocol]
        say([*words, "--workers", arguments.workers, "--threads", arguments.threads])

    def _heads(self) -> Row:
        """States, heads, graph: seconds of each, None of what an interrupted run had begun."""
        base = self.base
        states, gate = self.folder / "states", self.folder / "gate"
        afresh = not states.exists()
        began = time.perf_counter()
        encode = ["encode", base / "checkpoints", "--data", base / "dataset", "--out", states]
        say([*encode, "--what", "state"])
        encoded = time.perf_counter()
        train = ["train", "reachability", "--data", states, "--out", gate]
        train += ["--run.cost-fraction", 0.2, "--run.threads", self.arguments.threads]
        say([*train, "--algo.total-updates", self.arguments.updates, "--algo.seed", self.seed])
        trained = time.perf_counter()
        words = ["export", base / "checkpoints", "--data", base / "dataset", "--gate", gate]
        if not self.bundle.exists():
            say([*words, "--out", self.folder / "bundles", "--live", "yes"])
        return {
            "encode_s": encoded - began if afresh else None,
            "train_s": trained - encoded if afresh else None,
            "updates": self.arguments.updates,
            "threads": self.arguments.threads,
        }

    def _calibrate(self) -> Row:
        """Shadow episodes until enough of them were safe, then the thresholds."""
        data = self.folder / "calibration"
        self._shadow(data, FIT + SAFE)
        say(["calibrate", self.bundle, "--data", data, "--episodes", 0, "--alarm.alpha", ALPHA])
        gate = gate_of(self.bundle)
        assert gate is not None
        return {"thresholds": vars(gate.thresholds), "facts": dict(gate.calibration)}

    def _shadow(self, data: Path, safe: int, directory: Path | None = None) -> Dataset:
        """Shadow episodes of a bundle until that many of them are safe."""
        policy = OnnxPolicy.load(directory or self.bundle)
        episodes = Dataset.create(data, policy.spec, task=TASK, exist_ok=True)
        while (missing := safe - sum(not episode.violation for episode in episodes)) > 0:
            episodes = calibrate.shadow_episodes(
                calibrate.Arguments(
                    bundle=policy.directory,
                    data=data,
                    episodes=len(episodes) + max(20, missing),
                    task=TASK,
                    seed=self.seed,
                    workers=self.arguments.workers,
                ),
                policy,
            )
        return episodes

    def _cell(self, scene: str, mode: str) -> Row:
        """Fresh layouts in a scene; the same ones whatever the gate does."""
        directory = self._switching() if mode == "switching" else self.bundle
        episodes = self._episodes(scene, mode, directory, "off" if mode == "off" else "on")
        row = driven(episodes)
        if mode == "off":
            row |= judged(self._alarm(self.bundle), self._traces(self.bundle, episodes))
        return row

    def _episodes(self, scene: str, mode: str, directory: Path, gate: Any) -> Dataset:
        data = self.folder / "cells" / f"{scene}-{mode}"
        name = f"{directory.parent.name}-{gate}"
        dataset = Dataset.create(data, OnnxPolicy.load(directory).spec, task=TASK, exist_ok=True)
        with console.progress(f"seed {self.seed}, {scene}, {mode}") as progress:
            run_episodes(
                SceneMaker(TASK, scene),
                BundleMaker(directory, name, gate),
                episode_seeds("evaluate", self.seed, self.arguments.n),
                workers=self.arguments.workers,
                dataset=dataset,
                meta=EpisodeMeta(TASK, scene),
                progress=progress,
            )
        return dataset

    def _switching(self) -> Path:
        """The same graph and thresholds with the literature's rule."""
        directory = self.folder / "switching" / "v000001"
        if not directory.exists():
            shutil.copytree(self.bundle, directory)
        gate = gate_of(self.bundle)
        assert gate is not None
        changed = replace(gate, config=replace(gate.config, mode="switching"))
        write_gate(directory, OnnxPolicy.load(directory).manifest, changed)
        return directory

    def _alarm(self, directory: Path) -> Alarm:
        gate = gate_of(directory)
        assert gate is not None
        return Alarm.of(gate)

    def _traces(self, directory: Path, episodes: Dataset) -> list[Trace]:
        policy, gate = OnnxPolicy.load(directory), gate_of(directory)
        assert gate is not None
        with console.progress("replaying") as progress:
            found = []
            for number, episode in enumerate(episodes):
                found.append(trace(policy, episode, gate.config))
                progress(number + 1, len(episodes))
        return found

    def _redraws(self) -> Row:
        """Thresholds from other draws of the safe episodes that there are."""
        calibrated, seen = (
            self.table.get(self.seed, "calibration"),
            self.table.get(self.seed, "off", SEEN),
        )
        assert calibrated is not None and seen is not None
        scores = np.r_[calibrated["facts"]["safe_scores"], seen["safe_maxima"][COMBINED]]
        return {"pool": len(scores), "rates": redrawn(scores, SAFE, ALPHA, DRAWS, self.seed)}

    def _finetune(self, scene: str) -> Row:
        """Forty episodes with the gate on, thresholds anew for every bundle that is promoted."""
        place = self.folder / "finetune" / scene
        self._begin(place)
        report = finetune.finetune(
            finetune.Arguments(
                run=place,
                task=TASK,
                rounds=ROUNDS,
                episodes_per_round=PER_ROUND,
                variant=scene,
                seed=self.seed,
                ros="no",
                learner=FineTunerConfig(threads=self.arguments.threads),
            )
        )
        offline = self.table.get(self.seed, "off", scene)
        assert offline is not None
        return {
            "n": len(report.episodes),
            "violation": [e.violation for e in report.episodes],
            "success": [e.success for e in report.episodes],
            "stalled": [e.stalled for e in report.episodes],
            "bundles": list(report.bundles),
            "promoted": [result.bundle for result in report.rounds],
            "refused": [result.refusal for result in report.rounds],
            "offline": sum(offline["violation"]) / offline["n"],
        }

    def _begin(self, place: Path) -> None:
        """A run of its own that starts with the offline one's files."""
        place.mkdir(parents=True, exist_ok=True)
        for name, source in (
            ("dataset", self.base / "dataset"),
            ("checkpoints", self.base / "checkpoints"),
            ("gate", self.folder / "gate"),
            ("calibration", self.folder / "calibration"),
        ):
            if not (place / name).exists():
                (place / name).symlink_to(source.resolve(), target_is_directory=True)
        if bundle.current(place / "bundles") is None:
            shutil.copytree(self.bundle, place / "bundles" / "v000001", dirs_exist_ok=True)
            bundle.set_current(place / "bundles", "v000001")

    def _recalibrated(self) -> Row:
        """Bar 9: three bundles in a row; what an old threshold does, and a new one."""
        place = self.folder / "recalibrated"
        self._begin(place)
        finetune.finetune(
            finetune.Arguments(
                run=place,
                task=TASK,
                rounds=3,
                episodes_per_round=PER_ROUND,
                variant=SEEN,
                seed=self.seed,
                ros="no",
                learner=FineTunerConfig(threads=self.arguments.threads, always=True),
            )
        )
        found: list[Row] = []
        versions = sorted((place / "bundles").glob("v*"))[1:]
        for directory in versions:
            if not (directory / GATE).exists():
                found.append({"bundle": directory.name, "promoted": False})
                continue
            own = (directory / GATE).read_bytes()
            shutil.copyfile(self.bundle / GATE, directory / GATE)
            try:
                load_policy(directory)
                refused = False
            except BundleError:
                refused = True
            (directory / GATE).write_bytes(own)
            data = place / f"calibration-{directory.name}"
            shadow = self._shadow(data, FIT + SAFE + self.arguments.n, directory)
            traces = self._traces(directory, shadow)
            unused = [entry for entry in traces if entry.violated_at is None][FIT + SAFE :]
            later = {entry.episode for entry in unused}
            kept = [entry for entry in traces if entry.episode not in later]
            policy = OnnxPolicy.load(directory)
            made = calibrate.calibrate(
                policy.manifest.graph_sha256, kept, calibrate.CalibrationConfig(alpha=ALPHA)
            )
            alarm = Alarm.of(made.gate)
            found.append(
                {
                    "bundle": directory.name,
                    "promoted": True,
                    "old_refused": refused,
                    **{k: v for k, v in judged(alarm, unused).items() if k in ("safe", "alarmed")},
                    "n": made.found.n,
                    "k": made.found.k,
                }
            )
        return {"bundles": found}

    def _latency(self) -> Row:
        """A decision with the gate, and with the policy's own graph, in turn, one thread."""
        plain = OnnxPolicy.load(self.base / "bundles" / "v000001")
        gated = load_policy(self.bundle)
        (episode, *_) = Dataset(self.folder / "cells" / f"{SEEN}-off")
        rows = [{name: array[t : t + 1] for name, array in episode.obs.items()} for t in range(20)]
        carries = {name: p.initial_carry() for name, p in (("plain", plain), ("gated", gated))}
        seconds: dict[str, list[float]] = {name: [] for name in carries}
        for step in range(2050):
            for name, policy in (("plain", plain), ("gated", gated)):
                began = time.perf_counter()
                _, carries[name] = policy.act(rows[step % len(rows)], carries[name])
                seconds[name].append(1e3 * (time.perf_counter() - began))
        found: Row = {}
        for name, samples in seconds.items():
            p50, p99 = np.percentile(samples[50:], [50, 99])
            found |= {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}
        return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--method", default="behavior_cloning")
    parser.add_argument("--n", type=int, default=100, help="episodes a cell")
    parser.add_argument("--runs", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--protocol", type=Path, default=Path("runs/protocol/results.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    parser.add_argument("--results", type=Path, default=Path("runs/gate/results.jsonl"))
    parser.add_argument("--updates", type=int, default=8000, help="of the heads")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="only print what was measured")
    arguments = parser.parse_args(words)
    arguments.numbers = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.first = arguments.numbers[0]
    return arguments


if __name__ == "__main__":
    wanted = parse(sys.argv[1:])
    found = Table(wanted.results)
    if not wanted.show:
        for number in wanted.numbers:
            Seed(wanted, found, number).run()
    show(found)
