"""Obstacles on the wire: a `sensor_msgs/PointCloud2` with one point for each sphere or capsule.

Fields `x y z radius` (m, in the arm's base frame) are needed. `end_x end_y end_z` make a capsule,
`error` (m), `speed`, `max_speed` (m/s) and `max_acceleration` (m/s^2) are its bounds, `id` is its
name; a NaN stands for "not known". `header.stamp` is when they were seen, on the robot's clock.
Every message replaces all obstacles; one without points says that there are none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

from safe_o2o.errors import ConfigError
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o_ros.conversions import bytes_to_field, stamp_from_msg, stamp_to_msg

_NEEDED = ("x", "y", "z", "radius")
_END = ("end_x", "end_y", "end_z")
_OPTIONAL = (*_END, "error", "speed", "max_speed", "max_acceleration")
_DTYPES = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}


def obstacles_to_msg(obstacles: Sequence[Obstacle], stamp: float, frame: str) -> PointCloud2:
    """Obstacles that were all seen at `stamp`, s, in a frame; names become numbers."""
    names = [*_NEEDED, *_OPTIONAL]
    rows = np.full((len(obstacles), len(names)), np.nan)
    for row, obstacle in zip(rows, obstacles, strict=True):
        row[:4] = *obstacle.centre, obstacle.radius
        if obstacle.end is not None:
            row[4:7] = obstacle.end
        row[7:] = (
            obstacle.error,
            math.nan if obstacle.speed is None else obstacle.speed,
            obstacle.max_speed,
            obstacle.max_acceleration,
        )
    msg = PointCloud2(height=1, width=len(rows), is_dense=False)
    msg.header.stamp, msg.header.frame_id = stamp_to_msg(stamp), frame
    msg.fields = [
        PointField(name=name, offset=8 * k, datatype=PointField.FLOAT64, count=1)
        for k, name in enumerate(names)
    ]
    msg.point_step = 8 * len(names)
    msg.row_step = msg.point_step * len(rows)
    msg.is_bigendian = sys.byteorder == "big"
    msg.data = bytes_to_field(rows.astype(np.float64))
    return msg


def obstacles_from_msg(msg: PointCloud2, frame: str) -> list[Obstacle]:
    """The obstacles of a message.

    Args:
        msg: see the module.
        frame: the arm's base frame.

    Raises:
        ConfigError: another frame, a needed field is missing, or a number is out of range. Nothing
            of such a message is used.
    """
    if msg.header.frame_id != frame:
        raise ConfigError(f"are in frame {msg.header.frame_id!r}, not {frame!r}", where="obstacles")
    count = msg.width * msg.height
    if count == 0:
        return []
    points = _points(msg, count)
    missing = [name for name in _NEEDED if name not in points]
    if missing:
        raise ConfigError(f"lack the fields {', '.join(missing)}", where="obstacles")
    nothing = np.full(count, np.nan)
    columns = {name: points.get(name, nothing) for name in (*_NEEDED, *_OPTIONAL)}
    numbers = points.get("id", np.arange(count))
    stamp, found = stamp_from_msg(msg.header.stamp), []
    for k in range(count):
        value = {name: float(column[k]) for name, column in columns.items()}
        end = tuple(value[name] for name in _END)
        moves = value["max_speed"] > 0.0
        found.append(
            Obstacle(
                name=f"obstacle_{int(numbers[k])}",
                centre=(value["x"], value["y"], value["z"]),
                radius=value["radius"],
                end=None if all(math.isnan(x) for x in end) else (end[0], end[1], end[2]),
                error=_or(value["error"], 0.0),
                speed=None if math.isnan(value["speed"]) else value["speed"],
                max_speed=_or(value["max_speed"], 0.0),
                max_acceleration=_or(value["max_acceleration"], math.inf),
                stamp=stamp if moves else None,
            )
        )
    return found


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else value


def _points(msg: PointCloud2, count: int) -> dict[str, np.ndarray]:
    """The message's columns by name `[count]`, float64."""
    order = ">" if msg.is_bigendian else "<"
    try:
        dtype = np.dtype(
            {
                "names": [field.name for field in msg.fields],
                "formats": [order + _DTYPES[field.datatype] for field in msg.fields],
                "offsets": [field.offset for field in msg.fields],
                "itemsize": msg.point_step,
            }
        )
        rows = np.frombuffer(bytes(msg.data), dtype, count)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"cannot be read: {error}", where="obstacles") from error
    return {name: rows[name].astype(np.float64) for name in dtype.names or ()}
