"""The fault matrix: what goes wrong, what has to happen, and how soon. Each row really does it.

Every row takes a rig's body and answers with what it measured; it raises where the reaction is not
the expected one. `benchmarks/faults.py` prints the table, tests/test_faults.py runs every row.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from safe_o2o import files
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import EpisodeRecorder
from safe_o2o.errors import ConfigError, StorageError
from safe_o2o.runtime.live_policy import LivePolicy
from safe_o2o.runtime.supervision import SupervisionConfig
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.supervisor import Mode
from safe_o2o.safety.watchdog import IMAGE
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Decision, Proposal, RobotState, Source, Transition, Verdict
from tests.invariance import HOME
from tests.judge import DT
from tests.rig import Body, Rig

SPEED = 4e-3
"""Step of the policy at work, rad in 50 ms: 0.08 rad/s."""


class Missed(AssertionError):
    """A reaction was not the expected one, or came too late."""


def need(claim: bool, text: str) -> None:
    """Raise unless a claim holds."""
    if not claim:
        raise Missed(text)


def well(rig: Rig) -> None:
    """What must hold in every row: set-points inside the joints' limits, none without a verdict."""
    need(not rig.violations, f"set-points outside limits: {rig.violations[:3]}")
    need(all(np.isfinite(tick.decision.command.q).all() for tick in rig.ticks), "not finite")


def ticks_until(rig: Rig, begin: int, claim: Callable[[Decision], bool]) -> int:
    """Ticks from `begin` until a decision fulfils a claim."""
    for count, tick in enumerate(rig.ticks[begin:], start=1):
        if claim(tick.decision):
            return count
    raise Missed("never")


def stopped(decision: Decision) -> bool:
    return decision.verdict is Verdict.STOPPED


# ---------------------------------------------------------------------- the rows


