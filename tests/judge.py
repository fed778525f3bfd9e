"""A judge of executed motion that shares no code with the filter.

Its limits are the maker's numbers, its kinematics Pinocchio's, its distances of its own making.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pinocchio
import yaml

from safe_o2o.types import Array

SAFETY = Path(__file__).parents[1] / "safe_o2o" / "safety"
DT = 0.01
MEASURED: dict[str, dict[str, list[float]]] = {
    # What the makers do not publish; any number will do for a simulated arm.
    name: {"acceleration": [8.0] * 6, "jerk": [4000.0] * 6}
    for name in ("ur3e", "ur5e", "ur10e")
}


class Judge:
    """Judges one arm's set-points and the way between them.

    Args:
        robot: name of the arm.
        box: lowest and highest tool position, m.
        floor: lowest z of the elbow, m.
    """

    def __init__(self, robot: str, box: Any, floor: float = 0.0) -> None:
        raw = yaml.safe_load((SAFETY / "robot_limits" / f"{robot}.yaml").read_text())
        shape = yaml.safe_load((SAFETY / "robot_geometry" / f"{robot}.yaml").read_text())
        self.names = tuple(raw["joint_names"])
        self.low, self.high = np.array(raw["position_low"]), np.array(raw["position_high"])
        self.velocity = np.array(raw["velocity"])
        published = raw["acceleration"]
        self.acceleration = np.array(
            published if isinstance(published, list) else MEASURED[robot]["acceleration"]
        )
        self.box, self.floor = np.array(box), floor
        self.model = pinocchio.buildModelFromUrdf(str(SAFETY / "robot_models" / f"{robot}.urdf"))
        self.data = self.model.createData()
        self.tool, self.elbow = (
            self.model.getFrameId(raw[name]) for name in ("tool_frame", "elbow_frame")
        )
        capsules = shape["capsules"]
        frames = [c["frame"] for c in capsules]
        used = sorted(set(frames))
        self.frames = [self.model.getFrameId(name) for name in used]
        self.frame_of = np.array([used.index(name) for name in frames])
        self.ends = np.array([[c["start"], c.get("end", c["start"])] for c in capsules], np.float64)
        self.radii = np.array([c["radius"] for c in capsules])
        self.half = 0.5 * np.linalg.norm(self.ends[:, 1] - self.ends[:, 0], axis=-1)
        skip = {frozenset(pair) for pair in shape["skip"]}
        count = range(len(frames))
        apart = [
            (a, b)
            for a in count
            for b in count[a + 1 :]
            if frames[a] != frames[b] and frozenset((frames[a], frames[b])) not in skip
        ]
        self.pairs = np.array(apart).reshape(-1, 2)

    def joints(self, before: Array, v: Array, q: Array) -> list[str]:
        """What is wrong with the set-point q after `before`, reached at velocity v."""
        if not np.isfinite(q).all():
            return ["not finite"]
        w, found = (q - before) / DT, []
        if (q < self.low - 1e-9).any() or (q > self.high + 1e-9).any():
            found.append("position")
        if (np.abs(w) > self.velocity * (1 + 1e-6)).any():
            found.append("velocity")
        if (np.abs(w - v) > self.acceleration * DT * (1 + 1e-6)).any():
            found.append("acceleration")
        return found

    def violations(self, before: Array, v: Array, q: Array) -> list[str]:
        """The same, and whether tool and elbow leave their room on the way."""
        found = self.joints(before, v, q)
        if found == ["not finite"]:
            return found
        _, tool, elbow = self.place([before + k / 4 * (q - before) for k in range(1, 5)])
        return found + self.walls(tool, elbow)

    def place(self, qs: Any) -> tuple[Array, Array, Array]:
        """Ends of all capsules `[K, C, 2, 3]`, tool and elbow `[K, 3]` at K poses."""
        turned, moved, tool, elbow = [], [], [], []
        for q in qs:
            pinocchio.framesForwardKinematics(self.model, self.data, q)
            frames = self.data.oMf
            placed = [frames[frame] for frame in self.frames]
            # Copies: what Pinocchio hands out changes with the next pose.
            turned.append(np.array([frame.rotation for frame in placed]))
            moved.append(np.array([frame.translation for frame in placed]))
            tool.append(frames[self.tool].translation.copy())
            elbow.append(frames[self.elbow].translation.copy())
        turn = np.array(turned)[:, self.frame_of]
        ends = np.einsum("kcij,cej->kcei", turn, self.ends)
        return ends + np.array(moved)[:, self.frame_of, None], np.array(tool), np.array(elbow)

    def walls(self, tool: Array, elbow: Array) -> list[str]:
        """Whether tool or elbow `[K, 3]` is outside its room."""
        found = []
        if (tool < self.box[0] - 1e-6).any() or (tool > self.box[1] + 1e-6).any():
            found.append("workspace")
        if (elbow[:, 2] < self.floor - 1e-6).any():
            found.append("elbow")
        return found

    def to_others(self, ends: Array, others: Array, radii: Array, near: float) -> Array:
        """Least distance from each of M capsules `[K, M, 2, 3]` -> `[M]`; at most `near`, m."""
        middle, centre = ends.mean(2), others.mean(2)
        half = 0.5 * np.linalg.norm(others[:, :, 1] - others[:, :, 0], axis=-1)
        reach = (self.half + self.radii)[None, :, None] + (half + radii)[:, None] + near
        gap = middle[:, :, None] - centre[:, None]
        k, c, m = np.nonzero((gap * gap).sum(-1) < reach * reach)
        least = np.full(len(radii), near)
        if len(k):
            lines = line_distance(ends[k, c, 0], ends[k, c, 1], others[k, m, 0], others[k, m, 1])
            np.minimum.at(least, m, lines - self.radii[c] - radii[m])
        return least

    def to_itself(self, ends: Array, near: float) -> float:
        """Least distance of two parts of the arm; `near` where none is nearer, m."""
        if not len(self.pairs):
            return near
        first, second = self.pairs.T
        middle = ends.mean(2)
        gap = middle[:, first] - middle[:, second]
        reach = (self.half + self.radii)[first] + (self.half + self.radii)[second] + near
        k, p = np.nonzero((gap * gap).sum(-1) < reach * reach)
        if not len(k):
            return near
        a, b = first[p], second[p]
        lines = line_distance(ends[k, a, 0], ends[k, a, 1], ends[k, b, 0], ends[k, b, 1])
        return min(near, float((lines - self.radii[a] - self.radii[b]).min()))


def line_distance(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Distance of segments a-b from segments c-d `[..., 3]`: by alternating projection.

    Not the closed form that the filter uses. The squared distance is convex in the two shares, so
    stepping from one to the other and back comes down to the least.
    """
    u, w = b - a, d - c
    uu = np.maximum((u * u).sum(-1), 1e-18)
    ww = np.maximum((w * w).sum(-1), 1e-18)
    t = np.full(np.broadcast_shapes(a.shape, c.shape)[:-1], 0.5)
    points = bool((ww <= 1e-18).all() or (uu <= 1e-18).all())  # then the first step is exact
    for _ in range(2 if points else 40):
        s = np.clip(((c + t[..., None] * w - a) * u).sum(-1) / uu, 0.0, 1.0)
        t = np.clip(((a + s[..., None] * u - c) * w).sum(-1) / ww, 0.0, 1.0)
    gap = a + s[..., None] * u - c - t[..., None] * w
    return np.sqrt((gap * gap).sum(-1))
