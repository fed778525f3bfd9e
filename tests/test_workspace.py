"""Workspace: which half-planes bound tool and elbow, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.safety.workspace import Workspace
from tests.invariance import BOX, HOME

BODY = Body("panda", (), ("panda_hand_tcp", "panda_link4"))
TOOL, ELBOW = BODY.positions(HOME[None])[0].T


def distances(low: Any = BOX[0], high: Any = BOX[1], *more: Any, **settings: Any) -> np.ndarray:
    return Workspace(BODY, low, high, *more, **settings).clearance(HOME[None])[0]


def test_distances_are_those_of_the_tool_to_box_and_table() -> None:
    assert np.allclose(distances()[:6], [*(TOOL - BOX[0]), *(BOX[1] - TOOL)])
    assert np.allclose(distances()[6:], [TOOL[2], ELBOW[2]])
    assert np.allclose(distances(BOX[0], BOX[1], 0.05)[6:], [TOOL[2] - 0.05, ELBOW[2] - 0.05])


def test_the_table_holds_where_the_box_reaches_below_it() -> None:
    assert distances((0.3, -0.3, -9.0), BOX[1], TOOL[2] + 0.01).min() == pytest.approx(-0.01)


def test_the_elbow_may_have_a_box_of_its_own() -> None:
    low, high = np.add(ELBOW, [[-0.1, -0.2, -0.3], [0.4, 0.5, 0.6]])
    inside = distances(elbow=(low, high))[6:12]
    assert np.allclose(inside, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_half_planes_bound_both_points_whatever_the_length_of_the_normal() -> None:
    normal = np.array([1.0, 2.0, 2.0]) / 3.0
    for length in (1.0, 7.0):
        assert np.allclose(
            distances(half_planes=[(length * normal, 0.6)])[-2:],
            [0.6 - normal @ TOOL, 0.6 - normal @ ELBOW],
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"low": BOX[1], "high": BOX[0]},
        {"low": (0.3, 0.0, float("nan"))},
        {"low": (0.3, 0.0)},
        {"table_height": float("inf")},
        {"elbow": (BOX[1], BOX[0])},
        {"half_planes": [((0.0, 0.0, 0.0), 1.0)]},
        {"half_planes": [((0.0, 1.0), 1.0)]},
        {"half_planes": [((0.0, 0.0, 1.0), float("nan"))]},
        {"body": Body("panda", (), ("panda_hand_tcp",))},
    ],
)
def test_nonsense_is_refused_in_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Workspace(**({"body": BODY, "low": BOX[0], "high": BOX[1]} | settings))
    assert "\n" not in str(caught.value)


def test_home_is_the_posture() -> None:
    assert np.array_equal(HOME, POSTURES["panda"])
