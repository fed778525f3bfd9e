"""What the Rerun viewer is told: where the arm is, where it was asked to go and where it may."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
    ("rerun", "pip install 'safe_o2o[rerun]'"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from safe_o2o.errors import ConfigError, MissingDependencyError, StorageError  # noqa: E402
from safe_o2o.runtime.cartesian import sees_and_steps  # noqa: E402
from safe_o2o.safety.kinematics import POSTURES, Kinematics  # noqa: E402
from safe_o2o.types import Verdict  # noqa: E402
from safe_o2o_ros import rerun_stream  # noqa: E402
from safe_o2o_ros.conversions import FilterStatus, TaskDescription, image_to_msg  # noqa: E402
from safe_o2o_ros.node import ERROR, OK  # noqa: E402
from safe_o2o_ros.rerun_stream import PERSON, PROPOSED, RerunStream, open_stream  # noqa: E402

NAMES = tuple(f"panda_joint{i}" for i in range(1, 8))
HOME = np.array(POSTURES["panda"])
ARM = Kinematics("panda")
TASK = TaskDescription(
    task="reach", variant="standard", max_steps=80, joint_names=NAMES,
    spec=sees_and_steps(64, 0.02, 0.2).to_json(), arm="panda", tool_frame="", posture=(),
    workspace=((0.3, -0.2, 0.0), (0.7, 0.2, 0.3)),
)  # fmt: skip


class Heard:
    """Stands in for a recording: keeps what was logged."""

    def __init__(self) -> None:
        self.logged: dict[str, list] = {}

    def set_time(self, *_: object, **__: object) -> None:
        pass

    def log(self, entity: str, what: object, static: bool = False) -> None:
        self.logged.setdefault(entity, []).append(what)

    def last(self, entity: str, field: str) -> np.ndarray:
        found = getattr(self.logged[entity][-1], field).as_arrow_array().to_pylist()
        return np.squeeze(np.asarray(found, np.float64))


def joints(q: np.ndarray) -> JointState:
    """In another order than the arm's: joints are told apart by name."""
    return JointState(name=list(reversed(NAMES)), position=[float(x) for x in q[::-1]])


def wish(*rows: np.ndarray) -> JointTrajectory:
    points = [JointTrajectoryPoint(positions=[float(x) for x in q[::-1]]) for q in rows]
    return JointTrajectory(joint_names=list(reversed(NAMES)), points=points)


def said(mode: str, level: bytes, cause: str = "") -> DiagnosticArray:
    values = {"mode": mode, "last cause": cause, "filter p50/p99 ms": "0.4/1.5"}
    status = DiagnosticStatus(name="robot_node: active", hardware_id="safe_o2o", level=level)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(status=[status])


def test_the_arm_is_drawn_where_it_is_and_proposals_begin_where_it_was_sent() -> None:
    heard = Heard()
    stream = RerunStream(heard)
    stream.measured(joints(HOME))  # of no described arm: nothing to draw
    stream.proposed(wish(HOME))
    assert not any(entity.startswith("world/arm") for entity in heard.logged)

    stream.task(TASK)
    q = HOME + 0.1
    stream.measured(joints(q))
    assert heard.last("world/arm/panda_hand", "translation") == pytest.approx(
        ARM.position(q, "panda_hand"), abs=1e-6
    )
    assert heard.last("joints/measured", "scalars") == pytest.approx(q)

    stream.commanded(joints(HOME))
    stream.commanded(joints(q))
    stream.proposed(wish(q + 0.05, q + 0.1))
    tools = ARM.positions([HOME, q, q + 0.05, q + 0.1])[:, 0]
    strip = heard.last("world/certified", "strips")
    assert strip == pytest.approx(tools[:2], abs=1e-6)
    strip = heard.last("world/proposed", "strips")
    assert strip == pytest.approx(tools[1:], abs=1e-6)
    colours = [heard.logged["world/proposed"][-1].colors.as_arrow_array().to_pylist()]
    stream.proposed(wish(q), person=True)
    colours.append(heard.logged["world/proposed"][-1].colors.as_arrow_array().to_pylist())
    assert colours == [
        [int.from_bytes(bytes((*colour, 255)), "big")] for colour in (PROPOSED, PERSON)
    ]
    before = len(heard.logged["world/proposed"])
    stream.proposed(JointTrajectory())  # a person who lets go
    assert len(heard.logged["world/proposed"]) == before


