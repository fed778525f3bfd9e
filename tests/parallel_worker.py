"""One of the processes of `test_parallel`: its share of the work, written as safetensors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_o2o import catalog
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.data.batch import Batch
from safe_o2o.nets import parallel
from safe_o2o.training.group import process_group
from tests import small_backbone
from tests.synthetic import SPEC, STATISTICS, sequence_batch

ROWS = 8


def cases() -> dict[str, tuple[type[Fosp], FospConfig]]:
    """Every objective, normaliser and source of noise at least once."""
    tiny = Fosp.preset("tiny")
    small = replace(tiny.world_model, encoder="strided", depth=4, number_output="two_hot")
    paper = replace(
        FospConfig(),
        world_model=replace(small, decoder_size=64, decode_every=1, embed_dim=0),
        hidden_dims=(32, 32),
        horizon=3,
        lagrange_multiplier=0.1,
        penalty_coefficient=50.0,
    )
    found = {
        "fosp": (Fosp, replace(tiny, lagrange_multiplier=0.1, penalty_coefficient=0.2)),
        "fosp paper": (Fosp, paper),
        "fosp paper, some starts": (Fosp, replace(paper, imagination_starts=11)),
        "released": (Fosp, replace(Fosp.preset("tiny_released"), horizon=3, imagination_starts=5)),
        "dreamer": (catalog.load("algorithm", "dreamer"), None),
        "tuned backbone": (Fosp, replace(small_backbone.config(), lagrange_multiplier=0.1)),
        "behavior_cloning": (catalog.load("algorithm", "behavior_cloning"), None),
    }
    return {
        name: (make, _exact(make.preset("tiny") if config is None else config))
        for name, (make, config) in found.items()
    }


def _exact(config: FospConfig) -> FospConfig:
    return replace(config, world_model=replace(config.world_model, precision="fp32"))


def share(batch: Batch) -> Batch:
    """This process's rows."""
    rows = parallel.own(len(batch))
    return batch.map(lambda tensor: tensor[rows])


def work(make: type[Fosp], config: FospConfig) -> dict[str, Tensor]:
    """Gradients and metrics of one batch offline and online, then the weights after updates."""
    algorithm = make(config, SPEC, STATISTICS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # critics start at zero, from where hardly anything has a gradient
        for p in algorithm.net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    found: dict[str, Tensor] = {}
    for phase in ("offline", "online"):
        if phase == "online":
            algorithm.start_online()
        loss, metrics = algorithm.objectives(share(sequence_batch(9, ROWS)), algorithm.step)
        loss.backward()
        parallel.add_up(algorithm.net.parameters())
        for name, p in algorithm.net.named_parameters():
            if p.grad is not None:
                found[f"{phase} gradient/{name}"] = p.grad.clone()
        algorithm.net.zero_grad(set_to_none=True)
        for name, x in metrics.items():
            found[f"{phase} metric/{name}"] = parallel.everywhere(x.detach().float())
        for name, x in algorithm.scale.named_buffers():
            found[f"{phase} scale/{name}"] = x.clone()
    for seed in range(3):
        algorithm.update(share(sequence_batch(seed, ROWS)))
    # Not compared with a process alone: Adam turns the rounding of a zero gradient into a step.
    found |= {f"after/{name}": p.detach() for name, p in algorithm.net.named_parameters()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main(folder: Path) -> None:
    """Do all cases and write them to `<folder>/<rank>_<case>.safetensors`."""
    torch.set_num_threads(1)
    with process_group("cpu"), small_backbone.registered():
        for name, (make, config) in cases().items():
            save_file(work(make, config), folder / f"{parallel.rank()}_{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
