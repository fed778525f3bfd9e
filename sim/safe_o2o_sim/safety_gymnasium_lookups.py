"""Positions of Safety-Gymnasium's bodies without a search by name: the same numbers, sooner.

The package asks MuJoCo for each body by its name, some thirty times a frame, which takes longer
than the physics of the frame. Here the agent and the obstacles of one simulation are given
positions that are looked up by number. Nothing else about them is touched, and no other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from safe_o2o.types import Array

_PLURAL = {
    "buttons": "button{}",
    "gremlins": "gremlin{}obj",
    "hazards": "hazard{}",
    "pillars": "pillar{}",
    "vases": "vase{}",
}
"""Name of an obstacle -> name of its bodies."""


def number_bodies(task: Any) -> None:
    """Give the agent and the obstacles of a task positions that are looked up by number."""
    agent = task.agent
    place = _position(agent, "agent")

    def dist_xy(self: Any, pos: Array) -> float:
        """Distance on the floor, with the sums in the package's own order."""
        here = place()
        x, y = float(pos[0]) - float(here[0]), float(pos[1]) - float(here[1])
        return np.float64(math.sqrt(x * x + y * y))

    _replace(agent, pos=property(lambda self: place()), dist_xy=dist_xy)
    for obstacle in task._obstacles:
        if obstacle.name in _PLURAL:
            bodies = [_PLURAL[obstacle.name].format(i) for i in range(obstacle.num)]
            _replace(obstacle, pos=property(_positions(obstacle, bodies)))
        elif obstacle.name == "goal":
            find = _position(obstacle, "goal")
            _replace(obstacle, pos=property(lambda self, find=find: find()))


def _position(owner: Any, name: str) -> Callable[[], Array]:
    """A function that copies the position `[3]` of a body of the owner's newest model."""
    known: list[Any] = [None, 0]

    def find() -> Array:
        engine = owner.engine
        if known[0] is not engine.model:
            known[:] = engine.model, engine.model.body(name).id
        position: Array = engine.data.xpos[known[1]].copy()
        return position

    return find


def _positions(owner: Any, names: list[str]) -> Callable[[Any], list[Array]]:
    """The same for several bodies, as the list of rows that the package works with."""
    known: list[Any] = [None, ()]

    def find(_: Any) -> list[Array]:
        engine = owner.engine
        if known[0] is not engine.model:
            known[:] = engine.model, [engine.model.body(name).id for name in names]
        return list(engine.data.xpos[known[1]])

    return find


def _replace(thing: Any, **members: Any) -> None:
    """Let one object be of a class of its own, with some members replaced."""
    kind = type(thing)
    thing.__class__ = type(kind.__name__, (kind,), members)
