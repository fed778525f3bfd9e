"""What happens over ROS 2 when something dies: each fault done to a running graph, and timed.

The graph is a real arm's on mock hardware (`launch/graphs/real.yaml`), a process a node, in real
time, with the thresholds of `launch/params/real.yaml`; the arm's own driver says when it stood.
Nobody looks after the processes here: whatever stops the arm is its own node, or the driver.

    python benchmarks/ros_faults.py [--only WORD] [--markdown FILE]

Exit code 1 when a reaction is not the expected one or comes too late. About four minutes; needs a
machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _ros_props import NotHere, fill, promote_spoilt, small_disk, webcam
from _ros_rig import MOVES, Missed, Rig, Swing, need, write_bundle
from geometry_msgs.msg import Twist
from rich.console import Console
from rich.progress import track
from rich.table import Table
from trajectory_msgs.msg import JointTrajectory

from safe_o2o import bundle
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import SafeO2OError
from safe_o2o.runtime.deployment import REAL_NAMESPACE
from safe_o2o_ros import qos

CHUNK = 0.2
"""Time that a policy's proposal covers, s."""
MISSED = 0.01
"""Largest share of ticks that may be skipped where the arm goes on."""
BRAKE = 0.3
"""Longest that the arm needs to stand, once it brakes, s."""


@dataclass(frozen=True)
class Row:
    """A fault, what has to happen, how soon, and who does it."""

    fault: str
    reaction: str
    bound: str
    run: Callable[[Path], str]


def good(run: Path) -> Path:
    """Bundles with one that swings the tool."""
    bundles = run / "bundles"
    bundle.set_current(bundles, write_bundle(bundles, Swing()).name)
    return bundles


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


# ---------------------------------------------------------------------- somebody dies


def policy_killed(run: Path) -> str:
    with Rig(run, good(run)) as rig:
        rig.at_work()
        stood = rig.stood(rig.kill("policy_node"), CHUNK + BRAKE)
        rig.latched("lost_command")
    return f"stands after {ms(stood)}, latched"


def policy_stopped(run: Path) -> str:
    with Rig(run, good(run)) as rig:
        rig.at_work()
        stood = rig.stood(rig.kill("policy_node", signal.SIGSTOP), CHUNK + BRAKE)
        rig.wait(1.0 - stood)
        rig.kill("policy_node", signal.SIGCONT)
        rig.latched("lost_command")
    return f"stands after {ms(stood)}, latched; back again it moves nothing"


def camera_killed(run: Path) -> str:
    with Rig(run, good(run)) as rig:
        rig.at_work()
        stood = rig.stood(rig.kill("camera_node"), 2 * CHUNK + BRAKE)
        rig.latched("lost_")
        cause = rig.cause.split()[0]
    return f"stands after {ms(stood)}, latched (`{cause}`)"


def camera_frozen(run: Path) -> str:
    """Pictures go on coming, and are all the same."""
    parameters = {"camera_node": {"camera": "opencv", "stream_rate": 30.0, "oldest": 0.2}}
    with webcam() as (url, freeze):
        parameters["camera_node"]["source"] = url
        limits = {"image_degrade": 0.3, "image_latch": 0.5}
        with Rig(run, good(run), {**parameters, "robot_node": limits}) as rig:
            rig.at_work()
            began = time.monotonic()
            freeze()
            stood = rig.stood(began, 0.3 + 0.3 + BRAKE)  # what the camera has on the way counts
            rig.latched("lost_image")
    return f"stands after {ms(stood)}, latched"


