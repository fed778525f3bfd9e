"""Limits are refused at load when they are not finite, not positive, swapped or missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.safety.limits import RobotLimits

GOOD: dict[str, Any] = {
    "robot": "two",
    "joint_names": ["a", "b"],
    "position_low": [-1.0, -2.0],
    "position_high": [1.0, 2.0],
    "velocity": [1.0, 1.0],
    "acceleration": [5.0, 5.0],
    "tool_frame": "tool",
    "elbow_frame": "elbow",
}


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("velocity", [float("nan"), 1.0], "velocity"),
        ("velocity", [-1.0, 1.0], "positive"),
        ("acceleration", [0.0, 5.0], "positive"),
        ("acceleration", [float("inf"), 5.0], "finite"),
        ("position_low", [2.0, -2.0], "below"),
        ("position_high", [1.0], "q_high"),
        ("joint_names", ["a", "a"], "repeat"),
        ("velocity", "fast", "limits"),
    ],
)
def test_bad_numbers_are_one_line(field: str, value: Any, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RobotLimits.from_mapping(GOOD | {field: value}, where="two.yaml")
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    data = {key: value for key, value in GOOD.items() if key != "velocity"}
    with pytest.raises(ConfigError, match="velocity"):
        RobotLimits.from_mapping(data, where="two.yaml")


def test_unknown_arm_names_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="panda"):
        RobotLimits.load("pand")


def test_the_pandas_limits_are_the_makers() -> None:
    limits = RobotLimits.load("panda")
    assert limits.velocity.tolist() == [2.175] * 4 + [2.61] * 3
    assert limits.acceleration.tolist() == [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]
    assert limits.q_low[3] == -3.0718 and limits.q_high[5] == 3.7525


def test_scaling_only_restricts() -> None:
    limits = RobotLimits.load("panda")
    assert np.allclose(limits.scaled(0.5).velocity, 0.5 * limits.velocity)
    for factor in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ConfigError):
            limits.scaled(velocity=factor)
    with pytest.raises(ValueError):
        limits.velocity[0] = 99.0  # nobody widens them later


def test_every_shipped_file_loads() -> None:
    from importlib import resources

    folder = resources.files("safe_o2o.safety") / "robot_limits"
    names = [f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")]
    assert names
    for name in names:
        raw = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert RobotLimits.load(name).robot == raw["robot"] and raw["source"]
