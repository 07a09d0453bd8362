"""out[names] += the sums of sparse rows: d(bias) of a head.

Numbers are added lane by lane in the order of a row's entries: the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels import arrays
from logitless.kernels.launch import OPTIONS, device_of

# Most rows have fewer, and many none: a column that no row has kept.
BLOCK = 128
NUM_WARPS = 1


@triton.jit
def row_sums_kernel(
    out_ptr,  # [any] float32, in and out
    offsets_ptr,  # [rows + 1] int64
    values_ptr,  # [entries] float32
    names_ptr,  # [rows] int32
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets_ptr + row)
    stop = tl.load(offsets_ptr + row + 1)
    if start < stop:
        sums = tl.zeros((BLOCK,), tl.float64)
        for i in range(start, stop, BLOCK):
            at = i + tl.arange(0, BLOCK)
            sums += tl.load(values_ptr + at, mask=at < stop, other=0.0).to(tl.float64)
        out_ptr += tl.load(names_ptr + row)
        tl.store(out_ptr, tl.load(out_ptr) + tl.sum(sums, 0).to(tl.float32))


def row_sums(
    offsets: Tensor,  # [rows + 1] int64
    values: Tensor,  # [entries] float32
    *,
    names: Tensor,  # [rows] int32, no two equal
    out: Tensor,  # [any] float32
) -> None:
    """Add the sums to what is named; a row without entries adds nothing."""
    for name, array, dtype in (
        ("offsets", offsets, torch.int64),
        ("values", values, torch.float32),
        ("names", names, torch.int32),
        ("out", out, torch.float32),
    ):
        if array.dtype != dtype or not array.is_contiguous():
            raise TypeError(f"{name} must be contiguous {dtype}, got {array.dtype}")
        if not arrays.runs_on(array.device) or array.device != out.device:
            raise ValueError(f"{name} must be on a GPU as out is, got {array.device}")
    if len(names) == 0:
        return
    with device_of(out):
        row_sums_kernel[(len(names),)](
            out, offsets, values, names, BLOCK=BLOCK, num_warps=NUM_WARPS, **OPTIONS
        )
