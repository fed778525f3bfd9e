"""What stands on the table: plain data, so that any process can build its own copy of the scene."""

from __future__ import annotations

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
from safe_o2o.errors import ConfigError
from safe_o2o.types import Array
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.steady_normals import with_steady_normals

GREEN = (0.10, 0.60, 0.20)
RED = (0.85, 0.10, 0.10)
YELLOW = (0.85, 0.75, 0.15)

ARM_JOINTS = tuple(range(7))
"""PyBullet's indices of panda_joint1..7."""
FINGER_JOINTS = (9, 10)
HAND_LINK = 8


@dataclass(frozen=True)
class Block:
    """A body on the table.

    Attributes:
        shape: `box` or `cylinder` (upright, as wide as its size's first number).
        size: extents along x, y, z, m.
        position: x, y of its middle in the robot's base frame, m; it stands on the table, z = 0.
        colour: red, green, blue from 0 to 1.
        yaw: rotation about the vertical, rad.
    """

    shape: Literal["box", "cylinder"]
    size: tuple[float, float, float]
    position: tuple[float, float]
    colour: tuple[float, float, float]
    yaw: float = 0.0

    def __post_init__(self) -> None:
        if not all(extent > 0 for extent in self.size):
            raise ConfigError(f"extents must be positive, got {self.size}", where="block")

    @property
    def centre(self) -> tuple[float, float, float]:
        """Its middle, m."""
        return (*self.position, 0.5 * self.size[2])


@dataclass(frozen=True)
class SceneLayout:
    """One arrangement of obstacles and goal.

    Attributes:
        obstacles: what must not be touched.
        goal: what is to be reached.
    """

    obstacles: tuple[Block, ...]
    goal: Block

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
    """Add a block that never moves; returns the body's id."""
    box = block.shape == "box"
    kind = pybullet.GEOM_BOX if box else pybullet.GEOM_CYLINDER
    half = [0.5 * extent for extent in block.size]
    shape: dict[str, Any] = {"halfExtents": half} if box else {"radius": half[0]}
    visual = collision = -1
    if show == "visual":
        shape |= {} if box else {"length": block.size[2]}
        visual = pybullet.createVisualShape(
            kind, rgbaColor=[*block.colour, 1.0], physicsClientId=client, **shape
        )
    else:
        shape |= {} if box else {"height": block.size[2]}
        collision = pybullet.createCollisionShape(kind, physicsClientId=client, **shape)
    return int(
        pybullet.createMultiBody(
            baseMass=0.0,
            baseCollisionShapeIndex=collision,
            baseVisualShapeIndex=visual,
            basePosition=block.centre,
            baseOrientation=[0.0, 0.0, np.sin(0.5 * block.yaw), np.cos(0.5 * block.yaw)],
            physicsClientId=client,
        )
    )


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
