"""Which arithmetic a network trains with: bfloat16 where the processor is fast at it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def has_fast_bf16(device: torch.device) -> bool:
    """True where bfloat16 products are faster than float32 ones: GPUs, AVX512-BF16, AMX."""
    if device.type != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def training_arithmetic(wish: Precision, device: torch.device) -> torch.autocast:
    """Convolutions and matrix products in bfloat16, if wished or (`auto`) where that is faster.

    Layers return float32 all the same: norms, gates, distributions and losses are never rounded.
    """
    fast = wish == "bf16" or (wish == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
