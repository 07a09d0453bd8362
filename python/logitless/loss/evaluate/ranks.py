"""Sums over the ranks that share an optimizer batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends.tokens import Reduce
from logitless.inputs.checks import shown
from logitless.inputs.tokens import Int64s
from logitless.loss.evaluate.means import one_rank


def reduction(group: Any) -> Reduce:
    """Adds int64 arrays over the ranks of a torch.distributed group; None: this process alone."""
    if group is None:
        return one_rank
    import torch
    import torch.distributed as dist

    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "data_group must be a torch.distributed process group that this rank is in, "
            f"got {shown(group)}"
        )
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"

    def reduce(values: Int64s) -> Int64s:
        total = torch.from_numpy(values).to(device, copy=True)
        dist.all_reduce(total, group=group)
        return np.asarray(total.cpu().numpy())

    return reduce
