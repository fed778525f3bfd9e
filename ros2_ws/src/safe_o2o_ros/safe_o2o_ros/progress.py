"""Which proposal is in progress, and when the robot is ready for the next decision; pure Python."""

from __future__ import annotations

from safe_o2o.types import Decision, Proposal, Verdict

REST_AFTER = 5.0
"""Time without a proposal after which the arm rests, s."""


class ProposalProgress:
    """Counts control ticks along a proposal and sums up what the filter did with it.

    The robot is ready when a proposal is used up, and again every `retry` seconds while it holds: a
    policy that was late, restarted or missed a message always finds a fresh observation.

    Args:
        period: control period, s.
        retry: time between two offers while the arm holds, s.
    """

    def __init__(self, period: float, retry: float) -> None:
        self.period = period
        self._retry = max(1, round(retry / period))
        self.reset()

    def reset(self) -> None:
        """A new episode: nothing in progress, all counts at zero, ready after the next tick."""
        self.proposal: Proposal | None = None
        self.offered: Proposal | None = None
        """What the filter is to move along: None once it is used up and the arm stands, so that
        waiting for a slow policy is no stale proposal."""
        self.finished_stamp = -1.0
        self.counts = dict.fromkeys(Verdict, 0)
        self.held = 0
        self._left = 0
        self._idle = self._retry - 1
        self._held_in_a_row = 0
        self.clear_worst()

    def clear_worst(self) -> None:
        """Forget verdict, reason and margin once they were reported."""
        self.verdict, self.reason, self.margin = Verdict.PASS, "", 1.0

    @property
    def in_progress(self) -> bool:
        """Whether there are ticks of a proposal left."""
        return self._left > 0

    @property
    def resting(self) -> bool:
        """Whether nothing was proposed for so long that nobody waits for the arm."""
        return self._held_in_a_row * self.period >= REST_AFTER

    def accept(self, proposal: Proposal) -> None:
        """Take a new proposal; one in progress is replaced from the next tick on."""
        self.proposal, self.offered, self._held_in_a_row = proposal, proposal, 0
        self._left = max(1, round(proposal.length / self.period))

    def after_tick(self, decision: Decision) -> bool:
        """Count one tick; True when the robot is ready for a decision at the next reading."""
        if self._left == 0:
            if decision.stop_ticks == 0:
                self.offered = None
            self.held += 1
            self._held_in_a_row += 1
            self._idle += 1
            if self._idle >= self._retry:
                self._idle = 0
                return True
            return False
        self.counts[decision.verdict] += 1
        if decision.verdict > self.verdict:
            self.verdict, self.reason = decision.verdict, decision.reason
        self.margin = min(self.margin, decision.margin)
        self._left -= 1
        if self._left:
            return False
        assert self.proposal is not None
        self.finished_stamp = self.proposal.stamp
        self._idle = 0
        return True
