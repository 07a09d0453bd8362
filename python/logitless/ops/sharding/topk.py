"""The largest logits of each row over all shards of a vocabulary, the same on every rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from logitless.backends.row_kernels.rows import Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.ops.sharding.shard import Shard


def finalize(
    rows: Rows,
    state: Tensor,  # [n, STATE], merged over the shards
    kept: TopK,  # of this rank's columns, counted from its first
    shard: Shard,
    dtype: torch.dtype,  # of the logits
) -> None:
    """`TopKKernels.finalize`; afterwards `kept` is what one rank with all columns would have kept.

    A row's largest are among the largest of each shard, so these are sent: as many entries as a row
    keeps, in the dtype that they were computed in.
    """
    kernels = rows.backend.topk
    assert kernels is not None
    kernels.finalize(rows, state, kept)
    if not shard.group or not rows.n:
        return
    n, keep = rows.n, kept.values.shape[1] // 2
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    _blank(kept)
    y, ids = kept.values[:, :keep].to(exact), kept.ids[:, :keep] + shard.start
    everyone = shard.gather(torch.cat((y.view(torch.uint8), ids.view(torch.uint8)), 1))
    size = keep * exact.itemsize
    kept.count.zero_()
    # One shard after the other joins what is kept so far; there is room for twice as much.
    for part in everyone.unbind(0):
        _blank(kept)
        kept.values[:, keep:] = part[:, :size].contiguous().view(exact).view(n, keep)
        kept.ids[:, keep:] = part[:, size:].contiguous().view(torch.int32).view(n, keep)
        kept.count.fill_(2 * keep)
        kernels.finalize(rows, state, kept)


def _blank(kept: TopK) -> None:
    """-inf where a row keeps fewer: no entry is, and `finalize` drops it."""
    keep = kept.values.shape[1] // 2
    places = torch.arange(keep, device=kept.count.device)
    kept.values[:, :keep].masked_fill_(places >= kept.count[:, None], -math.inf)