def test_an_arm_without_a_known_body_is_a_line() -> None:
    heard = Heard()
    stream = RerunStream(heard)
    urdf = """<robot name="two"><link name="base"/><link name="upper"/><link name="tip"/>
      <joint name="a" type="revolute"><parent link="base"/><child link="upper"/>
        <axis xyz="0 1 0"/><limit lower="-1" upper="1" velocity="1" effort="1"/></joint>
      <joint name="b" type="revolute"><parent link="upper"/><child link="tip"/>
        <origin xyz="0 0 0.5"/><axis xyz="0 1 0"/>
        <limit lower="-1" upper="1" velocity="1" effort="1"/></joint></robot>"""
    described = {**TASK.__dict__, "arm": urdf, "tool_frame": "tip", "joint_names": ("a", "b")}
    stream.task(TaskDescription(**described))
    stream.measured(JointState(name=["a", "b"], position=[np.pi / 6, 0.0]))
    line = heard.last("world/arm", "strips")
    assert line[-1] == pytest.approx([0.25, 0.0, 0.5 * np.cos(np.pi / 6)], abs=1e-6)


def test_what_changes_is_logged_once() -> None:
    heard = Heard()
    stream = RerunStream(heard)
    for message in (said("ARMED", OK), said("ARMED", OK), said("STOPPED", ERROR, "operator")):
        stream.heard(message)
    texts = [entry.text.as_arrow_array().to_pylist()[0] for entry in heard.logged["log"]]
    assert texts[0] == "robot_node: ARMED" and "robot_node: STOPPED by operator" in texts
    assert len(texts) == 4  # each mode, and that the node is well, and is not
    assert heard.last("latency/robot_node/filter", "scalars") == pytest.approx(1.5)

    held = FilterStatus(
        stamp=0.0, mode="ARMED", cause="", ready=True, proposal_stamp=0.0,
        verdict=int(Verdict.STOPPED), reason="workspace", margin=0.0, passed=1, corrected=0,
        stopped=1, human=0, held=0,
    )  # fmt: skip
    for _ in range(3):
        stream.status(held)
    assert len(heard.logged["log"]) == 5 and len(heard.logged["filter/margin"]) == 3
    stream.status(FilterStatus(**{**held.__dict__, "margin": float("nan")}))
    assert len(heard.logged["filter/margin"]) == 3


def test_the_other_arms_health_is_not_this_ones() -> None:
    heard = Heard()
    stream = RerunStream(heard, "/left")
    for side, mode in (("/right", "STOPPED"), ("/left", "ARMED")):
        message = said(mode, OK)
        message.status[0].values.append(KeyValue(key="namespace", value=side))
        stream.heard(message)
    texts = [entry.text.as_arrow_array().to_pylist()[0] for entry in heard.logged["log"]]
    assert texts[0] == "robot_node: ARMED" and not any("STOPPED" in text for text in texts)


def test_a_file_is_whole_and_never_another_ones(tmp_path: Path) -> None:
    path = tmp_path / "watched.rrd"
    stream = RerunStream(open_stream(str(path)))
    stream.task(TASK)
    stream.measured(joints(HOME))
    stream.picture(image_to_msg(np.zeros((64, 64, 3), np.uint8), 0.0))
    stream.close()
    verify = [sys.executable, "-m", "rerun", "rrd", "verify", str(path)]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        open_stream(str(path))
    assert path.read_bytes() == before
    with pytest.raises(StorageError):
        open_stream(str(tmp_path / "nowhere" / "watched.rrd"))
    with pytest.raises(ConfigError, match="nobody listens"):
        open_stream("rerun+http://127.0.0.1:1/proxy")
    with pytest.raises(ConfigError, match="must be viewer"):
        open_stream("veiwer")


def test_a_viewer_that_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(rerun_stream, "PORT", free.getsockname()[1])
    with pytest.raises(MissingDependencyError, match="does not start"):
        open_stream("viewer")
