"""`safe-o2o limits`: the numbers behind a filter, and the stop that they allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from safe_o2o.cli import limits, main
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.shipped import shipped_names, shipped_text


def test_the_arms_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["limits"]) == 0
    assert capsys.readouterr().out.split() == list(shipped_names("robot_limits"))


def test_a_stop_with_ramps_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """From speed v: v / a + a / J long, at half of v on average."""
    assert main.main(["limits", "panda", "--velocity-scale", "0.5"]) == 0
    shown = capsys.readouterr().out
    panda = RobotLimits.load("panda")
    rows = limits.joints(panda, limits.Arguments(arm="panda", velocity_scale=0.5))
    assert [row["joint"] for row in rows] == list(panda.joint_names)
    for row, v, a, jerk in zip(rows, panda.velocity, panda.acceleration, panda.jerk, strict=True):
        assert row["velocity"] == pytest.approx(0.5 * v, abs=1e-4)
        time = 0.5 * v / a + a / jerk
        assert row["stop_ms"] == pytest.approx(1e3 * time, abs=0.06)
        assert row["stop_rad"] == pytest.approx(0.25 * v * time, abs=6e-5)
        assert str(row["stop_rad"]) in shown
    assert "1.7 m/s" in shown


def test_without_a_jerk_limit_a_stop_takes_whole_ticks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(shipped_text("robot_limits", "ur5e", ".yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data | {"acceleration": [7.0] * 6, "jerk": "unlimited"}))
    assert main.main(["limits", str(path), "--period", "0.02"]) == 0
    assert "unlimited" in capsys.readouterr().out
    wanted = limits.Arguments(arm=str(path), period=0.02)
    row = limits.joints(RobotLimits.from_file(path), wanted)[0]
    # 22 full ticks of 7 * 0.02 rad/s, and what is left in the last one.
    speed = np.append(3.1415 - 0.14 * np.arange(23), 0.0)
    assert speed[22] > 0.0 >= speed[22] - 0.14
    assert row["stop_ms"] == pytest.approx(23 * 20.0)
    assert row["stop_rad"] == pytest.approx(float((speed[:-1] + speed[1:]).sum() * 0.01), abs=6e-5)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["pandaa"], "did you mean 'panda'?"),
        (["ur5e"], "acceleration and jerk of ur5e are not published"),
        (["panda", "--velocity-scale", "1.5"], "velocity_scale: must be at most 1"),
        (["panda", "--acceleration-scale", "-1"], "acceleration_scale"),
        (["panda", "--measured", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["limits", *argv]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and says in error


def test_what_was_measured_fills_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump({"acceleration": [5.0] * 6, "jerk": [500.0] * 6}))
    assert main.main(["limits", "ur5e", "--measured", str(path)]) == 0
    assert "638.3" in capsys.readouterr().out  # 3.1415 / 5 + 5 / 500 s
