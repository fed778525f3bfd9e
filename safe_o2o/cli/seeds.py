"""Seeds of episodes: what is collected, evaluated, met online or trained on shares no layout."""

from __future__ import annotations

from typing import Literal

from safe_o2o.errors import ConfigError

Purpose = Literal["collect", "evaluate", "online", "behaviors", "calibrate"]
_PURPOSES: tuple[Purpose, ...] = ("collect", "evaluate", "online", "behaviors", "calibrate")
EPISODES = 100_000
"""Most episodes of one seed."""
SEEDS = 7_000
"""Number of seeds; 5 purposes x 7000 seeds x 100 000 episodes fit into 32 bits."""


def episode_seeds(purpose: Purpose, seed: int, n: int) -> list[int]:
    """The seeds of the first n episodes of a run; a longer run begins with the shorter one's.

    Raises:
        ConfigError: `seed` or `n` is out of range.
    """
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"must lie in 0..{SEEDS - 1}, got {seed}", where="seed")
    if not 0 < n <= EPISODES:
        raise ConfigError(f"must lie in 1..{EPISODES}, got {n}", where="episodes")
    first = (_PURPOSES.index(purpose) * SEEDS + seed) * EPISODES
    return list(range(first, first + n))
