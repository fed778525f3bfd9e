"""The supervisor by enumeration: every state and every input, then random sequences of them."""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_o2o.errors import ConfigError
from safe_o2o.safety.codes import CODES, Kind, code_table, decision_codes, kind
from safe_o2o.safety.first_command import FirstCommand, FirstCommandConfig
from safe_o2o.safety.supervisor import Mode, Supervisor, SupervisorConfig
from safe_o2o.types import CertifiedCommand, Command, Decision, Verdict

SAFETY = Path(__file__).resolve().parent.parent / "safe_o2o" / "safety"
NAN = math.nan
LETTER = {
    "D": Mode.DISARMED, "S": Mode.SHADOW, "A": Mode.ARMED, "G": Mode.DEGRADED, "X": Mode.STOPPED,
}  # fmt: skip


def make(state: str, first: FirstCommand | None = None) -> Supervisor:
    """A supervisor at time 0 in a state: `+` resynced just now, `~` the arm still moves."""
    sup = Supervisor(first_command=first)
    mode = LETTER[state[0]]
    if mode is Mode.SHADOW:
        assert sup.shadow(0.0) == ""
    if mode >= Mode.ARMED:
        assert sup.resynced(0.0) == "" and sup.arm(0.0) == ""
        sup.after_tick([], 0.0, standing=not state.endswith("~"))
    if mode is Mode.DEGRADED:
        sup.after_tick(["clock_jump"], 0.0, standing=not state.endswith("~"))
    if mode is Mode.STOPPED:
        sup.stop("user", 0.0)
        for _ in range(0 if state.endswith("~") else 2):
            sup.after_tick([], 0.0, standing=True)
    if state.endswith("+"):
        assert sup.resynced(0.0) == ""
    assert sup.mode is mode
    return sup


def tick(*codes: str, now: float = 0.1) -> Callable[[Supervisor], str]:
    def run(sup: Supervisor) -> str:
        sup.after_tick(codes, now)
        return ""

    return run


def rest(sup: Supervisor) -> str:
    sup.after_tick([], 0.1, standing=True)
    return ""


def then(*steps: Callable[[Supervisor], str]) -> Callable[[Supervisor], str]:
    def run(sup: Supervisor) -> str:
        return [step(sup) for step in steps][-1]

    return run


