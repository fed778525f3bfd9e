"""A supervisor behind ROS services, and the sources whose death it has to notice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from safe_o2o.runtime.supervision import Supervision
from safe_o2o.safety.shadow import PromotionCriteria
from safe_o2o.safety.supervisor import Mode
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import PolicyOutput, record_from_msg
from safe_o2o_ros.node import ERROR, OK, WARN, GuardedNode, Health

REQUESTS = ("arm", "disarm", "stop", "reset", "shadow")
LOOK = 0.2
"""Time between two looks for the policy, s."""


class Supervising:
    """Services `~/arm`, `~/disarm`, `~/stop`, `~/reset`, `~/shadow` and `~/shadow_report`.

    They are answered between two ticks.

    A policy that went away and a camera that is late, silent or frozen stop the arm.

    Args:
        node: the node; its loop ticks the supervision on the same thread.
        watch: the supervision.
        cameras: image topics to watch; the supervision has a source `image:TOPIC` for each.
        proposer: the topic of whoever moves the arm now.
    """

    def __init__(
        self,
        node: GuardedNode,
        watch: Supervision,
        cameras: Sequence[str],
        proposer: Callable[[], str],
    ) -> None:
        self.node, self.watch, self._proposer = node, watch, proposer
        for name in REQUESTS:
            node.create_service(Trigger, f"~/{name}", node.guarded(self._request(name)))
        node.create_service(Trigger, "~/shadow_report", node.guarded(self._shadow_report))
        for topic in cameras:
            node.create_subscription(Image, topic, node.guarded(self._picture(topic)), qos.STREAM)
        node.create_subscription(
            DiagnosticArray, "policy_output", node.guarded(self._on_output), qos.LOGGED
        )
        node.create_timer(LOOK, node.guarded(self._look_for_policy), clock=node.steady)

    def health(self) -> Health:
        """Level, one line where something is wrong, and figures."""
        supervisor = self.watch.supervisor
        mode, values = supervisor.mode, {"mode": supervisor.mode.name}
        if supervisor.cause is not None:
            values["last cause"] = f"{supervisor.cause.code} {supervisor.cause.detail}".strip()
        if mode not in (Mode.STOPPED, Mode.DEGRADED):
            return OK, "", values
        level = ERROR if mode is Mode.STOPPED else WARN
        return level, f"{mode.name}: {values['last cause']}", values

    def _request(
        self, name: str
    ) -> Callable[[Trigger.Request, Trigger.Response], Trigger.Response]:
        """The service of one request: the new mode, or why not."""

        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            now = time.monotonic()
            if name == "stop":
                refused = self.watch.stop("operator", now)
            else:
                refused = getattr(self.watch, name)(now)
            response.success = not refused
            response.message = refused or self.watch.mode.name
            return response

        return answer

    def _shadow_report(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """What shadow mode has counted, as JSON; success once nothing is missing to promote."""
        report = self.watch.shadow_report
        missing = report.verdict(PromotionCriteria())
        response.success = not missing
        response.message = json.dumps(report.report() | {"missing": missing})
        return response

    def _picture(self, topic: str) -> Callable[[Image], None]:
        def watch(msg: Image) -> None:
            content = np.frombuffer(msg.data, np.uint8)
            self.watch.watchdog.feed(f"image:{topic}", time.monotonic(), content=content)

        return watch

    def _on_output(self, msg: DiagnosticArray) -> None:
        """After an episode's end nobody waits for the policy's next proposal."""
        if record_from_msg(PolicyOutput, msg).event == "end":
            self.watch.idle()

    def _look_for_policy(self) -> None:
        """A policy that went away is not waited for, nor is a person's device."""
        topic = self._proposer()
        if self.watch.expects and not self.node.count_publishers(topic):
            self.watch.gone("command", time.monotonic(), f"nobody publishes {topic} any more")
            self.watch.idle()
