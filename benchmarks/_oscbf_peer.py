"""OSCBF in velocity mode for `filter_speed.py`, run by the Python of its own environment.

    python benchmarks/_oscbf_peer.py QUESTION.npz ANSWER.npz

Needs NumPy, JAX and oscbf, and nothing of ours. What it is asked: states and wished velocities to
time, and motions to carry out. `execute` is the plant that every velocity command is run on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 0.001
"""Of the integration, s."""
GAIN = 5.0
"""With which the wish leads back to the trajectory, 1/s."""
ALPHA = 10.0
"""Of every barrier function, 1/s, as OSCBF's examples have it."""


def execute(
    command: Callable[[Any, Any], Any], q: Any, dq: Any, speed: Any, acceleration: Any, every: int
) -> Any:
    """Joint positions `[K, n]` at 1 kHz of an arm that wants to follow a trajectory.

    Its velocity follows the command as fast as its accelerations allow.

    Args:
        command: from position and wished velocity `[n]` to what the filter lets pass.
        q: trajectory `[K, n]`, rad, every `STEP`.
        dq: its velocities `[K, n]`, rad/s.
        speed: largest speeds `[n]`, rad/s.
        acceleration: largest accelerations `[n]`, rad/s^2.
        every: steps from one command to the next.
    """
    now, v, u = np.array(q[0]), np.zeros(len(speed)), np.zeros(len(speed))
    out = np.empty_like(q)
    for k in range(len(q)):
        if k % every == 0:
            wish = np.clip(dq[k] + GAIN * (q[k] - now), -speed, speed)
            u = np.asarray(command(now, wish))
            u = np.where(np.isfinite(u), u, 0.0)
        v = v + np.clip(u - v, -acceleration * STEP, acceleration * STEP)
        now = now + v * STEP
        out[k] = now
    return out


def main() -> None:
    import jax
    import jax.numpy as jnp
    from cbfpy import CBF
    from oscbf.core.manipulator import load_panda
    from oscbf.core.oscbf_configs import OSCBFVelocityConfig

    asked = np.load(sys.argv[1])
    robot = load_panda()

    @jax.tree_util.register_static
    class Clutter(OSCBFVelocityConfig):
        """`CollisionsVelocityConfig` of the examples without its table: the obstacles come in."""

        def h_1(self, z: Any, centres: Any, radii: Any, **_: Any) -> Any:
            spheres = robot.link_collision_data(z[: self.num_joints])
            gap = (spheres[:, None, :3] - centres[None]).reshape(-1, 3)
            return jnp.linalg.norm(gap, axis=1) - (spheres[:, 3, None] + radii[None]).ravel()

        def alpha(self, h: Any) -> Any:
            return ALPHA * h

        def alpha_2(self, h_2: Any) -> Any:
            return ALPHA * h_2

    answer: dict[str, Any] = {}
    for count in asked["counts"]:
        states, wishes = asked[f"states_{count}"], asked[f"wishes_{count}"]
        centres, radii = asked[f"centres_{count}"], asked[f"radii_{count}"]
        which = asked[f"which_{count}"]
        cbf = CBF.from_config(Clutter(robot, init_args=(centres[0], radii[0])))

        def filtered(
            q: Any, u: Any, scene: int, cbf: Any = cbf, centres: Any = centres, radii: Any = radii
        ) -> Any:
            return cbf.safety_filter(q, u, centres[scene], radii[scene]).block_until_ready()

        for k in range(20):  # compiled, and warm
            filtered(states[k % len(states)], wishes[k % len(states)], which[k % len(states)])
        times = np.empty((int(asked["runs"]), len(states), 2))
        for run in times:
            for k, (q, u, scene) in enumerate(zip(states, wishes, which)):  # noqa: B905
                wall, cpu = time.perf_counter(), time.process_time()
                filtered(q, u, scene)
                run[k] = time.perf_counter() - wall, time.process_time() - cpu
        answer[f"times_{count}"] = times
        for every in asked["every"]:
            for scene in range(len(centres)):

                def command(q: Any, u: Any, scene: int = scene) -> Any:
                    return filtered(q, u, scene)

                answer[f"q_{count}_{every}_{scene}"] = execute(
                    command, asked[f"q_{count}_{scene}"], asked[f"dq_{count}_{scene}"],
                    asked["speed"], asked["acceleration"], int(every),
                )  # fmt: skip
        print(f"{21 * count} rows", flush=True)
    np.savez(sys.argv[2], **answer)


if __name__ == "__main__":
    main()
