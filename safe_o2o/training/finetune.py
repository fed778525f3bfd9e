"""Fine-tuning between rounds of episodes: committed episodes in, promoted bundle out.

Everything a round needs is on disk: the offline checkpoint and dataset, the committed online
episodes, the learner's own checkpoint, and `bundles/current.json`, which the actor reads. A learner
that is killed starts the round in progress again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safe_o2o import bundle, catalog
from safe_o2o import config as settings
from safe_o2o.algorithms.reachability import Reachability
from safe_o2o.data.batch import Batch
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode
from safe_o2o.data.mixture import Mixture
from safe_o2o.data.replay import Replay
from safe_o2o.errors import BundleError, CheckpointError, ConfigError, SafeO2OError
from safe_o2o.export.algorithm import deployed, export_algorithm
from safe_o2o.export.graph import Graphs
from safe_o2o.export.onnx import exported
from safe_o2o.files import write_atomic
from safe_o2o.safety.gate_file import gate_of, write_gate
from safe_o2o.training import checkpoint, offline
from safe_o2o.training.experience import Experience
from safe_o2o.training.logger import MetricLog
from safe_o2o.training.memory import keep_freed_memory
from safe_o2o.training.promotion import PromotionConfig, promote
from safe_o2o.training.recalibration import recalibrate
from safe_o2o.training.restore import load_heads
from safe_o2o.training.seed import seed_everything

Progress = Callable[[int, int], None]
DIRECTORY, GATE, CALIBRATION = "finetune", "gate", "calibration"
HELD_OUT_ONLINE = 5
"""One online episode in so many is kept for the promotion check and never trained on."""


@dataclass(frozen=True)
class FineTunerConfig:
    """How rounds of fine-tuning are driven."""

    updates_per_round: int = 80
    online_fraction: float = 0.5
    """share of every batch that comes from online episodes"""
    threads: int = 0
    """threads of PyTorch; 0 leaves its default"""
    always: bool = False
    """train after rounds whose episodes all succeeded without a violation, too"""
    promotion: PromotionConfig = field(default_factory=PromotionConfig)

    def __post_init__(self) -> None:
        if self.updates_per_round < 1:
            raise ConfigError("must be at least 1", where="updates_per_round")
        if not 0.0 < self.online_fraction < 1.0:
            raise ConfigError("must be in (0, 1)", where="online_fraction")


@dataclass(frozen=True)
class RoundReport:
    """What one round came to.

    Attributes:
        bundle: name of the bundle that was made.
        promoted: True when it may go live.
        checks: the promotion checks, JSON-ready.
        refusal: why it was refused, `""` when it was promoted.
        updates: gradient steps online in all.
        metrics: means over the round's updates.
    """

    bundle: str
    promoted: bool
    checks: list[Mapping[str, Any]]
    refusal: str
    updates: int
    metrics: Mapping[str, float]


class FineTuner:
    """Owns the learner of one run.

    Args:
        run_dir: the run, with `dataset`, `checkpoints`, `online` and `bundles` in it; where the
            policy reads latents, those of `dataset` in `latents`; where the live bundle has a
            reachability gate, also its heads in `gate` and the episodes of its calibration in
            `calibration`.
        config: settings, or a mapping of them as a settings file holds it; None for the defaults.

    Raises:
        CheckpointError: there is no offline checkpoint, or no heads for the live bundle's gate.
        DataError: there is no offline dataset, or no episodes of the calibration.
        BundleError: the live bundle's gate was never calibrated.
    """

    def __init__(
        self, run_dir: str | Path, config: FineTunerConfig | Mapping[str, Any] | None = None
    ) -> None:
        self.run_dir = Path(run_dir)
        if config is None or isinstance(config, Mapping):
            config = settings.from_json(FineTunerConfig, config or {}, where="fine-tuner")
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.experience = Experience(self.run_dir)
        self.folder = self.run_dir / DIRECTORY
        self._graphs = Graphs()
        self._load()
        self._load_gate()
        self._prepare()

    def _load(self) -> None:
        """The learner's own checkpoint, else the offline one turned online."""
        start = checkpoint.latest(self.run_dir / "checkpoints")
        if start is None:
            raise CheckpointError(
                "no offline checkpoint to start from",
                where=self.run_dir / "checkpoints",
                todo="train first: safe-o2o train fosp",
            )
        newest = checkpoint.latest(self.folder)
        header = checkpoint.read_header(newest or start)
        self.meta = header.meta
        name = header.meta.algorithm
        kind = catalog.load("algorithm", name)
        if not hasattr(kind, "start_online"):
            raise CheckpointError(f"{name} cannot be fine-tuned", where=newest or start)
        algo_config = settings.from_json(kind.Config, header.meta.config, where=newest or start)
        seed_everything(algo_config.seed)
        self.algorithm = offline.build(name, algo_config, self.experience.offline)
        self.rounds = 0
        if newest is None:
            self.algorithm.load_state_dict(checkpoint.load(start)["algorithm"])
            self.algorithm.start_online()
            self._state: Mapping[str, Any] | None = None
        else:
            state = checkpoint.load(newest)
            self.algorithm.load_state_dict(state["algorithm"])
            self.rounds, self._state = int(state["rounds"]), state["mixture"]

    def _load_gate(self) -> None:
        """The heads and the calibration of the gate that acts now, where one does."""
        self.gate: Reachability | None = None
        live = bundle.current(self.run_dir / "bundles")
        if live is None or gate_of(live.directory) is None:
            return
        newest = checkpoint.latest(self.run_dir / GATE)
        if newest is None:
            raise CheckpointError(
                "no heads for the gate of the live bundle",
                where=self.run_dir / GATE,
                todo="keep the checkpoints of `safe-o2o train reachability` there",
            )
        self.gate = load_heads(newest)
        self.calibration = Dataset(self.run_dir / CALIBRATION)

    def _prepare(self) -> None:
        """Trace the graph while the first episodes are under way: each round only fills it."""
        policy = deployed(self.algorithm, self.experience.encoder, self.gate)
        self._graphs.trace(exported(policy), self.run_dir / "bundles")

    def _mixture(self) -> Mixture:
        known, _ = offline.split(self.experience.offline, offline.HELD_OUT)
        fresh, _ = offline.split(self.experience.online(), HELD_OUT_ONLINE)
        seed = self.algorithm.config.seed
        replays: dict[str, Replay] = {
            "offline": offline.make_replay(self.algorithm, known, seed),
            "online": offline.make_replay(self.algorithm, fresh, seed + 1),
        }
        share = self.config.online_fraction
        mixture = Mixture(
            replays, {"offline": 1.0 - share, "online": share}, self.algorithm.config.batch_size
        )
        if self._state is not None:
            mixture.load_state_dict(self._state)
        mixture.refresh()
        return mixture

    def round(self, index: int, progress: Progress | None = None) -> Path | str:
        """Train on what is committed, export, check, promote.

        A round whose episodes all succeeded without a violation leaves the policy as it is: what
        imitates them can only become more like itself, give or take noise.

        Args:
            index: number of the round; one that was finished before is not run again.
            progress: called with (updates done, updates of this round).

        Returns:
            The promoted bundle, or a line that says why there is none.
        """
        done = self._report_path(index)
        if index < self.rounds and done.exists():
            report = RoundReport(**json.loads(done.read_bytes()))
        elif not self.config.always and (nothing := self._nothing_to_learn(index)):
            step = self.algorithm.online_step
            report = self._close(index, RoundReport("", False, [], nothing, step, {}))
        else:
            report = self._train_round(index, progress)
        bundles = self.run_dir / "bundles"
        return bundles / report.bundle if report.promoted else report.refusal

    def _nothing_to_learn(self, index: int) -> str:
        """Why a round needs no training, `""` where it does."""
        mine = [
            episode
            for episode in Dataset(self.run_dir / "online")
            if episode.meta.provenance.get("round", index) == index
        ]
        taught = [e for e in mine if not e.success or e.violation]
        if not mine or taught:
            return ""
        return f"all {len(mine)} episodes succeeded without a violation: nothing to learn from them"

    def _report_path(self, index: int) -> Path:
        return self.folder / f"round_{index:03d}.json"

    def _train_round(self, index: int, progress: Progress | None) -> RoundReport:
        algorithm, total = self.algorithm, self.config.updates_per_round
        mixture = self._mixture()
        lessons = Lessons.of(mixture.replays["online"])
        warmup = max(0, algorithm.config.finetune.warmup - algorithm.online_step)
        rows: list[dict[str, float]] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        with MetricLog(self.folder / "metrics.jsonl", resume_at=algorithm.online_step) as log:
            for update in range(warmup + total):
                batch = mixture.sample()
                if algorithm.wants == "sequences":
                    batch = lessons.mark(batch)
                rows.append(algorithm.update(batch))
                log.append(algorithm.online_step, rows[-1])
                if progress is not None:
                    progress(update + 1, warmup + total)
        self._state = mixture.state_dict()
        metrics = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        return self._close(index, self._hand_over(index, metrics))

    def _close(self, index: int, report: RoundReport) -> RoundReport:
        """Note a round as done."""
        self.rounds = index + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._report_path(index), json.dumps(asdict(report), indent=1).encode())
        state = {
            "algorithm": self.algorithm.state_dict(),
            "mixture": self._state,
            "rounds": self.rounds,
        }
        # The checkpoint comes last: a round counts as done only when its bundle is decided.
        step = self.algorithm.online_step
        checkpoint.save(self.folder, state, self.meta, step=step, keep=2)
        return report

    def _held_out(self) -> list[Episode]:
        """Episodes that no update has seen: of the new scene, and of the one it must not forget."""
        _, old = offline.split(self.experience.recorded, offline.HELD_OUT)
        _, new = offline.split(Dataset(self.run_dir / "online"), HELD_OUT_ONLINE)
        half = max(1, self.config.promotion.episodes // 2)
        return [*list(old)[-half:], *list(new)[-half:]]

    def _hand_over(self, index: int, metrics: Mapping[str, float]) -> RoundReport:
        """Export, check against the live bundle on held-out episodes, promote."""
        bundles, algorithm = self.run_dir / "bundles", self.algorithm
        facts = {"round": index, "online_updates": algorithm.online_step}
        name = self.meta.algorithm
        try:
            candidate = export_algorithm(
                *(algorithm, name, bundles, self.experience.recorded, facts, self._graphs),
                encoder=self.experience.encoder,
                gate=self.gate,
            ).directory
        except BundleError as error:  # the actor goes on with the last good one, and so do we
            return RoundReport("", False, [], str(error), algorithm.online_step, metrics)
        live = bundle.current(bundles)
        result = promote(
            candidate,
            None if live is None else live.directory,
            self._held_out(),
            self.config.promotion,
        )
        refusal = "" if result.passed else result.reason
        if result.passed and self.gate is not None and live is not None:
            refusal = self._calibrate(candidate, live.directory)
        if not refusal:
            bundle.set_current(bundles, candidate.name)
        return RoundReport(
            bundle=candidate.name,
            promoted=not refusal,
            checks=[asdict(check) for check in result.checks],
            refusal=refusal,
            updates=algorithm.online_step,
            metrics=metrics,
        )

    def _calibrate(self, candidate: Path, live: Path) -> str:
        """Give a new bundle's gate thresholds of its own; why it cannot have any, `""` if it can.

        Old ones are void: the graph has changed, and the loader would refuse them.
        """
        try:
            previous = gate_of(live)
            assert previous is not None
            episodes = [*self.calibration, *Dataset(self.run_dir / "online")]
            made = recalibrate(candidate, previous, episodes)
            write_gate(candidate, bundle.read_manifest(candidate), made)
        except SafeO2OError as error:
            return f"gate: {error}"
        return ""


def reward_follows(replay: Replay) -> torch.Tensor:
    """For every record of a replay: does reward still follow in its episode? `[R]` bool."""
    rows = replay.episode_arrays("reward")
    return _records(np.flip(np.cumsum(np.flip(reward))) - reward > 0 for reward in rows)


def went_wrong(replay: Replay) -> torch.Tensor:
    """For every record of a replay: is there a violation in its episode? `[R]` bool."""
    rows = replay.episode_arrays("cost")
    return _records(np.full(len(cost), (cost > 0).any()) for cost in rows)


def _records(parts: Iterable[np.ndarray]) -> torch.Tensor:
    found = list(parts)
    return torch.from_numpy(np.concatenate(found)) if found else torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True)
class Lessons:
    """What online records teach whom; offline ones teach everybody everything.

    The actor imitates them where reward still follows. Reachability learns from episodes with a
    violation: what the threshold of the policy's rule knows is how risky a state was in the offline
    mixture, and each safe episode of a careful policy says that it was less so, until the rule
    stops nothing.

    Attributes:
        follows: `reward_follows` of the online replay `[R]`.
        wrong: `went_wrong` of it `[R]`.
    """

    follows: torch.Tensor
    wrong: torch.Tensor

    @classmethod
    def of(cls, online: Replay) -> Lessons:
        """Those of a replay's episodes."""
        return cls(reward_follows(online), went_wrong(online))

    def mark(self, batch: Batch) -> Batch:
        """A batch of a mixture of (offline, online), with masks for actor and reachability."""
        assert batch.index is not None
        if not len(self.follows):
            return replace(batch, actor_mask=batch.action_mask, reach_mask=batch.mask)
        online = (batch.index.origin > 0).unsqueeze(1)
        record = torch.where(online, batch.index.record, torch.zeros_like(batch.index.record))
        return replace(
            batch,
            actor_mask=batch.action_mask & (~online | self.follows[record]),
            reach_mask=batch.mask & (~online | self.wrong[record]),
        )
