"""`safe-o2o horizon CHECKPOINT`: are n-step returns and lookahead long enough for this critic?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Measure how much a critic's regression makes of errors in its targets.

    Where gamma^(m + H - 1) times that is above one, nothing keeps a critic of one-step targets from
    drifting away by its own errors.

    Attributes:
        checkpoint: a checkpoint of a learner on transitions, or a folder for its newest one.
        data: the dataset it was trained on.
        steps: m, of its returns.
        lookahead: H, of the planner that acts; 1 is none.
        transitions: that it is measured on.
        seed: which ones.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT"), tyro.conf.Positional]
    data: Path
    steps: int = 1
    lookahead: int = 1
    transitions: int = 4096
    seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Measure, and say what it takes."""
    arguments = parse(Arguments, argv, verb="horizon")
    if arguments.steps < 1 or arguments.lookahead < 1:
        raise ConfigError("must be at least 1", where="steps and lookahead")
    from safe_o2o.algorithms.learner import Learner
    from safe_o2o.data.replay import TransitionReplay
    from safe_o2o.training.memory import keep_freed_memory
    from safe_o2o.training.regression_gain import regression_gain
    from safe_o2o.training.restore import load_algorithm

    learner = load_algorithm(arguments.checkpoint)
    if not isinstance(learner, Learner):
        raise ConfigError("is of no learner on transitions", where=arguments.checkpoint)
    dataset = Dataset(arguments.data)
    learner.spec.require_same(
        dataset.spec, mine=str(arguments.checkpoint), theirs=str(arguments.data)
    )
    batch = TransitionReplay(dataset, arguments.transitions, arguments.seed).sample()
    x = learner.read(batch)
    keep_freed_memory()
    with console.progress("measuring") as progress:
        found = regression_gain(learner, x.obs, x.action, seed=arguments.seed, progress=progress)
    have = arguments.steps + arguments.lookahead - 1
    print(
        f"gain {found.worst:.2f} at worst, {found.constant:.2f} of a constant, "
        f"{found.typical:.2f} typically; discount {found.discount}"
    )
    needed = found.steps_needed
    if have >= needed:
        print(f"m + H - 1 = {have} is enough: {needed} would be")
    else:
        print(
            f"warning: m + H - 1 = {have} is short of {needed}: errors of the targets can grow; "
            "longer returns, a longer lookahead, or a critic that generalises less"
        )
