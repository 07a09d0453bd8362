"""What the kernels of sets share: the entries of a row, and the arrays of a call."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import STATE, RowArrays
from logitless.kernels.divergence.columns import capped
from logitless.kernels.divergence.noise import Noise, arguments
from logitless.kernels.jit import INF

# Entries of a row that a program has in its registers at a time: 8 floats a lane.
BLOCK = 1024
# Words and normal numbers take registers of their own.
BLOCK_OF_NOISE = 256
NUM_WARPS = 4


class Entries(NamedTuple):
    """Those of [n] rows."""

    offsets: Tensor  # [n + 1] int64
    columns: Tensor  # [entries] int32
    values: Tensor  # [entries] float32

    def check(self, rows: RowArrays, state: Tensor, *others: Tensor) -> None:
        """Their arrays, `others` like the values, and the states of the rows."""
        count = self.values.shape
        rows.check("offsets", self.offsets, torch.int64, shape=(rows.n + 1,))
        rows.check("columns", self.columns, torch.int32, shape=count)
        for values in (self.values, *others):
            rows.check("values", values, torch.float32, shape=count)
        rows.check("state", state, torch.float64, shape=(rows.n, STATE))


def block_of(noise: Noise | None) -> int:
    """How many entries a program takes at a time."""
    return BLOCK if noise is None else BLOCK_OF_NOISE


def noise_arguments(noise: Noise | None, entries: Entries) -> tuple[Any, ...]:
    """What kernels take: that of a tile whose first column is 0, and the tokens of the entries."""
    return *arguments(noise, 0), None if noise is None else entries.columns


@triton.jit
def ends_of(offsets_ptr, row):
    # Where the entries of a row start, and where they end.
    return tl.load(offsets_ptr + row), tl.load(offsets_ptr + row + 1)


@triton.jit
def y_of(values_ptr, at, inside, slope, softcap, HAS_SOFTCAP: tl.constexpr):
    # The logits of entries, after the softcap; those past the end are -inf.
    raw = tl.load(values_ptr + at, mask=inside, other=-INF)
    return capped(raw, inside, slope, softcap, HAS_SOFTCAP)
