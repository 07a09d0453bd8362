"""Entries of sets out of tiles of logits, and into them.

values = tile[row, column - start] of the entries that the tile has, or the reverse.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import OPTIONS, device_of, strides_of
from logitless.kernels.sets.entries import BLOCK, NUM_WARPS, ends_of


@triton.jit
def _first_from(columns_ptr, low, high, column):
    # The first of a row's entries whose column is not before this one.
    while low < high:
        middle = (low + high) // 2
        before = tl.load(columns_ptr + middle) < column
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=["start", "stop"])
def set_tile_kernel(
    tile_ptr,  # rows from column `start` to `stop`; out unless READ
    offsets_ptr,  # [n + 1] int64
    columns_ptr,  # [entries] int32
    values_ptr,  # [entries] float32, out if READ
    stride,
    start,
    stop,
    READ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first, end = ends_of(offsets_ptr, row)
    first = _first_from(columns_ptr, first, end, start)
    end = _first_from(columns_ptr, first, end, stop)
    tile_ptr += row * stride
    for i in range(first, end, BLOCK):
        at = i + tl.arange(0, BLOCK)
        inside = at < end
        column = tl.load(columns_ptr + at, mask=inside, other=start) - start
        if READ:
            value = tl.load(tile_ptr + column, mask=inside, other=0.0)
            tl.store(values_ptr + at, value.to(tl.float32), mask=inside)
        else:
            value = tl.load(values_ptr + at, mask=inside, other=0.0)
            tl.store(tile_ptr + column, value.to(tile_ptr.dtype.element_ty), mask=inside)


def set_tile(
    offsets: Tensor,  # [n + 1] int64, of some rows
    columns: Tensor,  # [entries] int32
    values: Tensor,  # [entries] float32
    *,
    tile: Tensor,  # [n, width]
    start: int,  # its first column
    read: bool,
) -> None:
    """Read the entries that the tile has, or with `read` false write them."""
    n, width = tile.shape
    stride = strides_of(tile, len(offsets) - 1, "tile").row
    if n == 0 or width == 0:
        return
    with device_of(values):
        set_tile_kernel[(n,)](
            tile, offsets, columns, values, stride, start, start + width, READ=read, BLOCK=BLOCK,
            num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip
