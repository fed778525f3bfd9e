"""One run of `safe-o2o protocol`: a method and a seed, stage by stage on files that stay.

Each stage is a verb of its own: collect, encode, train, export, evaluate, finetune. What is in the
results file already is not measured again, and what was begun goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_o2o import bundle, catalog
from safe_o2o.algorithms.learner import Learner
from safe_o2o.cli import collect, console, evaluate, finetune
from safe_o2o.cli.actors import resolve
from safe_o2o.cli.demo import OFFLINE, machine, versions
from safe_o2o.cli.protocol_settings import Arguments, recipe
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError
from safe_o2o.files import atomic_directory, write_atomic
from safe_o2o.report import standings
from safe_o2o.report.standings import LEARNING, SEEN, UNMASKED, Row
from safe_o2o.training.experience import DATASET, LATENTS
from safe_o2o.training.finetune import FineTunerConfig
from safe_o2o.training.latents import LatentDataset, encode
from safe_o2o.training.offline import OfflineConfig, train_offline

TRAINED = "training.json"
CHECKPOINT_EVERY = 250


class Run:
    """A method and a seed: one training, one judgement, fine-tuning in every scene.

    Args:
        arguments: see `Arguments`.
        task: catalogue name.
        method: see `recipe`.
        seed: of everything.
    """

    def __init__(self, arguments: Arguments, task: str, method: str, seed: int) -> None:
        self.arguments, self.task, self.method, self.seed = arguments, task, method, seed
        algorithm, config = recipe(method, arguments.preset)
        self.algorithm = algorithm
        self.config = replace(config, total_updates=arguments.updates, seed=seed)
        self.data = arguments.out / task / f"data-{seed}"
        self.world_model = arguments.world_model.format(seed=seed)
        if not issubclass(catalog.load("algorithm", self.algorithm), Learner):
            self.world_model = ""  # it has its own
        self.read = arguments.out / task / f"latents-{seed}" if self.world_model else self.data
        """What it learns from: the data, or their latents."""
        self.folder = arguments.out / task / f"{method}-{seed}"
        self.known = {row.key for row in standings.read(arguments.results)}

    def measure(self) -> None:
        """Whatever of this run is not in the results yet."""
        phases = [(SEEN, "before")]
        for scene in self.arguments.named("scenes"):
            phases += [(scene, phase) for phase in standings.PHASES if (scene, phase) not in phases]
        missing = [phase for phase in phases if self._row(*phase).key not in self.known]
        points = [
            updates
            for updates in sorted(set(self.arguments.numbers("points")))
            if self._row(SEEN, LEARNING, updates=updates).key not in self.known
        ]
        bare = self.arguments.unmasked == "yes" and hasattr(self.config, "safety")
        if bare and self._row(SEEN, UNMASKED).key in self.known:
            bare = False
        if not missing and not points and not bare:
            return
        self._collect()
        for updates in points:
            self._judge_on_the_way(updates)
        self._prepare()
        if bare:
            self._judge_unmasked()
        for scene, phase in missing:
            with console.progress(f"{self.method} {self.seed}: {phase} in {scene}") as progress:
                episodes, updates = self._episodes(scene, phase, progress)
            self._note(self._row(scene, phase, episodes, updates))

    # ------------------------------------------------------------------ stages

    def _collect(self) -> None:
        wanted = self.arguments
        with console.progress(f"collecting, seed {self.seed}") as progress:
            collect.collect(
                collect.Arguments(
                    out=self.data,
                    episodes=wanted.episodes,
                    task=self.task,
                    behaviors=wanted.behaviors,
                    seed=self.seed,
                    workers=wanted.workers,
                ),
                progress,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _link(self.folder / DATASET, self.data)
        if self.world_model:
            with console.progress(f"encoding, seed {self.seed}") as progress:
                encode(Dataset(self.data), Path(self.world_model), self.read, progress)
            _link(self.folder / LATENTS, self.read)

    def _train(self, until: int) -> int:
        """Train so far, or on from where it was; the update that it has come to."""
        with console.progress(f"training {self.method}, seed {self.seed}") as progress:
            clock = _Clock(self.folder / TRAINED)

            def report(step: int, total: int, _: Any) -> None:
                progress(step, total)
                if step % CHECKPOINT_EVERY == 0 or step == until:
                    clock.note()

            return train_offline(
                self.algorithm,
                self.config,
                self.read,
                self.folder / "checkpoints",
                OfflineConfig(
                    threads=self.arguments.threads, checkpoint_every=CHECKPOINT_EVERY, until=until
                ),
                report,
            ).step

    def _judge_on_the_way(self, updates: int) -> None:
        """The policy as it is after so many updates."""
        reached = self._train(updates)
        if reached != updates:
            raise ConfigError(
                f"training is at update {reached}: what update {updates} was is gone",
                where="points",
                todo=f"leave it out, or begin anew without {self.folder}",
            )
        place = self.folder / "on_the_way" / str(updates)
        self._export(place)
        with console.progress(f"{self.method} {self.seed}: at update {updates}") as progress:
            episodes = self._judged(place, OFFLINE, SEEN, LEARNING, progress)
        self._note(self._row(SEEN, LEARNING, episodes, updates))

    def _judge_unmasked(self) -> None:
        """The offline policy as if its safety critic were not there."""
        place = self.folder / UNMASKED
        self._export(place, masked=False)
        with console.progress(f"{self.method} {self.seed}: {UNMASKED}") as progress:
            episodes = self._judged(place, OFFLINE, SEEN, UNMASKED, progress)
        self._note(self._row(SEEN, UNMASKED, episodes, self.config.total_updates))

    def _prepare(self) -> None:
        """The offline policy's bundle."""
        self._train(self.config.total_updates)
        self._export(self.folder)

    def _export(self, place: Path, masked: bool = True) -> None:
        """A bundle of the newest checkpoint, unless there is one."""
        if bundle.current(place / "bundles") is None:
            from safe_o2o.export.algorithm import export_algorithm
            from safe_o2o.training.restore import load_algorithm

            algorithm: Any = load_algorithm(self.folder / "checkpoints")
            algorithm.masked = masked
            made = export_algorithm(
                algorithm,
                self.algorithm,
                place / "bundles",
                Dataset(self.data),
                encoder=LatentDataset(self.read).tracker() if self.world_model else None,
            )
            bundle.set_current(place / "bundles", made.directory.name)

    def _note(self, row: Row) -> None:
        standings.append(self.arguments.results, row)
        print(describe(row), flush=True)

    def _episodes(
        self, scene: str, phase: str, progress: console.Progress
    ) -> tuple[Sequence[EpisodeSummary], int]:
        """What is judged in a phase, and gradient steps behind it."""
        if phase == "before":
            return self._judged(
                self.folder, OFFLINE, scene, phase, progress
            ), self.config.total_updates
        place = self._place(scene)
        report = finetune.finetune(
            finetune.Arguments(
                run=place,
                task=self.task,
                rounds=self.arguments.rounds,
                episodes_per_round=self.arguments.episodes_per_round,
                variant=scene,
                seed=self.seed,
                ros=self.arguments.ros,
                learner=FineTunerConfig(
                    updates_per_round=self.arguments.online_updates, threads=self.arguments.threads
                ),
            ),
            progress,
        )
        updates = self.config.total_updates + self.arguments.rounds * self.arguments.online_updates
        if phase == "during":
            return report.episodes, updates
        return self._judged(place, "", scene, phase, progress), updates

    def _judged(
        self, place: Path, version: str, scene: str, name: str, progress: console.Progress
    ) -> Sequence[EpisodeSummary]:
        """Fresh layouts, the same for every method; the bundle of a version, or the live one."""
        who = str(place / "bundles" / version)
        wanted = evaluate.Arguments(
            who=(who,),
            out=place,
            name=name,
            episodes=self.arguments.evaluation,
            task=self.task,
            variant=scene,
            seed=self.seed,
            workers=self.arguments.workers,
        )
        _, make_actor = resolve(who, name)
        result = evaluate.evaluate(wanted, who, name, make_actor, progress)
        evaluate.write(wanted, result)
        return [EpisodeSummary.from_json(episode) for episode in result["episodes"]]

    def _place(self, scene: str) -> Path:
        """A run of its own for a scene, which begins with the offline one's files."""
        place = self.folder / (f"{scene}-ros" if self.arguments.ros == "yes" else scene)
        place.mkdir(parents=True, exist_ok=True)
        _link(place / DATASET, self.data)
        if self.world_model:
            _link(place / LATENTS, self.read)
        _link(place / "checkpoints", self.folder / "checkpoints")
        first = place / "bundles" / OFFLINE
        if not first.exists():
            with atomic_directory(first) as folder:
                shutil.copytree(self.folder / "bundles" / OFFLINE, folder, dirs_exist_ok=True)
        if bundle.current(place / "bundles") is None:
            bundle.set_current(place / "bundles", OFFLINE)
        return place

    def _row(
        self,
        scene: str,
        phase: str,
        episodes: Sequence[EpisodeSummary] = (),
        updates: int = 0,
    ) -> Row:
        n = len(episodes)
        return Row(
            task=self.task,
            method=self.method,
            seed=self.seed,
            scene=scene,
            phase=phase,
            settings=self.arguments.budget(),
            n=n,
            success=sum(episode.success for episode in episodes),
            violation=sum(episode.violation for episode in episodes),
            return_=sum(episode.return_ for episode in episodes) / max(n, 1),
            cost=sum(episode.cost for episode in episodes) / max(n, 1),
            return_sd=_deviation([episode.return_ for episode in episodes]),
            cost_sd=_deviation([episode.cost for episode in episodes]),
            updates=updates,
            **_Clock(self.folder / TRAINED).spent,
            made_by={"commit": commit(), "threads": self.arguments.threads}
            | {"versions": versions(), "machine": machine()},
        )


