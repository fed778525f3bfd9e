"""SafeReach, level 2: more obstacles, mixed, one of them on the move, under any light.

The same task by the same rules, in scenes of `safe_o2o_sim.mixed_layouts`: for comparing methods
where level 1 no longer tells them apart. The obstacles are known to the camera only, here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safe_o2o_sim.mixed_layouts import sample_mixed_layout
from safe_o2o_sim.randomization import VARIANTS
from safe_o2o_sim.tasks.safe_reach import SafeReach, SafeReachConfig


@dataclass(frozen=True)
class SafeReach2Config(SafeReachConfig):
    """What makes the task: as in level 1, but for the length of an episode.

    Attributes:
        max_steps: policy steps after which an episode is cut off; the expert needs 27 on average.
    """

    variants: ClassVar[tuple[str, ...]] = VARIANTS
    max_steps: int = 60


class SafeReach2(SafeReach):
    """SafeReach among four to six mixed obstacles, one moving, in random light."""

    config_class = SafeReach2Config
    sample_layout = staticmethod(sample_mixed_layout)
    crossing_heights = (0.12, 0.22)
