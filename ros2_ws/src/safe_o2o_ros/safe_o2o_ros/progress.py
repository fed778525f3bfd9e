"""Which proposal is in progress, and when the robot is ready for the next decision; pure Python."""

from __future__ import annotations

from dataclasses import dataclass

from safe_o2o.runtime.control_loop import TickRecord
from safe_o2o.types import Decision, Proposal

REST_AFTER = 5.0
"""Time without a proposal after which the arm rests, s."""


@dataclass(frozen=True)
class FilterReport:
    """What the filter made of the proposals so far.

    Attributes:
        proposal_stamp: observation stamp of the proposal that was finished last, s; -1 for none.
        verdict: the strictest `Verdict` since the last report was cleared.
        reason: the filter's reason for it.
        margin: the smallest margin since then.
        passed: control ticks since the reset that moved along a proposal and passed.
        corrected: ticks that the filter slowed or deflected.
        stopped: ticks that it stopped.
        human: ticks in which a person had the arm, whatever the filter made of it.
        held: ticks in which no proposal was in progress and the arm held.
    """

    proposal_stamp: float
    verdict: int
    reason: str
    margin: float
    passed: int
    corrected: int
    stopped: int
    human: int
    held: int


class ProposalProgress:
    """Counts control ticks along a proposal and sums up what the filter did with it.

    The robot is ready when a proposal is used up, and again every `retry` seconds while it holds: a
    policy that was late, restarted or missed a message always finds a fresh observation.

    A person who takes over moves the arm instead. The policy is asked as before, its proposals last
    as long as before, and none of them moves anything; what is left of one when the person lets go
    is not moved along either, because the arm is elsewhere.

    Args:
        period: control period, s.
        retry: time between two offers while the arm holds, s.
    """

    def __init__(self, period: float, retry: float) -> None:
        self.period = period
        self._retry = max(1, round(retry / period))
        self.taken_over = False
        """Whether a person has the arm."""
        self.reset()

    def reset(self) -> None:
        """A new episode: nothing in progress, all counts at zero, ready after the next tick."""
        self.proposal: Proposal | None = None
        self.offered: Proposal | None = None
        """What the filter is to move along: None once it is used up and the arm stands, so that
        waiting for a slow policy is no stale proposal."""
        self.finished_stamp = -1.0
        self.held = self.human = 0
        self._total = TickRecord()
        self._left = self._moving = 0
        self._idle = self._retry - 1
        self._held_in_a_row = 0
        self.clear_worst()

    def clear_worst(self) -> None:
        """Forget verdict, reason and margin once they were reported."""
        self._since = TickRecord()

    @property
    def report(self) -> FilterReport:
        """What there is to say now."""
        since, (passed, corrected, stopped) = self._since, self._total.counts
        return FilterReport(
            proposal_stamp=self.finished_stamp,
            verdict=int(since.verdict),
            reason=since.reason,
            margin=float(since.margin),
            passed=passed,
            corrected=corrected,
            stopped=stopped,
            human=self.human,
            held=self.held,
        )

    @property
    def in_progress(self) -> bool:
        """Whether there are ticks of a policy's proposal left."""
        return self._left > 0

    @property
    def resting(self) -> bool:
        """Whether nothing was proposed for so long that nobody waits for the arm."""
        return self._held_in_a_row * self.period >= REST_AFTER

    def accept(self, proposal: Proposal) -> None:
        """Take a policy's new proposal; one in progress is replaced from the next tick on."""
        self.proposal, self._left, self._held_in_a_row = proposal, self._ticks(proposal), 0
        if not self.taken_over:
            self.offered, self._moving = proposal, self._left

    def take_over(self, proposal: Proposal | None) -> None:
        """Take a person's proposal, None to stand: nobody else's is moved along from now on."""
        self.taken_over, self._held_in_a_row = True, 0
        self.offered = proposal
        self._moving = 0 if proposal is None else self._ticks(proposal)

    def give_back(self) -> None:
        """The person lets go: the arm stops, and waits for the policy's next proposal."""
        self.taken_over, self.offered, self._moving = False, None, 0

    def after_tick(self, decision: Decision) -> bool:
        """Count one tick; True when the robot is ready for a decision at the next reading."""
        self._count(decision)
        if self._left:
            self._left -= 1
            if self._left:
                return False
            assert self.proposal is not None
            self.finished_stamp = self.proposal.stamp
            self._idle = 0
            return True
        self._idle += 1
        if self._idle < self._retry:
            return False
        self._idle = 0
        return True

    def _ticks(self, proposal: Proposal) -> int:
        return max(1, round(proposal.length / self.period))

    def _count(self, decision: Decision) -> None:
        self.human += self.taken_over
        if self._moving:
            self._moving -= 1
            self._total.add(decision)
            self._since.add(decision)
            return
        if decision.stop_ticks == 0:
            self.offered = None
        self.held += not self.taken_over
        self._held_in_a_row += not self.taken_over
