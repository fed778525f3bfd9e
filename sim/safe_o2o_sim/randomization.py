"""Random layouts: where the tool starts, where the goal and the obstacles stand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array
from safe_o2o_sim.scene import GREEN, RED, WHITE, YELLOW, Block, Light, SceneLayout

VARIANTS = ("standard", "shape", "goal", "number", "colour")
"""What the offline data shows, and four unseen scenes: cylinders for boxes, a cube for the goal
cylinder, a third (smaller) obstacle, yellow obstacles."""
HARMLESS = ("table", "light", "distractor")
"""Scenes that look new where it does not matter: another cloth, another lamp, things that lie where
no arm reaches. An alarm that knows danger from novelty stays silent in them."""

_START = ((0.36, -0.20, 0.07), (0.50, 0.20, 0.12))
_GOAL = ((0.42, -0.19), (0.64, 0.19))
_OBSTACLE = ((0.38, -0.21), (0.64, 0.21))
_START_TO_GOAL = 0.25  # m, on the table
_CLEAR = 0.105  # m between an obstacle's middle and start or goal, on the table
_APART = 0.12  # m between two obstacles' middles
_BLOCKED_SHARE = 0.75
_OFF_LINE = 0.02  # m that a blocking obstacle stands beside the straight line at most
_ATTEMPTS = 2000


@dataclass(frozen=True)
class EpisodeLayout:
    """One episode's beginning.

    Attributes:
        scene: obstacles and goal.
        tool: where the tool starts, m.
    """

    scene: SceneLayout
    tool: tuple[float, float, float]


def require_variant(variant: str, known: tuple[str, ...] = VARIANTS) -> None:
    """Refuse a name that is not known.

    Raises:
        ConfigError: with the names that are.
    """
    if variant not in known:
        raise ConfigError(f"unknown scene variant {variant!r}", todo=f"known: {', '.join(known)}")


def sample_layout(generator: np.random.Generator, variant: str) -> EpisodeLayout:
    """Draw a layout: start, goal, and obstacles that are clear of both.

    With probability 0.75 the first obstacle stands on the straight line from start to goal.

    Raises:
        ConfigError: no such variant.
    """
    require_variant(variant, (*VARIANTS, *HARMLESS))
    number = 3 if variant == "number" else 2
    for _ in range(_ATTEMPTS):
        start = generator.uniform(*_START)
        goal = generator.uniform(*_GOAL)
        if np.linalg.norm(goal - start[:2]) < _START_TO_GOAL:
            continue
        places = _places(generator, start[:2], goal, number)
        if places is not None:
            yaws = generator.uniform(-0.4, 0.4, number)
            scene = _scene(variant, goal, places, yaws)
            if variant in HARMLESS:  # drawn last: the same seed gives the same places
                scene = _harmless(variant, scene, generator)
            return EpisodeLayout(scene, (float(start[0]), float(start[1]), float(start[2])))
    raise ConfigError(f"no layout found in {_ATTEMPTS} attempts", where=f"variant {variant}")


def _places(
    generator: np.random.Generator, start: Array, goal: Array, number: int
) -> list[Array] | None:
    """Middles of the obstacles, or None where this start and goal leave no room."""
    places: list[Array] = []
    blocked = generator.random() < _BLOCKED_SHARE
    along = goal - start
    across = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    for index in range(number):
        for _ in range(50):
            if index == 0 and blocked:
                share, beside = generator.uniform(0.35, 0.65), generator.uniform(-1.0, 1.0)
                place = start + share * along + beside * _OFF_LINE * across
            else:
                place = generator.uniform(*_OBSTACLE)
            clear = min(np.linalg.norm(place - start), np.linalg.norm(place - goal)) >= _CLEAR
            if clear and all(np.linalg.norm(place - other) >= _APART for other in places):
                places.append(place)
                break
        else:
            return None
    return places


def _scene(variant: str, goal: Array, places: list[Array], yaws: Array) -> SceneLayout:
    colour = YELLOW if variant == "colour" else GREEN
    round_ = variant == "shape"
    obstacles = tuple(
        Block(
            shape="cylinder" if round_ else "box",
            size=(0.05, 0.05, 0.09) if index == 2 else (0.07, 0.07, 0.10),
            position=(float(place[0]), float(place[1])),
            colour=colour,
            yaw=0.0 if round_ else float(yaw),
        )
        for index, (place, yaw) in enumerate(zip(places, yaws, strict=True))
    )
    target = Block(
        shape="box" if variant == "goal" else "cylinder",
        size=(0.055, 0.055, 0.055) if variant == "goal" else (0.06, 0.06, 0.06),
        position=(float(goal[0]), float(goal[1])),
        colour=RED,
    )
    return SceneLayout(obstacles, target)


def _harmless(variant: str, scene: SceneLayout, generator: np.random.Generator) -> SceneLayout:
    """The scene as it looks with something new in it that nothing depends on."""
    if variant == "table":
        tint = generator.uniform(0.55, 1.0, 3) * WHITE
        return replace(scene, cloth=(float(tint[0]), float(tint[1]), float(tint[2])))
    if variant == "light":
        azimuth, height = generator.uniform((-1.8, 0.6), (1.8, 1.3))
        away = np.cos(height)
        direction = (away * np.cos(azimuth), away * np.sin(azimuth), np.sin(height))
        x, y, z = (float(part) for part in direction)
        ambient, diffuse = generator.uniform((0.40, 0.2), (0.52, 0.45))
        warm = float(generator.uniform(0.75, 0.95))
        light = Light((x, y, z), (1.0, 0.5 + 0.5 * warm, warm), float(ambient), float(diffuse))
        return replace(scene, light=light)
    found = []
    for side in (-1.0, 1.0):
        x, y = generator.uniform(0.30, 0.45), side * generator.uniform(0.255, 0.28)
        length, *tint = generator.uniform((0.06, 0.1, 0.1, 0.1), (0.12, 0.9, 0.9, 0.9))
        colour = (float(tint[0]), float(tint[1]), float(tint[2]))
        size = (float(length), 0.02, 0.02)
        found.append(Block("box", size, (float(x), float(y)), colour))
    return replace(scene, distractors=tuple(found))
