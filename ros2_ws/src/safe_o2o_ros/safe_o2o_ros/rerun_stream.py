"""A graph in the Rerun viewer: the arm in 3D, its camera, what was proposed and what certified.

Margins and joints are plots, and what happened is a log. The arm is drawn as what the filter takes
it for, the balls about its links; where they are not known, as a line through its joints. Times are
those at which messages were heard, so that a plot also shows what came late.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.errors import ConfigError, MissingDependencyError, SafeO2OError
from safe_o2o.files import storage_error
from safe_o2o.safety.body import Geometry
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.limits import tool_frame
from safe_o2o.types import Array, Verdict
from safe_o2o_ros.board import is_ours
from safe_o2o_ros.conversions import (
    FilterStatus,
    TaskDescription,
    TaskStatus,
    image_from_msg,
    joints_from_msg,
)
from safe_o2o_ros.node import ERROR, OK, WARN

APPLICATION = "safe_o2o"
VIEWER = "viewer"
"""What asks for a viewer of our own, on this machine."""
PORT = 9876
SETTLED = 20
"""Tenths of a second after which a viewer that listens is believed to stay."""
TRAIL = 5.0
"""How long the way of the tool stays visible, s."""
LATENCY = " p50/p99 ms"
LEVELS = {OK: "INFO", WARN: "WARN", ERROR: "ERROR"}
PROPOSED, PERSON, CERTIFIED = (235, 140, 30), (220, 60, 160), (40, 160, 90)
BODY, BOX = (120, 140, 170, 110), (150, 150, 150)


def blueprint() -> rrb.Blueprint:
    """What stands where: the arm on the left, camera and plots on the right, the log below."""
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(
                rrb.Spatial3DView(origin="/world", name="arm"),
                rrb.Vertical(
                    rrb.Spatial2DView(origin="/camera", name="camera"),
                    rrb.TimeSeriesView(origin="/filter", name="margin of the filter"),
                    rrb.TimeSeriesView(origin="/joints", name="joints, rad"),
                    rrb.TimeSeriesView(origin="/task", name="task"),
                ),
                column_shares=[3, 2],
            ),
            rrb.TextLogView(origin="/log", name="log"),
            row_shares=[4, 1],
        ),
        rrb.TimePanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
    )


def open_stream(where: str) -> rr.RecordingStream:
    """A recording that goes where a person asked for.

    Args:
        where: `viewer` starts one, which listens on this machine only; a file that ends in `.rrd`
            is written; `rerun+http://...` is a viewer that runs already.

    Raises:
        ConfigError: it is none of these.
        StorageError: the file cannot be written.
        MissingDependencyError: no viewer can be started here.
    """
    recording = rr.RecordingStream(APPLICATION)
    layout = blueprint()
    if where.endswith(".rrd"):
        path = Path(where)
        if path.exists():
            raise ConfigError("exists already", where=path, todo="name another file")
        try:
            path.touch()
            recording.save(path, default_blueprint=layout)
        except OSError as error:
            raise storage_error(error, path) from error
    elif where == VIEWER:
        _start_viewer()
        recording.connect_grpc(f"rerun+http://127.0.0.1:{PORT}/proxy", default_blueprint=layout)
    elif where.startswith(("rerun+http://", "rerun+https://", "rerun://")):
        place = urlsplit(where)
        if not _listens(place.hostname or "", place.port or PORT):
            raise ConfigError(f"nobody listens at {where}", where="rerun", todo="start it first")
        recording.connect_grpc(where, default_blueprint=layout)
    else:
        raise ConfigError(
            f"must be {VIEWER}, a file that ends in .rrd or rerun+http://..., got {where!r}",
            where="rerun",
        )
    return recording


def _start_viewer() -> None:
    """Rerun's own `spawn` listens on every interface; this one on the loopback alone."""
    if _listens():
        return
    # In a session of its own: Ctrl-C ends the stream, and leaves what was seen on the screen.
    with tempfile.TemporaryFile("w+") as said:
        viewer = subprocess.Popen(
            [sys.executable, "-m", "rerun", "--bind", "127.0.0.1", "--port", str(PORT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        deadline, listening = time.monotonic() + 15.0, 0
        while listening < SETTLED:  # without a screen it listens first and dies then
            if viewer.poll() is not None or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(viewer.pid, signal.SIGKILL)  # the viewer is a child of that process
                said.seek(0)
                words = said.read().strip().splitlines()
                raise MissingDependencyError(
                    f"the viewer does not start ({words[-1] if words else 'it says nothing'})",
                    where="rerun",
                    todo="write a file instead (--rerun watched.rrd), for a machine with a screen",
                )
            time.sleep(0.1)
            listening += _listens()


def _listens(host: str = "127.0.0.1", port: int = 0) -> bool:
    try:
        with socket.create_connection((host, port or PORT), timeout=2.0):
            return True
    except OSError:
        return False


class RerunStream:
    """Takes messages, and says them to a recording. One thread.

    Args:
        recording: where to; see `open_stream`.
        namespace: of the nodes whose health is told.
    """

    def __init__(self, recording: rr.RecordingStream, namespace: str = "/") -> None:
        self.recording, self.namespace = recording, namespace
        self._arm: _Arm | None = None
        self._described = ""
        self._said: dict[str, object] = {}
        self._trail: deque[tuple[float, Array]] = deque()
        self._tool: Array | None = None
        self._log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def close(self) -> str:
        """Write what is on its way; `""`, or why some of it is lost."""
        try:
            self.recording.flush(timeout_sec=2.0)
        except RuntimeError as error:
            return " ".join(str(error).split())
        finally:
            self.recording.disconnect()
        return ""

    # What comes in.

    def task(self, description: TaskDescription) -> None:
        """Which arm, and the box of its targets."""
        if description.arm != self._described:
            self._described = description.arm
            self._arm = _Arm(description)
            for frame, (centres, radii) in self._arm.balls.items():
                balls = rr.Ellipsoids3D(
                    centers=centres, half_sizes=np.repeat(radii[:, None], 3, 1), colors=BODY,
                    fill_mode="solid",
                )  # fmt: skip
                self._log(f"world/arm/{frame}", balls, static=True)
            names = list(self._arm.names)
            for what in ("measured", "commanded"):
                self._log(f"joints/{what}", rr.SeriesLines(names=names), static=True)
        low, high = (np.asarray(corner) for corner in description.workspace)
        box = rr.Boxes3D(centers=[0.5 * (low + high)], sizes=[high - low], colors=BOX)
        self._log("world/workspace", box, static=True)

    def measured(self, msg: JointState) -> None:
        """Where the arm is."""
        if self._arm is not None:
            self._now()
            q = joints_from_msg(msg, self._arm.names)[0]
            self._log("joints/measured", rr.Scalars(q))
            self._draw(self._arm, q)

    def commanded(self, msg: JointState) -> None:
        """Where it was sent: what the filter has certified."""
        if self._arm is None:
            return
        now = self._now()
        q = joints_from_msg(msg, self._arm.names)[0]
        self._log("joints/commanded", rr.Scalars(q))
        self._tool = self._arm.tool(q)
        self._trail.append((now, self._tool))
        while self._trail[0][0] < now - TRAIL:
            self._trail.popleft()
        self._way("world/certified", [tool for _, tool in self._trail], CERTIFIED)

    def proposed(self, msg: JointTrajectory, person: bool = False) -> None:
        """Where a policy, or a person, would like it to go."""
        if self._arm is None or not msg.points:
            return
        self._now()
        order = [msg.joint_names.index(name) for name in self._arm.names]
        tools = [self._arm.tool(np.array(point.positions)[order]) for point in msg.points]
        begin = [] if self._tool is None else [self._tool]
        self._way("world/proposed", [*begin, *tools], PERSON if person else PROPOSED)

    def picture(self, msg: Image) -> None:
        """What the camera sees."""
        self._now()
        self._log("camera", rr.Image(image_from_msg(msg)))

    def status(self, status: TaskStatus | FilterStatus) -> None:
        """What the filter did, and how the task goes."""
        self._now()
        self._number("filter/margin", status.margin)
        verdict = Verdict(status.verdict)
        if verdict is not Verdict.PASS and self._new("verdict", (verdict, status.reason)):
            self._text(f"filter {verdict.name.lower()}: {status.reason}", "WARN")
        elif verdict is Verdict.PASS:
            self._said.pop("verdict", None)
        if isinstance(status, TaskStatus):
            for name in ("reward", "cost", "force", "clearance"):
                self._number(f"task/{name}", getattr(status, name))
            if self._new("episode", status.episode):
                self._text(f"episode {status.episode} of {status.variant}, seed {status.seed}")

    def heard(self, msg: DiagnosticArray) -> None:
        """Who is well, in which mode the arm is, and the latency of each stage."""
        self._now()
        for status in msg.status:
            name, _, state = status.name.partition(": ")
            values: Mapping[str, str] = {item.key: item.value for item in status.values}
            if not is_ours(status, values, self.namespace):
                continue
            if "mode" in values and self._new(f"mode of {name}", values["mode"]):
                stopped = values["mode"] in ("STOPPED", "DEGRADED")
                cause = f" by {values.get('last cause', '?')}" if stopped else ""
                self._text(f"{name}: {values['mode']}{cause}", "ERROR" if stopped else "INFO")
            if self._new(name, (status.level, state)):
                self._text(f"{name} is {state}: {status.message}", LEVELS.get(status.level, "INFO"))
            for key, value in values.items():
                if key.endswith(LATENCY):
                    stage = key.removesuffix(LATENCY).replace(" ", "_")
                    self._number(f"latency/{name}/{stage}", float(value.partition("/")[2]))

    # How it is said.

    def _draw(self, arm: _Arm, q: Array) -> None:
        for frame, (translation, rotation) in arm.placements(q).items():
            where = rr.Transform3D(translation=translation, mat3x3=rotation)
            self._log(f"world/arm/{frame}", where)
        if not arm.balls:
            self._log("world/arm", rr.LineStrips3D([arm.line(q)], radii=0.02, colors=BODY))

    def _way(self, entity: str, tools: list[Array], colour: tuple[int, int, int]) -> None:
        if len(tools) > 1:
            self._log(entity, rr.LineStrips3D([np.stack(tools)], radii=0.004, colors=colour))

    def _number(self, entity: str, value: float) -> None:
        if np.isfinite(value):
            self._log(entity, rr.Scalars(float(value)))

    def _text(self, text: str, level: str = "INFO") -> None:
        self._log("log", rr.TextLog(text, level=level))

    def _new(self, about: str, what: object) -> bool:
        changed = self._said.get(about) != what
        self._said[about] = what
        return changed

    def _now(self) -> float:
        now = time.time()
        self.recording.set_time("heard", timestamp=now)
        return now

    def _log(self, entity: str, what: rr.AsComponents, static: bool = False) -> None:
        self.recording.log(entity, what, static=static)


class _Arm:
    """A described arm: its joints, its body, its tool."""

    def __init__(self, description: TaskDescription) -> None:
        self.names = description.joint_names
        arm = description.arm
        self._tool = description.tool_frame or tool_frame(arm)
        self._kinematics = Kinematics(arm, (*self.names, self._tool))
        self.balls = _balls(arm)

    def tool(self, q: Array) -> Array:
        return self._kinematics.position(q, self._tool)

    def placements(self, q: Array) -> dict[str, tuple[Array, Array]]:
        """Where each link with a body is: position, m, and rotation in the base frame."""
        at, turned = self._kinematics.position, self._kinematics.rotation
        return {frame: (at(q, frame), turned(q, frame)) for frame in self.balls}

    def line(self, q: Array) -> Array:
        """Base, joints and tool `[n + 2, 3]`, m."""
        return np.concatenate([np.zeros((1, 3)), self._kinematics.positions([q])[0]])


def _balls(arm: str) -> dict[str, tuple[Array, Array]]:
    """Centres `[B, 3]` and radii `[B]`, m, of what each link occupies; empty where unknown."""
    try:
        described = arm.lstrip().startswith("<")
        body = Geometry.from_urdf(arm) if described else Geometry.load(arm)
    except SafeO2OError:
        return {}
    out: dict[str, list[tuple[Array, float]]] = {}
    for capsule in body.capsules:
        centres, radius = capsule.spheres()
        out.setdefault(capsule.frame, []).extend((centre, radius) for centre in centres)
    return {
        frame: (np.stack([c for c, _ in balls]), np.array([r for _, r in balls]))
        for frame, balls in out.items()
    }
