"""Messages to and from the types of the house. Joints are matched by name, never by index.

Standard messages only, so that any tool of a ROS machine reads the graph. Records that have no
message of their own (what the task says, what the policy thought) travel as `DiagnosticArray` with
one JSON value per
key: header.stamp matches them with images and joint states, and `ros2 topic echo` shows them in
    clear text.
"""

from __future__ import annotations

import array
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from safe_o2o.config import from_json, to_json
from safe_o2o.errors import SafeO2OError
from safe_o2o.types import Array, Proposal, RobotState, Source
from safe_o2o_ros.progress import FilterReport

T = TypeVar("T")
NANO = 1_000_000_000


class MessageError(SafeO2OError):
    """A message cannot be what it claims to be: wrong length, names, encoding or numbers."""


def stamp_to_msg(stamp: float) -> Time:
    """A time in seconds as a message, rounded to the nanosecond."""
    seconds, nanoseconds = divmod(round(stamp * NANO), NANO)
    return Time(sec=int(seconds), nanosec=int(nanoseconds))


def stamp_from_msg(msg: Time) -> float:
    """Inverse of `stamp_to_msg`, s."""
    return _nanoseconds(msg) / NANO


def stamp_key(msg: Time) -> int:
    """A time message as whole microseconds: equal instants have equal keys.

    Of the time since 1970 a double holds a quarter of a microsecond: nanoseconds would not survive
    the way from a message to seconds and back.
    """
    return key_of(stamp_from_msg(msg))


def key_of(stamp: float) -> int:
    """The key of a time in seconds; `key_of(t) == stamp_key(stamp_to_msg(t))`."""
    return round(stamp * 1e6)


def _nanoseconds(msg: Time | Duration) -> int:
    return int(msg.sec) * NANO + int(msg.nanosec)


def joint_state_to_msg(
    names: Sequence[str], q: Array, dq: Array | None, stamp: float, frame_id: str = ""
) -> JointState:
    """Joint positions `[n]` (rad) and velocities `[n]` (rad/s, or None) as a message."""
    msg = JointState()
    msg.header.stamp, msg.header.frame_id = stamp_to_msg(stamp), frame_id
    msg.name = list(names)
    msg.position = np.asarray(q, np.float64).tolist()
    if dq is not None:
        msg.velocity = np.asarray(dq, np.float64).tolist()
    return msg


def joints_from_msg(msg: JointState, names: Sequence[str]) -> tuple[Array, Array]:
    """Positions and velocities in the order of `names`; absent velocities are zero.

    Raises:
        MessageError: a joint is missing, lengths differ, or a number is not finite.
    """
    index = {name: i for i, name in enumerate(msg.name)}
    missing = [name for name in names if name not in index]
    if missing:
        raise MessageError(
            f"has no joint {missing[0]!r}, only {list(msg.name)}", where="JointState"
        )
    if len(msg.position) != len(msg.name) or len(msg.velocity) not in (0, len(msg.name)):
        raise MessageError(
            f"has {len(msg.name)} names, {len(msg.position)} positions, "
            f"{len(msg.velocity)} velocities",
            where="JointState",
        )
    order = [index[name] for name in names]
    q = np.asarray(msg.position, np.float64)[order]
    dq = np.asarray(msg.velocity, np.float64)[order] if msg.velocity else np.zeros(len(order))
    if not (np.isfinite(q).all() and np.isfinite(dq).all()):
        raise MessageError("holds a number that is not finite", where="JointState")
    return q, dq


def robot_state(measured: JointState, command: JointState, names: Sequence[str]) -> RobotState:
    """The driver's reading as other processes see it, from the two topics of one instant.

    Raises:
        MessageError: see `joints_from_msg`; or the stamps differ.
    """
    if stamp_key(measured.header.stamp) != stamp_key(command.header.stamp):
        raise MessageError("joint_states and joint_commands show different instants")
    q, dq = joints_from_msg(measured, names)
    q_command, _ = joints_from_msg(command, names)
    return RobotState(q=q, dq=dq, q_command=q_command, stamp=stamp_from_msg(measured.header.stamp))


