"""A learner that trains for ever, as a fault's victim: see `ros_faults`."""

from pathlib import Path
from typing import Any

import torch


class FineTuner:
    """Takes a core, as a learner does, and never has a bundle."""

    def __init__(self, run_dir: Path, config: Any) -> None:
        self.net = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8)))

    def round(self, index: int) -> str:
        """Train until somebody kills it."""
        optimiser = torch.optim.AdamW(self.net.parameters())
        while True:
            optimiser.zero_grad()
            self.net(torch.randn(1024, 512)).square().mean().backward()
            optimiser.step()
