"""Limits are refused at load when they are not finite, not positive, swapped or missing."""

from __future__ import annotations

from pathlib import Path
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
    "jerk": [100.0, 100.0],
    "tool_frame": "tool",
    "elbow_frame": "elbow",
}
OPEN = GOOD | {"acceleration": "measured_by_you", "jerk": "measured_by_you"}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("velocity", [NAN, 1.0], "velocity"),
        ("velocity", [-1.0, 1.0], "positive"),
        ("acceleration", [0.0, 5.0], "positive"),
        ("acceleration", [INF, 5.0], "finite"),
        ("acceleration", 5.0, "2 finite"),
        ("acceleration", None, "acceleration"),
        ("jerk", [0.0, 5.0], "positive"),
        ("jerk", [NAN, 5.0], "finite"),
        ("jerk", [INF, 5.0], "unlimited"),
        ("jerk", INF, "unlimited"),
        ("jerk", 100.0, "2 finite"),
        ("jerk", "high", "limits"),
        ("position_low", [2.0, -2.0], "below"),
        ("position_low", [-INF, -2.0], "finite"),
        ("position_high", [1.0], "q_high"),
        ("joint_names", ["a", "a"], "repeat"),
        ("velocity", "fast", "limits"),
        ("tool_velocity", 0.0, "positive"),
        ("tool_velocity", NAN, "finite"),
        ("tool_velocity", [1.0, 1.0], "one finite"),
        ("velocity_offset", [0.1, 0.1], "together"),
        ("velocity_deceleration", [0.1, 0.1], "together"),
        ("velocity_ofset", [0.1, 0.1], "velocity_ofset"),
        ("ceiling", {"accelration": [1.0, 1.0]}, "accelration"),
        ("ceiling", [1.0, 1.0], "unknown"),
    ],
)
def test_bad_numbers_are_one_line(field: str, value: Any, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RobotLimits.from_mapping(GOOD | {field: value}, where="two.yaml")
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", 3.0, {}])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="two"):
        RobotLimits.from_mapping(data, where="two.yaml")


@pytest.mark.parametrize("field", ["velocity", "jerk", "robot", "tool_frame"])
def test_a_missing_field_is_named(field: str) -> None:
    data = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(ConfigError, match=field):
        RobotLimits.from_mapping(data, where="two.yaml")


def test_the_optional_fields_are_read() -> None:
    limits = RobotLimits.from_mapping(GOOD, where="two.yaml")
    assert limits.jerk.tolist() == [100.0, 100.0]
    assert limits.velocity_offset is None and limits.tool_velocity is None
    data = GOOD | {"jerk": "unlimited", "tool_velocity": 2, "velocity_offset": [0.0, 0.1]}
    limits = RobotLimits.from_mapping(
        data | {"velocity_deceleration": [2.0, 3.0]}, where="two.yaml"
    )
    assert np.isposinf(limits.jerk).all() and limits.tool_velocity == 2.0
    assert limits.velocity_offset is not None and limits.velocity_deceleration is not None
    assert limits.velocity_offset.tolist() == [0.0, 0.1]
    for numbers in ({"velocity_offset": [-0.1, 0.1]}, {"velocity_deceleration": [0.0, 3.0]}):
        both = {"velocity_offset": [0.1, 0.1], "velocity_deceleration": [2.0, 3.0]} | numbers
        with pytest.raises(ConfigError, match="positive"):
            RobotLimits.from_mapping(GOOD | both, where="two.yaml")


def test_limits_built_in_code_need_no_jerk() -> None:
    limits = RobotLimits(
        "two", ("a", "b"), *(np.full(2, x) for x in (-1.0, 1.0, 2.0, 3.0)), "tool", "elbow"
    )
    assert limits.jerk.tolist() == [INF, INF]
    assert limits.scaled(acceleration=0.5).jerk.tolist() == [INF, INF]


def test_unknown_arm_names_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="panda"):
        RobotLimits.load("pand")


def test_the_pandas_limits_are_the_makers() -> None:
    limits = RobotLimits.load("panda")
    assert limits.velocity.tolist() == [2.175] * 4 + [2.61] * 3
    assert limits.acceleration.tolist() == [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]
    assert limits.jerk.tolist() == [500.0 * a for a in limits.acceleration]
    assert limits.q_low[3] == -3.0718 and limits.q_high[5] == 3.7525
    assert limits.tool_velocity == 1.7 and limits.velocity_offset is None


def test_the_fr3s_speed_limits_end_where_the_makers_do() -> None:
    """6.3: the caps start .90 1.60 1.14 1.11 1.00 1.98 .96 rad from the limit, end at .036 ..."""
    limits = RobotLimits.load("fr3")
    assert limits.velocity_offset is not None and limits.velocity_deceleration is not None
    twice = 2.0 * limits.velocity_deceleration
    start = (limits.velocity + limits.velocity_offset) ** 2 / twice
    end = limits.velocity_offset**2 / twice
    assert start == pytest.approx([0.90, 1.60, 1.14, 1.11, 1.00, 1.98, 0.96], abs=6e-3)
    assert end == pytest.approx([0.036, 0.012, 0.006, 0.016, 0.010, 0.022, 0.006], abs=6e-4)


def test_scaling_only_restricts() -> None:
    limits = RobotLimits.load("panda")
    assert np.allclose(limits.scaled(0.5).velocity, 0.5 * limits.velocity)
    assert np.allclose(limits.scaled(0.5).jerk, limits.jerk)
    slow = limits.scaled(acceleration=0.25)
    assert np.allclose(slow.acceleration, 0.25 * limits.acceleration)
    assert np.allclose(slow.jerk, 0.25 * limits.jerk)
    for factor in (0.0, -1.0, 1.1, NAN):
        with pytest.raises(ConfigError):
            limits.scaled(velocity=factor)
        with pytest.raises(ConfigError):
            limits.scaled(acceleration=factor)
    for numbers in (limits.velocity, limits.jerk):
        with pytest.raises(ValueError):
            numbers[0] = 99.0  # nobody widens them later


def test_what_is_not_published_has_to_be_measured() -> None:
    with pytest.raises(ConfigError) as caught:
        RobotLimits.from_mapping(OPEN, where="two.yaml")
    line = str(caught.value)
    assert "\n" not in line and "two.yaml" in line and "not published" in line
    assert "on your arm" in line and 'measured={"acceleration": [...], "jerk": [...]}' in line
    with pytest.raises(ConfigError, match=r"jerk of two .* rad/s\^3"):
        RobotLimits.from_mapping(OPEN, where="two.yaml", measured={"acceleration": [1.0, 2.0]})
    limits = RobotLimits.from_mapping(
        OPEN, where="two.yaml", measured={"acceleration": [1.0, 2.0], "jerk": np.array([9.0, 8.0])}
    )
    assert limits.acceleration.tolist() == [1.0, 2.0] and limits.jerk.tolist() == [9.0, 8.0]


@pytest.mark.parametrize("robot", ["ur3e", "ur5e", "ur10e", "xarm6", "xarm7"])
def test_arms_without_published_braking_do_not_load_by_themselves(robot: str) -> None:
    with pytest.raises(ConfigError, match=f"acceleration and jerk of {robot} are not published"):
        RobotLimits.load(robot)
    n = 7 if robot == "xarm7" else 6
    limits = RobotLimits.load(robot, {"acceleration": [2.0] * n, "jerk": [40.0] * n})
    assert limits.acceleration.tolist() == [2.0] * n and limits.jerk.tolist() == [40.0] * n


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        ({"acceleration": [NAN, 1.0]}, "finite"),
        ({"acceleration": [INF, 1.0]}, "finite"),
        ({"acceleration": [-1.0, 1.0]}, "positive"),
        ({"acceleration": [0.0, 1.0]}, "positive"),
        ({"acceleration": [1.0]}, "2 finite"),
        ({"acceleration": 1.0}, "2 finite"),
        ({"acceleration": "measured_by_you"}, "numbers"),
        ({"jerk": [INF, 1.0]}, "finite"),
        ({"jerk": "unlimited"}, "numbers"),
        ({"velocity": [1.1, 1.0]}, "wider"),
        ({"position_low": [-1.1, -2.0]}, "wider"),
        ({"position_high": [1.0, 2.1]}, "wider"),
        ({"position_high": [-1.5, 2.0]}, "below"),
        ({"tool_velocity": -1.0}, "positive"),
        ({"accelleration": [1.0, 1.0]}, "accelleration"),
        ({"joint_names": ["a", "b"]}, "joint_names"),
    ],
)
def test_what_was_measured_is_checked(measured: dict[str, Any], word: str) -> None:
    full: dict[str, Any] = {"acceleration": [1.0, 2.0], "jerk": [9.0, 8.0]}
    with pytest.raises(ConfigError) as caught:
        RobotLimits.from_mapping(OPEN, where="two.yaml", measured=full | measured)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_published_may_only_become_stricter() -> None:
    slower = {"velocity": [0.5, 1.0], "position_low": [-0.5, -2.0], "jerk": [100.0, 1.0]}
    limits = RobotLimits.from_mapping(GOOD, where="two.yaml", measured=slower)
    assert limits.velocity.tolist() == [0.5, 1.0] and limits.q_low.tolist() == [-0.5, -2.0]
    assert limits.jerk.tolist() == [100.0, 1.0] and limits.q_high.tolist() == [1.0, 2.0]
    with pytest.raises(ConfigError, match=r"wider than the published \[5.0, 5.0\]"):
        RobotLimits.from_mapping(GOOD, where="two.yaml", measured={"acceleration": [6.0, 5.0]})
    with pytest.raises(ConfigError, match="wider"):
        RobotLimits.load("fr3", {"velocity_offset": [0.1] * 7})
    with pytest.raises(ConfigError, match="wider"):
        RobotLimits.load("fr3", {"velocity_deceleration": [18.0] * 7})
    older = [-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]
    assert RobotLimits.load("fr3", {"position_low": older}).q_low.tolist() == older
    # Nothing was published, so any speed of the tool is stricter.
    assert RobotLimits.from_mapping(
        GOOD | {"tool_velocity": None}, where="two.yaml", measured={"tool_velocity": 0.25}
    ).tool_velocity == pytest.approx(0.25)
    unlimited = RobotLimits.from_mapping(
        GOOD | {"jerk": "unlimited"}, where="two.yaml", measured={"jerk": [7.0, 7.0]}
    )
    assert unlimited.jerk.tolist() == [7.0, 7.0]


def test_nobody_measures_more_than_the_controller_accepts() -> None:
    for name, number in (("acceleration", 20.1), ("jerk", 501.0)):
        measured = {"acceleration": [2.0] * 6, "jerk": [40.0] * 6}
        measured[name] = [*measured[name][:5], number]
        with pytest.raises(ConfigError, match=f"{name} .*wider"):
            RobotLimits.load("xarm6", measured)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OPEN))
    measured = {"acceleration": [1.0, 2.0], "jerk": [9.0, 8.0]}
    assert RobotLimits.from_file(path, measured).robot == "two"
    with pytest.raises(ConfigError, match="not published"):
        RobotLimits.from_file(str(path))
    for text in (b"a: [1", b"\xff\xfe\x00bad", b"", b"- 1"):
        path.write_bytes(text)
        with pytest.raises(ConfigError) as caught:
            RobotLimits.from_file(path)
        assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="nowhere"):
        RobotLimits.from_file(tmp_path / "nowhere.yaml")


LIMIT = '<limit lower="-1" upper="2" effort="5" velocity="3"/>'
SECOND = '<limit lower="-2" upper="1.5" effort="5" velocity="2.5"/>'


def urdf(first: str = LIMIT, second: str = SECOND, kind: str = "revolute", inside: str = "") -> str:
    def joint(name: str, kind: str, parent: str, child: str, inside: str) -> str:
        return (
            f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
            f'<origin xyz="0 0 0.5"/><axis xyz="0 1 0"/>{inside}</joint>'
        )

    links = "".join(f'<link name="{name}"/>' for name in ("base", "l1", "l2", "tool"))
    return (
        f'<?xml version="1.0" encoding="utf-8"?><robot name="mine">{links}'
        + joint("j2", kind, "l1", "l2", second + inside)  # not in the order of the chain
        + joint("j1", "revolute", "base", "l1", first)
        + joint("mount", "fixed", "l2", "tool", "")
        + '<transmission name="t"><joint name="j1"><x/></joint></transmission></robot>'
    )


