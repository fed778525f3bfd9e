"""Released training loops for `learner_speed.py`, from checkouts that are not ours.

Nothing of theirs is here: their classes are made with their own defaults and their own training
function is called. What they import and the update does not need is stood in for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS = 100_000


class _StandIn(types.ModuleType):
    """A module that nobody needs for an update."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not settings:
            return args[0]
        return lambda function: function


def _stand_in() -> None:
    for name in ("d4rl", "gym", "pyrallis", "wandb", "dateutil", "dateutil.tz"):
        sys.modules.setdefault(name, _StandIn(name))


def _data(seen: int, done: int) -> dict[str, Any]:
    g = np.random.default_rng(0)
    return {
        "observations": g.standard_normal((ROWS, seen), dtype=np.float32),
        "actions": g.uniform(-1, 1, (ROWS, done)).astype(np.float32),
        "next_observations": g.standard_normal((ROWS, seen), dtype=np.float32),
        "rewards": g.standard_normal(ROWS).astype(np.float32),
        "terminals": np.zeros(ROWS, np.float32),
    }


def corl(folder: Path, seen: int, done: int, batch: int) -> Callable[[], None]:
    """One update of CORL's IQL."""
    _stand_in()
    path = folder / "algorithms" / "offline" / "iql.py"
    spec = importlib.util.spec_from_file_location("corl_iql", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["corl_iql"] = module
    spec.loader.exec_module(module)
    buffer = module.ReplayBuffer(seen, done, ROWS)
    buffer.load_d4rl_dataset(_data(seen, done))
    nets = (
        module.GaussianPolicy(seen, done, 1.0),
        module.TwinQ(seen, done),
        module.ValueFunction(seen),
    )
    pairs = [x for net in nets for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    agent = module.ImplicitQLearning(1.0, *pairs)
    return lambda: agent.train(buffer.sample(batch))


def diffcps(folder: Path, seen: int, done: int, batch: int) -> Callable[[], None]:
    """One update of DiffCPS, five steps."""
    modules = _package(folder, "agents.diffcps", "utils.data_sampler")
    settings = {"n_timesteps": 5, "policy_freq": 2, "target_kl": 0.06, "grad_norm": 9.0}
    agent = modules[0].DiffCPS(seen, done, 1.0, "cpu", 0.99, 0.005, beta_schedule="vp", **settings)
    return _epochs(agent, modules[1].Data_Sampler(_data(seen, done), "cpu", "no"), batch)


def consistency(folder: Path, seen: int, done: int, batch: int) -> Callable[[], None]:
    """One update of Consistency-AC, two steps."""
    modules = _package(folder, "agents.ql_consistency", "utils.data_sampler")
    settings = {"n_timesteps": 2, "eta": 1.0, "grad_norm": 9.0}
    agent = modules[0].Consistency_QL(seen, done, 1.0, "cpu", 0.99, 0.005, **settings)
    return _epochs(agent, modules[1].Data_Sampler(_data(seen, done), "cpu", "no"), batch)


def _package(folder: Path, *names: str) -> list[Any]:
    """Modules of a checkout whose packages have the names of others'."""
    _stand_in()
    for name in [name for name in sys.modules if name.split(".")[0] in ("agents", "utils")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


def _epochs(agent: Any, sampler: Any, batch: int) -> Callable[[], None]:
    """One update at a time: their function takes a number of them."""
    return lambda: agent.train(sampler, 1, batch)


PEERS = {"corl": corl, "diffcps": diffcps, "consistency": consistency}
