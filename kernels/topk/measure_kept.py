"""How many of its sorted entries each row keeps, its target among them, and what that drops.

Replaces csrc/core/topk.h, measure_row: its sums, in their order, decide what is kept. A lane has a
row, and all rows of a program take their next step together.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.rows import TritonRows
from logitless.kernels.topk.kept import Kept, count_of

ROWS = 32
NUM_WARPS = 1


class Economy(NamedTuple):
    """As few entries as leave `enough` of mass or less, in steps, and never more than `most`; of
    those the last are let go that sum to no more than `slack`."""

    step: int
    most: int
    enough: float
    slack: float


@triton.jit
def _any(rows):
    return tl.max(rows.to(tl.int32), 0) > 0


@triton.jit
def _log_p(y, row):
    # of a row: m, scale, log(s0), entropy
    return (y - row[0]) * row[1] - row[2]


@triton.jit
def _share(y, row):
    # p and p log p + p H; a p of 0 contributes nothing, whatever its log.
    log_p = _log_p(y, row)
    p = tl.exp(log_p)
    return p, tl.where(p == 0, 0.0, p * (log_p + row[3]))


@triton.jit
def _trimmed(values_ptr, room, slack, row, going):
    # How many entries stay: what follows them sums to at most `slack`.
    count = room
    mass = tl.zeros_like(row[0])
    trimming = going & (count > 1)
    while _any(trimming):
        y = tl.load(values_ptr + count - 1, mask=trimming, other=0.0)
        mass += tl.where(trimming, tl.exp(_log_p(y, row)), 0.0)
        trimming &= (mass > slack) == 0
        count -= trimming.to(tl.int32)
        trimming &= count > 1
    return count


@triton.jit
def _reached(values_ptr, ids_ptr, target, row, sums, count, going):
    # The sums over the first `count` entries, from those over the first of `sums`, and whether the
    # target is one of them.
    first, mass, surprise, has = sums
    adding = going & (first < count)
    while _any(adding):
        y = tl.load(values_ptr + first, mask=adding, other=0.0)
        p, other = _share(y, row)
        mass += tl.where(adding, p, 0.0)
        surprise += tl.where(adding, other, 0.0)
        has |= adding & (tl.load(ids_ptr + first, mask=adding, other=-1) == target)
        first += adding.to(tl.int32)
        adding = going & (first < count)
    return first, mass, surprise, has


@triton.jit
def _largest_dropped(values_ptr, count, room, step, keep, margin, row, going):
    # log p of the largest entry that is not kept: the first that is let go, or else no more than
    # the least where more may follow, or than the margin allows.
    full = (room > 0) & ((room % step == 0) | (room == keep))
    at = tl.where(count < room, count, room - 1)
    known = (count < room) | full
    y = tl.load(values_ptr + at, mask=going & known, other=0.0)
    return tl.where(known, _log_p(y, row), -margin - row[2])


@triton.jit(do_not_specialize=["n", "keep", "step", "most"])
def measure_kept_kernel(
    values_ptr,  # [n, 2 * keep] float64, in and out
    ids_ptr,  # [n, 2 * keep] int32, in and out
    count_ptr,  # [n] int64, in and out
    mass_ptr,  # [n] float64, out, and so the next
    entropy_ptr,
    wider_ptr,  # [n] bool, out
    state_ptr,  # [n, 8] float64
    targets_ptr,  # [n] int64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    kept_stride,
    n,
    keep,
    step,
    most,
    scale: tl.float64,
    margin: tl.float64,
    enough: tl.float64,
    slack: tl.float64,
    ROWS: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    active = index < n
    if mask_ptr is not None:
        active = tl.load(mask_ptr + index, mask=active, other=0) != 0
    if row_scale_ptr is not None:
        scale = tl.load(row_scale_ptr + index, mask=active, other=1.0)
    else:
        scale = tl.full((ROWS,), scale, tl.float64)
    values_ptr += index * kept_stride
    ids_ptr += index * kept_stride
    target = tl.load(targets_ptr + index, mask=active, other=0)
    s_ptr = state_ptr + index * 8
    s0 = tl.load(s_ptr + 1, mask=active, other=1.0)
    log_s0 = tl.log(s0)
    entropy = log_s0 - tl.load(s_ptr + 2, mask=active, other=0.0) / s0
    row = tl.load(s_ptr, mask=active, other=0.0), scale, log_s0, entropy
    own_y = tl.load(s_ptr + 6, mask=active, other=0.0)
    own_p, own_surprise = _share(own_y, row)

    found = count_of(count_ptr, index, active, keep)
    none = tl.zeros_like(own_p)
    room = tl.zeros_like(found)
    sums = room, none, none, room > 0
    best_count, best_has, best_mass, best_entropy = room, room > 0, none + INF, none + INF
    wider = room > 0
    going = active
    while _any(going):
        room = tl.where(going, tl.minimum(room + step, found), room)
        count = _trimmed(values_ptr, room, slack, row, going)
        sums = _reached(values_ptr, ids_ptr, target, row, sums, count, going)
        largest = _largest_dropped(values_ptr, count, room, step, keep, margin, row, going)
        kept, mass, surprise, has = sums
        mass += tl.where(has, 0.0, own_p)
        surprise += tl.where(has, 0.0, own_surprise)
        dropped = tl.where(mass < 1, 1 - mass, 0.0)
        of_entropy = tl.where(largest + entropy <= 0, tl.abs(surprise), INF)
        # A row of which this is known with more entries keeps more.
        better = going & ((best_mass > enough) | (of_entropy < INF))
        best_count = tl.where(better, kept, best_count)
        best_has = tl.where(better, has, best_has)
        best_mass = tl.where(better, dropped, best_mass)
        best_entropy = tl.where(better, of_entropy, best_entropy)
        # As many as may still come, each as large as the last.
        least = tl.load(values_ptr + room - 1, mask=going & (found > 0), other=0.0)
        to_come = tl.where(found > 0, (most - room) * tl.exp(_log_p(least, row)), 0.0)
        served = (best_mass <= enough) & (best_entropy < INF)
        going &= (served | (best_mass - slack - to_come > enough)) == 0
        last = going & (room == found)
        wider |= last & (found == keep) & (found < most)
        going &= last == 0

    adding = active & (best_has == 0)
    tl.store(values_ptr + best_count, own_y, mask=adding)
    tl.store(ids_ptr + best_count, target.to(tl.int32), mask=adding)
    tl.store(count_ptr + index, best_count + adding.to(tl.int32), mask=active)
    tl.store(mass_ptr + index, best_mass, mask=active)
    tl.store(entropy_ptr + index, best_entropy, mask=active)
    tl.store(wider_ptr + index, wider, mask=active)


def measure_kept(
    rows: TritonRows,
    state: Tensor,  # [n, 8] float64
    kept: Kept,
    economy: Economy,
    *,
    dropped_mass: Tensor,  # [n] float64, out, and so the next
    dropped_entropy: Tensor,
    wider: Tensor,  # [n] bool, out
) -> None:
    """After `sort_kept`. Masked rows stay as they are."""
    kept.check(rows, state)
    rows.check("dropped_mass", dropped_mass, torch.float64)
    rows.check("dropped_entropy", dropped_entropy, torch.float64)
    rows.check("wider", wider, torch.bool)
    if rows.n == 0:
        return
    with device_of(state):
        measure_kept_kernel[(triton.cdiv(rows.n, ROWS),)](
            kept.values, kept.ids, kept.count, dropped_mass, dropped_entropy, wider, state,
            rows.targets, rows.mask, rows.row_scale, kept.stride, rows.n, kept.room // 2,
            economy.step, economy.most, rows.scale, kept.margin, economy.enough, economy.slack,
            ROWS=ROWS, num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip
