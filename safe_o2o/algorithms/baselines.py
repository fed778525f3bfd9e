"""What FOSP is compared with, from the same code: FOSP with some of its parts exchanged."""

from __future__ import annotations

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import behavior_cloning, dreamer, safedreamer, sized


class Dreamer(Fosp):
    """DreamerV3 (Hafner et al., 2023) with a cost head that nobody listens to."""

    @staticmethod
    def preset(name: str) -> FospConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return dreamer(sized(name))


class SafeDreamer(Fosp):
    """SafeDreamer, BSRP-Lag (Huang et al., ICLR 2024): the code base that FOSP starts from."""

    @staticmethod
    def preset(name: str) -> FospConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return safedreamer(sized(name))


class BehaviorCloning(Fosp):
    """Behaviour cloning on FOSP's encoder and world model."""

    @staticmethod
    def preset(name: str) -> FospConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return behavior_cloning(sized(name))