def policy_killed(body: Body) -> str:
    """A policy in a process of its own, killed with SIGKILL in the middle of a motion."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_policy, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    with Rig(body) as rig:
        rig.armed()
        proposal, killed_at = None, 0
        for tick in range(60):
            if tick == 32:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                killed_at = len(rig.ticks)
            try:
                if tick % 5 == 0:
                    ours.send((rig.state.q_command, rig.state.stamp))
                    proposal = Proposal(*ours.recv(), rig.names)
                elif ours.poll():  # nothing was asked for: the other end is gone
                    ours.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                rig.watch.gone("command", rig.now, "the policy's process ended")
            rig.tick(proposal)
        begun = ticks_until(rig, killed_at, stopped)
        still = ticks_until(rig, killed_at, lambda d: not d.command.dq.any())
        need(begun <= 2, f"the stop began after {begun} periods")
        need(rig.mode is Mode.STOPPED, f"is {rig.mode.name}")
        well(rig)
        return f"begins in {begun} periods, stands after {1e3 * still * DT:.0f} ms, latched"


def _policy(pipe: Connection) -> None:
    while True:
        q, stamp = pipe.recv()
        step = np.zeros(7)
        step[0] = SPEED
        pipe.send((q + step * np.arange(1, 5)[:, None], 0.05, stamp))


def command_late(body: Body) -> str:
    """No new command: first a hold that clears by itself, then a latched stop."""
    with Rig(body) as rig:
        rig.armed().drive(40, SPEED)
        begin = len(rig.ticks)
        rig.silent(80)
        late, lost = rig.since(begin, Mode.DEGRADED), rig.since(begin, Mode.STOPPED)
        # The chunk itself lasts 50 ms; one tick to notice.
        need(late <= 0.15 + DT + 1e-9, f"degraded after {late:.2f} s")
        need(lost <= 0.55 + DT + 1e-9, f"latched after {lost:.2f} s")
        well(rig)
        return f"degraded {late:.2f} s, latched {lost:.2f} s after a chunk of 0.05 s began"


def camera_frozen(body: Body) -> str:
    """The camera repeats one frame, bit for bit, at its usual rate."""
    config = SupervisionConfig(sources={"image": IMAGE})
    generator = np.random.default_rng(0)
    with Rig(body, config) as rig:
        frame = generator.integers(0, 255, (64, 64, 3), np.uint8)

        def run(ticks: int, frozen: bool) -> None:
            nonlocal frame
            for tick in range(ticks):
                if tick % 3 == 0:
                    if not frozen:
                        frame = generator.integers(0, 255, (64, 64, 3), np.uint8)
                    rig.watch.watchdog.feed("image", rig.now, content=frame)
                rig.drive(1, SPEED)

        run(3, False)
        need(rig.watch.arm(rig.now) == "", "cannot arm")
        run(40, False)
        need(rig.mode is Mode.ARMED, f"is {rig.mode.name} with a camera that is well")
        begin = len(rig.ticks)
        run(60, True)
        late, lost = rig.since(begin, Mode.DEGRADED), rig.since(begin, Mode.STOPPED)
        need(late <= 0.1 + 0.02 and lost <= 0.3 + 0.02, f"after {late:.2f} and {lost:.2f} s")
        well(rig)
        return f"degraded {late:.2f} s, latched {lost:.2f} s"


def joint_state_stops(body: Body) -> str:
    """The driver hands out the same reading for ever."""
    with Rig(body) as rig:
        rig.armed().drive(40, SPEED)
        frozen, begin = rig.state, len(rig.ticks)
        rig.robot.read = lambda: frozen
        rig.silent(30)
        lost = rig.since(begin, Mode.STOPPED)
        begun = ticks_until(rig, begin, stopped)
        need(lost <= 0.1 + 2 * DT and begun <= 2, f"latched after {lost:.2f} s")
        need(all(np.isfinite(tick.decision.command.q).all() for tick in rig.ticks), "not finite")
        return f"holds after {begun} periods, latched {lost:.2f} s"


def stamps_in_the_future(body: Body) -> str:
    """Every proposal's stamp is three seconds ahead: clocks are apart."""
    with Rig(body) as one, Rig(body) as two:
        one.armed().drive(60, SPEED)
        two.armed().drive(60, SPEED, lambda p: replace(p, stamp=p.stamp + 3.0))
        apart = float(np.abs(np.array(one.written) - np.array(two.written)).max())
        need(two.mode is Mode.ARMED and apart == 0.0, f"{two.mode.name}, {apart:.1e} rad apart")
        need("stamp_future" in two.watch.faults, "nobody was warned")
        well(two)
        return f"time of receipt used, warned, {apart:.0f} rad of difference"