INPUTS: dict[str, Callable[[Supervisor], str]] = {
    "shadow": lambda s: s.shadow(0.1),
    "arm": lambda s: s.arm(0.1),
    "arm late": lambda s: s.arm(0.6),
    "arm before": lambda s: s.arm(-0.1),
    "arm, not fed": lambda s: s.arm(0.1, ["lost_command"]),
    "disarm": lambda s: s.disarm(0.1),
    "reset": lambda s: s.reset(0.1),
    "stop": lambda s: s.stop("user", 0.1),
    "resynced": lambda s: s.resynced(0.1),
    "placed": lambda s: s.placed(0.1),
    "placed, arm": then(lambda s: s.placed(0.1), lambda s: s.arm(0.1)),
    "placed, reset": then(lambda s: s.placed(0.1), lambda s: s.reset(0.1)),
    "shadow at nan": lambda s: s.shadow(NAN),
    "arm at nan": lambda s: s.arm(NAN),
    "disarm at nan": lambda s: s.disarm(NAN),
    "stop at nan": lambda s: s.stop("user", NAN),
    "resynced at nan": lambda s: s.resynced(NAN),
    "nothing": tick(),
    "note": tick("stamp_future"),
    "held": tick("obstacles"),
    "soft": tick("stale_command"),
    "latched": tick("lost_command"),
    "unknown": tick("brand_new"),
    "soft, latched": tick("stale_command", "tracking_error"),
    "tick at nan": tick(now=NAN),
    "tick at inf": tick(now=math.inf),
    "tick back": tick(now=-0.1),
    "quiet": then(tick(now=0.1), tick(now=0.6)),
    "quiet, held": then(tick("no_proposal", now=0.1), tick("workspace", now=0.6)),
    "not yet quiet": then(tick(now=0.1), tick(now=0.5)),
    "quiet, broken": then(tick(now=0.1), tick("clock_jump", now=0.3), tick(now=0.6)),
    "at rest twice": then(rest, rest),
    "soft, arm": then(tick("stale_command"), lambda s: s.arm(0.1)),
    "latched, arm": then(tick("lost_command"), lambda s: s.arm(0.1)),
    "latched, shadow": then(tick("lost_command"), lambda s: s.shadow(0.1)),
    "latched, reset": then(tick("lost_command"), lambda s: s.reset(0.1)),
    "gone, reset": then(tick("lost_command"), tick(), lambda s: s.reset(0.1)),
    "disarm, arm": then(lambda s: s.disarm(0.1), lambda s: s.arm(0.1)),
    "shadow, arm": then(lambda s: s.shadow(0.1), lambda s: s.arm(0.1)),
    "resync, stop, arm": then(
        lambda s: s.stop("user", 0.1),
        rest,
        rest,
        lambda s: s.resynced(0.1),
        lambda s: s.stop("user", 0.1),
        lambda s: s.reset(0.1),
        lambda s: s.arm(0.1),
    ),
    "stop, resync, arm": then(
        lambda s: s.stop("user", 0.1), lambda s: s.resynced(0.1), lambda s: s.arm(0.1)
    ),
}
# One column a state; the letter is the mode afterwards, small where the request was refused.
TABLE = """
                   D D+ S S+ A A~ G G~ X~ X
shadow             S S  S S  a a  g g  x  x
arm                d A  s A  a a  g g  x  x
arm late           d d  s s  a a  g g  x  x
arm before         d d  s s  a a  g g  x  x
arm, not fed       d d  s s  a a  g g  x  x
disarm             D D  D D  D a  D g  x  x
reset              d d  s s  a a  g g  x  D
stop               X X  X X  X X  X X  X  X
resynced           D D  S S  a a  g g  x  X
placed             D D  S S  A A  A A  X  X
placed, arm        A A  A A  a a  a a  x  x
placed, reset      d d  s s  a a  a a  D  D
shadow at nan      d d  S S  a a  g g  x  x
arm at nan         d d  s s  a a  g g  x  x
disarm at nan      D D  D D  D a  D g  x  x
stop at nan        X X  X X  X X  X X  X  X
resynced at nan    d d  s s  a a  g g  x  x
nothing            D D  S S  A A  G G  X  X
note               D D  S S  A A  G G  X  X
held               D D  S S  A A  G G  X  X
soft               D D  S S  G G  G G  X  X
latched            D D  X X  X X  X X  X  X
unknown            D D  X X  X X  X X  X  X
soft, latched      D D  X X  X X  X X  X  X
tick at nan        D D  X X  X X  X X  X  X
tick at inf        D D  X X  X X  X X  X  X
tick back          D D  S S  G G  G G  X  X
quiet              D D  S S  A A  A A  X  X
quiet, held        D D  S S  A A  A A  X  X
not yet quiet      D D  S S  A A  G G  X  X
quiet, broken      D D  S S  G G  G G  X  X
at rest twice      D D  S S  A A  G G  X  X
soft, arm          d d  s s  g g  g g  x  x
latched, arm       d d  x x  x x  x x  x  x
latched, shadow    d d  x x  x x  x x  x  x
latched, reset     d d  x x  x x  x x  x  x
gone, reset        d d  D D  x x  x x  x  D
disarm, arm        d A  d A  d a  d g  x  x
shadow, arm        s s  s A  a a  g g  x  x
resync, stop, arm  d d  d d  d d  d d  d  d
stop, resync, arm  x x  x x  x x  x x  x  x
"""
HEAD, *ROWS = TABLE.strip("\n").split("\n")
STATES = HEAD.split()
CASES = [
    (row[:19].strip(), state, letter)
    for row in ROWS
    for state, letter in zip(STATES, row[19:].split(), strict=True)
]


def test_the_table_is_complete() -> None:
    assert {(name, state) for name, state, _ in CASES} == set(itertools.product(INPUTS, STATES))
    assert {LETTER[state[0]] for state in STATES} == set(Mode)
    classes = {
        kind(code) for code in ("stamp_future", "obstacles", "stale_command", "lost_command")
    }
    assert classes == set(Kind)


