"""Sizes of the algorithms on transitions: `tiny` for tests, `small` for a CPU, `paper`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from safe_o2o.algorithms.learner import LearnerConfig, SafetyConfig
from safe_o2o.errors import UnknownNameError

C = TypeVar("C", bound=LearnerConfig)
PRESETS = ("tiny", "small", "paper")


def preset(cls: type[C], name: str, *, tiny: dict[str, Any] | None = None, **paper: Any) -> C:
    """Settings of an algorithm at a size.

    Args:
        cls: its settings; defaults are `small`.
        name: `tiny`, `small`, or `paper`: what was published, without a safety critic.
        tiny: what else is smaller in tests.
        paper: what else was published.

    Raises:
        UnknownNameError: no such preset; names the near miss.
    """
    if name == "small":
        return cls()
    if name == "tiny":
        small = {"hidden_dims": (32, 32), "batch_size": 16, "total_updates": 200}
        return replace(cls(safety=SafetyConfig(candidates=4)), **{**small, **(tiny or {})})
    if name == "paper":
        common = {"layer_norm": False, "normalize": False, "total_updates": 1_000_000}
        return replace(cls(safety=SafetyConfig(mask=False)), **{**common, **paper})
    raise UnknownNameError("preset", name, PRESETS)
