"""Going round what is in the way, opt-in: one joint velocity from a quadratic program.

It only proposes. What it proposes is sent only if it and the stop after it pass the same check as
everything else; and the program cannot become infeasible, because each of its rows is relaxed to
what the brake would do (online_safety.md 6.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_o2o.errors import MissingDependencyError
from safe_o2o.interfaces import Constraint
from safe_o2o.safety.braking import synchronous_ticks
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Array

POSTURE_WEIGHT = 0.01
"""Weight of the joints' own motion beside the tool's, m^2: it settles what the tool leaves open."""


class Deflection:
    """The velocity nearest to the wanted one that the linearised constraints allow.

    Args:
        limits: the arm's limits.
        constraints: all that hold, joint limits included.
        dt: control period, s.

    Raises:
        MissingDependencyError: no QP solver is installed.
    """

    def __init__(self, limits: RobotLimits, constraints: Sequence[Constraint], dt: float) -> None:
        missing = MissingDependencyError(
            "needs a QP solver", where="deflection", todo="pip install 'safe-o2o[deflect]'"
        )
        try:
            import qpsolvers
        except ImportError as error:
            raise missing from error
        if "daqp" not in qpsolvers.available_solvers:
            raise missing
        self._solve: Any = qpsolvers.solve_qp
        self._limits, self._constraints, self._dt = limits, tuple(constraints), dt
        bodies = [getattr(constraint, "body", None) for constraint in constraints]
        self._body: Any = next((b for b in bodies if b is not None and len(b.frames)), None)

    def propose(self, q: Array, v: Array, wanted: Array) -> Array | None:
        """The next velocity `[n]`, rad/s; None where the solver finds none.

        min |w - wanted|_W over G w <= h, every h at least G w_b, w_b being the next velocity of the
        synchronous brake. Distances have to last until standstill: a velocity w takes the arm
        w dt (k + 1) / 2 far, k being the ticks of the brake.

        Args:
            q: the last command `[n]`, rad.
            v: its velocity `[n]`, rad/s.
            wanted: velocity towards the path's next set-point `[n]`, rad/s.
        """
        dt, limits = self._dt, self._limits
        brake = self.brake(v)
        # One tick more: the next brake may begin at w.
        reach = 0.5 * (max(synchronous_ticks(v, limits.acceleration, dt), 1) + 2) * dt
        rows = [
            constraint.rows(q, v, dt if constraint.exact_rows else reach)
            for constraint in self._constraints
        ]
        g = np.concatenate([row[0] for row in rows])
        h = np.concatenate([row[1] for row in rows])
        change = limits.acceleration * dt
        g = np.concatenate([g, np.eye(len(v)), -np.eye(len(v))])
        h = np.concatenate([h, v + change, change - v])
        if not (np.isfinite(g).all() and np.isfinite(h).all()):
            return None
        weight = POSTURE_WEIGHT * np.eye(len(v))
        if self._body is not None:
            tool = self._body.jacobians(q, np.array([self._body.spheres]))[0]
            weight = weight + tool.T @ tool
        found = self._solve(weight, -weight @ wanted, g, np.maximum(h, g @ brake), solver="daqp")
        if found is None or not np.isfinite(found).all():
            return None
        return np.asarray(found)

    def brake(self, v: Array) -> Array:
        """The next velocity `[n]` of the synchronous brake, rad/s."""
        ticks = max(synchronous_ticks(v, self._limits.acceleration, self._dt), 1)
        return v * (ticks - 1) / ticks
