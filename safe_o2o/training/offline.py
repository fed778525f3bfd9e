"""Offline training: dataset in, checkpoints and metrics out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safe_o2o import catalog
from safe_o2o import config as settings
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.replay import SequenceReplay, TransitionReplay
from safe_o2o.data.statistics import Statistics
from safe_o2o.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from safe_o2o.nets import parallel
from safe_o2o.training import checkpoint, latents, pretrained
from safe_o2o.training.group import is_first, process_group, rows_of
from safe_o2o.training.logger import MetricLog
from safe_o2o.training.memory import keep_freed_memory
from safe_o2o.training.seed import seed_everything

HELD_OUT = 20
"""One offline episode in so many is kept for checks and never trained on."""
Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class OfflineConfig:
    """How a run is driven; what it computes is the algorithm's own config."""

    checkpoint_every: int = 250
    """updates between checkpoints: what a kill can cost"""
    keep: int = 2
    """checkpoints kept"""
    log_every: int = 10
    """updates averaged into one line of metrics"""
    cost_fraction: float = 0.0
    """share of windows drawn from those with a cost"""
    threads: int = 0
    """threads of PyTorch; 0 leaves its default. The same number gives the same metrics."""
    device: str = "cpu"
    until: int = 0
    """update that this call stops after, to be gone on with later; 0 trains to the end"""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1 or self.log_every < 1 or self.keep < 1:
            raise ConfigError("checkpoint_every, log_every and keep must be at least 1")
        if self.until < 0:
            raise ConfigError(f"until must be an update or 0, got {self.until}")


@dataclass(frozen=True)
class OfflineReport:
    """What a call of `train_offline` did.

    Attributes:
        checkpoint: the last checkpoint.
        step: updates in all.
        resumed_at: update that this call started from.
        seconds: wall time of this call's updates.
        metrics: the last line of metrics.
    """

    checkpoint: Path
    step: int
    resumed_at: int
    seconds: float
    metrics: Mapping[str, float]


def build(name: str, config: Any, dataset: Dataset, device: str = "cpu") -> Any:
    """Make an algorithm of the catalogue for a dataset."""
    statistics = Statistics.compute(dataset).to_json()
    return catalog.load("algorithm", name)(config, dataset.spec, statistics, device)


def split(dataset: Dataset, every: int) -> tuple[Dataset, Dataset]:
    """Training and held-out part: every `every`-th episode, by number, is never trained on."""
    return (
        dataset.part(lambda index: index % every != every - 1),
        dataset.part(lambda index: index % every == every - 1),
    )


def make_replay(
    algorithm: Any, datasets: Dataset | list[Dataset], seed: int, cost_fraction: float = 0.0
) -> SequenceReplay | TransitionReplay:
    """The replay that an algorithm wants.

    Raises:
        DataError: contact force has a budget, and an episode does not say it.
    """
    config = algorithm.config
    size = config.batch_size
    replay: SequenceReplay | TransitionReplay
    if algorithm.wants == "transitions":
        replay = TransitionReplay(datasets, batch_size=size, seed=seed, cost_fraction=cost_fraction)
    else:
        replay = SequenceReplay(
            datasets,
            length=config.sequence_length,
            batch_size=size,
            seed=seed,
            cost_fraction=cost_fraction,
        )
    limits = config.budget.limits if hasattr(config, "budget") else {}
    if "force" in limits and any(np.isnan(part).any() for part in replay.episode_arrays("force")):
        raise DataError(
            "contact force has a budget, but nobody measured it",
            where=(datasets if isinstance(datasets, Dataset) else datasets[0]).directory,
            todo="leave budget.force out, or record with a robot that measures it",
        )
    return replay


def train_offline(
    name: str,
    config: Any,
    data: Path,
    out: Path,
    run: OfflineConfig = OfflineConfig(),
    progress: Progress | None = None,
) -> OfflineReport:
    """Train until `config.total_updates`, from the newest checkpoint in `out` if there is one.

    With `run.until` only so far; what a later call goes on with is the same to the bit.

    Under `torchrun` each process takes its share of every batch, and the first one writes: the same
    as one process with the whole batch would do, up to the order of sums.

    Args:
        name: algorithm of the catalogue.
        config: its config; `seed` seeds networks, draws and noise.
        data: dataset directory.
        out: checkpoint directory; metrics go to `metrics.jsonl` in it.
        run: intervals, threads, device.
        progress: called with (step, total, latest metrics).

    Raises:
        DataError: no dataset, or an empty one.
        MissingDependencyError: a GPU is asked for, and there is none.
        CheckpointError: `out` holds checkpoints of another algorithm, config or spec, or a weights
            file to start from cannot be read or is none of the model.
        ConfigError: the batch cannot be shared out evenly among the processes.
    """
    if run.device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingDependencyError("PyTorch sees no GPU", where="device", todo="use device cpu")
    with process_group(run.device) as device:
        return _train(name, config, data, out, replace(run, device=device), progress)


def _train(
    name: str,
    config: Any,
    data: Path,
    out: Path,
    run: OfflineConfig,
    progress: Progress | None,
) -> OfflineReport:
    if run.threads:
        torch.set_num_threads(run.threads)
    keep_freed_memory()
    seed_everything(config.seed)
    rows, writes = rows_of(config.batch_size), is_first()
    dataset = Dataset(data)
    algorithm = build(name, config, dataset, run.device)
    if hasattr(algorithm, "use_model"):  # it learns from states, and from the model they are of
        algorithm.use_model(latents.LatentDataset(data).tracker())
    train, _ = split(dataset, HELD_OUT)
    replay = make_replay(algorithm, train, config.seed, run.cost_fraction)
    meta = checkpoint.Meta(
        algorithm=name, config=settings.to_json(config), spec=dataset.spec.to_json()
    )
    recent: list[dict[str, float]] = []  # metrics since the last line of the log
    newest = checkpoint.latest(out)
    if newest is not None:
        defaults = settings.to_json(type(config)())
        state = checkpoint.load(newest, expect=meta, defaults=defaults)
        algorithm.load_state_dict(state["algorithm"])
        replay.load_state_dict(state["replay"])
        recent = state["rows"]
    else:
        pretrained.start(algorithm)
    start = algorithm.step
    log = MetricLog(out / "metrics.jsonl", resume_at=start) if writes else None
    line: dict[str, float] = {}
    began = time.perf_counter()
    last = min(run.until or config.total_updates, config.total_updates)
    while algorithm.step < last:
        batch = replay.sample(rows=rows).to(run.device, non_blocking=True)
        recent.append(algorithm.update(batch))
        step = algorithm.step
        if step % run.log_every == 0 or step == config.total_updates:
            line = {key: float(np.mean([row[key] for row in recent])) for key in recent[0]}
            recent = []
            bad = [key for key, value in line.items() if not np.isfinite(value)]
            if bad:
                raise CheckpointError(
                    f"training diverged at update {step}: {', '.join(bad)} not finite",
                    where=out,
                    todo="the last checkpoint is still good; lower the learning rate",
                )
            if log is not None:
                log.append(step, line)
        if progress is not None:
            progress(step, config.total_updates, line)
        if writes and (step % run.checkpoint_every == 0 or step == last):
            state = {
                "algorithm": algorithm.state_dict(),
                "replay": replay.state_dict(),
                "rows": recent,
            }
            checkpoint.save(out, state, meta, step=step, keep=run.keep)
    if log is not None:
        log.close()
    parallel.barrier()  # what the first process has written last is there for all of them
    newest = checkpoint.latest(out)
    assert newest is not None
    return OfflineReport(newest, algorithm.step, start, time.perf_counter() - began, line)
