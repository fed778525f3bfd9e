"""Seeds: one number from which every random stream of a run follows."""

from __future__ import annotations

import random

import numpy as np
import torch

from safe_o2o.errors import ConfigError


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (every device).

    Our own code draws from explicit generators; this is for the libraries that do not.

    Args:
        seed: 0 to 2^32 - 1, the range that all three accept.

    Raises:
        ConfigError: the seed is outside that range.
    """
    _require(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_generator(seed: int, *stream: int) -> np.random.Generator:
    """A NumPy generator of its own for each purpose.

    Args:
        seed: the run's seed, 0 to 2^32 - 1.
        stream: numbers >= 0 that tell purposes apart (worker, episode, ...); other numbers give
            statistically independent draws, which `seed + 1` would not promise.

    Raises:
        ConfigError: the seed is outside its range.
    """
    _require(seed)
    # A spawn key, not more entropy: of [3] and [3, 0] NumPy makes one and the same stream.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=stream)))


def _require(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ConfigError(f"must be from 0 to {2**32 - 1}, got {seed}", where="seed")
