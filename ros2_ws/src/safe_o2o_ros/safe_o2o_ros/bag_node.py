"""Bags beside the episodes: what passed on the topics, one MCAP an episode, in RUN/bags.

Messages are kept as they came, never decoded. It is a process of its own, so that neither a slow
disk nor a full one holds up the recorder; when it dies, nothing is missing but bags.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.config import require_given, require_positive
from safe_o2o.data.formats.bag_writer import EpisodeBags, Topic
from safe_o2o.errors import ConfigError
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import EpisodeCommitted, PolicyOutput, record_from_msg
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting

OURS: tuple[tuple[str, type[Any], QoSProfile], ...] = (
    ("task_description", String, qos.LATCHED),
    ("scene", String, qos.LATCHED),
    ("joint_states", JointState, qos.RECORDED),
    ("joint_commands", JointState, qos.RECORDED),
    ("task_status", DiagnosticArray, qos.RECORDED),
    ("image", Image, qos.RECORDED),
    ("proposals", JointTrajectory, qos.RECORDED),
    ("policy_output", DiagnosticArray, qos.RECORDED),  # not its history: those episodes are over
    ("learner_status", DiagnosticArray, qos.LATCHED),
    ("/diagnostics", DiagnosticArray, qos.RECORDED),
)
"""What the graph itself says."""
LOOK = 0.5
"""Time between two looks for topics that nobody publishes yet, s."""


@dataclass(frozen=True)
class BagNodeConfig:
    """Parameters of the bag node."""

    run_dir: str = setting("", "run directory; bags go to its folder bags")
    topics: tuple[str, ...] = setting((), "further topics to keep, of standard message types")
    before: float = setting(1.0, "what passed so long before an episode belongs to it, s")

    def __post_init__(self) -> None:
        require_positive(self, "before")
        require_given(self, "run_dir")


class BagNode(GuardedNode):
    """Subscribes to everything, publishes nothing."""

    def __init__(self) -> None:
        super().__init__("bag_node", BagNodeConfig)
        self.bags: EpisodeBags | None = None
        self.written = 0
        self._wanted: dict[str, str] = {}
        """further topics that nobody publishes yet, by their full name"""

    def on_start(self) -> None:
        """Move what a killed process left; subscribe."""
        self.bags = EpisodeBags(Path(self.config.run_dir) / "bags", self.config.before)
        for path in self.bags.found:
            self.get_logger().warning(f"{path} was never closed: `mcap recover` makes its index")
        for name, kind, profile in OURS:
            self._keep(name, kind, profile)
        # Not a topic of the bag: it comes when the bag is over.
        self.create_subscription(
            DiagnosticArray, "episode_committed", self.guarded(self._on_committed), qos.RECORDED
        )
        ours = {self.resolve_topic_name(name) for name, _, _ in OURS}
        named = {self.resolve_topic_name(name): name for name in self.config.topics}
        # One of ours is kept as it is: a second subscription would write all of it twice.
        self._wanted = {name: asked for name, asked in named.items() if name not in ours}
        self.create_timer(LOOK, self.guarded(self._look), clock=self.steady)

    def on_free(self) -> None:
        """Close the bags that are open."""
        if self.bags is not None:
            bags, self.bags = self.bags, None
            bags.close()

    def health(self) -> Health:
        """Bags so far, and further topics that nobody publishes."""
        values = {"bags": self.written, "missing topics": ", ".join(self._wanted.values())}
        level = WARN if self._wanted else OK
        return level, f"{self.written} bags", values

    def _keep(self, name: str, kind: type[Any], profile: QoSProfile) -> None:
        """Subscribe to a topic's messages as they are on the wire."""
        package = kind.__module__.split(".")[0]
        topic = Topic(
            self.resolve_topic_name(name),
            f"{package}/msg/{kind.__name__}",
            latched=profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
        )
        then = self._on_output if name == "policy_output" else None
        self.create_subscription(
            kind, name, self.guarded(self._receiver(topic, then)), profile, raw=True
        )

    def _receiver(
        self, topic: Topic, then: Callable[[bytes, int], None] | None
    ) -> Callable[[bytes], None]:
        def receive(data: bytes) -> None:
            if self.bags is None:
                return
            now = self.get_clock().now().nanoseconds
            self.bags.receive(topic, data, now)
            if then is not None:
                then(data, now)

        return receive

    def _on_output(self, data: bytes, now: int) -> None:
        """The policy says where episodes begin and end."""
        assert self.bags is not None
        output = record_from_msg(PolicyOutput, deserialize_message(data, DiagnosticArray))
        if output.event == "end":
            self.bags.end()
        elif output.step == 0 or self.bags.current != output.episode:
            # Of an episode that was under way when this process came, the rest.
            self.bags.begin(output.episode, output.seed, now)

    def _on_committed(self, msg: DiagnosticArray) -> None:
        """The recorder says what an episode became."""
        record = record_from_msg(EpisodeCommitted, msg)
        if self.bags is None:
            return
        path = self.bags.name(record.episode, Path(record.path).stem)
        if path is not None:
            self.written += 1
            self.get_logger().info(f"{path.name}: {Path(record.path).stem or 'no episode'}")

    def _look(self) -> None:
        """Subscribe to further topics once somebody publishes them, with a quality that fits."""
        known = dict(self.get_topic_names_and_types())
        for name in [name for name in self._wanted if name in known]:
            asked = self._wanted.pop(name)
            self._keep(asked, self._type(asked, known[name][0]), self._offered(name))

    def _type(self, name: str, kind: str) -> type[Any]:
        package, _, short = kind.split("/")
        assert self.bags is not None
        try:
            found: type[Any] = getattr(importlib.import_module(f"{package}.msg"), short)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"is of {kind}, which is not installed", where=name) from error
        if not self.bags.knows(kind):
            raise ConfigError(f"is of {kind}, no standard message", where=name)
        return found

    def _offered(self, name: str) -> QoSProfile:
        """What every publisher of a topic offers at least."""
        offers = [info.qos_profile for info in self.get_publishers_info_by_topic(name)]
        reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offers)
        latched = all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
        return QoSProfile(
            depth=1 if latched else qos.RECORDED.depth,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(BagNode, argv)


if __name__ == "__main__":
    sys.exit(main())
