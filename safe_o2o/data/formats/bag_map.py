"""What a bag's topics are to a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec


@dataclass(frozen=True)
class ArrayMap:
    """Which topic an array of the observation comes from.

    Attributes:
        topic: its name; a leading slash does not matter.
        size: height and width that pictures are brought to; required for them.
        names: joints, matched by name, or what the entries of any other vector are called.
        field: of a `JointState`.
        unit: of the entries: SI.
    """

    topic: str
    size: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    field: Literal["position", "velocity", "effort"] = "position"
    unit: str = "rad"


@dataclass(frozen=True)
class ActionMap:
    """Which topic the action comes from, and what its range is.

    Attributes:
        topic: its name.
        names: joints, or what the entries are called.
        low: SI value of -1, one an entry.
        high: SI value of +1.
        field: of a `JointState`.
        unit: of the entries: SI.
        relative_to: array of the observation that the command is counted from: an action is how far
            it is from there; empty takes the command itself.
    """

    topic: str
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    field: Literal["position", "velocity", "effort"] = "position"
    unit: str = "rad"
    relative_to: str = ""


@dataclass(frozen=True)
class BagMap:
    """What a bag's topics are to a policy.

    Attributes:
        period: of the policy, s.
        observation: its arrays by name.
        action: what was commanded.
        max_age: oldest that an observation may be, s; older is lost.
        reward: topic of numbers that are summed over each step; empty: none but at a success.
        cost: topic of numbers of which the largest of each step counts; empty: none.
        episode: topic of a `Bool`, true while an episode is on; empty: a bag is one.
    """

    period: float
    observation: Mapping[str, ArrayMap]
    action: ActionMap
    max_age: float = 0.1
    reward: str = ""
    cost: str = ""
    episode: str = ""

    def __post_init__(self) -> None:
        require_positive(self, "period", "max_age")
        if not self.observation:
            raise ConfigError("needs at least one array", where="observation")
        base = self.action.relative_to
        if base and base not in self.observation:
            raise ConfigError(
                f"names {base!r}, the observation has {', '.join(self.observation)}",
                where="action.relative_to",
            )
        if base and len(self.observation[base].names) != len(self.action.names):
            raise ConfigError(
                f"has {len(self.action.names)} entries, {base} has "
                f"{len(self.observation[base].names)}",
                where="action.names",
            )

    def spec(self) -> Spec:
        """What the episodes hold."""
        arrays = {}
        for name, entry in self.observation.items():
            if entry.size is not None:
                arrays[name] = ArraySpec((*entry.size, 3), "uint8", "intensity", (), 0.0, 255.0)
            else:
                arrays[name] = ArraySpec((len(entry.names),), "float32", entry.unit, entry.names)
        action = self.action
        return Spec(
            ObservationSpec(arrays),
            ActionSpec(action.names, action.unit, action.low, action.high, self.period),
        )

    @property
    def uses(self) -> dict[str, tuple[str, ArrayMap | ActionMap | None]]:
        """Topic and entry by what it is for; None where a topic is a number."""
        found: dict[str, tuple[str, ArrayMap | ActionMap | None]] = {
            f"observation.{name}": (entry.topic, entry) for name, entry in self.observation.items()
        }
        found["action"] = (self.action.topic, self.action)
        numbers = {"reward": self.reward, "cost": self.cost, "episode": self.episode}
        found |= {use: (topic, None) for use, topic in numbers.items() if topic}
        return {use: (plain(topic), entry) for use, (topic, entry) in found.items()}


def plain(topic: str) -> str:
    """A topic's name without the slash in front of it."""
    return topic.strip("/")