def goes_on_without(
    name: str, says: str = "", parameters: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Callable[[Path], str]:  # fmt: skip
    """The arm goes on without a node, killed at work, or while its diagnostics say something."""

    def run_it(run: Path) -> str:
        with Rig(run, good(run), parameters, **settings) as rig:
            rig.armed()
            told = lambda: rig.says.get(name, {}).get("message", "")  # noqa: E731
            rig.until(lambda: name in rig.says and says in told(), f"{name} is not at work", 60.0)
            rig.until(lambda: rig.driven and rig.speed > MOVES, "the arm does not move", 40.0)
            need(rig.group.processes[name].poll() is None, f"{name} has ended by itself")
            before = ticks(rig)
            rig.kill(name)
            rig.wait(3.0)
            rig.until(lambda: rig.driven and rig.mode == "ARMED", "does not go on", 10.0)
            skipped, count = (b - a for a, b in zip(before, ticks(rig), strict=True))
            need(count > 250, f"{count} ticks only")
            need(skipped <= MISSED * count, f"{skipped} of {count} ticks skipped")
        return f"goes on; {skipped} of {count} ticks skipped"

    return run_it


def robot_killed(run: Path) -> str:
    with Rig(run, good(run)) as rig:
        rig.at_work()
        stood = rig.stood(rig.kill("robot_node"), BRAKE)
        need(rig.moved(1.0) == 0.0, "moved again")
    return f"stands after {ms(stood)}: each message holds the way to rest"


def driver_killed(run: Path) -> str:
    with Rig(run, good(run)) as rig:
        rig.at_work()
        rig.kill("mock_driver_node")
        took = rig.until(lambda: rig.mode == "STOPPED", "no stop", 2.0)
        code = rig.cause.split()[0]
        need(code in ("lost_joint_state", "state_stale"), f"stopped by {rig.cause}")
    return f"latched (`{code}`), said within {ms(took)}: diagnostics are told once a second"


# ---------------------------------------------------------------------- something is wrong


def second_voice(topic: str, cause: str) -> Callable[[Path], str]:
    def run_it(run: Path) -> str:
        with Rig(run, good(run)) as rig:
            rig.at_work()
            began = time.monotonic()
            other = rig.node.create_publisher(JointTrajectory, topic, qos.COMMAND)
            stood = rig.stood(began, 0.5 + BRAKE)
            rig.latched(cause)
            rig.node.destroy_publisher(other)
        return f"stands after {ms(stood)}, latched"

    return run_it


def far_policy(run: Path) -> str:
    """A bad network between policy and arm, then a dead one."""
    with Rig(run, good(run), far=True) as rig:
        assert rig.far is not None
        rig.at_work()
        rig.far.delay = 0.05
        rig.wait(3.0)
        need(rig.mode == "ARMED" and rig.driven, f"is {rig.mode} with 50 ms: {rig.cause}")
        rig.far.delay = 0.25  # past the end of each proposal
        rig.wait(3.0)
        need(rig.mode == "DEGRADED", f"is {rig.mode} with 250 ms: {rig.cause}")
        need(rig.moved(2.0) == 0.0, "moves along what is outdated")
        rig.far.delay = 0.0
        rig.until(lambda: rig.mode == "ARMED" and rig.speed > 0.05, "does not go on", 20.0)
        rig.far.delay, rig.far.loss = 0.0, 1.0
        began = time.monotonic()
        stood = rig.stood(began, CHUNK + BRAKE)
        rig.latched("lost_command")
    return (
        "50 ms late it goes on; 250 ms late nothing moves until the network is well again; "
        f"all lost it stands after {ms(stood)}, latched"
    )


def bad_weights(run: Path) -> str:
    bundles = good(run)
    with Rig(run, bundles, {"robot_node": {"max_steps": 15}}) as rig:
        rig.at_work()
        version = promote_spoilt(bundles)
        refused = lambda: int(rig.says["policy_node"].get("refused bundles", 0))  # noqa: E731
        rig.until(refused, "the bundle was not refused", 40.0)
        rig.until(lambda: rig.driven, "no episode after it", 40.0)
        need(rig.mode == "ARMED", f"is {rig.mode}")
        acting = rig.says["policy_node"]["bundle"]
        need(acting == "v000001", f"{acting} is acting")
    return f"{version} refused and reported, v000001 goes on acting"


def disk_full(run: Path) -> str:
    """The run's disk fills up in an episode."""
    small = run / "small"
    with small_disk(small):
        bundles = good(run)
        with Rig(small, bundles, {"robot_node": {"max_steps": 20}}) as rig:
            rig.at_work()
            online = small / "online"
            rig.until(lambda: list(online.glob("episode_*.safetensors")), "no episode", 30.0)
            saved = len(list(online.glob("episode_*.safetensors")))
            fill(small)
            before = ticks(rig)
            rig.wait(15.0)
            skipped, count = (b - a for a, b in zip(before, ticks(rig), strict=True))
            need(count > 1000, f"{count} ticks only")
            said = rig.says.get("recorder_node", {}).get("message", "")
            need(rig.mode == "ARMED", f"is {rig.mode}")
        (small / "full").unlink(missing_ok=True)
        kept = len(list(Dataset(online)))
        need(kept >= saved, f"{saved - kept} episodes lost")
        need("space" in said, f"the recorder says {said}")
    return f"{skipped} of {count} ticks skipped, {kept} of {saved} episodes kept, said in one line"


def clock_jumps(run: Path) -> str:
    """Wall time of every node jumps by an hour, forth and back."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        raise NotHere("needs libfaketime")
    says = run / "faketime"
    says.write_text("+0")
    environment = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(says),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with Rig(run, good(run), environment=environment) as rig:
        rig.at_work()
        found, step = [], 0.0
        for jump in ("+3600", "+0"):
            says.write_text(jump)
            step = max(step, rig.longest_step(3.0))
            need(step < 0.05, f"the arm jumped by {step:.3f} rad")
            if rig.mode == "STOPPED":
                rig.latched("")
                found.append(f"latched (`{rig.cause.split()[0]}`)")
                break
            rig.until(lambda: rig.driven and rig.speed > MOVES, "does not go on", 30.0)
            found.append("goes on")
    return "; back again ".join(found) + f"; largest step between two states {step:.4f} rad"


# ---------------------------------------------------------------------- somebody says stop


def stop_while_loading(run: Path) -> str:
    with Rig(run, good(run), policy=False) as rig:
        rig.armed()
        rig.start_policy()
        took = rig.until(lambda: rig.call("stop").success, "stop")
        far = rig.moved(4.0)
        rig.until(lambda: "policy_node" in rig.says, "the policy did not come up")
        far += rig.moved(2.0)
        need(far == 0.0, f"moved {far:.4f} rad after the stop")
        rig.latched("operator")
    return f"answered after {ms(took)}, nothing ever moves"


def stop_on_the_way_home(run: Path) -> str:
    with Rig(run, good(run), {"robot_node": {"max_steps": 12}}) as rig:
        rig.at_work()
        rig.until(lambda: not rig.driven and rig.speed > 0.02, "is not on its way home", 30.0)
        began = time.monotonic()
        rig.call("stop")
        stood = rig.stood(began, BRAKE)
        rig.latched("operator")
    return f"stands after {ms(stood)}, latched"


def stop_while_a_person_drives(run: Path) -> str:
    with Rig(run, good(run), takeover=True) as rig:
        rig.at_work()
        device = rig.node.create_publisher(Twist, "/spacenav/twist", qos.SENSOR)
        push = Twist()
        push.linear.x = 0.5

        def hold(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                device.publish(push)
                rig.wait(0.02)

        for _ in range(100):
            hold(0.2)
            if rig.says.get("robot_node", {}).get("moved by") == "a person":
                break
        need(rig.says["robot_node"]["moved by"] == "a person", "a person could not take over")
        began = time.monotonic()
        rig.call("stop")
        hold(0.5)
        stood = rig.stood(began, BRAKE)
        hold(1.5)
        rig.latched("operator")
    return f"stands after {ms(stood)}, latched; the device, still pushed, moves nothing"


# ---------------------------------------------------------------------- helpers


def ticks(rig: Rig) -> tuple[int, int]:
    """Skipped ticks of the control loop, and all of them; as of the newest diagnostics."""
    rig.says.pop("robot_node", None)
    rig.until(lambda: "robot_node" in rig.says, "the robot node is silent")
    said = rig.says["robot_node"]
    return int(said["skipped ticks"]), int(said["ticks"])


STANDS_IN = f"{CHUNK} s of its proposal, {BRAKE} s of braking"
CONTROLLER = "/joint_trajectory_controller/joint_trajectory"
ROWS = (
    Row("`kill -9` of the policy", "holds, latched", STANDS_IN, policy_killed),
    Row("`SIGSTOP` of the policy for 1 s", "holds, latched", STANDS_IN, policy_stopped),
    Row("`kill -9` of the camera", "holds, latched", f"another {CHUNK} s", camera_killed),
    Row("camera frozen", "holds, latched", "0.9 s with image_latch 0.5", camera_frozen),
    Row("`kill -9` of the recorder", "goes on", "1 % of ticks skipped",
        goes_on_without("recorder_node")),
    Row("`kill -9` of the learner in training", "goes on", "1 % of ticks skipped",
        goes_on_without(
            "learner_node", "training", {"robot_node": {"max_steps": 20}}, learner=True, rounds=4,
            episodes_per_round=1, wait_for_learner=0.1,
            fine_tuner="benchmarks._busy_learner:FineTuner",
        )),
    Row("`kill -9` of the robot node", "the driver brakes", f"{BRAKE} s", robot_killed),
    Row("`kill -9` of the driver", "latched", "said in 2 s", driver_killed),
    Row("a second voice on the controller's topic", "holds, latched", "0.5 s to notice",
        second_voice(CONTROLLER, "second_commander")),
    Row("a second voice on `proposals`", "holds, latched", "0.5 s to notice",
        second_voice(f"{REAL_NAMESPACE}/proposals", "second_proposer")),
    Row("network late, then dead", "nothing outdated moves; latched", STANDS_IN, far_policy),
    Row("wall clock jumps an hour", "goes on or latched", "no jump of the arm", clock_jumps),
    Row("disk full in an episode", "control goes on", "no episode lost", disk_full),
    Row("a promoted bundle with NaN weights", "refused", "before it acts", bad_weights),
    Row("stop while the policy loads", "latched", "nothing moves", stop_while_loading),
    Row("stop on the way home", "latched", f"{BRAKE} s", stop_on_the_way_home),
    Row("stop while a person drives", "latched", f"{BRAKE} s", stop_while_a_person_drives),
)  # fmt: skip
HEAD = ("fault", "reaction", "bound", "measured")


def main() -> None:
    """Inject every fault, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose fault has this word in it")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    table, lines, missed = Table(*HEAD, title="faults over ROS 2", show_lines=True), [], 0
    wanted = [row for row in ROWS if arguments.only in row.fault]
    for row in track(wanted, "injecting", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                measured = row.run(Path(folder))
            except NotHere as error:
                measured = f"not injected: {error}"
            except (Missed, SafeO2OError) as error:
                measured, missed = f"MISSED: {error}", missed + 1
        table.add_row(row.fault, row.reaction, row.bound, measured)
        lines.append(f"| {row.fault} | {row.reaction} | {row.bound} | {measured} |")
    Console().print(table)
    if arguments.markdown:
        top = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        arguments.markdown.write_text("\n".join([*top, *lines]) + "\n", "utf-8")
    if missed:
        raise SystemExit(f"{missed} of {len(wanted)} missed")


if __name__ == "__main__":
    main()