def not_finite(body: Body) -> str:
    """One joint's target is NaN or infinite in half of all proposals."""
    generator = np.random.default_rng(0)
    broken = 0

    def spoil(proposal: Proposal) -> Proposal:
        nonlocal broken
        if generator.random() < 0.5:
            return proposal
        q = proposal.q.copy()
        q[0, generator.integers(7)] = generator.choice([np.nan, np.inf, -np.inf])
        broken += 1
        return replace(proposal, q=q)

    with Rig(body) as rig:
        rig.armed()
        n = 10_000 if body == "mock" else 2_000
        for _ in range(n // 100):
            rig.drive(100, SPEED * (1 if rig.state.q[0] < 0.5 else -1), spoil)
        well(rig)
        need(all(np.isfinite(q).all() for q in rig.written), "leaked")
        refused = sum(tick.decision.reason == "proposal_not_finite" for tick in rig.ticks)
        need(refused > 0 and rig.mode in (Mode.ARMED, Mode.DEGRADED), f"is {rig.mode.name}")
        return f"{broken} whole commands refused in {n} ticks, 0 leaked"


def names_permuted(body: Body) -> str:
    """The same targets with columns and names in another order; then one unknown name."""
    order = [3, 0, 6, 1, 5, 2, 4]

    def permuted(p: Proposal) -> Proposal:
        return replace(p, q=p.q[:, order], joint_names=tuple(p.joint_names[k] for k in order))

    with Rig(body) as one, Rig(body) as two:
        one.armed().drive(60, SPEED)
        two.armed().drive(60, SPEED, permuted)
        apart = float(np.abs(np.array(one.written) - np.array(two.written)).max())
        need(apart == 0.0, f"{apart:.1e} rad apart")
        begin = len(two.ticks)
        two.drive(30, SPEED, lambda p: replace(p, joint_names=("nobody", *p.joint_names[1:])))
        reason = {tick.decision.reason for tick in two.ticks[begin:]}
        need("proposal_names" in reason, f"only {reason}")
        two.drive(20, SPEED, lambda p: replace(p, joint_names=p.joint_names[:-1], q=p.q[:, :-1]))
        well(two)
        found = f"mapped by name with {apart:.0f} rad of difference"
        return f"{found}; unknown and missing names refused"


def bad_limits(body: Body) -> str:
    """A limit that is NaN, negative, swapped or missing never gets as far as a filter."""
    good = RobotLimits.load("panda")
    n = len(good.joint_names)
    wrong: dict[str, dict[str, Any]] = {
        "NaN": {"velocity": np.full(n, np.nan)},
        "negative": {"acceleration": -good.acceleration},
        "zero": {"velocity": np.zeros(n)},
        "swapped": {"q_low": good.q_high, "q_high": good.q_low},
        "infinite": {"q_high": np.full(n, np.inf)},
        "too few": {"velocity": good.velocity[:-1]},
    }
    for name, change in wrong.items():
        try:
            replace(good, **change)
        except ConfigError:
            continue
        raise Missed(f"{name} limits were taken")
    return f"{len(wrong)} kinds refused at load"


def odd_dt(body: Body) -> str:
    """The loop's clock stands still, goes back, and jumps to ten times its period."""
    with Rig(body) as rig:
        offset, read = 0.0, rig.robot.read

        def late() -> RobotState:
            state: RobotState = read()
            return replace(state, stamp=state.stamp + offset)

        rig.robot.read = late
        rig.armed().drive(40, SPEED)
        reasons = set()
        for jump in (-DT, -5 * DT, 9 * DT, 99 * DT):
            offset += jump
            reasons.add(rig.drive(1, SPEED).reason)
            rig.drive(80, SPEED)
        largest = max(
            float((np.abs(b - a) / (rig.filter.limits.velocity * DT)).max())
            for a, b in zip(rig.written, rig.written[1:], strict=False)
        )
        need(reasons == {"clock_jump"} and largest <= 1.0 + 1e-9, f"{reasons}, step {largest:.3f}")
        need(rig.mode is Mode.ARMED, f"is {rig.mode.name}")
        well(rig)
        return f"clock_jump each time, goes on by itself; largest step {largest:.2f} of v dt"


def far_first_target(body: Body) -> str:
    """The first target after arming is 0.3 rad away, and then 1 rad."""
    with Rig(body) as rig:
        rig.armed()
        goal, fastest = rig.propose([0.3, 0, 0, 0, 0, 0, 0]), 0.0
        for tick in range(250):
            if tick % 5 == 0:
                goal = replace(goal, stamp=rig.state.stamp)
            decision = rig.tick(goal)
            if rig.watch.first_command.armed:  # not near yet
                fastest = max(fastest, float(np.abs(decision.command.dq).max()))
        need(
            abs(rig.state.q_command[0] - HOME[0] - 0.3) < 1e-3,
            f"got {rig.state.q_command[0] - HOME[0]:.3f} rad far",
        )
        need(0.0 < fastest < 0.4, f"approached at {fastest:.2f} rad/s")
        well(rig)
    with Rig(body) as rig:
        rig.armed()
        rig.tick(rig.propose([1.0, 0, 0, 0, 0, 0, 0]), 10)
        need((rig.state.q_command == rig.written[0]).all(), "moved")
        cause = rig.watch.supervisor.cause
        need(cause is not None and cause.code == "first_command", f"{cause}")
        well(rig)
    return f"0.3 rad approached at most {fastest:.2f} rad/s; 1 rad refused"


def outside_limits(body: Body) -> str:
    """The arm starts 0.02 rad beyond a joint's range, as after being pushed by hand."""
    start = HOME.copy()
    start[3] = RobotLimits.load("panda").q_high[3] + 0.02
    start[1], start[5] = -0.4, 1.2
    with Rig(body, q=start) as rig:
        rig.armed()
        rig.violations = []
        outward = np.zeros(7)
        outward[3] = 4e-3
        rig.tick(rig.propose(outward), 10)
        need(rig.state.q_command[3] <= start[3] + 1e-9, "went farther out")
        for _ in range(60):
            rig.tick(rig.propose(-outward), 5)
        back = start[3] - rig.state.q_command[3]
        need(back > 0.02, f"came back by {back:.3f} rad only")
        outside = [v for v in rig.violations if v != "position"]
        need(not outside, f"{outside[:3]}")
        return f"outward refused, came back {back:.2f} rad"


def stop_from_every_mode(body: Body) -> str:
    """A stop request in every mode, during a takeover by a person and while a bundle is loaded."""
    worst = 0
    for mode in Mode:
        with Rig(body) as rig:
            rig.tick()
            if mode is Mode.SHADOW:
                rig.watch.shadow(rig.now)
            if mode in (Mode.ARMED, Mode.DEGRADED, Mode.STOPPED):
                rig.watch.arm(rig.now)
                rig.drive(40, SPEED)
            if mode is Mode.DEGRADED:
                rig.silent(18)
            if mode is Mode.STOPPED:
                rig.watch.stop("first", rig.now)
            need(rig.mode is mode, f"could not get to {mode.name}")
            worst = max(worst, _stop(rig))
    with Rig(body) as rig:  # a person takes over
        rig.armed().drive(40, SPEED)
        rig.drive(20, -SPEED, lambda p: replace(p, source=Source.HUMAN))
        worst = max(worst, _stop(rig))
    with Rig(body) as rig:  # the policy's side is busy: its proposal in progress goes on
        rig.armed().drive(40, SPEED)
        rig.silent(3)
        worst = max(worst, _stop(rig))
    with Rig(body) as rig:  # between a reset and the arming that follows
        rig.armed().drive(40, SPEED)
        rig.watch.stop("first", rig.now)
        rig.silent(60)
        need(rig.watch.reset(rig.now) == "", "cannot reset")
        worst = max(worst, _stop(rig))
    return f"accepted in 5 modes and 3 transitions, begun within {worst} period"


def _stop(rig: Rig) -> int:
    begin = len(rig.ticks)
    need(rig.watch.stop("operator", rig.now) == "", "refused")
    rig.drive(60, SPEED)
    need(rig.mode is Mode.STOPPED, f"is {rig.mode.name}")
    need(not rig.ticks[-1].decision.command.dq.any(), "does not stand")
    obeyed = [not tick.written or stopped(tick.decision) for tick in rig.ticks[begin:]]
    need(all(obeyed), "went on")
    well(rig)
    return obeyed.index(True) + 1


def learner_dies(body: Body) -> str:
    """What a learner leaves that is killed while it writes, and one that hands over bad weights."""
    from tests.standin_policy import standin_bundles

    with tempfile.TemporaryDirectory() as folder:
        bundles = Path(folder) / "bundles"
        _copy(standin_bundles(), bundles)
        live = LivePolicy(bundles)
        before = live.version
        with Rig(body) as rig:
            rig.armed().drive(20, SPEED)
            half = bundles / "v000002"
            half.mkdir()
            (half / "policy.onnx").write_bytes(os.urandom(1000))  # and no manifest: it was killed
            live.swap()
            rig.drive(20, SPEED)
            _copy(bundles / before, bundles / "v000003")
            graph = next((bundles / "v000003").glob("*.onnx"))
            graph.write_bytes(graph.read_bytes()[:-7] + b"garbage")
            pointer = bundles / "current.json"
            pointer.write_text(pointer.read_text().replace(before, "v000003"))
            live.swap()
            rig.drive(20, SPEED)
            need(live.version == before, f"acts with {live.version}")
            need(live.refused != {}, "nothing was said")
            need(len(rig.written) == 60 and rig.mode is Mode.ARMED, "missed ticks")
            well(rig)
        return f"{before} goes on acting, refusal reported, {len(rig.written)} of 60 ticks"


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())


