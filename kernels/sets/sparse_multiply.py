"""Sparse rows times a dense matrix: out[name] (+)= (values[:, None] * dense[columns]).sum(0).

Numbers are added in the order of a row's entries, in chains of every eighth: the same bits every
time. Of an entry that is 0 the row is not read.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels import arrays
from logitless.kernels.launch import OPTIONS, device_of

# Rows of the dense matrix lie anywhere: so many are asked for before the first is waited for.
ENTRIES = 8
COLUMNS = 512
NUM_WARPS = 4


@triton.jit(do_not_specialize=["tiles"])
def sparse_multiply_kernel(
    out_ptr,  # rows of `width` numbers, in and out
    offsets_ptr,  # [rows + 1] int64
    columns_ptr,  # [entries] int32
    values_ptr,  # [entries] float32
    names_ptr,  # [rows] int32
    dense_ptr,  # rows of `width` numbers
    # an id times this passes 2^31
    out_stride: tl.int64,
    dense_stride: tl.int64,
    width,
    tiles,
    ADD: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    first = (program % tiles).to(tl.int64) * COLUMNS
    start = tl.load(offsets_ptr + row)
    stop = tl.load(offsets_ptr + row + 1)
    o = tl.arange(0, COLUMNS)
    inside = o < width - first
    sums = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for i in range(start, stop, ENTRIES):
        at = i + tl.arange(0, ENTRIES)
        value = tl.load(values_ptr + at, mask=at < stop, other=0.0)
        column = tl.load(columns_ptr + at, mask=at < stop, other=0)
        there = (value != 0)[:, None] & inside[None, :]
        source = dense_ptr + first + (column * dense_stride)[:, None] + o[None, :]
        sums += value[:, None] * tl.load(source, mask=there, other=0.0).to(tl.float32)
    out_ptr += tl.load(names_ptr + row) * out_stride + first
    total = tl.sum(sums, 0)
    if ADD:
        total += tl.load(out_ptr + o, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + o, total.to(out_ptr.dtype.element_ty), mask=inside)


def sparse_multiply(
    offsets: Tensor,  # [rows + 1] int64
    columns: Tensor,  # [entries] int32
    values: Tensor,  # [entries] float32
    *,
    names: Tensor,  # [rows] int32
    dense: Tensor,  # [any, width]
    out: Tensor,  # [any, width]
    add: bool,
) -> None:
    """Write the rows that are named, or add to them; each rounded once."""
    for name, matrix in (("dense", dense), ("out", out)):
        if matrix.dtype not in arrays.TILE_DTYPES:
            raise TypeError(f"{name} must be {' or '.join(map(str, arrays.TILE_DTYPES))}")
        if not arrays.runs_on(matrix.device) or matrix.device != values.device:
            raise ValueError(f"{name} must be on a GPU as values are, got {matrix.device}")
        if matrix.shape[1] != dense.shape[1] or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
            raise ValueError(f"{name} must have stride 1 along a row, and the width of dense")
    width = dense.shape[1]
    tiles = triton.cdiv(width, COLUMNS)
    if len(names) * tiles == 0:
        return
    with device_of(values):
        sparse_multiply_kernel[(len(names) * tiles,)](
            out, offsets, columns, values, names, dense, out.stride(0), dense.stride(0), width,
            tiles, ADD=add, ENTRIES=ENTRIES, COLUMNS=COLUMNS, num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip
