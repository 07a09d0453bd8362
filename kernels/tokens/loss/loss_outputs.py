"""The loss and its metrics from their sums.

Replaces

    loss = sums[0]
    metrics = [sums[place] / (max(total, 1) if per_token else 1) for place, per_token in table]
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of

NUM_WARPS = 1


@triton.jit
def loss_outputs_kernel(
    loss_ptr,  # float32 or float64, out
    metrics_ptr,  # [places] float32, out
    sums_ptr,  # float64
    total_ptr,  # without dimensions: tokens of the batch; None: `total` is their number
    total: tl.float64,
    PLACES: tl.constexpr,
    PER_TOKEN: tl.constexpr,
):
    if total_ptr is not None:
        tokens = tl.load(total_ptr).to(tl.float64)
    else:
        tokens = tl.full((), total, tl.float64)
    tokens = tl.where(tokens < 1, 1.0, tokens)
    tl.store(loss_ptr, tl.load(sums_ptr).to(loss_ptr.dtype.element_ty))
    for i in tl.static_range(len(PLACES)):
        value = tl.load(sums_ptr + PLACES[i])
        if PER_TOKEN[i]:
            value = value / tokens
        tl.store(metrics_ptr + i, value.to(tl.float32))


def loss_outputs(
    sums: Tensor,  # float64
    table: tuple[tuple[int, bool], ...],  # of each metric
    total: Any,  # a number, or a tensor without dimensions
    *,
    loss: Tensor,  # float32 or float64 without dimensions, out
    metrics: Tensor,  # [len(table)] float32, out
) -> None:
    """Write them. What float32 cannot hold is infinite."""
    there = isinstance(total, Tensor)
    with device_of(sums):
        loss_outputs_kernel[(1,)](
            loss, metrics, sums, total if there else None, 0.0 if there else float(total),
            PLACES=tuple(place for place, _ in table),
            PER_TOKEN=tuple(per_token for _, per_token in table),
            num_warps=NUM_WARPS,
            **UNFUSED,
        )  # fmt: skip