@pytest.mark.parametrize(("name", "state", "letter"), CASES)
def test_every_state_and_every_input(name: str, state: str, letter: str) -> None:
    sup = make(state)
    before = sup.mode
    answer = INPUTS[name](sup)
    assert sup.mode is LETTER[letter.upper()]
    assert (answer == "") == letter.isupper(), answer
    assert "\n" not in answer and len(answer) < 90
    assert sup.may_move == (sup.mode is Mode.ARMED)
    if sup.mode in (Mode.DISARMED, Mode.SHADOW):
        assert not sup.may_write
    elif sup.mode is Mode.STOPPED:
        # Only what was moved has a stop to play, and only until it stands.
        assert sup.may_write == (before in (Mode.ARMED, Mode.DEGRADED) or state == "X~") or (
            name in ("at rest twice", "placed", "placed, arm") and not sup.may_write
        )
    else:
        assert sup.may_write
    json.dumps(list(sup.history), allow_nan=False)


@pytest.mark.parametrize("code", [*CODES, "no_such_code", "stale_", "exception:KeyError"])
def test_every_code_does_what_its_kind_says(code: str) -> None:
    row = {Kind.NOTE: "note", Kind.HELD: "held", Kind.SOFT: "soft", Kind.LATCHED: "latched"}
    like = row[kind(code)]
    for _, state, letter in [case for case in CASES if case[0] == like]:
        sup = make(state)
        sup.after_tick([code], 0.1)
        assert sup.mode is LETTER[letter]


def test_what_is_unknown_is_latched() -> None:
    for code in ("no_such_code", "stale", "stale_", "Obstacles", "proposal_new", "*", " held"):
        assert kind(code) is Kind.LATCHED
    assert kind("stale_image:wrist") is Kind.SOFT and kind("lost_image:wrist") is Kind.LATCHED
    assert kind("exception:ValueError") is kind("exception:") is Kind.LATCHED


def test_a_limit_or_an_obstacle_never_latches_and_never_degrades() -> None:
    limits = ("joint_limits", "joint_velocity", "joint_acceleration", "joint_jerk", "workspace",
              "obstacles", "self_collision", "tool_speed")  # fmt: skip
    assert {kind(code) for code in limits} == {Kind.HELD}
    assert kind("obstacles_stale") is Kind.SOFT


