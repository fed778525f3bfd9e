"""The group of processes that `torchrun` started this one in, if it did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from safe_o2o.errors import ConfigError
from safe_o2o.nets import parallel


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process speaks and writes for its group; true for a process alone."""
    return _size() == 1 or int(os.environ["RANK"]) == 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the group for as long as the context lasts; does nothing outside `torchrun`.

    Args:
        device: what the user asked for; `cuda` becomes this process's own GPU.

    Yields:
        The device of this process.
    """
    if _size() == 1:
        yield device
        return
    gpu = device.startswith("cuda")
    if gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nobody else may listen
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rows_of(batch_size: int) -> slice | None:
    """This process's rows of each batch; None for a process alone, which has all.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    size = parallel.world()
    if size == 1:
        return None
    if batch_size % size:
        raise ConfigError(
            f"must be a multiple of the {size} processes, got {batch_size}", where="batch_size"
        )
    return parallel.own(batch_size)
