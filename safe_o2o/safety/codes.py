"""What can be wrong, by id, and what each id does to an armed arm."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from safe_o2o.types import Decision, Verdict


class Kind(IntEnum):
    """What a code does to an armed arm, from mild to strict."""

    NOTE = 0  # nothing: it is counted, or dealt with where it was found
    HELD = 1  # nothing: the filter holds the arm at a limit; for too long is `blocked`
    SOFT = 2  # ARMED -> DEGRADED, back by itself
    LATCHED = 3  # -> STOPPED, from SHADOW as well


_N, _H, _S, _L = Kind
CODES: Mapping[str, tuple[Kind, str]] = MappingProxyType(
    {
        "no_proposal": (_N, "Nothing was asked for: an armed arm may stand and wait."),
        "first_target": (_N, "The filter approaches a far first target within its limits."),
        "stamp_future": (_N, "A stamp is of another clock: the time of receipt is used instead."),
        "blocked": (_N, "Held for too long: the chunk is dropped and the policy asked again."),
        "held": (_H, "The filter held the arm and named no limit: the motion was not verified."),
        "joint_limits": (
            _H,
            "The motion would leave the joints' range: the limit is doing its work.",
        ),
        "joint_velocity": (_H, "The motion is too fast for a joint: the arm is inside its limits."),
        "joint_speed": (_H, "Too fast for a joint so near its end: the arm is inside its limits."),
        "joint_acceleration": (_H, "The motion changes too fast: the arm is inside its limits."),
        "joint_jerk": (_H, "The motion sets off too hard: the arm is inside its limits."),
        "workspace": (_H, "The motion would leave the workspace: a policy at a wall is no fault."),
        "obstacles": (_H, "Something stands in the way: it may leave, and then the arm goes on."),
        "self_collision": (_H, "The arm would touch itself: another motion may pass."),
        "tool_speed": (_H, "The tool would be too fast: the arm is inside its limits."),
        "obstacles_stale": (
            _S,
            "Obstacles were seen too long ago; the stop counts on their worst.",
        ),
        "clock_jump": (_S, "A tick came too late or at no time: the loop has to run evenly again."),
        "clock_fast": (_S, "Ticks came too often: they would make the arm faster than certified."),
        "proposal_invalid": (_S, "The proposal could not be looked at: another one may be sound."),
        "proposal_not_numbers": (_S, "The proposal holds no real numbers: all of it is refused."),
        "proposal_shape": (_S, "The proposal has another number of joints: all of it is refused."),
        "proposal_names": (_S, "The proposal names other joints: nothing is guessed by position."),
        "proposal_not_finite": (_S, "The proposal holds NaN or infinity: all of it is refused."),
        "proposal_period": (_S, "The proposal's period or length is out of range."),
        "proposal_stale": (_S, "The proposal rests on too old an observation; a new one may not."),
        "first_target_far": (_S, "The first target is too far away to be meant."),
        "target_far": (_S, "Two targets in a row are too far apart to be meant."),
        "first_command": (_S, "The first target after a stop is out of its band: drop, ask again."),
        "stale_*": (_S, "A source is late: it may come back before it counts as lost."),
        "lost_*": (_L, "A source is silent or frozen: somebody has to look why."),
        "state_stale": (_L, "The arm's state is too old: nobody knows whether it follows."),
        "state_invalid": (_L, "The arm's state is not finite or incomplete: its driver is broken."),
        "command_mismatch": (_L, "Somebody else writes to the arm, or a command was lost."),
        "tracking_error": (
            _L,
            "The arm is not where it was sent: every certificate rests on that.",
        ),
        "stalled": (_L, "A joint was sent and did not move: it is held, or it touches something."),
        "second_commander": (_L, "Two send to one controller: nobody certified their sum."),
        "second_proposer": (_L, "Two propose at once: the arm would go to and fro between them."),
        "clock_invalid": (_L, "The clock is not finite: no age can be told."),
        "checker_disagreement": (_L, "Two checks of one motion disagree: one of them is wrong."),
        "violation": (_L, "The arm itself is outside a limit: what should hold it did not."),
        "exception:*": (_L, "An error that nobody foresaw inside a check: it cannot be trusted."),
    }
)
"""Every code with its kind and why. A name that ends in `*` stands for what begins like it. A code
that is not here counts as latched: what nobody has thought through must not move an arm."""


def kind(code: str) -> Kind:
    """What a code does to an armed arm."""
    if code in CODES:
        return CODES[code][0]
    for name, (found, _) in CODES.items():
        if name.endswith("*") and code.startswith(name[:-1]) and len(code) >= len(name):
            return found
    return Kind.LATCHED


def code_table() -> str:
    """`CODES` as a Markdown table."""
    rows = [f"| `{name}` | {what.name.lower()} | {why} |" for name, (what, why) in CODES.items()]
    return "\n".join(["| code | kind | why |", "|---|---|---|", *rows]) + "\n"


def decision_codes(decision: Decision) -> tuple[str, ...]:
    """What a filter's decision means for the supervisor: the reason of a stop, and nothing else.

    The reason of a motion that was only slowed down may be that of a stop long over.
    """
    return (decision.reason or "held",) if decision.verdict is Verdict.STOPPED else ()