def test_every_id_of_the_filter_has_a_line_in_the_table() -> None:
    """Ids that guards return, and names of constraints: a new one must be thought through."""
    ids = set()
    for path in SAFETY.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Return) and node.value and path.name == "guards.py":
                ids |= {
                    part.value
                    for part in ast.walk(node.value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value
                }
            if isinstance(node, ast.ClassDef):
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                ids |= {
                    part.value.value
                    for part in node.body
                    if {"rows", "clearance"} <= methods
                    and isinstance(part, ast.Assign)
                    and ast.unparse(part.targets[0]) == "name"
                    and isinstance(part.value, ast.Constant)
                }
    assert {"tracking_error", "proposal_shape", "joint_limits", "workspace"} <= ids
    assert ids <= set(CODES), ids - set(CODES)


def test_the_table_can_be_printed() -> None:
    lines = code_table().splitlines()
    assert len(lines) == len(CODES) + 2
    assert "| `tracking_error` | latched | " in code_table()
    page = (Path(__file__).parents[1] / "docs" / "filter.md").read_text("utf-8")
    assert code_table() in page
    for _, why in CODES.values():
        assert why.endswith(".") and len(why) < 90


# ------------------------------------------------------------------ sequences


def test_all_sequences_of_five_from_stopped_need_reset_and_then_arm() -> None:
    steps: dict[str, Callable[[Supervisor, float], Any]] = {
        "shadow": lambda s, t: s.shadow(t),
        "arm": lambda s, t: s.arm(t),
        "disarm": lambda s, t: s.disarm(t),
        "reset": lambda s, t: s.reset(t),
        "resynced": lambda s, t: s.resynced(t),
        "rest": lambda s, t: s.after_tick([], t, standing=True),
        "soft": lambda s, t: s.after_tick(["stale_command"], t, standing=True),
        "latched": lambda s, t: s.after_tick(["violation"], t),
    }
    armed = []
    for names in itertools.product(steps, repeat=5):
        sup = Supervisor(SupervisorConfig(clear_after=0.0, resync_age=1.0))
        sup.stop("user", 0.0)  # from DISARMED: nothing to play
        for k, name in enumerate(names):
            steps[name](sup, 0.1 * k)
            if sup.mode in (Mode.ARMED, Mode.DEGRADED):
                armed.append(names[: k + 1])
    # Three steps, no fewer, two of them of a person, in this order.
    assert min(map(len, armed)) == 3
    for names in armed:
        before = names[: len(names) - names[::-1].index("arm") - 1]
        assert "reset" in before and "resynced" in before
    assert ("resynced", "reset", "arm") in armed and ("reset", "resynced", "arm") in armed


names = st.sampled_from([*CODES, "brand_new", "stale_command", "lost_image:wrist"])
times = st.one_of(st.floats(0.0, 0.3), st.sampled_from([NAN, math.inf, -math.inf, -1.0]))
usual = st.sampled_from(["rest", "rest", "reset", "resynced", "arm", "tick"])
steps = st.tuples(
    st.one_of(
        usual, st.sampled_from(["shadow", "disarm", "stop", "rest", "tick", "moving", "placed"])
    ),
    st.one_of(st.floats(0.0, 0.1), times),
    st.one_of(st.just([]), st.lists(names, max_size=3)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=40))
def test_random_sequences_never_arm_by_themselves(sequence: list[tuple[str, float, Any]]) -> None:
    sup, clock = Supervisor(SupervisorConfig(clear_after=0.1), FirstCommand(2)), 0.0
    asked: list[str] = []  # accepted requests since the last stop
    for name, step, codes in sequence:
        clock += step if math.isfinite(step) else 0.0
        now, before = clock if math.isfinite(step) else step, sup.mode
        answer = ""
        if name in ("tick", "rest", "moving"):
            faults = codes if name == "tick" else []
            sup.after_tick(faults, now, standing=name == "rest")
            # A tick never lets more happen, but for the end of a degradation.
            assert (
                sup.mode is before
                or (before, sup.mode) == (Mode.DEGRADED, Mode.ARMED)
                or (sup.mode in (Mode.DEGRADED, Mode.STOPPED))
            )
            if any(kind(code) is Kind.LATCHED for code in faults) or not math.isfinite(now):
                assert sup.mode in (Mode.DISARMED, Mode.STOPPED)
        elif name == "stop":
            answer = sup.stop("user", now)
            assert answer == "" and sup.mode is Mode.STOPPED
        else:
            answer = getattr(sup, name)(now)
            assert answer == "" or sup.mode is before
        if sup.mode is Mode.STOPPED and (before is not Mode.STOPPED or name == "stop"):
            asked = ["stop"]
        elif answer == "" and name in ("reset", "arm", "resynced"):
            asked.append(name)
        elif name == "placed" and before not in (Mode.ARMED, Mode.DEGRADED):
            asked.append("resynced")
        if sup.mode is Mode.ARMED and before is not Mode.ARMED:
            assert "arm" in asked and "resynced" in asked
            if asked[0] == "stop":
                assert asked.index("reset") < len(asked) - asked[::-1].index("arm") - 1
        if before is Mode.STOPPED:
            assert sup.mode in (Mode.STOPPED, Mode.DISARMED)
        if sup.mode is not Mode.ARMED:
            assert not sup.may_move and sup.first_command is not None and sup.first_command.armed
        if sup.mode in (Mode.STOPPED, Mode.DEGRADED):
            assert sup.cause is not None and sup.cause.code
        assert not (sup.may_write and sup.mode in (Mode.DISARMED, Mode.SHADOW))
    json.dumps(list(sup.history), allow_nan=False)


def test_random_sequences_do_reach_armed() -> None:
    """Lest the test above look at nothing: the plain way there, with a fault on the way."""
    sup = make("A")
    sup.after_tick(["tracking_error"], 1.0, detail="joint 3")
    assert sup.cause is not None and (sup.cause.code, sup.cause.stamp) == ("tracking_error", 1.0)
    assert sup.cause.detail == "joint 3" and sup.reset(1.0) != ""
    for k in range(3):
        sup.after_tick([], 1.1 + 0.1 * k, standing=True)
    assert sup.arm(1.4) != "" and sup.reset(1.4) == "" and "resync" not in sup.arm(1.4)
    assert sup.mode is Mode.DISARMED and sup.resynced(1.4) == "" and sup.arm(1.4) == ""
    assert sup.mode is Mode.ARMED


# ------------------------------------------------------------------ what goes with a transition


def test_a_stop_is_played_to_its_end_whatever_the_order_of_the_loop() -> None:
    """Set-points left of the stop: 2, 1, 0. The one with 0 left has to be sent as well."""
    for write_first, stop in itertools.product((True, False), ([2, 1, 0], [0])):
        sup, sent = make("A~"), []
        sup.stop("user", 0.1)
        for left in [*stop, 0, 0, 0]:
            if write_first and sup.may_write:
                sent.append(left)
            sup.after_tick(["no_proposal"], 0.2, standing=left == 0)
            if not write_first and sup.may_write:
                sent.append(left)
        assert sent in (stop, [*stop, 0]) and not sup.may_write
        assert sup.reset(0.3) == ""


def test_the_first_cause_stays() -> None:
    sup = make("A")
    sup.after_tick(["stale_command"], 1.0)
    sup.after_tick(["clock_fast"], 2.0)
    assert sup.cause is not None and (sup.cause.code, sup.cause.stamp) == ("stale_command", 1.0)
    sup.after_tick(["lost_command", "violation"], 3.0)
    sup.after_tick(["violation"], 4.0)
    sup.stop("user", 5.0)
    assert (sup.cause.code, sup.cause.stamp) == ("lost_command", 3.0)


def test_history_is_bounded_and_names_every_transition() -> None:
    sup = Supervisor(SupervisorConfig(history=3))
    sup.shadow(0.5)
    sup.stop("user", NAN, "button")
    assert list(sup.history) == [
        {"stamp": 0.5, "from": "DISARMED", "to": "SHADOW", "code": "shadow", "detail": ""},
        {"stamp": None, "from": "SHADOW", "to": "STOPPED", "code": "user", "detail": "button"},
    ]
    for _ in range(10):
        sup.reset(1.0)
        sup.stop("user", 1.0)
    assert len(sup.history) == 3


def test_a_degradation_waits_for_quiet_and_drops_the_chunk_once() -> None:
    sup = make("A")
    sup.after_tick(["stale_command"], 1.0)
    assert sup.drop_proposal() and not sup.drop_proposal()
    # In DEGRADED the filter gets no proposal: that must not keep it there.
    for k in range(5):
        sup.after_tick(["no_proposal"], 1.25 + 0.125 * k)
        assert sup.mode is (Mode.ARMED if k == 4 else Mode.DEGRADED)
    assert not sup.drop_proposal()


def test_blocked_is_reported_drops_the_chunk_once_and_latches_nothing() -> None:
    sup = make("A")
    drops = []
    for k in range(21):  # 0.125 s each, held by an obstacle, blocked after 1 s
        sup.after_tick(["obstacles"], 0.125 * k)
        drops += [k] if sup.drop_proposal() else []
        assert sup.mode is Mode.ARMED and sup.blocked == (k >= 8)
    assert drops == [8, 16]  # the second chunk gets as long as the first one had
    assert [entry["code"] for entry in sup.history].count("blocked") == 1
    sup.after_tick([], 3.0)
    assert not sup.blocked and sup.may_move
    for k in range(7):  # moved in between: the time starts anew
        sup.after_tick(["workspace"], 3.125 + 0.125 * k)
    assert not sup.blocked and not sup.drop_proposal()


def test_only_the_reason_of_a_stop_is_a_fault() -> None:
    command = CertifiedCommand(Command(np.zeros(2), np.zeros(2), 0.0))
    assert decision_codes(Decision(command, Verdict.STOPPED, "obstacles", 0.0)) == ("obstacles",)
    assert decision_codes(Decision(command, Verdict.STOPPED, "", 0.0)) == ("held",)
    # A path that was stopped keeps the reason until its end.
    assert decision_codes(Decision(command, Verdict.CORRECTED, "state_stale", 0.5)) == ()
    assert decision_codes(Decision(command, Verdict.PASS, "", 1.0)) == ()


def test_a_single_text_is_one_code() -> None:
    sup = make("A")
    sup.after_tick("stale_command", 0.1)
    assert sup.present == ("stale_command",) and sup.mode is Mode.DEGRADED


@pytest.mark.parametrize(
    "bad", [{"clear_after": -0.1}, {"clear_after": NAN}, {"blocked_after": 0.0},
            {"resync_age": math.inf}, {"history": 0}, {"blocked_after": NAN}],
)  # fmt: skip
def test_times_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SupervisorConfig(**bad)


# ------------------------------------------------------------------ first command

ZERO = [0.0, 0.0]


@pytest.mark.parametrize(
    ("target", "gripper", "band"),
    [
        ([0.0, 0.125], (None, None), "pass"),
        ([0.0, -0.1251], (None, None), "ramp"),
        ([0.5, 0.0], (None, None), "ramp"),
        ([0.0, 0.5001], (None, None), "reject"),
        ([0.0, 0.1], (0.0, 0.25), "pass"),
        ([0.0, 0.1], (0.0, 0.2501), "ramp"),
        ([0.0, 0.3], (0.0, 0.1), "ramp"),
        ([0.0, 0.1], (1.0, 0.4), "reject"),
        ([0.0, 0.3], (1.0, 0.4), "reject"),
        ([0.0, 0.0], (NAN, 0.0), "reject"),
        ([0.0, 0.0], (0.0, None), "reject"),
        ([0.0, 0.0], (None, 0.0), "reject"),
        ([0.0, NAN], (None, None), "reject"),
        ([0.0, math.inf], (None, None), "reject"),
        ([1.7e308, 0.0], (None, None), "reject"),
        ([0.0], (None, None), "reject"),
        (None, (None, None), "reject"),
        ("home", (None, None), "reject"),
        ([[0.0], [0.0, 1.0]], (None, None), "reject"),
    ],
)
def test_bands_of_the_first_command(target: Any, gripper: Any, band: str) -> None:
    config = FirstCommandConfig(0.125, 0.5, 0.25, 0.5)
    guard = FirstCommand(2, config)
    found, why = guard.judge(target, ZERO, *gripper)
    assert found == band and (why == "") == (band == "pass") and guard.armed == (band != "pass")
    # Both sides alike: the same with what was measured and what was wanted the other way round.
    if isinstance(target, list) and len(target) == 2:
        assert FirstCommand(2, config).judge(ZERO, target, *gripper[::-1])[0] == band


def test_the_first_command_is_judged_again_after_every_stop() -> None:
    guard = FirstCommand(2)
    sup = make("A", guard)
    assert (
        guard.judge([0.0, 9.0], ZERO)[0] == "reject" and guard.judge([0.0, 0.3], ZERO)[0] == "ramp"
    )
    assert guard.judge([0.0, 0.05], ZERO)[0] == "pass"
    assert guard.judge([0.0, 9.0], ZERO) == ("pass", "")  # no longer a first one
    sup.after_tick(["stale_command"], 0.1)
    assert guard.armed and guard.judge([0.0, 9.0], ZERO)[0] == "reject"
    assert guard.judge(ZERO, ZERO)[0] == "pass"
    sup.stop("user", 0.2)
    assert guard.armed


@pytest.mark.parametrize("bad", [(0.0, 0.5), (0.5, 0.1), (NAN, 0.5), (0.1, math.inf), (-1.0, 0.5)])
def test_bands_out_of_order_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ConfigError):
        FirstCommandConfig(*bad)
    with pytest.raises(ConfigError):
        FirstCommandConfig(0.1, 0.5, *bad)
