"""Random layouts of level 2: four to six obstacles of mixed shapes and colours, one of which moves.

In two fifths of the layouts one obstacle is a tower: who flies over all the others flies into it.
Every episode has its own light, a camera that is a little off, and distractors: flat patches of the
obstacles' colours that cost nothing, and small things where no arm reaches. The goal alone is red.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o_sim.randomization import EpisodeLayout, require_variant
from safe_o2o_sim.scene import (
    GREEN,
    RED,
    YELLOW,
    Block,
    CameraOffset,
    Light,
    Motion,
    Point,
    SceneLayout,
    Shape,
)

Place = tuple[float, float]
"""x, y on the table, m."""

SEEN_COLOURS = (GREEN, (0.15, 0.30, 0.80), (0.50, 0.22, 0.65))
"""Of the obstacles in the offline data: green, blue, violet."""
NEW_COLOURS = (YELLOW, (0.15, 0.72, 0.72))
"""Of the obstacles of the variant `colour`: yellow, turquoise."""
SEEN_NUMBER, NEW_NUMBER = (4, 6), (7, 8)
"""Fewest and most obstacles, in the offline data and in the variant `number`."""

_NEUTRAL = ((0.55, 0.55, 0.57), (0.70, 0.66, 0.56))
_START = ((0.36, -0.20, 0.085), (0.50, 0.20, 0.13))
_GOAL = ((0.42, -0.19), (0.64, 0.19))
_GOAL_SIZE = (0.06, 0.06, 0.06)
_OBSTACLE = ((0.35, -0.225), (0.66, 0.225))
_START_TO_GOAL = 0.25  # m, on the table
_ROOM = 0.04  # m: radius of the upright cylinder that every obstacle fits into
_CLEAR = _ROOM + 0.062  # m between the middles of an obstacle and start or goal, on the table
_CLEAR_OF_HAND = _ROOM + 0.12  # the same for one that the hand could touch there with its side
_APART = 2.0 * _ROOM + 0.012  # m between two obstacles' middles
_LOW, _TOWER = (0.05, 0.11), (0.18, 0.20)  # m; the hand's lower edge comes down to 0.12 m
_TOWER_SHARE = 0.4
_EYE = (1.02, 0.0, 0.80)  # m: about where the camera is
_BLOCKED_SHARE = 0.4
_OFF_LINE = 0.02  # m that a blocking obstacle stands beside the straight line at most
_REACH = (0.025, 0.04)  # m from the middle of the moving one's way to its end
_SPEED = (0.02, 0.05)  # m/s, its highest
_ATTEMPTS = 2000


def sample_mixed_layout(generator: np.random.Generator, variant: str) -> EpisodeLayout:
    """Draw a layout: start, goal, and obstacles that stay clear of both and of each other.

    With probability 0.4, or where it is a tower, the first obstacle stands about the straight line
    from start to goal. One of the first two moves.

    Raises:
        ConfigError: no such variant.
    """
    require_variant(variant)
    fewest, most = NEW_NUMBER if variant == "number" else SEEN_NUMBER
    tower = bool(generator.random() < _TOWER_SHARE)
    for _ in range(_ATTEMPTS):
        x, y, z = generator.uniform(*_START).tolist()
        goal_x, goal_y = generator.uniform(*_GOAL).tolist()
        start, goal = (x, y), (goal_x, goal_y)
        if math.dist(start, goal) < _START_TO_GOAL:
            continue
        number = int(generator.integers(fewest, most + 1))
        heights = generator.uniform(*_LOW, number).tolist()
        if tower:
            heights[0] = float(generator.uniform(*_TOWER))
        moving = int(generator.integers(2))
        motion = _motion(generator)
        places = _places(generator, start, goal, heights, moving, motion)
        if places is not None:
            obstacles = _obstacles(generator, variant, places, heights, moving, motion)
            target = _goal(variant, goal, float(generator.uniform(-0.7, 0.7)))
            scene = SceneLayout(
                obstacles, target, _distractors(generator), _light(generator), _camera(generator)
            )
            return EpisodeLayout(scene, (x, y, z))
    raise ConfigError(f"no layout found in {_ATTEMPTS} attempts", where=f"variant {variant}")


def _motion(generator: np.random.Generator) -> Motion:
    reach, speed = float(generator.uniform(*_REACH)), float(generator.uniform(*_SPEED))
    angle = float(generator.uniform(0.0, math.pi))
    return Motion(
        reach=(reach * math.cos(angle), reach * math.sin(angle)),
        period=2.0 * math.pi * reach / speed,
        phase=float(generator.uniform()),
    )


def _places(
    generator: np.random.Generator,
    start: Place,
    goal: Place,
    heights: Sequence[float],
    moving: int,
    motion: Motion,
) -> list[Place] | None:
    """Middles of the obstacles, or None where this start and goal leave no room."""
    ways: list[tuple[Place, Place]] = []  # ends of each one's way; for most of them the same place
    blocked = generator.random() < _BLOCKED_SHARE or heights[0] > _LOW[1]
    for index, height in enumerate(heights):
        clear = _CLEAR_OF_HAND if height > _LOW[1] else _CLEAR
        dx, dy = motion.reach if index == moving else (0.0, 0.0)
        for _ in range(50):
            if index == 0 and blocked:
                x, y = _in_between(generator, start, goal)
            else:
                x, y = generator.uniform(*_OBSTACLE).tolist()
            way = ((x - dx, y - dy), (x + dx, y + dy))
            near = min(_distance(way, start), _distance(way, goal)) < clear
            near = near or _hides(way, height, goal)
            if not near and all(map(_inside, way)) and _are_apart(way, ways):
                ways.append(way)
                break
        else:
            return None
    return [(0.5 * (a[0] + b[0]), 0.5 * (a[1] + b[1])) for a, b in ways]


def _in_between(generator: np.random.Generator, start: Place, goal: Place) -> Place:
    """A place about the middle of the straight line from start to goal, m."""
    share, beside = generator.uniform(0.35, 0.65), generator.uniform(-_OFF_LINE, _OFF_LINE)
    x, y = goal[0] - start[0], goal[1] - start[1]
    beside /= math.hypot(x, y)
    return start[0] + share * x - beside * y, start[1] + share * y + beside * x


def _inside(place: Place) -> bool:
    (x0, y0), (x1, y1) = _OBSTACLE
    return x0 <= place[0] <= x1 and y0 <= place[1] <= y1


def _are_apart(way: tuple[Place, Place], others: Sequence[tuple[Place, Place]]) -> bool:
    """Whether an obstacle on its way keeps clear of the others on theirs."""
    # One of the two stands still: its way is a place.
    return all(min(_distance(way, o[0]), _distance(o, way[0])) >= _APART for o in others)


def _hides(way: tuple[Place, Place], height: float, goal: Place) -> bool:
    """Whether an obstacle on its way may stand between camera and goal's top."""
    to_eye = (_EYE[0] - goal[0], _EYE[1] - goal[1])
    share = max(0.0, height - _GOAL_SIZE[2]) / (_EYE[2] - _GOAL_SIZE[2])
    sight = (goal, (goal[0] + share * to_eye[0], goal[1] + share * to_eye[1]))
    middle = (0.5 * (way[0][0] + way[1][0]), 0.5 * (way[0][1] + way[1][1]))
    room = _ROOM + 0.5 * _GOAL_SIZE[0]
    return min(_distance(sight, place) for place in (*way, middle)) < room


def _distance(way: tuple[Place, Place], place: Place) -> float:
    """From a place to a straight way, m."""
    (ax, ay), (bx, by) = way
    x, y, px, py = bx - ax, by - ay, place[0] - ax, place[1] - ay
    share = min(1.0, max(0.0, (px * x + py * y) / max(x * x + y * y, 1e-12)))
    return math.hypot(px - share * x, py - share * y)


def _obstacles(
    generator: np.random.Generator,
    variant: str,
    places: Sequence[Place],
    heights: Sequence[float],
    moving: int,
    motion: Motion,
) -> tuple[Block, ...]:
    colours = NEW_COLOURS if variant == "colour" else SEEN_COLOURS
    found = []
    form = _new_form if variant == "shape" else _form
    for index, (place, height) in enumerate(zip(places, heights, strict=True)):
        # The same draws in every variant, so that it changes what it says and nothing else.
        kind, wide, deep, tint = generator.uniform(size=4).tolist()
        yaw = float(generator.uniform(-0.7, 0.7))
        shape, size = form(kind, wide, deep, height)
        found.append(
            Block(
                shape,
                size,
                place,
                colours[int(tint * len(colours))],
                yaw=yaw if shape == "box" else 0.0,
                motion=motion if index == moving else None,
            )
        )
    return tuple(found)


def _form(kind: float, wide: float, deep: float, height: float) -> tuple[Shape, Point]:
    """A box or a cylinder, as in the offline data.

    Args:
        kind: from 0 to 1: which of the two.
        wide: from 0 to 1: narrowest to widest.
        deep: from 0 to 1: the box's other side.
        height: m.
    """
    if kind < 0.5:
        return "box", (0.038 + 0.017 * wide, 0.038 + 0.017 * deep, height)
    width = 0.045 + 0.025 * wide
    return "cylinder", (width, width, height)


def _new_form(kind: float, wide: float, deep: float, height: float) -> tuple[Shape, Point]:
    """A ball, or a pillar as thin as a finger; arguments as for `_form`."""
    if kind < 0.5 and height < _TOWER[0]:
        width = 0.06 + 0.02 * wide
        return "sphere", (width, width, width)
    width = 0.022 + 0.006 * deep
    return "cylinder", (width, width, max(height, _LOW[1] - 0.01))


def _goal(variant: str, place: Place, yaw: float) -> Block:
    if variant == "goal":
        return Block("box", (0.055, 0.055, 0.055), place, RED, yaw)
    return Block("cylinder", _GOAL_SIZE, place, RED)


def _distractors(generator: np.random.Generator) -> tuple[Block, ...]:
    """Two to four patches within reach, one to three small things beyond it."""
    colours = (*SEEN_COLOURS, *_NEUTRAL)
    found: list[Block] = []
    for index in range(int(generator.integers(2, 5))):
        wide, deep = generator.uniform(0.035, 0.09, 2).tolist()
        # Each a little higher than the last one: none flickers through another.
        size = (wide, deep, 0.001 + 0.0005 * index)
        x, y = generator.uniform((0.33, -0.24), (0.69, 0.24)).tolist()
        colour = colours[int(generator.integers(len(colours)))]
        found.append(Block("box", size, (x, y), colour, float(generator.uniform(-0.7, 0.7))))
    for _ in range(int(generator.integers(1, 4))):
        side = float(generator.choice([-1.0, 1.0]))
        x, y = generator.uniform(0.30, 0.70), side * generator.uniform(0.275, 0.30)
        colour = colours[int(generator.integers(len(colours)))]
        yaw = float(generator.uniform(-0.3, 0.3))
        length = float(generator.uniform(0.06, 0.12))
        found.append(Block("box", (length, 0.014, 0.012), (float(x), float(y)), colour, yaw))
    return tuple(found)


def _light(generator: np.random.Generator) -> Light:
    """A lamp somewhere above the camera's side of the table, brighter or dimmer, warmer or not."""
    azimuth = float(generator.uniform(-1.8, 1.8))
    height = float(generator.uniform(0.6, 1.3))
    warm = float(generator.uniform(-0.08, 0.08))
    return Light(
        direction=(
            math.cos(height) * math.cos(azimuth),
            math.cos(height) * math.sin(azimuth),
            math.sin(height),
        ),
        colour=(1.0 + min(warm, 0.0), 1.0 - 0.5 * abs(warm), 1.0 - max(warm, 0.0)),
        ambient=float(generator.uniform(0.45, 0.7)),
        diffuse=float(generator.uniform(0.2, 0.45)),
        specular=float(generator.uniform(0.0, 0.1)),
    )


def _camera(generator: np.random.Generator) -> CameraOffset:
    """Off by 5 mm and half a degree, standard deviations of each axis."""
    shift = generator.normal(0.0, 0.005, 3).tolist()
    turn = generator.normal(0.0, math.radians(0.5), 3).tolist()
    return CameraOffset((shift[0], shift[1], shift[2]), (turn[0], turn[1], turn[2]))
