"""What every robot of the catalogue must do: states in order, one door, a stop from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.errors import MissingDependencyError, RobotStateError
from safe_o2o.interfaces import Robot
from safe_o2o.runtime.control_loop import ControlLoop, TickRecord
from safe_o2o.runtime.mock_robot import MockRobot
from safe_o2o.types import CertifiedCommand, Command, Decision, Proposal, RobotState, Verdict


@pytest.fixture(params=sorted(catalog.robots))
def robot(request: pytest.FixtureRequest) -> Iterator[Any]:
    try:
        made = catalog.load("robot", request.param)()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def hold(state: RobotState) -> CertifiedCommand:
    """The command to stay, as if certified: what the filter says is another test's matter."""
    return CertifiedCommand(Command(state.q_command, np.zeros_like(state.q), state.stamp))


def unconfigured(robot: Robot) -> None:
    pass


def inactive(robot: Robot) -> None:
    robot.connect()


def active(robot: Robot) -> None:
    robot.connect()
    robot.activate()


def test_it_is_a_robot(robot: Robot) -> None:
    assert isinstance(robot, Robot)
    assert len(set(robot.joint_names)) == len(robot.joint_names) > 0
    assert robot.period > 0


def test_states_come_in_order(robot: Robot) -> None:
    with pytest.raises(RobotStateError, match="connect"):
        robot.activate()
    with pytest.raises(RobotStateError, match="connect"):
        robot.read()
    robot.connect()
    with pytest.raises(RobotStateError, match="close"):
        robot.connect()
    with pytest.raises(RobotStateError, match="activate"):
        robot.deactivate()
    robot.activate()
    with pytest.raises(RobotStateError, match="deactivate"):
        robot.activate()
    robot.deactivate()
    robot.activate()


@pytest.mark.parametrize("prepare", [unconfigured, inactive])
def test_write_is_refused_unless_active(robot: Robot, prepare: Callable[[Robot], None]) -> None:
    prepare(robot)
    n = len(robot.joint_names)
    command = CertifiedCommand(Command(np.zeros(n), np.zeros(n), 0.0))
    with pytest.raises(RobotStateError, match="write"):
        robot.write(command)


def test_a_refused_write_changes_nothing(robot: Robot) -> None:
    robot.connect()
    before = robot.read()
    command = CertifiedCommand(Command(before.q + 0.1, np.zeros_like(before.q), 0.0))
    with pytest.raises(RobotStateError):
        robot.write(command)
    after = robot.read()
    assert np.array_equal(after.q, before.q)
    assert np.array_equal(after.q_command, before.q_command)
    assert after.stamp == before.stamp


@pytest.mark.parametrize("prepare", [unconfigured, inactive, active])
def test_stop_and_close_work_from_any_state(robot: Robot, prepare: Callable[[Robot], None]) -> None:
    prepare(robot)
    robot.stop()
    robot.stop()
    robot.close()
    robot.close()
    robot.stop()
    robot.connect()  # and it can be used again


def test_after_a_stop_it_stands_and_takes_no_command(robot: Robot) -> None:
    active(robot)
    for _ in range(5):
        state = robot.read()
        moved = state.q_command + 0.005
        robot.write(CertifiedCommand(Command(moved, np.full_like(moved, 0.5), state.stamp)))
    robot.stop()
    state = robot.read()
    assert np.abs(state.dq).max() == 0.0
    assert np.array_equal(state.q_command, state.q)
    with pytest.raises(RobotStateError):
        robot.write(hold(state))
    robot.activate()
    robot.write(hold(state))
    assert robot.read().q == pytest.approx(state.q, abs=1e-3)


def test_reading_has_n_finite_numbers_and_starts_with_command_equal_to_position(
    robot: Robot,
) -> None:
    robot.connect()
    state, n = robot.read(), len(robot.joint_names)
    for array in (state.q, state.dq, state.q_command):
        assert array.shape == (n,)
        assert np.isfinite(array).all()
    assert np.array_equal(state.q, state.q_command)


def test_it_follows_its_command_and_remembers_it(robot: Robot) -> None:
    active(robot)
    start = robot.read()
    wave = 0.02 * np.ones_like(start.q)
    for tick in range(1, 101):
        q = start.q + wave * min(1.0, tick / 50)
        robot.write(CertifiedCommand(Command(q, np.zeros_like(q), robot.read().stamp)))
        assert np.array_equal(robot.read().q_command, q)
    end = robot.read()
    assert end.q == pytest.approx(start.q + wave, abs=2e-3)
    assert end.stamp - start.stamp == pytest.approx(100 * robot.period)


def test_the_caller_may_reuse_its_arrays(robot: Robot) -> None:
    active(robot)
    q = robot.read().q.copy()
    wanted = q.copy()
    robot.write(CertifiedCommand(Command(q, np.zeros_like(q), 0.0)))
    q += 1.0
    assert np.array_equal(robot.read().q_command, wanted)


def test_with_statement_connects_and_closes(robot: Any) -> None:
    with robot:
        robot.read()
    with pytest.raises(RobotStateError):
        robot.read()


class _Scripted:
    """A filter that decides as told."""

    def __init__(self, *answers: tuple[Verdict, str, float] | Exception) -> None:
        self.answers = list(answers)

    def reset(self, state: RobotState) -> None:
        self.started = state

    def certify(self, state: RobotState, proposal: Proposal | None, now: float) -> Decision:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Decision(hold(state), *answer)


def test_loop_keeps_the_strictest_verdict_with_its_first_reason_and_the_smallest_margin() -> None:
    answers = [
        (Verdict.PASS, "", 0.9),
        (Verdict.CORRECTED, "a", 0.3),
        (Verdict.STOPPED, "b", 0.5),
        (Verdict.STOPPED, "c", 0.4),
        (Verdict.CORRECTED, "d", 0.6),
    ]
    with MockRobot() as robot:
        robot.activate()
        loop = ControlLoop(robot, _Scripted(*answers))
        loop.reset()
        record, times = loop.run(None, 5)
    assert (record.verdict, record.reason, record.margin) == (Verdict.STOPPED, "b", 0.3)
    assert record.counts == (1, 2, 2)
    assert times.read > 0 and times.certify > 0 and times.write > 0


def test_a_margin_that_is_no_number_counts_as_none() -> None:
    command = CertifiedCommand(Command(np.zeros(7), np.zeros(7), 0.0))
    for order in ([0.5, np.nan], [np.nan, 0.5]):
        record = TickRecord()
        for margin in order:
            record.add(Decision(command, Verdict.PASS, "", margin))
        assert record.margin == 0.0


def test_an_exception_in_the_loop_stops_the_robot() -> None:
    with MockRobot() as robot:
        robot.activate()
        loop = ControlLoop(robot, _Scripted(RuntimeError("broken filter")))
        loop.reset()
        with pytest.raises(RuntimeError, match="broken filter"):
            loop.tick(None)
        with pytest.raises(RobotStateError):
            robot.write(hold(robot.read()))


def test_mock_takes_the_names_of_its_arm_and_refuses_a_wrong_start() -> None:
    from safe_o2o.errors import ConfigError, UnknownNameError

    assert MockRobot("panda").joint_names == tuple(f"panda_joint{i}" for i in range(1, 8))
    with pytest.raises(ConfigError, match="7 joint positions, got 6"):
        MockRobot("panda", q=np.zeros(6))
    with pytest.raises(UnknownNameError):
        MockRobot("pandas")
