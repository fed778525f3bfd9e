"""A graph at a glance: what the picture says, and of a graph that runs."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402
from rich.console import Console  # noqa: E402

from safe_o2o.cli.main import main  # noqa: E402
from safe_o2o.runtime.process_group import where_it_runs  # noqa: E402
from safe_o2o_ros.board import SILENT, Board  # noqa: E402
from safe_o2o_ros.conversions import FilterStatus  # noqa: E402
from safe_o2o_ros.node import ERROR, OK, WARN  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402
from tests.test_ros_graph import nothing_leaks, once, run  # noqa: E402, F401

pytestmark = pytest.mark.ros
ARM = {
    "mode": "STOPPED",
    "last cause": "lost_command nobody",
    "speed": "1.00 of 1.00",
    "passed/corrected/stopped": "10/2/1",
    "held": "4",
    "errors": "0",
    "filter p50/p99 ms": "0.400/1.200",
}


def said(
    name: str, level: bytes = OK, hardware: str = "safe_o2o", **values: str
) -> DiagnosticArray:
    status = DiagnosticStatus(name=f"{name}: active", level=level, message="well", values=[])
    status.hardware_id = hardware
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(status=[status])


def picture(board: Board, now: float) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(board.render(now))
    return console.file.getvalue()


def test_the_picture_says_mode_cause_margin_health_and_latency() -> None:
    board = Board()
    assert board.level(0.0) == ERROR and "nobody" in picture(board, 0.0)
    board.hear(said("robot_node", ERROR, **ARM), 0.0)
    board.hear(said("camera_node", WARN, errors="3"), 0.0)
    board.hear(said("somebody_elses", hardware="other"), 0.0)
    board.status = FilterStatus(
        stamp=0.0, mode="STOPPED", cause="lost_command", ready=True, proposal_stamp=0.0, verdict=2,
        reason="workspace", margin=0.5, passed=10, corrected=2, stopped=1, human=0, held=4,
    )  # fmt: skip
    text = picture(board, 1.0)
    for word in ("STOPPED", "lost_command", "10/2/1", "workspace", "█████·····", "0.400", "1.200"):
        assert word in text, (word, text)
    assert "somebody_elses" not in text and "silent" not in text
    assert board.level(1.0) == ERROR


def test_the_other_arms_nodes_are_left_out() -> None:
    board, both = Board("/left"), Board("/")
    for one in (board, both):
        one.hear(said("robot_node", namespace="/left", **{**ARM, "mode": "ARMED"}), 0.0)
        one.hear(said("robot_node", namespace="/right", **ARM), 0.0)
        one.hear(said("camera_node", namespace="/leftover"), 0.0)
    assert "ARMED" in picture(board, 0.5) and list(board.nodes) == ["robot_node"]
    assert "STOPPED" in picture(both, 0.5) and len(both.nodes) == 2


def test_a_node_that_fell_silent_is_an_error() -> None:
    board = Board()
    board.hear(said("robot_node", **{**ARM, "mode": "ARMED"}), 0.0)
    board.hear(said("camera_node"), 10.0)
    assert board.level(0.5) == OK and board.level(10.0) == ERROR
    assert "a person has the arm" not in picture(board, 0.5)
    board.hear(said("robot_node", **{**ARM, "mode": "ARMED", "moved by": "a person"}), 0.0)
    assert "a person has the arm" in picture(board, 0.5)
    assert f"silent {10:.0f} s" in picture(board, 10.0) and SILENT < 10.0
    # An arm of which nothing is heard is in no mode.
    assert "mode unknown" in picture(board, 10.0) and "ARMED" not in picture(board, 10.0)


def test_a_run_is_watched_where_it_runs(tmp_path: Path, capfd) -> None:
    codes: list[int] = []
    watched = tmp_path / "watched.rrd"
    seen = ["--rerun", str(watched)] if find_spec("rerun") else []
    report = run(
        tmp_path,
        standin_bundles(),
        episodes=6,
        progress=once(1, lambda: codes.append(main(["watch", str(tmp_path), "--once", *seen]))),
    )
    text = capfd.readouterr().out
    assert len(report.episodes) == 6 and codes[0] in (0, 1), text
    for word in ("ARMED", "policy_node", "camera_node", "inference", "reward"):
        assert word in text, (word, text)
    if seen:
        verify = [sys.executable, "-m", "rerun", "rrd", "print", str(watched)]
        found = subprocess.run(verify, capture_output=True, text=True, check=True).stdout
        for entity in ("/world/arm/panda_hand", "/world/certified", "/camera", "/filter/margin"):
            assert entity in found, found
    assert where_it_runs(tmp_path) is None
    assert main(["watch", str(tmp_path)]) == 2