def inference_stalls(body: Body) -> str:
    """The policy's device stalls for 500 ms, and then hands over what it was computing."""
    with Rig(body) as rig:
        rig.armed().drive(40, SPEED)
        chunk = rig.propose([4 * SPEED, 0, 0, 0, 0, 0, 0], rows=4)
        late = rig.propose([-4 * SPEED, 0, 0, 0, 0, 0, 0], rows=4)
        begin = len(rig.ticks)
        rig.tick(chunk, 50)
        held = ticks_until(rig, begin, stopped)
        end = rig.state.q_command
        rig.tick(late, 1)  # 0.5 s after the observation behind it
        need(np.abs(rig.state.q_command - end).max() < 1e-12, "an outdated action was executed")
        rig.drive(80, SPEED)
        need(rig.mode is Mode.ARMED, f"is {rig.mode.name} after the stall")
        well(rig)
        return f"chunk of 0.2 s drains, holds after {held * DT:.2f} s, goes on by itself"


def disk_full(body: Body) -> str:
    """The disk is full when an episode is to be written, in the middle of a run."""
    spec = Spec(
        ObservationSpec({"q": ArraySpec((7,), "float32", "rad")}),
        ActionSpec(("dx",), "m", (-0.02,), (0.02,), 0.05),
    )

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with tempfile.TemporaryDirectory() as folder, Rig(body) as rig:
        rig.armed()
        dataset = Dataset.create(Path(folder) / "d", spec, task="faults")
        recorder = EpisodeRecorder(dataset)
        refusals = 0
        for episode in range(3):
            recorder.start(EpisodeMeta("faults"))
            for step in range(10):
                obs = {"q": np.float32(rig.state.q)}
                rig.drive(5, SPEED)
                done = step == 9
                zero = np.zeros(1, np.float32)
                recorder.append(
                    Transition(obs, zero, zero, 0.0, 0.0, False, done, stamp=0.05 * step)
                )
            final = {"q": np.float32(rig.state.q)}
            with mock.patch.object(files.os, "fsync", refuse if episode == 1 else os.fsync):
                try:
                    recorder.commit(final, 0.5)
                except StorageError:
                    refusals += 1
        recorder.close()
        dataset.refresh()
        need(refusals == 1 and len(dataset) == 2, f"{refusals} refusals, {len(dataset)} episodes")
        need(len(rig.written) == 150 and rig.mode is Mode.ARMED, "missed ticks")
        well(rig)
        ticks, kept = len(rig.written), len(dataset)
        return f"said in one line, {ticks} of 150 ticks, {kept} of 2 other episodes on disk"


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        fault: what is injected.
        reaction: what has to happen.
        bound: how soon, or how much.
        run: does it; returns what was measured, raises `Missed`.
    """

    fault: str
    reaction: str
    bound: str
    run: Callable[[Body], str]


ROWS = (
    Row("policy process killed", "verified stop, latched", "2 periods", policy_killed),
    Row("command too old", "hold, then latch", "0.1 s, 0.5 s past its end", command_late),
    Row("camera frozen", "degrade, then latch", "0.1 s, 0.3 s", camera_frozen),
    Row("joint state stops", "hold and latch", "0.1 s", joint_state_stops),
    Row("stamps in the future", "time of receipt, warned", "same motion", stamps_in_the_future),
    Row("NaN or inf in one joint", "whole command refused, counted", "0 leaked", not_finite),
    Row("joint names permuted", "mapped by name, unknown refused", "0 leaked", names_permuted),
    Row("limits NaN, negative, swapped", "refused", "at load", bad_limits),
    Row("dt zero, negative, 10x", "stored stop, counted", "steps within v dt", odd_dt),
    Row("first target far away", "ramp or refusal", "0.4 rad/s in the ramp", far_first_target),
    Row("start pose outside limits", "inward motion only", "no deadlock", outside_limits),
    Row("stop request in any state", "accepted", "1 period", stop_from_every_mode),
    Row("learner dies, bad weights", "last good bundle, reported", "no tick missed", learner_dies),
    Row("inference stalls 500 ms", "chunk drains, hold", "nothing outdated", inference_stalls),
    Row("disk full in an episode", "control goes on", "no episode lost", disk_full),
)
