"""`safe-o2o demo`: the whole circle on the twin, from collecting data to one page of results.

Each stage is the verb of the same name on the same files; what is done already is not done again,
so that an interrupted demo goes on where it was.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from safe_o2o import bundle
from safe_o2o.cli import collect, console, deploy, evaluate, finetune, train
from safe_o2o.cli.actors import MIXTURE, resolve
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError
from safe_o2o.files import write_atomic
from safe_o2o.training.finetune import FineTunerConfig
from safe_o2o.training.offline import OfflineConfig, train_offline

SEEN = "standard"
OFFLINE = "v000001"
"""The first version of a run's bundles."""


@dataclass(frozen=True)
class Budget:
    """How much of everything.

    Attributes:
        episodes: offline episodes.
        updates: gradient steps offline.
        evaluation: episodes for each actor.
        deployed: episodes over ROS in real time, for the latency table.
        rounds: rounds online.
        per_round: episodes of a round.
        online_updates: gradient steps after each round.
        preset: settings of the algorithm.
    """

    episodes: int
    updates: int
    evaluation: int
    deployed: int
    rounds: int
    per_round: int
    online_updates: int
    preset: str = "small"


BUDGETS = {
    "quick": Budget(
        episodes=90,
        updates=80,
        evaluation=12,
        deployed=1,
        rounds=2,
        per_round=3,
        online_updates=10,
    ),
    "default": Budget(
        episodes=360,
        updates=1100,
        evaluation=100,
        deployed=3,
        rounds=4,
        per_round=10,
        online_updates=80,
    ),
    "full": Budget(
        episodes=960,
        updates=4000,
        evaluation=200,
        deployed=10,
        rounds=4,
        per_round=10,
        online_updates=100,
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Collect, train, evaluate, export, deploy, fine-tune, report; repeated, it goes on.

    Attributes:
        out: the run's folder.
        quick: a walk through every stage in three minutes; too short to learn the task.
        full: as long as the method needs on two cores, about half an hour.
        variant: the unseen scene to fine-tune in.
        seed: seed of layouts, networks and draws.
        workers: processes for episodes.
        threads: threads of PyTorch.
        speed: twin time per wall time while fine-tuning.
        ros: `yes` insists on the ROS graph, `no` on one process, `auto` takes what is there.
    """

    out: Path = Path("runs/demo")
    quick: bool = False
    full: bool = False
    variant: str = "colour"
    seed: int = 0
    workers: int = 2
    threads: int = 2
    speed: float = 8.0
    ros: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ConfigError("--quick and --full exclude each other", where="demo")

    @property
    def length(self) -> str:
        """Which budget."""
        return "quick" if self.quick else "full" if self.full else "default"


def main(argv: Sequence[str]) -> None:
    """Run all stages, one line each."""
    arguments = parse(Arguments, argv, verb="demo")
    demo = Demo(arguments)
    began = time.perf_counter()
    for number, (name, stage) in enumerate(demo.stages, start=1):
        with demo.record.timed(name), console.progress(name) as progress:
            line = stage(progress)
        print(f"[{number}/{len(demo.stages)}] {name}: {line}", flush=True)
    print(f"done in {time.perf_counter() - began:.0f} s; open {arguments.out / 'report.html'}")


class RunRecord:
    """`<run>/run.json`: settings, versions, machine and seconds of each stage.

    Args:
        arguments: settings of the run; a run made with other ones is refused.
        budget: how much of everything.
    """

    def __init__(self, arguments: Arguments, budget: Budget) -> None:
        self.path = arguments.out / "run.json"
        settings = {"length": arguments.length, "budget": asdict(budget)}
        settings |= {key: getattr(arguments, key) for key in ("variant", "seed", "threads")}
        self.content: dict[str, Any] = {
            "command": " ".join(
                ["safe-o2o demo", f"--out {arguments.out}", f"--seed {arguments.seed}"]
                + ([f"--{arguments.length}"] if arguments.length != "default" else [])
            ),
            "settings": settings,
            "seconds": {},
            "versions": versions(),
            "machine": machine(),
        }
        if self.path.exists():
            before = json.loads(self.path.read_bytes())
            if before.get("settings") != settings:
                raise ConfigError(
                    "holds a run of other settings",
                    where=arguments.out,
                    todo="choose another --out or remove it",
                )
            self.content["seconds"] = before.get("seconds", {})
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """To disk, atomically."""
        write_atomic(self.path, (json.dumps(self.content, indent=1) + "\n").encode())

    def timed(self, name: str) -> _Timer:
        """Add the seconds of a `with` block to a stage; interruptions add up."""
        return _Timer(self, name)


class _Timer:
    def __init__(self, record: RunRecord, name: str) -> None:
        self.record, self.name = record, name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = self.record.content["seconds"]
        seconds[self.name] = seconds.get(self.name, 0.0) + time.perf_counter() - self.began
        self.record.write()


class Demo:
    """The stages of one run.

    Args:
        arguments: see `Arguments`.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.budget = BUDGETS[arguments.length]
        self.record = RunRecord(arguments, self.budget)
        self.stages: list[tuple[str, Callable[[console.Progress], str]]] = [
            ("collect", self.collect),
            ("pretrain", self.pretrain),
            ("evaluate", self.evaluate),
            ("export", self.export),
            ("deploy", self.deploy),
            ("fine-tune", self.finetune),
            ("report", self.report),
        ]

    def collect(self, progress: console.Progress) -> str:
        """Offline episodes of three scripted behaviours, 1:1:1."""
        wanted = collect.Arguments(
            out=self.out / "dataset",
            episodes=self.budget.episodes,
            variant=SEEN,
            behaviors=",".join(MIXTURE),
            seed=self.arguments.seed,
            workers=self.arguments.workers,
        )
        return collect.describe(wanted.out, collect.collect(wanted, progress))

    def pretrain(self, progress: console.Progress) -> str:
        """FOSP offline."""
        from safe_o2o.algorithms.fosp_presets import preset

        config = replace(
            preset(self.budget.preset),
            total_updates=self.budget.updates,
            seed=self.arguments.seed,
        )
        report = train_offline(
            "fosp",
            config,
            self.out / "dataset",
            self.out / "checkpoints",
            OfflineConfig(threads=self.arguments.threads, checkpoint_every=200),
            lambda step, total, _: progress(step, total),
        )
        return train.describe(report)

    def _evaluate(
        self,
        who: str,
        name: str,
        variant: str,
        progress: console.Progress,
        known: Sequence[EpisodeSummary] = (),
    ) -> Mapping[str, Any]:
        """One result of `<run>/eval`, computed unless it is there for the same command."""
        wanted = evaluate.Arguments(
            who=(who,),
            out=self.out,
            name=name,
            episodes=self.budget.evaluation,
            variant=variant,
            seed=self.arguments.seed,
            workers=self.arguments.workers,
        )
        path = evaluate.result_path(wanted, name)
        if path.exists():
            found: Mapping[str, Any] = json.loads(path.read_bytes())
            if found["n"] == wanted.episodes:
                return found
        _, make_actor = resolve(who, name)
        result = evaluate.evaluate(wanted, who, name, make_actor, progress, known)
        evaluate.write(wanted, result)
        return result

    def evaluate(self, progress: console.Progress) -> str:
        """Offline policy, behaviour mixture and random policy on the same fresh layouts.

        The policy is judged as the graph that is deployed, not as the network it was exported from.
        """
        offline = str(self.offline_bundle())
        policy = self._evaluate(offline, "policy", SEEN, progress)
        mixture = self._evaluate("mixture", "mixture", SEEN, progress)
        mixed = map(EpisodeSummary.from_json, mixture["episodes"])
        known = [episode for episode in mixed if episode.behavior == "random"]
        random = self._evaluate("random", "random", SEEN, progress, known)
        return "; ".join(evaluate.describe(result) for result in (policy, mixture, random))

    def offline_bundle(self) -> Path:
        """The offline policy as an ONNX bundle, made from the checkpoint unless it is there."""
        bundles = self.out / "bundles"
        if bundle.current(bundles) is None:
            from safe_o2o.export.algorithm import export_algorithm
            from safe_o2o.training.restore import load_algorithm

            report = export_algorithm(
                load_algorithm(self.out / "checkpoints"),
                "fosp",
                bundles,
                Dataset(self.out / "dataset"),
            )
            bundle.set_current(bundles, report.directory.name)
        return bundles / OFFLINE

    def export(self, progress: console.Progress) -> str:
        """How well the ONNX bundle agrees with the network it was made from."""
        directory = self.offline_bundle()
        parity = bundle.read_manifest(directory).parity
        difference = parity["max_abs_action_difference"]
        return (
            f"{directory}: largest action difference to torch {difference:.1e} over "
            f"{parity['steps']} recorded steps with carried state"
        )

    def deploy(self, progress: console.Progress) -> str:
        """The graph in real time: what the latency table is measured on."""
        report = deploy.deploy(
            self.out / "realtime",
            bundles=self.offline_bundle(),
            episodes=self.budget.deployed,
            variant=SEEN,
            speed=1.0,
            seed=episode_seeds("online", self.arguments.seed + 1, 1)[0],
            ros=deploy.ros_choice(self.arguments.ros),
            progress=progress,
        )
        return deploy.describe(report)

    def finetune(self, progress: console.Progress) -> str:
        """Rounds of episodes and training in the unseen scene, judged before and after."""
        variant, bundles = self.arguments.variant, self.out / "bundles"
        before = self._evaluate(str(self.offline_bundle()), "before", variant, progress)
        report = finetune.finetune(
            finetune.Arguments(
                run=self.out,
                rounds=self.budget.rounds,
                episodes_per_round=self.budget.per_round,
                variant=variant,
                speed=self.arguments.speed,
                seed=self.arguments.seed,
                ros=self.arguments.ros,
                learner=FineTunerConfig(
                    updates_per_round=self.budget.online_updates, threads=self.arguments.threads
                ),
            ),
            progress,
        )
        after = self._evaluate(str(bundles), "after", variant, progress)
        rounds = finetune.describe(report, self.budget.per_round)
        judged = [evaluate.describe(before), evaluate.describe(after)]
        return "\n      ".join(["", *rounds, *judged])

    def report(self, progress: console.Progress) -> str:
        """One self-contained page."""
        from safe_o2o.report.page import build_report

        page = build_report(self.out, workers=self.arguments.workers)
        return f"{page} ({console.megabytes(page.stat().st_size)})"


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("safe_o2o", "torch", "numpy", "onnxruntime", "pybullet", "pin")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def machine() -> dict[str, Any]:
    """Processor and cores."""
    import os

    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {"processor": model or platform.processor(), "cores": os.cpu_count()}
