"""Wild input among obstacles that come and go: a short form of benchmarks/invariance.py."""

from __future__ import annotations

import pytest

from tests.adversary import Tally, World, wild_proposal, wild_run


@pytest.mark.parametrize("mode", ["scale", "deflect"])
@pytest.mark.parametrize("robot", ["panda", "ur5e"])
def test_wild_input_among_moving_obstacles_never_leads_out_of_the_limits(
    robot: str, mode: str
) -> None:
    if mode == "deflect":
        pytest.importorskip("daqp", reason="needs the solver of the deflect mode")
    tally = Tally()
    for seed in (1, 2):
        tally.add(wild_run(robot, 400, seed, mode))
    assert +tally.violations == {} and tally.uncertified == 0
    assert tally.moving > 0.2 * tally.ticks and tally.verdicts["STOPPED"] > 0


def test_the_judge_sees_what_a_filter_that_is_blind_runs_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in (1, 2, 3):
        world, tally = World("panda", seed), Tally()
        monkeypatch.setattr(world.filter, "see", lambda obstacles: None)
        for tick in range(1_000):
            if tick % 20 == 0:
                proposal = wild_proposal(world)
            world.tick(proposal, tally)
            if tally.violations["obstacle"]:
                return
    pytest.fail("the judge saw no contact")
