"""The entries of each row sorted, largest first, without those that the whole row rules out.

Replaces, of what lies above a row's limit,

    values, ids = values.topk(keep)           # of equal ones the smaller id comes first
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.bitonic import in_order
from logitless.kernels.jit import INF, is_active, row_scale_of
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.topk.kept import (
    BITS,
    Kept,
    count_of,
    floor_of,
    limit_of,
    ordered,
    unordered,
)

NUM_WARPS = 4
# Before every key.
NO_KEY = tl.constexpr(-(2**63))


@triton.jit(do_not_specialize=["keep"])
def sort_kept_kernel(
    values_ptr,  # [n, 2 * keep] float64, in and out
    ids_ptr,  # [n, 2 * keep] int32, in and out
    count_ptr,  # [n] int64, in and out
    state_ptr,  # [n, 8] float64, of whole rows
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    kept_stride,
    keep,
    scale: tl.float64,
    margin: tl.float64,
    ROOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    held = tl.full((), 0, tl.int32)
    if is_active(mask_ptr, row):
        held = count_of(count_ptr, row, True, 2 * keep).to(tl.int32)
    if held > 0:
        values_ptr += row * kept_stride
        ids_ptr += row * kept_stride
        o = tl.arange(0, ROOM)
        order = ordered(tl.load(values_ptr + o, mask=o < held, other=-INF).to(tl.float32))
        ids = tl.load(ids_ptr + o, mask=o < held, other=0)
        # Other threads write where these have been read.
        tl.debug_barrier()
        limit = limit_of(state_ptr, row, row_scale_of(row_scale_ptr, row, scale), margin)
        # The order is the high half of a key, the complement of the id the low one.
        key = (tl.cast(order, tl.int64) << 32) | (ids ^ BITS)
        key = tl.where(order > floor_of(limit), key, NO_KEY)
        key = in_order(key, o, held, LARGEST=True)
        number = tl.minimum(tl.sum((key != NO_KEY).to(tl.int32), 0), keep)
        y = unordered((key >> 32).to(tl.int32))
        tl.store(values_ptr + o, y, mask=o < number)
        tl.store(ids_ptr + o, (key & BITS).to(tl.int32) ^ BITS, mask=o < number)
        tl.store(count_ptr + row, number)


def sort_kept(rows: RowArrays, state: Tensor, kept: Kept) -> None:
    """After the last tile: leave the entries of each row sorted. Masked rows stay as they are."""
    kept.check(rows, state)
    if rows.n == 0:
        return
    with device_of(state):
        sort_kept_kernel[(rows.n,)](
            kept.values, kept.ids, kept.count, state, rows.mask, rows.row_scale, kept.stride,
            kept.room // 2, rows.scale, kept.margin, ROOM=triton.next_power_of_2(kept.room),
            num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip
