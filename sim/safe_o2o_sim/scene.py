"""What stands on the table: plain data, so that any process can build its own copy of the scene."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pybullet_data

from safe_o2o import config
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.types import Array
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.steady_normals import with_steady_normals

GREEN = (0.10, 0.60, 0.20)
RED = (0.85, 0.10, 0.10)
YELLOW = (0.85, 0.75, 0.15)
WHITE = (0.92, 0.92, 0.89)

ARM_JOINTS = tuple(range(7))
"""PyBullet's indices of panda_joint1..7."""
FINGER_JOINTS = (9, 10)
HAND_LINK = 8


Point = tuple[float, float, float]
Colour = tuple[float, float, float]
Shape = Literal["box", "cylinder", "sphere"]


@dataclass(frozen=True)
class Motion:
    """A way back and forth on the table, slower at its ends: a function of time alone.

    Physics, camera and replays each compute it from their stamps, so that nobody has to tell
    anybody where something is.

    Attributes:
        reach: from the middle of the way to its end along x, y, m.
        period: there and back again, s.
        phase: share of the period that has passed at the episode's beginning.
    """

    reach: tuple[float, float]
    period: float
    phase: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "period")

    def offset(self, elapsed: float) -> tuple[float, float]:
        """Where it is from the middle, m, so many s after the episode's beginning."""
        # Rounded to microseconds: an instant is the same number on clocks that began elsewhere.
        turn = math.sin(2.0 * math.pi * (round(elapsed, 6) / self.period + self.phase))
        return self.reach[0] * turn, self.reach[1] * turn

    @property
    def speed(self) -> float:
        """The highest, in the middle of the way, m/s."""
        return 2.0 * math.pi / self.period * math.hypot(*self.reach)


@dataclass(frozen=True)
class Block:
    """A body on the table.

    Attributes:
        shape: `box`, `cylinder` (upright) or `sphere`; the latter two are as wide as their size's
            first number.
        size: extents along x, y, z, m.
        position: x, y of its middle in the robot's base frame, m; it stands on the table, z = 0.
        colour: red, green, blue from 0 to 1.
        yaw: rotation about the vertical, rad.
        motion: how it moves about `position`; None stands still.
    """

    shape: Shape
    size: tuple[float, float, float]
    position: tuple[float, float]
    colour: Colour
    yaw: float = 0.0
    motion: Motion | None = None

    def __post_init__(self) -> None:
        if not all(extent > 0 for extent in self.size):
            raise ConfigError(f"extents must be positive, got {self.size}", where="block")

    @property
    def centre(self) -> Point:
        """Its middle, that of its way if it moves, m."""
        return (*self.position, 0.5 * self.size[2])

    def at(self, elapsed: float) -> Point:
        """Its middle so many s after the episode's beginning, m."""
        if self.motion is None:
            return self.centre
        x, y = self.motion.offset(elapsed)
        return self.position[0] + x, self.position[1] + y, 0.5 * self.size[2]


@dataclass(frozen=True)
class Light:
    """One lamp and what comes from everywhere; by default as the renderer has it.

    Attributes:
        direction: from the table towards the lamp; its length does not matter.
        colour: red, green, blue from 0 to 1.
        ambient: share of a colour that is seen in the lamp's shade.
        diffuse: what a surface that faces the lamp adds to it.
        specular: what shines.
    """

    direction: Point = (-50.0, 30.0, 100.0)
    colour: Colour = (1.0, 1.0, 1.0)
    ambient: float = 0.6
    diffuse: float = 0.35
    specular: float = 0.05


PLAIN_LIGHT = Light()


@dataclass(frozen=True)
class CameraOffset:
    """How far the camera is from where it is meant to be.

    Attributes:
        shift: of the eye along x, y, z of the base frame, m.
        turn: rotation vector in the base frame, rad.
    """

    shift: Point
    turn: Point


@dataclass(frozen=True)
class SceneLayout:
    """One arrangement of obstacles and goal, and how it looks.

    Attributes:
        obstacles: what must not be touched.
        goal: what is to be reached.
        distractors: what is seen, but touches nobody: flat, or where no arm reaches.
        light: where it comes from, and how much.
        camera: None is a camera that is exactly where it is meant to be.
        cloth: colour of what everything stands on.
    """

    obstacles: tuple[Block, ...]
    goal: Block
    distractors: tuple[Block, ...] = ()
    light: Light = PLAIN_LIGHT
    camera: CameraOffset | None = None
    cloth: Colour = WHITE

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description."""
        out: dict[str, Any] = config.to_json(self)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SceneLayout:
        """Inverse of `to_json`.

        Raises:
            ConfigError: a field is unknown, missing or of the wrong type.
        """
        return config.from_json(cls, data, where="scene")


EMPTY = SceneLayout((), Block("cylinder", (0.06, 0.06, 0.06), (0.5, 0.0), RED))


def load_panda(client: int, show: Literal["visual", "collision"]) -> int:
    """Load the Panda of `pybullet_data` with fixed base and closed fingers.

    `show` keeps only what the client needs: the collision meshes for physics, or the same coarse
    meshes as visuals for the renderer, which draws them ten times faster than the fine ones.

    Returns:
        The body's id. Joints are indexed as in `ARM_JOINTS`.
    """
    folder = Path(pybullet_data.getDataPath()) / "franka_panda"
    meshes = folder / "meshes" / "collision"
    text = (folder / "panda.urdf").read_text("utf-8")
    dropped = "collision" if show == "visual" else "visual"
    text = re.sub(rf"<{dropped}>.*?</{dropped}>", "", text, flags=re.DOTALL)
    with tempfile.TemporaryDirectory() as scratch:
        if show == "visual":
            for mesh in meshes.glob("*.obj"):
                (Path(scratch) / mesh.name).write_text(_steady(mesh), "utf-8")
            meshes = Path(scratch)
        text = re.sub("package://meshes/(visual|collision)/", f"{meshes.as_posix()}/", text)
        path = Path(scratch) / "panda.urdf"
        path.write_text(text, "utf-8")
        return int(pybullet.loadURDF(str(path), useFixedBase=True, physicsClientId=client))


@cache
def _steady(mesh: Path) -> str:
    return with_steady_normals(mesh.read_text("utf-8"))


def place_arm(client: int | None, arm: int, q: Array) -> None:
    """Put the arm at joint positions `[7]`, rad, at rest."""
    for joint, value in zip(ARM_JOINTS, np.asarray(q, np.float64).tolist(), strict=True):
        pybullet.resetJointState(arm, joint, value, 0.0, physicsClientId=client)


def add_block(client: int | None, block: Block, show: Literal["visual", "collision"]) -> int:
    """Add a block where it is at the episode's beginning; returns the body's id."""
    half = [0.5 * extent for extent in block.size]
    kind = {
        "box": pybullet.GEOM_BOX,
        "cylinder": pybullet.GEOM_CYLINDER,
        "sphere": pybullet.GEOM_SPHERE,
    }[block.shape]
    shape: dict[str, Any] = {"halfExtents": half} if block.shape == "box" else {"radius": half[0]}
    visual = collision = -1
    if show == "visual":
        shape |= {"length": block.size[2]} if block.shape == "cylinder" else {}
        visual = pybullet.createVisualShape(
            kind, rgbaColor=[*block.colour, 1.0], physicsClientId=client, **shape
        )
    else:
        shape |= {"height": block.size[2]} if block.shape == "cylinder" else {}
        collision = pybullet.createCollisionShape(kind, physicsClientId=client, **shape)
    return int(
        pybullet.createMultiBody(
            baseMass=0.0,
            baseCollisionShapeIndex=collision,
            baseVisualShapeIndex=visual,
            basePosition=block.at(0.0),
            baseOrientation=_upright(block),
            physicsClientId=client,
        )
    )


def place_block(client: int | None, body: int, block: Block, elapsed: float) -> None:
    """Put a block's body where it is so many s after the episode's beginning."""
    pybullet.resetBasePositionAndOrientation(
        body, block.at(elapsed), _upright(block), physicsClientId=client
    )


def _upright(block: Block) -> list[float]:
    return [0.0, 0.0, np.sin(0.5 * block.yaw), np.cos(0.5 * block.yaw)]


def add_capsule(client: int | None, radius: float, axis: Array) -> int:
    """Add a capsule that is moved by hand, for distances alone; returns the body's id."""
    length = float(np.linalg.norm(axis))
    shape = pybullet.createCollisionShape(
        pybullet.GEOM_CAPSULE, radius=radius, height=length, physicsClientId=client
    )
    body = pybullet.createMultiBody(
        baseMass=0.0, baseCollisionShapeIndex=shape, physicsClientId=client
    )
    pybullet.setCollisionFilterGroupMask(body, -1, 0, 0, physicsClientId=client)
    return int(body)


def place_capsule(client: int | None, body: int, start: Array, axis: Array) -> None:
    """Put a capsule's axis `[3]`, m, at `start` `[3]`, m."""
    x, y, z = (axis / max(float(np.linalg.norm(axis)), 1e-12)).tolist()
    # The half turn about the middle between the capsule's own axis, z, and the wanted one.
    middle = np.array([x, y, z + 1.0]) if z > -1.0 + 1e-9 else np.array([1.0, 0.0, 0.0])
    middle = middle / np.linalg.norm(middle)
    pybullet.resetBasePositionAndOrientation(
        body, (start + 0.5 * axis).tolist(), [*middle.tolist(), 0.0], physicsClientId=client
    )
