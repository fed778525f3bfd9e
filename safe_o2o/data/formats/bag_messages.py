"""What the messages of a bag hold: vectors, pictures, stamps. No ROS is needed.

Joints are matched by name. Pictures become RGB; smaller ones are averaged, as a camera with larger
pixels would see them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from safe_o2o.errors import DataError, MissingDependencyError
from safe_o2o.types import Array

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}
"""Bytes of a pixel, and which of them are red, green and blue."""


def require_rosbags(what: str) -> None:
    """Refuse to go on without the library that reads and writes bags.

    Args:
        what: what needs it.

    Raises:
        MissingDependencyError: `rosbags` is not installed.
    """
    if importlib.util.find_spec("rosbags") is None:
        raise MissingDependencyError(f"{what} needs rosbags", todo="pip install 'safe_o2o[bags]'")


class OtherJointsError(DataError):
    """None of the joints that are asked for: another publisher's message on the same topic."""


def stamp_of(message: Any) -> int | None:
    """What the header says, ns; None where there is none, or it was never filled in."""
    header = getattr(message, "header", None)
    if header is None:
        return None
    stamp = header.stamp
    return (int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)) or None


def joints(message: Any, names: Sequence[str], entry: str) -> Array:
    """Entries of a `JointState` by joint name `[n]`.

    Raises:
        OtherJointsError: none of them is in there.
        DataError: some are missing, or the message does not say this of them.
    """
    return _by_joint(message.name, getattr(message, entry), names)


def trajectory(message: Any, names: Sequence[str], entry: str) -> Array:
    """Where a `JointTrajectory` ends `[n]`."""
    if not len(message.points):
        raise DataError("has a trajectory without points")
    plural = {"position": "positions", "velocity": "velocities", "effort": "effort"}[entry]
    return _by_joint(message.joint_names, getattr(message.points[-1], plural), names)


def _by_joint(said: Sequence[str], numbers: Any, names: Sequence[str]) -> Array:
    """Those of a message's numbers that belong to the joints that are named."""
    known, values = {name: row for row, name in enumerate(said)}, np.asarray(numbers, np.float64)
    if missing := [name for name in names if name not in known]:
        kind = OtherJointsError if len(missing) == len(names) else DataError
        raise kind(f"has no joint {missing[0]!r}, only {', '.join(known) or 'none'}")
    if len(values) != len(known):
        raise DataError(f"says {len(values)} numbers of {len(known)} joints")
    return values[[known[name] for name in names]]


def _whole(part: Callable[[Any], Sequence[float]]) -> Callable[..., Array]:
    """A vector that a message has whole: as many entries as there are names."""

    def read(message: Any, names: Sequence[str], entry: str) -> Array:
        values = np.asarray(part(message), np.float64).reshape(-1)
        if len(values) != len(names):
            raise DataError(f"has {len(values)} entries, the mapping names {len(names)}")
        return values

    return read


def _pose(pose: Any) -> list[float]:
    p, q = pose.position, pose.orientation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]


def _two(first: Any, second: Any) -> list[float]:
    return [first.x, first.y, first.z, second.x, second.y, second.z]


VECTORS: dict[str, Callable[..., Array]] = {
    "sensor_msgs/msg/JointState": joints,
    "trajectory_msgs/msg/JointTrajectory": trajectory,
    "geometry_msgs/msg/Pose": _whole(_pose),
    "geometry_msgs/msg/PoseStamped": _whole(lambda m: _pose(m.pose)),
    "geometry_msgs/msg/Twist": _whole(lambda m: _two(m.linear, m.angular)),
    "geometry_msgs/msg/TwistStamped": _whole(lambda m: _two(m.twist.linear, m.twist.angular)),
    "geometry_msgs/msg/Wrench": _whole(lambda m: _two(m.force, m.torque)),
    "geometry_msgs/msg/WrenchStamped": _whole(lambda m: _two(m.wrench.force, m.wrench.torque)),
    **{
        f"std_msgs/msg/{kind}MultiArray": _whole(lambda m: m.data)
        for kind in ("Float32", "Float64", "Int32")
    },
    **{
        f"std_msgs/msg/{kind}": _whole(lambda m: [m.data])
        for kind in ("Bool", "Float32", "Float64", "Int8", "Int32", "Int64", "UInt8")
    },
}
"""How a message of each type becomes a vector, by joints' or entries' names."""


def picture(message: Any, kind: str, size: tuple[int, int]) -> Array:
    """RGB `[*size, 3]` uint8 of an `Image` or a `CompressedImage`.

    Raises:
        DataError: an encoding that is no picture, fewer bytes than it has, or a damaged one.
    """
    import cv2

    if kind == COMPRESSED:
        found = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR)
        if found is None:
            raise DataError(f"has a picture of format {message.format!r} that cannot be decoded")
        rgb = found[:, :, ::-1]
    else:
        rgb = _raw(message)
    height, width = size
    if rgb.shape[:2] != size:
        smaller = rgb.shape[0] >= height and rgb.shape[1] >= width
        way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        rgb = cv2.resize(np.ascontiguousarray(rgb), (width, height), interpolation=way)
    return np.ascontiguousarray(rgb)


def _raw(message: Any) -> Array:
    encoding, rows = message.encoding, int(message.height)
    if encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise DataError(f"has pictures of encoding {encoding!r}, known are {known}")
    channels, order = _ENCODINGS[encoding]
    data = np.asarray(message.data, np.uint8)
    if len(data) != rows * int(message.step) or message.step < message.width * channels:
        raise DataError(f"has {len(data)} bytes for {rows} rows of {message.step}")
    lines = data.reshape(rows, int(message.step))[:, : int(message.width) * channels]
    return lines.reshape(rows, int(message.width), channels)[:, :, list(order)]
