"""Products of rows of two matrices, one for each entry of sets.

    values = (hidden[row] * weight[column]).sum(-1)

Where a number of a row is added depends on its column alone, and on whether rows start at 16 bytes:
so the bits of a product depend on its two rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels import arrays
from logitless.kernels.launch import OPTIONS, device_of

# Rows of weight lie anywhere: so many are asked for before the first is waited for, a warp each
# where they are aligned.
ENTRIES = 8
COLUMNS = 256
NUM_WARPS = 8


@triton.jit(do_not_specialize=["entries"])
def set_logits_kernel(
    values_ptr,  # [entries] float32, out
    rows_ptr,  # [entries] int64
    columns_ptr,  # [entries] int32
    hidden_ptr,  # rows of `width` numbers
    weight_ptr,  # the same
    # an id times this passes 2^31
    hidden_stride: tl.int64,
    weight_stride: tl.int64,
    entries: tl.int64,
    width,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    e = tl.arange(0, ENTRIES)
    inside = e < entries - first
    row = tl.load(rows_ptr + first + e, mask=inside, other=0)
    column = tl.load(columns_ptr + first + e, mask=inside, other=0)
    o = tl.arange(0, COLUMNS)
    own_ptr = hidden_ptr + (row * hidden_stride)[:, None] + o[None, :]
    other_ptr = weight_ptr + (column * weight_stride)[:, None] + o[None, :]
    sums = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for c in range(0, width, COLUMNS):
        there = inside[:, None] & (o < width - c)[None, :]
        own = tl.load(own_ptr + c, mask=there, other=0.0).to(tl.float32)
        other = tl.load(other_ptr + c, mask=there, other=0.0).to(tl.float32)
        sums += own * other
    tl.store(values_ptr + first + e, tl.sum(sums, 1), mask=inside)


def set_logits(
    offsets: Tensor,  # [n + 1] int64, from 0 to all entries
    columns: Tensor,  # [entries] int32
    values: Tensor,  # [entries] float32, out
    *,
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V, H]
) -> None:
    """Write the product of every entry."""
    for name, matrix in (("hidden", hidden), ("weight", weight)):
        if matrix.dtype not in arrays.TILE_DTYPES or matrix.dtype != hidden.dtype:
            raise TypeError(f"{name} must be float32 or of 16 bits as hidden, got {matrix.dtype}")
        if not arrays.runs_on(matrix.device) or matrix.device != values.device:
            raise ValueError(f"{name} must be on a GPU as values are, got {matrix.device}")
        if matrix.shape[1] > 1 and matrix.stride(1) != 1:
            raise ValueError(f"{name} must have stride 1 along a row, got {matrix.stride()}")
    count = len(values)
    if count == 0:
        return
    each = torch.arange(count, device=values.device)
    rows = torch.searchsorted(offsets[1:], each, right=True)
    with device_of(values):
        set_logits_kernel[(triton.cdiv(count, ENTRIES),)](
            values,
            rows,
            columns,
            hidden,
            weight,
            hidden.stride(0),
            weight.stride(0),
            count,
            weight.shape[1],
            ENTRIES=ENTRIES,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