def image_to_msg(image: Array, stamp: float, frame_id: str = "camera") -> Image:
    """An image `[H, W, 3]` uint8 RGB as a message.

    Raises:
        MessageError: the array is something else.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MessageError(
            f"is {image.dtype}{list(image.shape)}, not uint8[H, W, 3]", where="image"
        )
    msg = Image()
    msg.header.stamp, msg.header.frame_id = stamp_to_msg(stamp), frame_id
    msg.height, msg.width = int(image.shape[0]), int(image.shape[1])
    msg.encoding, msg.is_bigendian, msg.step = "rgb8", 0, 3 * msg.width
    msg.data = bytes_to_field(image)
    return msg


def bytes_to_field(values: Array) -> array.array[int]:
    """An array's bytes as a `uint8[]` of a message.

    The one way that is fast with and without field checks: bytes and ndarray are 100 times slower.
    """
    data = array.array("B")
    if values.size:
        data.frombytes(memoryview(np.ascontiguousarray(values)).cast("B"))
    return data


def image_from_msg(msg: Image) -> Array:
    """Inverse of `image_to_msg`; the array shares the message's memory.

    Raises:
        MessageError: not rgb8, or the size does not fit the bytes.
    """
    if msg.encoding != "rgb8":
        raise MessageError(f"has encoding {msg.encoding!r}, not 'rgb8'", where="Image")
    if msg.step != 3 * msg.width or len(msg.data) != msg.step * msg.height:
        raise MessageError(
            f"says {msg.height}x{msg.width}, step {msg.step}, but holds {len(msg.data)} bytes",
            where="Image",
        )
    return np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.width, 3)


def proposal_to_msg(proposal: Proposal) -> JointTrajectory:
    """A proposal as a positions-only trajectory, one point per policy period.

    `header.stamp` is the stamp of the observation behind it (not a start time: a proposal starts
    when the filter accepts it).
    """
    msg = JointTrajectory()
    msg.header.stamp = stamp_to_msg(proposal.stamp)
    msg.joint_names = list(proposal.joint_names)
    for row, q in enumerate(np.asarray(proposal.q, np.float64)):
        when = stamp_to_msg((row + 1) * proposal.period)
        msg.points.append(
            JointTrajectoryPoint(
                positions=q.tolist(),
                time_from_start=Duration(sec=when.sec, nanosec=when.nanosec),
            )
        )
    return msg


def proposal_from_msg(msg: JointTrajectory, source: Source = Source.POLICY) -> Proposal:
    """Inverse of `proposal_to_msg`. The filter judges the numbers; this checks the form.

    Raises:
        MessageError: no points, a point of the wrong length, or points that are not evenly spaced.
    """
    if not msg.points:
        raise MessageError("has no points", where="JointTrajectory")
    count = len(msg.joint_names)
    for row, point in enumerate(msg.points):
        if len(point.positions) != count:
            raise MessageError(
                f"point {row} has {len(point.positions)} positions for {count} joints",
                where="JointTrajectory",
            )
    times = [_nanoseconds(point.time_from_start) for point in msg.points]
    period = times[0]
    even = all(abs(when - (row + 1) * period) <= 1000 for row, when in enumerate(times))
    if period <= 0 or not even:
        raise MessageError(
            "points must be one policy period apart, the first one period after the start",
            where="JointTrajectory",
        )
    return Proposal(
        q=np.asarray([point.positions for point in msg.points], np.float64),
        period=period / NANO,
        stamp=stamp_from_msg(msg.header.stamp),
        joint_names=tuple(msg.joint_names),
        source=source,
    )


def record_to_msg(
    name: str, record: Any, stamp: float, *, level: bytes = DiagnosticStatus.OK, message: str = ""
) -> DiagnosticArray:
    """A dataclass (or mapping) as a `DiagnosticArray` with one JSON value per field."""
    values = to_json(record)
    msg = DiagnosticArray()
    msg.header.stamp = stamp_to_msg(stamp)
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id="safe_o2o")
    status.values = [KeyValue(key=key, value=json.dumps(item)) for key, item in values.items()]
    msg.status = [status]
    return msg


def record_from_msg(cls: type[T], msg: DiagnosticArray) -> T:
    """Inverse of `record_to_msg` for a dataclass.

    Raises:
        MessageError: there is no status in it, or a value is not JSON.
        ConfigError: a field is missing, unknown or of the wrong type.
    """
    if not msg.status:
        raise MessageError(f"holds no {cls.__name__}", where="DiagnosticArray")
    try:
        values = {item.key: json.loads(item.value) for item in msg.status[0].values}
    except json.JSONDecodeError as error:
        raise MessageError(f"{cls.__name__} value is not JSON", where="DiagnosticArray") from error
    return from_json(cls, values, where=cls.__name__)


def record_to_text(record: Any) -> String:
    """A dataclass as one JSON text, for latched descriptions."""
    return String(data=json.dumps(to_json(record)))


def record_from_text(cls: type[T], msg: String) -> T:
    """Inverse of `record_to_text`.

    Raises:
        MessageError: the text is not JSON.
        ConfigError: a field is missing, unknown or of the wrong type.
    """
    try:
        values = json.loads(msg.data)
    except json.JSONDecodeError as error:
        raise MessageError(f"{cls.__name__} is not JSON", where="String") from error
    return from_json(cls, values, where=cls.__name__)


@dataclasses.dataclass(frozen=True)
class FilterStatus(FilterReport):
    """What the filter in front of somebody else's driver says; cleared when the arm is ready.

    Attributes:
        stamp: of the reading that comes with it, s.
        mode: the supervisor's.
        cause: code of the newest stop, `""` while there is none.
        ready: whether the arm waits for the next proposal.
    """

    stamp: float
    mode: str
    cause: str
    ready: bool


@dataclasses.dataclass(frozen=True)
class TaskStatus(FilterReport):
    """What the robot's side says at the instants at which a decision is due; cleared each time.

    On the twin the task labels itself; on a real arm the operator's labels fill the same fields.

    Attributes:
        stamp: the instant; `joint_states` and `joint_commands` of the same stamp belong to it, s.
        began: stamp of the episode's beginning, s.
        episode: running number of the episode in this process, from 0.
        seed: seed of the episode's layout.
        variant: the scene's variant.
        reward: reward since the reset, cumulative.
        cost: cost since the reset, cumulative.
        force: largest contact force since the last status, N; NaN where nobody measures it.
        clearance: distance from what must not be touched, m; NaN where nobody knows it.
        terminated: the task ended.
        read_at: host's monotonic clock when the state was read, s; comparable between processes.
        speed: real factor between twin time and wall time.
    """

    stamp: float
    began: float
    episode: int
    seed: int
    variant: str
    reward: float
    cost: float
    force: float
    clearance: float
    terminated: bool
    read_at: float
    speed: float


@dataclasses.dataclass(frozen=True)
class PolicyOutput:
    """What was decided at one observation, or that the episode ended at it.

    Attributes:
        stamp: stamp of the observation, s.
        episode: the robot's running number of the episode.
        seed: seed of the layout.
        step: decisions made in this episode before this one.
        event: `decision`, or `end` for the observation after the last decision.
        action: proposed action `[A]` in [-1, 1] (empty at the end).
        outputs: what else the graph said: risk, values; a number each.
        behavior: who decides, in words.
        source: the same as a `Source`.
        bundle: version of the policy bundle, if it is one.
        graph: hash of its graph.
        gate: what its reachability gate may do: `on`, `shadow` or `off`.
        round: number of the round of online learning that the episode belongs to, from 0.
        truncated: time ran out (at the end only).
        terminated: the task ended (at the end only).
    """

    stamp: float
    episode: int
    seed: int
    step: int
    event: str
    action: tuple[float, ...]
    outputs: dict[str, float]
    behavior: str
    source: int
    bundle: str
    graph: str
    gate: str
    round: int
    truncated: bool
    terminated: bool


@dataclasses.dataclass(frozen=True)
class LearnerStatus:
    """The learner's heartbeat.

    Attributes:
        state: `loading`, `waiting`, `training round N`, `done`, `failed`.
        rounds: rounds finished.
        episodes: committed episodes that it sees.
        failure: why it failed, `""` otherwise.
    """

    state: str
    rounds: int
    episodes: int
    failure: str


@dataclasses.dataclass(frozen=True)
class TaskDescription:
    """What the robot's side offers, latched: everyone checks own artefacts against it.

    Attributes:
        task: catalogue name of the task.
        variant: the scene's variant.
        max_steps: policy steps after which an episode is cut off.
        joint_names: names of the arm's joints, in its own order.
        spec: `Spec.to_json()`.
        arm: name of the arm whose tool the actions move, or the text of its URDF.
        tool_frame: the tool; empty for a shipped arm's own.
        posture: where the arm rests, rad; empty for a shipped arm's own.
        workspace: lowest and highest corner of the box of the tool's targets, m.
    """

    task: str
    variant: str
    max_steps: int
    joint_names: tuple[str, ...]
    spec: dict[str, Any]
    arm: str
    tool_frame: str
    posture: tuple[float, ...]
    workspace: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The twin's layout, latched, for the twin's camera only: nobody else may know the obstacles.

    Attributes:
        episode: running number of the episode that it belongs to.
        began: stamp of the episode's beginning, from which on things move, s.
        layout: what the task's camera needs to build its copy, JSON.
    """

    episode: int
    began: float
    layout: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EpisodeCommitted:
    """The recorder's word on one episode.

    Attributes:
        episode: the robot's running number of the episode.
        path: the file; `""` when the episode was dropped.
        dropped_episodes: episodes dropped so far.
        dropped_transitions: transitions dropped so far.
    """

    episode: int
    path: str
    dropped_episodes: int
    dropped_transitions: int
