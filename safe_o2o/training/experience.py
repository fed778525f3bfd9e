"""What the learner of a run learns from: its episodes, or what a world model makes of them."""

from __future__ import annotations

from pathlib import Path

from safe_o2o.algorithms.latents import Tracker
from safe_o2o.data.dataset import Dataset
from safe_o2o.training.latents import ENCODER, LatentDataset, encode

DATASET, ONLINE = "dataset", "online"
LATENTS, ONLINE_LATENTS = "latents", "online_latents"


class Experience:
    """Offline and online episodes of a run.

    A policy on latents has its offline ones in `latents`; online ones are encoded as they come, by
    the same world model, which stays what it was.

    Args:
        run_dir: the run, with `dataset` in it, and `latents` where the policy reads those.

    Raises:
        DataError: there is no offline dataset.
        CheckpointError: the encoder of the latents is missing or damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.recorded = Dataset(run_dir / DATASET)
        """What was observed offline."""
        self.latents: LatentDataset | None = None
        self.encoder: Tracker | None = None
        if (run_dir / LATENTS).exists():
            self.latents = LatentDataset(run_dir / LATENTS)
            self.encoder = self.latents.tracker()

    @property
    def offline(self) -> Dataset:
        """What the learner reads of it."""
        return self.recorded if self.latents is None else self.latents

    def online(self) -> Dataset:
        """What the learner reads of the online episodes so far.

        Raises:
            SpecMismatchError: they are of another spec than the offline ones.
        """
        seen = Dataset(self.run_dir / ONLINE)
        mine, theirs = str(self.recorded.directory), str(seen.directory)
        self.recorded.spec.require_same(seen.spec, mine=mine, theirs=theirs)
        if self.latents is None:
            return seen
        encoder = self.latents.directory / ENCODER
        return encode(seen, encoder, self.run_dir / ONLINE_LATENTS)
