"""What of a URDF the filter reads itself, because a library would guess or overlook it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pinocchio

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array


class LinkCapsule(NamedTuple):
    """A capsule about a collision shape: link, both ends of its axis `[3]` and radius, m."""

    link: str
    start: Array
    end: Array
    radius: float


def _root(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"is no URDF ({line})", where="URDF") from error


def collision_capsules(text: str) -> tuple[LinkCapsule, ...]:
    """Capsules that contain the collision shapes of all links, in the links' frames.

    A sphere is one without length; a cylinder gets half a ball at each end; a box gets its axis
    along its longest side and half the diagonal of the two others as radius.

    Raises:
        ConfigError: the text is no URDF, a shape is a mesh or has a number that is none, or no link
            has any.
    """
    found = []
    for link in _root(text).findall("link"):
        name = str(link.get("name"))
        for collision in link.findall("collision"):
            origin, shape = collision.find("origin"), collision.find("geometry")
            kinds = list(shape) if shape is not None else []
            if len(kinds) != 1 or kinds[0].tag not in ("sphere", "cylinder", "box"):
                tags = ", ".join(kind.tag for kind in kinds) or "nothing"
                raise ConfigError(
                    f"has {tags} for collisions",
                    where=f"link {name!r} of the URDF",
                    todo="describe it by boxes, cylinders or spheres, or list capsules instead",
                )
            try:
                found.append(_capsule(name, kinds[0], origin))
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"has a collision shape with a number missing or wrong ({error})",
                    where=f"link {name!r} of the URDF",
                ) from error
    if not found:
        raise ConfigError("has no collision shapes", where="URDF", todo="list capsules instead")
    return tuple(found)


def _capsule(
    link: str, shape: ElementTree.Element, origin: ElementTree.Element | None
) -> LinkCapsule:
    place = {} if origin is None else origin.attrib
    shift, turn = (_numbers(place.get(key, "0 0 0"), 3) for key in ("xyz", "rpy"))
    axis = np.zeros(3)
    if shape.tag == "box":
        half = 0.5 * _numbers(shape.get("size"), 3)
        longest = int(half.argmax())
        axis[longest] = half[longest]
        radius = float(np.hypot(*np.delete(half, longest)))
        sizes = half
    else:
        radius = float(_numbers(shape.get("radius"), 1)[0])
        length = float(_numbers(shape.get("length"), 1)[0]) if shape.tag == "cylinder" else 0.0
        axis[2] = 0.5 * length
        sizes = np.array([radius, length] if shape.tag == "cylinder" else [radius])
    if not (sizes > 0.0).all():
        raise ValueError(f"sizes must be positive, got {sizes.tolist()}")
    way = pinocchio.rpy.rpyToMatrix(*turn) @ axis
    return LinkCapsule(link, shift - way, shift + way, radius)


def _numbers(text: str | None, count: int) -> Array:
    values = np.array([float(part) for part in (text or "").split()])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{count} finite numbers wanted, got {text!r}")
    return values


def with_moving_joints(text: str, moving: Sequence[str]) -> str:
    """A URDF of which these joints move alone, in its own order; all others are fixed at zero.

    A `robot_description` has the whole machine: grippers, wheels, a second arm.

    Args:
        text: the URDF.
        moving: names of joints.

    Raises:
        ConfigError: the text is no URDF, or has no such joint.
    """
    root = _root(text)
    joints = {str(joint.get("name")): joint for joint in root.findall("joint")}
    for name in moving:
        if name not in joints:
            raise ConfigError(f"has no joint {name!r}", where="URDF", todo=f"known: {list(joints)}")
    for name, joint in joints.items():
        if name not in moving:
            joint.set("type", "fixed")
            for mimic in joint.findall("mimic"):
                joint.remove(mimic)
    return ElementTree.tostring(root, encoding="unicode")


def refuse_unlimited_joints(text: str) -> None:
    """Refuse by name what pinocchio reads as something else, or as zero, or not at all.

    Raises:
        ConfigError: the text is no URDF, or a joint does not turn between two limits.
    """
    root = _root(text)
    for joint in root.findall("joint"):
        kind, where = joint.get("type"), f"joint {joint.get('name')!r} of the URDF"
        if kind == "fixed":
            continue
        if kind != "revolute" or joint.find("mimic") is not None:
            raise ConfigError(
                f"is {kind}{'' if joint.find('mimic') is None else ' and mimics another'}",
                where=where,
                todo="every joint must turn between two limits: give them, or leave the joint out",
            )
        limit = joint.find("limit")
        found: dict[str, str | None] = dict.fromkeys(("lower", "upper", "velocity"))
        if limit is not None:
            found = {name: limit.get(name) for name in found}
        try:
            low, high, speed = (float(value or "") for value in found.values())
        except ValueError as error:
            raise ConfigError(f"lacks limits, has {found}", where=where) from error
        if not (np.isfinite([low, high, speed]).all() and speed > 0.0 and low < high):
            raise ConfigError(
                f"needs finite limits, lower below upper and a positive velocity, has {found}",
                where=where,
            )
