"""Normal noise on a teacher's logits: the words of csrc/core/noise.h and the float32 formulas of
csrc/cuda/divergence/noise.cuh.

The four words of a counter make the tokens j, j + 16, j + 32 and j + 48 of a group of 64. So a
program whose first column starts a group makes no words twice: with noise the columns of a tile are
cut where groups start, which may be before its first column.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import COLUMNS

GROUP = tl.constexpr(64)
SEED = 0x7465616368657200
STEP_SHIFT = 29
# Of a turn.
QUARTER = tl.constexpr(1.57079632679489661923)


class Noise(NamedTuple):
    """Of the teacher's rows of one call."""

    seed: int
    step: int
    row_ids: Tensor  # [n] int64
    sizes: Tensor  # [n] float32 standard deviations of y; 0: none
    start: int  # token of the first column

    @classmethod
    def of(
        cls,
        teacher: RowArrays,
        *,
        seed: int,
        step: int,
        row_ids: Tensor,  # [n] int64
        sizes: Tensor,  # [n] float64 standard deviations of z
        start: int,
    ) -> "Noise":
        teacher.check("row_ids", row_ids, torch.int64)
        teacher.check("sizes", sizes, torch.float64)
        scale = teacher.scale if teacher.row_scale is None else teacher.row_scale
        return cls(seed, step, row_ids, (sizes / scale).float(), start)


def programs(width: int, noise: Noise | None, start: int) -> int:
    """Of a row of a tile whose first column is `start`."""
    before = 0 if noise is None else (noise.start + start) % GROUP.value
    return triton.cdiv(width + before, COLUMNS) if width else 0


def arguments(noise: Noise | None, start: int) -> tuple[Any, ...]:
    """What kernels take: sizes, row ids, seed, counters of the step, token of column `start`."""
    if noise is None:
        return None, None, 0, 0, None
    token = noise.start + start
    return noise.sizes, noise.row_ids, noise.seed ^ SEED, noise.step << STEP_SHIFT, token


@triton.jit
def columns_inside(first, o, width, token):
    # Which of a program's columns the tile has.
    first32 = first.to(tl.int32)
    inside = o < width - first32
    if token is not None:
        inside &= o >= -first32
    return inside


@triton.jit
def _words(row_ids_ptr, row, seed, counters, counter):
    row_id = tl.load(row_ids_ptr + row).to(tl.uint64, bitcast=True)
    seed, counters = tl.full((), seed, tl.uint64), tl.full((), counters, tl.uint64)
    # counters of a step fill the bits below its own
    low = counters.to(tl.uint32) | counter.to(tl.uint32)
    high = (counters >> 32).to(tl.uint32) + 0 * low
    row_low, row_high = row_id.to(tl.uint32) + 0 * low, (row_id >> 32).to(tl.uint32) + 0 * low
    return tl.philox(seed, row_low, row_high, low, high)


@triton.jit
def _radius(length):
    # Words to float are exact, here and in the next.
    return tl.sqrt_rn(-2.0 * tl.log(((length >> 9).to(tl.float32) + 0.5) * (0.5**23)))


@triton.jit
def _cosine_and_sine(turn):
    # What is left of an angle beside whole quarters is at most pi / 4, where a few terms of Taylor
    # are enough.
    part = ((turn >> 7 & 0x7FFFFF).to(tl.float32) + 0.5) * (0.5**23) - 0.5
    x = part * QUARTER
    x2 = x * x
    s = x2 * (1 / 362880) - 1 / 5040
    s = s * x2 + 1 / 120
    s = s * x2 - 1 / 6
    s = (s * x2 + 1.0) * x
    c = x2 * (-1 / 3628800) + 1 / 40320
    c = c * x2 - 1 / 720
    c = c * x2 + 1 / 24
    c = c * x2 - 0.5
    return c * x2 + 1.0, s


@triton.jit
def _turned(value, quarters):
    # Below 0 where bit 31 is set.
    sign = quarters & 0x80000000
    return (value.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _normal_pair(length, turn):
    # Whole quarters of a turn make of (c, s) that, (-s, c), (-c, -s) and (s, -c).
    radius = _radius(length)
    c, s = _cosine_and_sine(turn)
    odd = (turn & 0x40000000) != 0
    first = _turned(tl.where(odd, s, c), turn ^ turn << 1)
    return radius * first, radius * _turned(tl.where(odd, c, s), turn)


@triton.jit
def _normal(length, turn, second):
    # One of the two: the second is the first of a quarter less.
    c, s = _cosine_and_sine(turn)
    odd = ((turn >> 30 ^ second) & 1) != 0
    sign = turn ^ (turn << 1 & (second - 1))
    return _radius(length) * _turned(tl.where(odd, s, c), sign)


@triton.jit
def noise_of_columns(
    sizes_ptr, row_ids_ptr, row, seed, counters, token, COLUMNS: tl.constexpr
):  # fmt: skip
    # Of the tokens from `token` on, which starts a group. It is rounded before it is added, so that
    # every pass adds the same: no multiply-add goes beyond the branch.
    size = tl.load(sizes_ptr + row)
    noise = tl.zeros((COLUMNS,), tl.float32)
    if size != 0:
        counter = token // 4 + tl.arange(0, COLUMNS // 4)
        a, b, c, d = _words(row_ids_ptr, row, seed, counters, counter)
        first, second = _normal_pair(a, b)
        third, fourth = _normal_pair(c, d)
        four = tl.join(tl.join(first, second), tl.join(third, fourth))
        # a group, j, and the bits of which of its four tokens it is, the lower one first
        four = tl.reshape(size * four, (COLUMNS // GROUP, 16, 2, 2))
        noise = tl.reshape(tl.permute(four, (0, 3, 2, 1)), (COLUMNS,))
    return noise


@triton.jit
def noise_of_entries(
    columns_ptr, at, inside, sizes_ptr, row_ids_ptr, row, seed, counters, token
):  # fmt: skip
    # Of entries, whose tokens lie anywhere: each by words of its own.
    size = tl.load(sizes_ptr + row)
    noise = tl.zeros(at.shape, tl.float32)
    if size != 0:
        tokens = token + tl.load(columns_ptr + at, mask=inside, other=0)
        counter = tokens // GROUP * 16 + tokens % 16
        a, b, c, d = _words(row_ids_ptr, row, seed, counters, counter)
        near = tokens & 32 == 0
        second = (tokens >> 4 & 1).to(tl.uint32)
        noise = size * _normal(tl.where(near, a, c), tl.where(near, b, d), second)
    return noise
