"""A few columns of a vocabulary over ranks: each from the rank that has it, on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from logitless.ops.sharding.shard import Shard, process_group

# A rank without columns has one of zeros, that it takes none of.
_WIDTH = 1


class _Shared(torch.autograd.Function):
    """The same tensor on every rank, whose gradient is the sum of the ranks'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        total = g.contiguous().clone()
        dist.all_reduce(total, group=process_group(ctx.group))
        return total, None


class _Summed(torch.autograd.Function):
    """The sum over ranks, on every rank: each has the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=process_group(group))
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def shared(x: Tensor, shard: Shard) -> Tensor:
    """x of all ranks, in front of what each does with its own columns."""
    if not (shard.group and shard.reduces_hidden):
        return x
    shared_x: Tensor = _Shared.apply(x, shard.group)  # type: ignore[no-untyped-call]
    return shared_x


def padded(x: Tensor, dim: int) -> Tensor:
    """One column (or row of weight) more where there is none."""
    if x.shape[dim]:
        return x
    shape = list(x.shape)
    shape[dim] = _WIDTH
    return x.new_zeros(shape)


def of_all_ranks(
    columns: Callable[[Tensor], Tensor],
    ids: Tensor,  # [K] of the whole vocabulary
    width: int,
    shard: Shard,
) -> Tensor:
    """[..., K] of what `columns` gives for ids among this rank's `width`."""
    own = (ids >= shard.start) & (ids < shard.start + width)
    mine = columns(torch.where(own, ids - shard.start, 0)).masked_fill(~own, 0.0)
    total: Tensor = _Summed.apply(mine, shard.group)  # type: ignore[no-untyped-call]
    return total
