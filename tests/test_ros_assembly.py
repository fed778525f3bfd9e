"""Whatever order the messages arrive in, the recorded transitions are the ones that happened."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
assembly = pytest.importorskip(
    "safe_o2o_ros.assembly", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)
from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.data.recorder import DirectRecorder  # noqa: E402
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec  # noqa: E402
from safe_o2o.types import GateState, RobotState, Source, Verdict  # noqa: E402
from safe_o2o_ros.conversions import PolicyOutput, TaskStatus  # noqa: E402

pytestmark = pytest.mark.ros
SPEC = Spec(
    ObservationSpec({"x": ArraySpec((1,), "float32", "m")}),
    ActionSpec(("dx",), "m", (-0.02,), (0.02,), 0.2),
)


def status(
    stamp,
    reward=0.0,
    cost=0.0,
    verdict=0,
    reason="",
    margin=1.0,
    episode=0,
    seed=5,
    force=0.0,
    human=0,
):
    return TaskStatus(
        stamp=stamp,
        began=0.25,
        episode=episode,
        seed=seed,
        variant="hard",
        reward=reward,
        cost=cost,
        force=force,
        clearance=0.03,
        terminated=False,
        verdict=verdict,
        reason=reason,
        margin=margin,
        passed=0,
        corrected=0,
        stopped=0,
        human=human,
        held=0,
        proposal_stamp=-1.0,
        read_at=0.0,
        speed=1.0,
    )


def output(stamp, step, event="decision", action=(0.5,), terminated=False, episode=0):
    return PolicyOutput(
        stamp=stamp,
        episode=episode,
        seed=5,
        step=step,
        event=event,
        action=action if event == "decision" else (),
        outputs={},
        behavior="policy v000001",
        source=0,
        bundle="v000001",
        graph="ab12",
        gate="on",
        round=3,
        truncated=event == "end" and not terminated,
        terminated=terminated,
    )


def snapshot(stamp, command, **figures):
    q = np.array([command])
    state = RobotState(q=q, dq=0 * q, q_command=q, stamp=stamp)
    return assembly.Snapshot(
        state, {"x": np.array([command], np.float32)}, status(stamp, **figures)
    )


# Two decisions and the end: commands 0 -> 0.01 -> 0.03 m, so executed actions 0.5 and 1.0. Between
# the second decision and the end the robot asked once more (1.3) while the arm held: its verdict
# counts.
SNAPSHOTS = [
    snapshot(1.0, 0.0, cost=0.0),
    snapshot(1.2, 0.01, cost=1.0, margin=0.4, force=4.0),
    snapshot(1.3, 0.01, cost=1.0, verdict=2, reason="age", margin=0.2, force=9.0),
    snapshot(1.5, 0.03, cost=1.0, reward=1.0, verdict=1, reason="workspace", margin=0.6),
]
OUTPUTS = [
    output(1.0, 0, action=(0.25,)),
    output(1.2, 1, action=(0.75,)),
    output(1.5, 2, event="end", terminated=True),
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset.create(tmp_path / "online", SPEC, task="safe_reach")


def assembler(dataset: Dataset):
    def executed(before: RobotState, after: RobotState):
        return SPEC.action.from_si(after.q_command - before.q_command)

    return assembly.EpisodeAssembler(DirectRecorder(dataset), executed, "safe_reach")


def feed(joiner, items) -> list:
    done = []
    for item in items:
        if isinstance(item, PolicyOutput):
            done += joiner.add_output(item)
        else:
            joiner.add_status(item.status)
            done += joiner.add_snapshot(item)
    return done


def test_every_interleaving_of_the_two_streams_gives_the_episode_that_happened(dataset) -> None:
    merges = [tuple(sorted(chosen)) for chosen in itertools.combinations(range(7), len(OUTPUTS))]
    assert len(merges) == 35
    for places in merges:
        outputs, snapshots = iter(OUTPUTS), iter(SNAPSHOTS)
        items = [next(outputs) if i in places else next(snapshots) for i in range(7)]
        joiner = assembler(dataset)
        (committed,) = feed(joiner, items)
        assert joiner.waiting == 0 and joiner.dropped_episodes == 0
        assert [o.step for o in committed.outputs] == [0, 1] and committed.end is OUTPUTS[-1]
        # an output can only be overtaken by the snapshot of a later instant, never lose its
        # statuses
        first, second = dataset.open(committed.path.name).transitions()
        assert (first.action, first.proposed_action) == pytest.approx((0.5, 0.25))
        assert (second.action, second.proposed_action) == pytest.approx((1.0, 0.75))
        assert (first.force, second.force) == (4.0, 9.0)
        assert (first.clearance, second.clearance) == (0.0, pytest.approx(0.03))  # touched, near
        assert (first.cost, second.cost, first.reward, second.reward) == (1, 0, 0, 1)
        assert (first.verdict, second.verdict) == (Verdict.PASS, Verdict.STOPPED)
        assert second.reason == "age" and first.reason == ""
        assert (first.margin, second.margin) == pytest.approx((0.4, 0.2))
        assert (first.terminated, second.terminated, second.truncated) == (False, True, False)
        assert (first.stamp, second.stamp) == (1.0, 1.2)
        episode = dataset.open(committed.path.name)
        assert episode.success and episode.meta.seed == 5 and episode.meta.variant == "hard"
        assert episode.meta.behavior == "policy v000001"
        assert episode.meta.provenance["round"] == 3
        assert episode.meta.provenance["began"] == 0.25
        assert episode.array("obs.x")[:, 0].tolist() == pytest.approx([0.0, 0.01, 0.03])


def test_what_a_gate_did_is_recorded_with_who_acted_then(dataset) -> None:
    said = {"gate_state": 3.0, "gate_done": 3.0}, {"gate_state": 3.0, "gate_done": 0.0}, {}
    outputs = [
        dataclasses.replace(one, outputs=more) for one, more in zip(OUTPUTS, said, strict=True)
    ]
    (committed,) = feed(assembler(dataset), [*SNAPSHOTS, *outputs])
    episode = dataset.open(committed.path.name)
    assert episode.gate.tolist() == [GateState.BRAKE, GateState.PASS]  # the second in shadow
    assert episode.array("source").tolist() == [Source.RECOVERY, Source.POLICY]
    assert episode.meta.provenance["graph"] == "ab12" and episode.meta.provenance["gate"] == "on"


def test_a_step_that_a_person_moved_is_theirs_and_keeps_what_the_policy_wanted(dataset) -> None:
    snapshots = [
        dataclasses.replace(one, status=dataclasses.replace(one.status, human=ticks))
        for one, ticks in zip(SNAPSHOTS, (0, 0, 0, 4), strict=True)
    ]
    (committed,) = feed(assembler(dataset), [*OUTPUTS, *snapshots])
    first, second = dataset.open(committed.path.name).transitions()
    assert (first.source, second.source) == (Source.POLICY, Source.HUMAN)
    assert (second.action, second.proposed_action) == pytest.approx((1.0, 0.75))


def test_an_episode_that_nobody_ended_is_dropped_and_the_next_one_is_whole(dataset) -> None:
    joiner = assembler(dataset)
    unfinished = [SNAPSHOTS[0], OUTPUTS[0], SNAPSHOTS[1], OUTPUTS[1]]
    again = [snapshot(t + 10, c) for t, c in ((1.0, 0.0), (1.2, 0.02))]
    items = [again[0], output(11.0, 0), again[1], output(11.2, 1, event="end")]
    (committed,) = feed(joiner, [*unfinished, *items])
    assert joiner.dropped_episodes == 1 and len(dataset) == 1
    (only,) = dataset.open(committed.path.name).transitions()
    assert only.truncated and not only.terminated and only.action == pytest.approx(1.0)


def test_a_picture_that_never_comes_costs_its_episode_only(dataset) -> None:
    joiner = assembler(dataset)
    assert feed(joiner, [SNAPSHOTS[0], OUTPUTS[0], OUTPUTS[1], SNAPSHOTS[3], OUTPUTS[2]]) == []
    assert joiner.waiting == 2
    joiner.give_up()
    assert feed(joiner, [snapshot(11.0, 0.0)]) == []
    done = feed(joiner, [output(11.0, 0), snapshot(11.2, 0.0), output(11.2, 1, event="end")])
    assert len(done) == 1 and joiner.dropped_episodes == 1 and len(dataset) == 1


def test_a_lost_decision_is_noticed_by_its_number(dataset) -> None:
    joiner = assembler(dataset)
    items = [SNAPSHOTS[0], OUTPUTS[0], SNAPSHOTS[3], OUTPUTS[2]]  # step 0, then the end at step 2
    assert feed(joiner, items) == []
    assert joiner.dropped_episodes == 1 and len(dataset) == 0
