"""Vertex normals that TinyRenderer's shading leaves as they are.

The renderer normalizes a mesh's normals in place, in single precision, every time it shades with
them. Most unit vectors do not stand still under that: they swing between neighbouring numbers, and
now and then a pixel with them, so that a picture depends on how many were taken before it. The
normals chosen here have a norm that rounds to exactly 1, whatever the order of summation.
"""

from __future__ import annotations

import re
from itertools import product

import numpy as np

from safe_o2o.types import Array

_STEPS = np.array(sorted(product(range(-6, 7), repeat=3), key=lambda steps: sum(map(abs, steps))))
"""`[2197, 3]`, smallest first."""
_SCALES = (2.0**-25, 2.0**-21, 2.0**-17, 2.0**-13)
"""Coarser where a normal nearly along an axis asks for it; 1e-3 rad is below what a pixel shows."""


def steady_normal(normal: Array) -> Array:
    """A unit vector, float32 `[3]`, beside `normal` `[3]` that single precision keeps.

    Raises:
        ValueError: the normal has no direction: it is zero or not finite.
    """
    exact = np.asarray(normal, np.float64)
    length = float(np.linalg.norm(exact))
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"a normal needs a direction, got {normal}")
    for scale in _SCALES:
        candidates = (exact / length + scale * _STEPS).astype(np.float32)
        x, y, z = np.square(candidates).T
        steady = ((x + y) + z == 1) & ((y + z) + x == 1) & ((z + x) + y == 1)
        if steady.any():
            return np.asarray(candidates[int(np.argmax(steady))])
    raise AssertionError(f"no steady normal beside {normal}")


def with_steady_normals(obj: str) -> str:
    """A Wavefront OBJ file's text with each of its normals made steady."""
    return re.sub(r"^vn +(\S+) +(\S+) +(\S+).*$", _replaced, obj, flags=re.MULTILINE)


def _replaced(line: re.Match[str]) -> str:
    components = steady_normal(np.array([float(number) for number in line.groups()]))
    return "vn " + " ".join(f"{float(number):.17g}" for number in components)
