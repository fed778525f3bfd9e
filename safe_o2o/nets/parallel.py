"""One batch over several processes of torch.distributed, each with some of its rows.

What one process would compute with the whole batch, all compute together. A loss is the sum of the
processes' shares: each divides its own sum by a count over all of them (`everywhere`). Gradients
are added up (`add_up`). Noise is drawn for the whole batch by every process from the same seed, and
each takes its rows (`Draws`). So the number of processes changes nothing but the order of sums.

Without a process group nothing here costs or changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 32 * 1024 * 1024  # bytes that one message of gradients has at most


def world() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def own(count: int) -> slice:
    """This process's rows of a batch of `count`, which the number of processes divides."""
    size = count // world()
    return slice(rank() * size, (rank() + 1) * size)


@torch.no_grad()
def everywhere(x: Tensor) -> Tensor:
    """Sum of a tensor over all processes, without gradient."""
    if world() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def with_others(x: Tensor) -> Tensor:
    """Sum over all processes whose gradient reaches this one's share.

    For what goes into a loss that is no sum over rows. The value of a function of it is the same
    everywhere, and the sum of its gradients is the gradient of the whole.
    """
    return x if world() == 1 else x + (everywhere(x) - x.detach())


@torch.no_grad()
def largest(x: Tensor) -> Tensor:
    """Largest value over all processes, entry by entry."""
    if world() == 1:
        return x.detach()
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return top


def share(x: Tensor) -> Tensor:
    """What each process contributes to a sum over all that has to give `x`, known to them all."""
    return x if world() == 1 else x / world()


@torch.no_grad()
def gathered(x: Tensor) -> Tensor:
    """The flattened entries of all processes, in their order; their numbers may differ."""
    if world() == 1:
        return x.detach().flatten()
    mine = x.detach().flatten()
    sizes = torch.zeros(world(), dtype=torch.int64, device=x.device)
    sizes[rank()] = mine.numel()
    counts = everywhere(sizes).tolist()
    parts = [mine.new_empty(max(counts)) for _ in counts]
    dist.all_gather(parts, torch.nn.functional.pad(mine, (0, max(counts) - mine.numel())))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes."""
    if world() == 1:
        return
    # The same graph everywhere: what has no gradient here has none in any process.
    grads = [p.grad for p in parameters if p.grad is not None]
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        bucket.append(grad)
        size += grad.numel() * grad.element_size()
        if size >= _BUCKET:
            _reduce(bucket)
            bucket, size = [], 0
    if bucket:
        _reduce(bucket)


def _reduce(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([grad.flatten() for grad in bucket])
    dist.all_reduce(flat)
    for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(total.view_as(grad))


class Draws:
    """Noise for this process's rows of something that all of them draw together.

    Args:
        generator: in the same state everywhere; None draws from the global one.
        total: number of rows in all processes; None for a process alone.
        rows: this process's among them: a slice, or indices.
    """

    def __init__(
        self,
        generator: torch.Generator | None,
        total: int | None = None,
        rows: slice | Tensor | None = None,
    ) -> None:
        self.generator, self.total, self.rows = generator, total, rows

    @classmethod
    def batch(cls, generator: torch.Generator | None, size: int) -> Draws:
        """For a batch of which every process has `size` rows."""
        if world() == 1:
            return cls(generator)
        return cls(generator, size * world(), own(size * world()))

    def draw(
        self, make: Callable[..., Tensor], shape: Sequence[int], like: Tensor, axis: int = 0
    ) -> Tensor:
        """`make(shape, generator=..., device=..., dtype=...)`, rows along `axis`."""
        options = {"generator": self.generator, "device": like.device, "dtype": like.dtype}
        if self.total is None:
            return make(tuple(shape), **options)
        whole = make((*shape[:axis], self.total, *shape[axis + 1 :]), **options)
        if isinstance(self.rows, slice):
            assert self.rows.start is not None
            return whole.narrow(axis, self.rows.start, self.rows.stop - self.rows.start)
        assert self.rows is not None
        return whole.index_select(axis, self.rows)