MORE: dict[str, Any] = dict(
    acceleration=[4.0, 5.0], jerk=[90.0, 80.0], tool_frame="tool", elbow_frame="l1"
)


def test_limits_of_a_urdf() -> None:
    limits = RobotLimits.from_urdf(urdf(), **MORE)
    assert limits.robot == "mine" and limits.joint_names == ("j1", "j2")
    assert limits.q_low.tolist() == [-1.0, -2.0] and limits.q_high.tolist() == [2.0, 1.5]
    assert limits.velocity.tolist() == [3.0, 2.5] and limits.jerk.tolist() == [90.0, 80.0]
    assert (limits.tool_frame, limits.elbow_frame) == ("tool", "l1")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (urdf(kind="continuous", second=""), "'j2'.*continuous"),
        (urdf(kind="continuous"), "'j2'.*continuous"),
        (urdf(kind="prismatic"), "'j2'.*prismatic"),
        (urdf(kind="floating"), "'j2'.*floating"),
        (urdf(kind="nonsense"), "'j2'.*nonsense"),
        (urdf(inside='<mimic joint="j1"/>'), "'j2'.*mimics"),
        (urdf(first=""), "'j1'.*lacks"),
        (urdf(first='<limit effort="5" velocity="3"/>'), "'j1'.*lacks"),  # else zero
        (urdf(first='<limit lower="-1" upper="2" effort="5"/>'), "'j1'.*lacks"),
        (urdf(first=LIMIT.replace('"-1"', '"wide"')), "'j1'.*lacks"),
        (urdf(first=LIMIT.replace('"-1"', '"nan"')), "'j1'.*finite"),
        (urdf(first=LIMIT.replace('"3"', '"nan"')), "'j1'.*finite"),
        (urdf(first=LIMIT.replace('"3"', '"inf"')), "'j1'.*finite"),
        (urdf(first=LIMIT.replace('"3"', '"0"')), "'j1'.*positive"),
        (urdf(first=LIMIT.replace('"3"', '"-3"')), "'j1'.*positive"),
        (urdf(first=LIMIT.replace('"-1"', '"3"')), "'j1'.*below"),
        (urdf(first=LIMIT.replace('"-1"', '"0"').replace('"2"', '"0"')), "'j1'.*below"),
        (urdf().replace('"l2"', '"l9"', 1), "robot"),
        ("", "URDF"),
        ("<robot", "URDF"),
        ('<robot name="none"><link name="tool"/></robot>', "frame|missing"),
    ],
)
def test_a_urdf_that_cannot_be_trusted_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        RobotLimits.from_urdf(text, **MORE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tool_frame": "hand"}, "no frame 'hand'"),
        ({"elbow_frame": "hand"}, "no frame 'hand'"),
        ({"acceleration": [4.0]}, "acceleration needs 2"),
        ({"acceleration": 4.0}, "acceleration needs 2"),
        ({"acceleration": [4.0, -5.0]}, "positive"),
        ({"jerk": [4.0, NAN]}, "jerk needs 2"),
        ({"jerk": 4.0}, "jerk needs 2"),
    ],
)
def test_what_a_urdf_does_not_hold_is_checked(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RobotLimits.from_urdf(urdf(), **MORE | change)


def test_every_shipped_file_has_sources_and_units() -> None:
    from importlib import resources

    folder = resources.files("safe_o2o.safety") / "robot_limits"
    names = [f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")]
    assert names
    for name in names:
        text = (folder / f"{name}.yaml").read_text("utf-8")
        raw = yaml.safe_load(text)
        n = len(raw["joint_names"])
        ceiling = raw.get("ceiling", {})
        open_fields = [key for key, value in raw.items() if value == "measured_by_you"]
        limits = RobotLimits.load(name, {key: ceiling.get(key, [1.0] * n) for key in open_fields})
        assert limits.robot == raw["robot"] == name and raw["source"] and "Source" in text.title()
        for line in text.splitlines():
            if line.split(":")[0] not in ("robot", "source", "joint_names", "ceiling"):
                assert "#" in line or line.endswith("_tcp") or "frame" in line, line
