"""What every node has: guarded lifecycle, guarded callbacks, diagnostics at 1 Hz, and a clean end.

Measured traps that this file is about: an invalid lifecycle request kills an rclpy node, the
default signal handlers shut the context down before `finally`, and `EventsExecutor.spin()` hogs the
interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from safe_o2o.errors import SafeO2OError
from safe_o2o.runtime.latency import StageLatency
from safe_o2o.runtime.process_group import PARENT_VARIABLE
from safe_o2o_ros.parameters import declare_config

Health = tuple[bytes, str, Mapping[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])

RCLError = rclpy_implementation.RCLError
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class GuardedNode(LifecycleNode):
    """A lifecycle node whose transitions and callbacks never take the process down.

    Children fill in `on_start` (configure: load, allocate, warm up, subscribe), `on_run`
    (activate), `on_hold` (deactivate), `on_free` (cleanup, also on the way out) and `health`.

    Args:
        name: node name.
        config_cls: frozen dataclass; its fields are the parameters (`declare_config`).
        options: passed on to `LifecycleNode` (context, parameter_overrides, ...).
    """

    def __init__(self, name: str, config_cls: type[Any], **options: Any) -> None:
        super().__init__(name, **options)
        self._guard_transitions()
        self.declare_parameter("autostart", True)
        self.declare_parameter("latency_dir", "")
        self.config: Any = declare_config(self, config_cls)
        self.latency = StageLatency()
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.errors = 0
        self.last_error = ""
        self.finished = False
        self.exit_code = 0
        self.running = False
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._publish_health, clock=self.steady)

    # What children fill in.

    def on_start(self) -> None:
        """Configure."""

    def on_run(self) -> None:
        """Activate."""

    def on_hold(self) -> None:
        """Deactivate."""

    def on_free(self) -> None:
        """Free what `on_start` made; called once more on the way out."""

    def health(self) -> Health:
        """Level, one line, and figures for `/diagnostics`."""
        return OK, "", {}

    def step(self, executor: Executor) -> None:
        """One turn of the main loop; the bound is the reaction time to a signal."""
        executor.spin_once(timeout_sec=0.05)

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_start`; a failure is logged here, because rclpy would swallow it."""
        return self._transition("configure", self.on_start)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_run`, then freeze what start-up left on the heap."""
        result = super().on_activate(state)
        if result == TransitionCallbackReturn.SUCCESS:
            result = self._transition("activate", self.on_run)
        if result == TransitionCallbackReturn.SUCCESS:
            self.running = True
            gc.collect()
            gc.freeze()  # a full collection in the middle of the run would cost up to 60 ms
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_hold`."""
        self.running = False
        result = self._transition("deactivate", self.on_hold)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_free`."""
        return self._transition("clean up", self.on_free)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold, free, and let the process end."""
        self.running = False
        self._transition("hold", self.on_hold)
        result = self._transition("free", self.on_free)
        self.finished = True
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, so that it can be configured again."""
        self.running = False
        return TransitionCallbackReturn.SUCCESS

    def autostart(self) -> None:
        """Configure and activate, unless the parameter `autostart` is false.

        Raises:
            SafeO2OError: one of the two failed; the message is the cause.
        """
        if not self.get_parameter("autostart").value:
            return
        for name, trigger in (
            ("configure", self.trigger_configure),
            ("activate", self.trigger_activate),
        ):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                raise SafeO2OError(f"cannot {name}: {self.last_error}", where=self.get_name())

    def close(self) -> None:
        """Hold, free and write the figures; safe to call twice, never raises."""
        if self.running:
            self.running = False
            self._transition("hold", self.on_hold)
        self._transition("free", self.on_free)
        self.write_latency()

    def write_latency(self) -> None:
        """Write the latency summary to `latency_dir`, where one is set."""
        folder = self.get_parameter("latency_dir").value
        if folder and self.latency:
            self._transition(
                "write latency",
                lambda: self.latency.write(Path(folder) / f"{self.get_name()}.json"),
            )

    # Guards.

    def guarded(self, callback: F) -> F:
        """The callback, with any exception logged and counted instead of ending the process."""

        def call(*args: Any) -> Any:
            try:
                return callback(*args)
            except Exception as error:
                self.note_error(f"{callback.__name__}: {error}")
                if len(args) != 2:
                    return None
                args[
                    1
                ].message = self.last_error  # a service must answer; `success` is False unless set
                return args[1]

        return call  # type: ignore[return-value]

    def note_error(self, text: str) -> None:
        """Log and count a failure; `/diagnostics` shows the last one."""
        self.errors += 1
        self.last_error = " ".join(text.split())
        self.get_logger().error(self.last_error)

    def _transition(self, name: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except Exception as error:
            self.note_error(f"{name}: {type(error).__name__}: {error}")
            if isinstance(error, SafeO2OError):
                self.last_error = " ".join(str(error).split())
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _guard_transitions(self) -> None:
        """Refuse a request that is not valid in the current state, instead of dying of it."""
        service = self._service_change_state
        original = service.callback

        def change_state(request: Any, response: Any) -> Any:
            try:
                return original(request, response)
            except Exception as error:
                self.get_logger().error(f"rejected transition {request.transition.id}: {error}")
                response.success = False
                return response

        service.callback = change_state

    def _publish_health(self) -> None:
        try:
            level, message, values = self.health()
        except Exception as error:
            level, message, values = ERROR, f"health: {error}", {}
        if self.errors and level == OK:
            level, message = WARN, f"{self.errors} errors, last: {self.last_error}"
        msg = DiagnosticArray()
        msg.header.stamp = self.get_clock().now().to_msg()
        figures = {"errors": self.errors, "namespace": self.get_namespace()}
        figures |= {**values, **self.latency.flat()}
        msg.status = [
            DiagnosticStatus(
                level=level,
                name=f"{self.get_name()}: {'active' if self.running else 'inactive'}",
                message=message,
                hardware_id="safe_o2o",
                values=[KeyValue(key=key, value=str(value)) for key, value in figures.items()],
            )
        ]
        self._diagnostics.publish(msg)


def make_executor(context: rclpy.Context | None = None) -> Executor:
    """`EventsExecutor` where rclpy has it, else the single-threaded one; for `spin_once` only."""
    try:
        from rclpy.experimental.events_executor import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


class MiddlewareError(SafeO2OError):
    """The middleware refuses to start: keys that SROS2 wants are not there, say."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What the middleware refuses at the start, in one line.

    Raises:
        MiddlewareError: for each of its errors.
    """
    try:
        yield
    except RCLError as error:
        what = str(error).split(", at /")[0]
        secure = os.environ.get("ROS_SECURITY_ENABLE", "").lower() == "true"
        todo = "see docs/security.md" if secure else None
        raise MiddlewareError(what, where="ROS", todo=todo) from error


def said(error: SafeO2OError) -> int:
    """One line on stderr; the exit code."""
    sys.stderr.write(f"{' '.join(str(error).split())}\n")
    return error.exit_code


def _orphaned() -> bool:
    """Whether the process that started this one is gone: alone, a node would run for ever."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and int(parent) != os.getppid()


def run_node(make: Callable[[], GuardedNode], argv: Sequence[str] | None = None) -> int:
    """The `main` of every node: start, loop until a signal or `finished`, hold, free, shut down.

    Args:
        make: builds the node (after rclpy is up).
        argv: the command line, ROS arguments included.

    Returns:
        Exit code: 0 ended as asked, 2 the input was at fault (one line on stderr), the node's own
        otherwise.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with explained():
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except SafeO2OError as error:
        return said(error)
    stop = threading.Event()
    executor = make_executor()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: (stop.set(), executor.wake()))
    node: GuardedNode | None = None
    code = 0
    try:
        with explained():
            node = make()
        executor.add_node(node)
        node.autostart()
        while not (stop.is_set() or node.finished or _orphaned()):
            node.step(executor)
        code = node.exit_code
    except SafeO2OError as error:
        code = said(error)
    finally:
        if node is not None:
            node.close()
            for publisher in node.publishers:
                with contextlib.suppress(Exception):  # a dead subscriber must not hold us up
                    publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=0.2))
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
    return code
