"""What `safe-o2o protocol` is asked for: who is compared, on which data, with which budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safe_o2o import catalog
from safe_o2o.cli.actors import MIXTURE
from safe_o2o.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Arguments:
    """Train, judge, fine-tune, judge again: methods and seeds of a task in one table.

    Attributes:
        out: folder of the runs.
        results: the table's file; measurements are added to it, line by line.
        methods: who is compared, separated by commas: algorithms, and parts of FOSP to leave out
            (`without_model`, `without_reach`, ...), learners with another policy than their own
            (`cloning_diffusion`, `cvpo_diffusion`, ...); empty only shows the table.
        preset: size of the networks.
        seeds: seeds of data, layouts, networks and draws, separated by commas.
        scenes: where to fine-tune, separated by commas; empty stops after the offline policy.
        behaviors: who makes the offline data; they take turns, episode by episode.
        episodes: offline episodes.
        updates: gradient steps offline.
        points: updates at which the policy is judged on its way offline, separated by commas.
        evaluation: episodes of each judgement.
        rounds: rounds of fine-tuning.
        episodes_per_round: episodes before each training.
        online_updates: gradient steps after each round.
        world_model: a checkpoint; learners of transitions learn from what its world model makes of
            the data. `{seed}` in it stands for the seed.
        unmasked: `yes` judges every policy with a safety critic's mask without it as well.
        ros: `yes` fine-tunes over the ROS graph, a process a node, instead of in one process.
        workers: processes for episodes.
        threads: threads of PyTorch.
        picture: where to draw the policies' way through offline training: PNG, SVG or PDF.
    """

    out: Path = Path("runs/protocol")
    results: Path = Path("runs/protocol/results.jsonl")
    methods: str = "fosp"
    preset: str = "small"
    seeds: str = "0"
    scenes: str = "shape,goal,number,colour"
    behaviors: str = ",".join(MIXTURE)
    episodes: int = 1200
    updates: int = 6000
    points: str = ""
    evaluation: int = 200
    rounds: int = 4
    episodes_per_round: int = 10
    online_updates: int = 80
    world_model: str = ""
    unmasked: Literal["yes", "no"] = "no"
    ros: Literal["yes", "no"] = "no"
    workers: int = 2
    threads: int = 2
    picture: Path | None = None

    def named(self, field: str) -> list[str]:
        """A field's entries."""
        return [name.strip() for name in getattr(self, field).split(",") if name.strip()]

    def numbers(self, field: str) -> list[int]:
        """A field's entries as whole numbers.

        Raises:
            ConfigError: one of them is none.
        """
        try:
            return [int(number) for number in self.named(field)]
        except ValueError as error:
            given = getattr(self, field)
            raise ConfigError(f"must be whole numbers, got {given}", where=field) from error

    def budget(self) -> dict[str, Any]:
        """What has to be alike for two measurements to be compared."""
        names = ("preset", "behaviors", "episodes", "updates", "evaluation")
        online = ("rounds", "episodes_per_round", "online_updates")
        # In one process, and from what the task observes, is not said: rows from before there was a
        # choice are of that.
        found = {name: getattr(self, name) for name in (*names, *online)}
        found |= {"ros": True} if self.ros == "yes" else {}
        return found | ({"latents": True} if self.world_model else {})


ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "cloning_mixture": ("cloning", {"kind": "mixture"}),
    "cloning_diffusion": ("cloning", {"kind": "diffusion"}),
    "cloning_consistency": ("cloning", {"kind": "consistency"}),
    "cvpo_mixture": ("cvpo", {"policy": "mixture"}),
    "cvpo_diffusion": ("cvpo", {"policy": "diffusion"}),
    "cvpo_consistency": ("cvpo", {"policy": "consistency"}),
}
"""Learners with another policy than their own: to tell what is the method's and what the policy's.
"""


def recipe(method: str, size: str) -> tuple[str, Any]:
    """Algorithm and settings of a method of the table.

    Raises:
        UnknownNameError: no such method, or no such size; names the near miss.
    """
    from safe_o2o.algorithms.fosp_presets import VARIANTS

    if method in catalog.algorithms:
        return method, catalog.load("algorithm", method).preset(size)
    if method in ALIKE:
        name, changes = ALIKE[method]
        return name, replace(catalog.load("algorithm", name).preset(size), **changes)
    if method not in VARIANTS:
        raise UnknownNameError("method", method, [*catalog.algorithms, *ALIKE, *VARIANTS])
    return "fosp", catalog.load("algorithm", "fosp").preset(f"{size}_{method}")
