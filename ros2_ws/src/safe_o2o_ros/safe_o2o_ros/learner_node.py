"""The learner: watches committed episodes on disk, trains after every round, hands over by file.

It shares no memory and no socket with the actor. Its heartbeat tells the policy node whether
waiting for it makes sense; when it dies, the actor goes on with the last good bundle.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray

from safe_o2o import config as settings
from safe_o2o.config import require_given
from safe_o2o.runtime.rounds import FINE_TUNER, RoundRunner, count_episodes
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import LearnerStatus, record_to_msg
from safe_o2o_ros.node import ERROR, OK, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting


@dataclass(frozen=True)
class LearnerNodeConfig:
    """Parameters of the learner node."""

    run_dir: str = setting("", "run directory: episodes in online, bundles in bundles")
    episodes_per_round: int = setting(10, "new episodes before each round of fine-tuning")
    rounds: int = setting(4, "rounds in all")
    fine_tuner: str = setting(FINE_TUNER, "module:Class that fine-tunes")
    config_file: str = setting("", "settings file for the fine-tuner; empty for its defaults")

    def __post_init__(self) -> None:
        require_given(self, "run_dir")


class LearnerNode(GuardedNode):
    """Training runs in a thread of this process, so that signals and heartbeat go on meanwhile."""

    def __init__(self) -> None:
        super().__init__("learner_node", LearnerNodeConfig)
        self.state = "starting"
        self.failure = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.runner: RoundRunner | None = None

    def on_start(self) -> None:
        """Read what was done before; the heavy imports wait for the thread."""
        config: LearnerNodeConfig = self.config
        self.runner = RoundRunner(
            config.run_dir,
            episodes_per_round=config.episodes_per_round,
            rounds=config.rounds,
            fine_tuner=config.fine_tuner,
            config=settings.read(config.config_file) if config.config_file else None,
        )
        self._publisher = self.create_publisher(DiagnosticArray, "learner_status", qos.LATCHED)
        self._timer = self.create_timer(0.5, self._heartbeat, clock=self.steady)

    def on_run(self) -> None:
        """Start watching."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._learn, name="learner", daemon=True)
        self._thread.start()

    def on_hold(self) -> None:
        """Stop before the next round; a round under way is done again after a restart."""
        self._stop.set()

    def health(self) -> Health:
        """State and rounds done."""
        done = self.runner.done if self.runner else []
        values = {"state": self.state, "rounds": len(done)}
        if done:
            values |= {"bundle": done[-1].bundle or "none", "refusal": done[-1].refusal}
        return (ERROR if self.state == "failed" else OK), self.failure or self.state, values

    def _learn(self) -> None:
        runner = self.runner
        assert runner is not None
        try:
            self.state = "loading"
            runner.load()
            while not self._stop.is_set():
                index = runner.due()
                if index is None:
                    self.state = "done" if len(runner.done) >= runner.rounds else "waiting"
                    self._stop.wait(0.2)  # the folder has no event that survives a network mount
                    continue
                self.state = f"training round {index}"
                result = runner.run(index)
                text = result.bundle or f"no new bundle: {result.refusal}"
                self.get_logger().info(f"round {index}: {text} ({result.seconds:.1f} s)")
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.state = "failed"
            self.note_error(f"learner: {self.failure}")

    def _heartbeat(self) -> None:
        runner = self.runner
        assert runner is not None
        status = LearnerStatus(
            state=self.state,
            rounds=len(runner.done),
            episodes=count_episodes(Path(self.config.run_dir)),
            failure=self.failure,
        )
        now = self.get_clock().now().nanoseconds * 1e-9
        self._publisher.publish(record_to_msg("learner_status", status, now))
        if self.failure:  # said once, then gone: whoever started us sees that, and why
            self.exit_code, self.finished = 3, True

    @property
    def busy(self) -> bool:
        """Whether the thread is still in a round, which cannot be interrupted."""
        return self._thread is not None and self._thread.is_alive()


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    nodes: list[LearnerNode] = []

    def make() -> LearnerNode:
        nodes.append(LearnerNode())
        return nodes[0]

    code = run_node(make, argv)
    if nodes and nodes[0].busy:
        # ROS is shut down and a round leaves nothing half-written; waiting for it would take
        # minutes, and tearing the interpreter down under a thread in native code may crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
