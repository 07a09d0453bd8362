"""The largest logits of each row of a tile, added to those that are kept of the tiles before.

Replaces, of what lies above a row's limit in y = softcap(pre * (logits + bias)),

    values, ids = y.topk(keep)                # of equal ones the smaller id comes first

A row's program adds what is above its floor to the row's memory. Where that is full, it raises the
floor until no more than about `keep` are above it. Blocks whose maximum is below the floor are not
read again. Entries lie in the order of their ids, so of equal ones the first stay.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.jit import INF, is_active, row_offset, row_scale_of, softcapped
from logitless.kernels.launch import OPTIONS, Strides, device_of
from logitless.kernels.pieces import RECORD, piece_width
from logitless.kernels.topk.kept import NONE, Kept, count_of, floor_of, limit_of, ordered, unordered

# Columns that a program has in its registers, beside as many entries of the row: a piece of
# float32, half of one of 16 bits.
BLOCK = 1024


def num_warps(room: int) -> int:
    """Entries of the row take as many registers of a lane as columns do, or up to twice as many."""
    return 4 if room <= 256 else 8


@triton.jit
def _number(chosen):
    return tl.sum(chosen.to(tl.int32), 0)


@triton.jit
def _places(chosen, first):
    # Where those that are chosen go, one behind the other.
    return first + tl.cumsum(chosen, 0) - 1


@triton.jit
def _raised(room, block, keep, low):
    # An order that at least `keep` of both are above, and at most a quarter more; where there is
    # none, the largest that fewer than `keep` are above, or its last. More than `keep` are above
    # `low`.
    high = tl.maximum(tl.max(room, 0), tl.max(block, 0))
    while low + 1 < high:
        # The middle: their sum may not fit.
        order = (low & high) + ((low ^ high) >> 1)
        above = _number(room > order) + _number(block > order)
        low = tl.where(above >= keep, order, low)
        high = tl.where(above > keep + keep // 4, high, order)
    return high


@triton.jit
def _chosen(order, floor, equal):
    # 1 for what is above the floor, and for the first `equal` of what is level with it; else 0.
    level = (order == floor).to(tl.int32)
    first = tl.cumsum(level, 0) <= equal
    return tl.where(order > floor, 1, tl.where(first, level, 0))


@triton.jit
def _pruned(values_ptr, ids_ptr, count, block, keep, floor, ROOM: tl.constexpr):
    # Makes room for the entries of a block: the new floor, how many entries are left of those in
    # memory, and which of the block's join them.
    o = tl.arange(0, ROOM)
    # Other threads have written these, and may yet read what is written next.
    tl.debug_barrier()
    y = tl.load(values_ptr + o, mask=o < count, other=-INF).to(tl.float32)
    ids = tl.load(ids_ptr + o, mask=o < count, other=0)
    tl.debug_barrier()
    room = ordered(y)
    block = tl.where(block > floor, block, NONE)
    floor = _raised(room, block, keep, floor)
    equal = keep - _number(room > floor) - _number(block > floor)
    left = _chosen(room, floor, equal)
    number = _number(left)
    joining = _chosen(block, floor, equal + _number(room > floor) - number)
    place = _places(left, 0)
    tl.store(values_ptr + place, y.to(tl.float64), mask=left != 0)
    tl.store(ids_ptr + place, ids, mask=left != 0)
    return floor, number, joining


@triton.jit(do_not_specialize=["rows_per_batch", "pieces", "start", "keep"])
def capture_kernel(
    values_ptr,  # [n, 2 * keep] float64, in and out
    ids_ptr,  # [n, 2 * keep] int32, in and out
    threshold_ptr,  # [n] float64, in and out
    count_ptr,  # [n] int64, in and out
    logits_ptr,  # rows of `width` columns
    records_ptr,  # [n, pieces, RECORD] float32; None: every block is read, of active rows alone
    state_ptr,  # [n, 8] float64, with this tile
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    bias_ptr,  # [width] float32 or None
    kept_stride,
    stride_batch,
    stride_row,
    rows_per_batch,
    width,
    pieces,
    start,
    keep,
    scale: tl.float64,
    margin: tl.float64,
    slope,
    softcap,
    FIRST: tl.constexpr,
    BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PIECE: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row32 = tl.program_id(0)
    row = row32.to(tl.int64)
    if is_active(mask_ptr, row):
        values_ptr += row * kept_stride
        ids_ptr += row * kept_stride
        tile_ptr = logits_ptr + row_offset(row32, stride_batch, stride_row, rows_per_batch, BATCHED)
        scale = row_scale_of(row_scale_ptr, row, scale)
        floor = floor_of(limit_of(state_ptr, row, scale, margin))
        count = tl.full((), 0, tl.int32)
        if not FIRST:
            floor = tl.maximum(floor, floor_of(tl.load(threshold_ptr + row)))
            count = count_of(count_ptr, row, True, 2 * keep).to(tl.int32)
        o = tl.arange(0, BLOCK)
        for first in range(0, width, BLOCK):
            wanted = True
            if records_ptr is not None:
                record = row * pieces + first // PIECE
                wanted = ordered(tl.load(records_ptr + record * RECORD)) > floor
            if wanted:
                inside = o < width - first
                y = tl.load(tile_ptr + first + o, mask=inside, other=-INF).to(tl.float32)
                if bias_ptr is not None:
                    y += tl.load(bias_ptr + first + o, mask=inside, other=0.0)
                if HAS_SOFTCAP:
                    # A softcap makes -softcap of -inf.
                    y = tl.where(inside, softcapped(y, slope, softcap), -INF)
                order = ordered(y)
                chosen = (order > floor).to(tl.int32)
                number = _number(chosen)
                if count + number > 2 * keep:
                    floor, count, chosen = _pruned(
                        values_ptr, ids_ptr, count, order, keep, floor, ROOM
                    )
                    number = _number(chosen)
                if number > 0:
                    place = _places(chosen, count)
                    tl.store(values_ptr + place, y.to(tl.float64), mask=chosen != 0)
                    tl.store(ids_ptr + place, start + first + o, mask=chosen != 0)
                    count += number
        tl.store(count_ptr + row, count)
        tl.store(threshold_ptr + row, unordered(floor))
    else:
        if FIRST:
            if records_ptr is not None:
                tl.store(count_ptr + row, 0)


def capture(
    rows: RowArrays,
    logits: Tensor,  # [n, width] or [b, t, width]
    strides: Strides,
    state: Tensor,  # [n, 8] float64, with this tile
    records: Tensor | None,  # of the tile's pieces; None: whole rows are known, others stay
    kept: Kept,
    *,
    start: int,
    first: bool,
) -> None:
    """Keep the largest logits of a tile whose first column is `start`."""
    width = logits.shape[-1]
    with device_of(logits):
        capture_kernel[(rows.n,)](
            kept.values,
            kept.ids,
            kept.threshold,
            kept.count,
            logits,
            records,
            state,
            rows.mask,
            rows.row_scale,
            rows.bias_of(width, start),
            kept.stride,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            width,
            0 if records is None else records.shape[1],
            start,
            kept.room // 2,
            rows.scale,
            kept.margin,
            rows.chain.slope,
            rows.chain.softcap,
            FIRST=first,
            BATCHED=strides.batched,
            HAS_SOFTCAP=rows.chain.softcap != 0,
            PIECE=piece_width(logits.dtype),
            ROOM=triton.next_power_of_2(kept.room),
            BLOCK=BLOCK,
            num_warps=num_warps(kept.room),
            **OPTIONS,
        )
