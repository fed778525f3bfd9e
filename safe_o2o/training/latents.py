"""`LatentDataset`: any dataset, encoded once with a trained world model.

An ordinary dataset whose only observation is the latent, so that every algorithm of the catalogue
trains on what a camera saw. The encoder's checkpoint lies beside the episodes, in `encoder`: what
was trained on them is exported from this folder and the observations that it was made from.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_o2o.algorithms.latents import STATE, Tracker, What
from safe_o2o.data.dataset import Dataset, episode_index
from safe_o2o.data.episode import Episode
from safe_o2o.errors import CheckpointError, DataError
from safe_o2o.files import atomic_directory
from safe_o2o.spaces import Spec
from safe_o2o.training import checkpoint
from safe_o2o.training.restore import load_algorithm
from safe_o2o.types import Array, Transition

ENCODER = "encoder"
TOGETHER = 32
"""Episodes that are filtered side by side."""
Progress = Callable[[int, int], None]


def tracker(path: Path, what: What = "features") -> Tracker:
    """The world model of a checkpoint, as its policy would be deployed.

    Args:
        path: a checkpoint, or a folder for its newest one.
        what: see `Tracker`.

    Raises:
        CheckpointError: missing, damaged, or of an algorithm without a world model.
    """
    make = getattr(load_algorithm(path), "tracker", None)
    made = make(what) if make is not None else None
    if made is None:
        raise CheckpointError(
            f"{checkpoint.read_header(path).meta.algorithm} has no world model to encode with",
            where=path,
            todo="train one that has: safe-o2o train fosp",
        )
    encoder: Tracker = made.eval().requires_grad_(False)
    return encoder


class LatentDataset(Dataset):
    """A dataset of latents, and the encoder that made them.

    Args:
        directory: what `create` or `encode` made.

    Raises:
        DataError: there is no dataset, or it holds no latents.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        if not holds_latents(self):
            raise DataError(
                "holds no latents", where=self.directory, todo="make some: safe-o2o encode"
            )

    def tracker(self) -> Tracker:
        """The encoder."""
        what: What = "state" if set(STATE) == self.spec.observation.arrays.keys() else "features"
        return tracker(self.directory / ENCODER, what)


def holds_latents(dataset: Dataset) -> bool:
    """Whether a dataset was made by `encode`."""
    return ENCODER in dataset.header.get("provenance", {})


def encode(
    source: Dataset,
    encoder: Path,
    directory: str | Path,
    progress: Progress | None = None,
    what: What = "features",
) -> LatentDataset:
    """Encode a dataset; a call that was interrupted, or a source that has grown, is gone on with.

    Args:
        source: episodes of observations.
        encoder: a checkpoint with a world model, or a folder for its newest one.
        directory: the dataset of latents; made when missing.
        progress: called with (episodes done, in all).
        what: see `Tracker`.

    Raises:
        CheckpointError: see `tracker`.
        SpecMismatchError: the encoder was trained on other observations.
        DataError: the folder holds latents of another encoder.
    """
    directory = Path(directory)
    made = tracker(encoder, what)
    made.spec.require_same(source.spec, mine=f"encoder {encoder}", theirs=str(source.directory))
    path = _newest(encoder)
    dataset = Dataset.create(
        directory,
        made.latent_spec,
        task=source.task,
        provenance={ENCODER: _digest(path)},
        exist_ok=True,
    )
    if dataset.header["provenance"].get(ENCODER) != _digest(path):
        raise DataError(
            "holds latents of another encoder", where=directory, todo="choose another folder"
        )
    if not (directory / ENCODER).exists():
        with atomic_directory(directory / ENCODER) as folder:
            shutil.copyfile(path, folder / path.name)
    known = dataset.indices()
    todo = [episode for episode in source if episode_index(episode.path.name) not in known]
    done = len(source) - len(todo)
    for start in range(0, len(todo), TOGETHER):
        part = todo[start : start + TOGETHER]
        for episode, latents in zip(part, encoded(made, part), strict=True):
            steps = [
                replace(transition, obs={name: rows[t] for name, rows in latents.items()})
                for t, transition in enumerate(_without_pictures(episode))
            ]
            dataset.append(
                steps,
                {name: rows[-1] for name, rows in latents.items()},
                float(episode.array("stamp")[-1]),
                replace(episode.meta, provenance=_provenance(episode)),
                index=episode_index(episode.path.name),
                success=episode.success,
                gaps=episode.metadata["gaps"],
            )
            done += 1
            if progress is not None:
                progress(done, len(source))
    return LatentDataset(directory)


@torch.no_grad()
def encoded(made: Tracker, episodes: list[Episode]) -> list[dict[str, Array]]:
    """The latents of episodes by name, `[T + 1, F]` float32; after a gap the model starts anew."""
    stretches = [(e, start, stop) for e in episodes for start, stop in _stretches(e)]
    sizes = {name: array.shape for name, array in made.latent_spec.observation.arrays.items()}
    found = {
        id(e): {name: np.zeros((len(e) + 1, *size), np.float32) for name, size in sizes.items()}
        for e in episodes
    }
    stretches.sort(key=lambda entry: entry[1] - entry[2])  # longest first: the rest ends earlier
    carry = made.initial_carry(len(stretches))
    for t in range(max(stop - start for _, start, stop in stretches) + 1):
        alive = [entry for entry in stretches if t <= entry[2] - entry[1]]
        carry = {name: tensor[: len(alive)] for name, tensor in carry.items()}
        moment = made(_at(made.spec, alive, t), carry)
        for name, rows in made.says(moment).items():
            for (episode, start, _), row in zip(alive, rows.numpy(), strict=True):
                found[id(episode)][name][start + t] = row
        action = torch.zeros_like(carry["previous_action"])
        for i, (episode, start, stop) in enumerate(alive):
            if start + t < stop:
                action[i] = torch.from_numpy(np.array(episode.array("action")[start + t]))
        state = {"deter": moment.latent.deter, "stoch": moment.latent.stoch}
        carry = state | {"started": torch.ones_like(carry["started"]), "previous_action": action}
    return [found[id(episode)] for episode in episodes]


def _stretches(episode: Episode) -> Iterator[tuple[int, int]]:
    """What is filtered in one go: all observations, cut where transitions were lost."""
    starts = [0, *(int(t) for t, _ in episode.metadata["gaps"])]
    stops = [*(start - 1 for start in starts[1:]), len(episode)]
    return ((start, stop) for start, stop in zip(starts, stops, strict=True) if start <= stop)


def _at(spec: Spec, alive: list[tuple[Episode, int, int]], t: int) -> Mapping[str, Tensor]:
    return {
        name: torch.from_numpy(
            np.stack([e.array(f"obs.{name}")[start + t] for e, start, _ in alive])
        )
        for name in spec.observation.arrays
    }


def _provenance(episode: Episode) -> dict[str, Any]:
    return {**episode.meta.provenance, "observations": episode.content_hash}


def _without_pictures(episode: Episode) -> list[Transition]:
    return [replace(transition, obs={}) for transition in episode.transitions()]


def _newest(path: Path) -> Path:
    found = checkpoint.latest(path) if path.is_dir() else path
    assert found is not None  # `tracker` has read it
    return found


def _digest(path: Path) -> str:
    """What tells one encoder from another: the hash of its checkpoint file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