class _Clock:
    """What training has taken so far, in a file: what is done again after a kill counts once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_bytes()) if path.exists() else {}
        self.spent = {name: float(found.get(name, 0.0)) for name in ("seconds", "cpu_seconds")}
        self._began = time.perf_counter(), time.process_time()

    def note(self) -> None:
        """Add the time since the last note."""
        now = time.perf_counter(), time.process_time()
        for name, before, after in zip(self.spent, self._began, now, strict=True):
            self.spent[name] += after - before
        self._began = now
        write_atomic(self.path, json.dumps(self.spent).encode())


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _link(path: Path, target: Path) -> None:
    """A relative link, so that the folder of runs can be moved."""
    if not path.is_symlink():
        path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)


def commit() -> str:
    """The commit of the code, `""` where it is not in a repository.

    `-dirty` where files are not as committed, results apart: this command writes one of them.
    """
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    try:
        said = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["describe", "--always"], changes)
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0].strip() + ("-dirty" if said[1].strip() else "")


def describe(row: Row) -> str:
    """A measurement in one line."""
    shares = f"success {console.percent(row.success, row.n)}"
    shares += f", violation {console.percent(row.violation, row.n)}"
    return (
        f"{row.task}, {row.method} {row.seed}, {row.scene}, {row.phase}: {shares}, "
        f"return {row.return_:.2f}, cost {row.cost:.2f}, n = {row.n}"
    )
