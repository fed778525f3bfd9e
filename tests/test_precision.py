"""Training in bfloat16: the same parameters learn, and in nearly the same direction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safe_o2o import catalog
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import VARIANTS
from safe_o2o.nets.precision import Precision, has_fast_bf16, training_arithmetic
from tests.synthetic import SPEC, STATISTICS, sequence_batch

CAST = [("fosp", "tiny"), *(("fosp", f"tiny_{name}") for name in VARIANTS)]
CAST += [(name, "tiny") for name in ("safedreamer", "dreamer", "behavior_cloning")]


def _gradients(
    make: type[Fosp], config: FospConfig, precision: Precision, online: bool
) -> dict[str, Tensor]:
    """By module, of one batch, from weights that a few updates have moved off their zeros."""
    config = replace(config, world_model=replace(config.world_model, precision="fp32"))
    algorithm = make(config, SPEC, STATISTICS)
    for seed in range(3):
        algorithm.update(sequence_batch(seed))
    if online:
        algorithm.start_online()
    wanted = replace(config.world_model, precision=precision)
    algorithm.objectives.config = replace(config, world_model=wanted)
    loss, _ = algorithm.objectives(sequence_batch(7, origin=int(online)), algorithm.step)
    assert loss.dtype == torch.float32
    loss.backward()
    found = {}
    for name, module in algorithm.net.named_children():
        grads = [p.grad for p in module.parameters()]
        assert all(g is None or g.dtype == torch.float32 for g in grads)
        kept = [g.flatten() for g in grads if g is not None]
        found[name] = torch.cat(kept) if kept else torch.zeros(0)
    return found


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(("name", "preset"), CAST)
def test_bf16_trains_what_fp32_trains(name: str, preset: str, online: bool) -> None:
    make = catalog.load("algorithm", name)
    exact = _gradients(make, make.preset(preset), "fp32", online)
    rough = _gradients(make, make.preset(preset), "bf16", online)
    moved = 0
    for module, want in exact.items():
        got = rough[module]
        # Autocast keeps its copies of the weights: one made where no gradient is wanted would be
        # used where one is, and its parameter would stand still.
        assert got.shape == want.shape, module
        if want.any():
            moved += not torch.equal(got, want)
            assert torch.nn.functional.cosine_similarity(got, want, 0) > 0.8, module
    assert moved >= 2


def test_arithmetic_is_as_wished() -> None:
    cpu = torch.device("cpu")
    for wish, low in (("fp32", False), ("bf16", True), ("auto", has_fast_bf16(cpu))):
        with training_arithmetic(wish, cpu):
            assert torch.is_autocast_enabled("cpu") == low
    assert not torch.is_autocast_enabled("cpu")
