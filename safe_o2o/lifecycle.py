"""The three states of a robot's driver, and the refusal of what a state does not allow."""

from __future__ import annotations

from enum import Enum
from types import TracebackType
from typing import TypeVar

from safe_o2o.errors import RobotStateError


class LifecycleState(Enum):
    """UNCONFIGURED: not connected. INACTIVE: readable. ACTIVE: movable."""

    UNCONFIGURED = 0
    INACTIVE = 1
    ACTIVE = 2


class Lifecycle:
    """The state of one driver; the driver asks before it acts.

    Args:
        name: what refusals call the driver.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = LifecycleState.UNCONFIGURED

    @property
    def connected(self) -> bool:
        """INACTIVE or ACTIVE."""
        return self.state is not LifecycleState.UNCONFIGURED

    @property
    def active(self) -> bool:
        """Whether the robot may move."""
        return self.state is LifecycleState.ACTIVE

    def require(self, doing: str, *allowed: LifecycleState) -> None:
        """Refuse `doing` unless the state is one of `allowed`.

        Raises:
            RobotStateError: with the state and with what to call first.
        """
        if self.state in allowed:
            return
        order = list(LifecycleState)
        calls = {"UNCONFIGURED": "close", "INACTIVE": "connect", "ACTIVE": "activate"}
        wanted = min(allowed, key=order.index)
        if order.index(self.state) > order.index(wanted):
            calls["INACTIVE"] = "deactivate"
        raise RobotStateError(
            f"cannot {doing} while {self.state.name}",
            where=self.name,
            todo=f"call {calls[wanted.name]}() first",
        )

    def require_connected(self, doing: str) -> None:
        """Refuse `doing` while UNCONFIGURED."""
        self.require(doing, LifecycleState.INACTIVE, LifecycleState.ACTIVE)


Self = TypeVar("Self", bound="LifecycleRobot")


class LifecycleRobot:
    """What robots do alike: their states, and `with`, which connects and closes.

    Args:
        name: what refusals call the robot.
    """

    def __init__(self, name: str) -> None:
        self.lifecycle = Lifecycle(name)

    def connect(self) -> None:
        """UNCONFIGURED -> INACTIVE."""
        self.lifecycle.require("connect", LifecycleState.UNCONFIGURED)
        self.lifecycle.state = LifecycleState.INACTIVE

    def activate(self) -> None:
        """INACTIVE -> ACTIVE."""
        self.lifecycle.require("activate", LifecycleState.INACTIVE)
        self.lifecycle.state = LifecycleState.ACTIVE

    def deactivate(self) -> None:
        """ACTIVE -> INACTIVE; the arm holds."""
        self.lifecycle.require("deactivate", LifecycleState.ACTIVE)
        self.lifecycle.state = LifecycleState.INACTIVE

    def close(self) -> None:
        """Any state -> UNCONFIGURED; idempotent."""
        self.lifecycle.state = LifecycleState.UNCONFIGURED

    def __enter__(self: Self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
