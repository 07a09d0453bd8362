"""Keys of tokens: 64 unsigned bits in an int64, of which the larger comes first."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels import arrays

# Tokens of a program, where each is looked at once.
TOKENS = 1024
NUM_WARPS = 4
# The sign bit alone.
SIGN = tl.constexpr(-(2**63))


@triton.jit
def ordered_bits(value):
    # Of float64, in the order of the numbers; -0 and +0 are the same.
    bits = tl.where(value == 0, 0.0, value).to(tl.int64, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ SIGN)


@triton.jit
def from_ordered_bits(bits):
    return tl.where(bits < 0, bits ^ SIGN, ~bits).to(tl.float64, bitcast=True)


@triton.jit
def unsigned(bits):
    return bits.to(tl.uint64, bitcast=True)


@triton.jit
def store_key(scores_ptr, out_ids_ptr, i, inside, which, score, ids_ptr):
    # A token that is none has the id -1.
    ids = tl.load(ids_ptr + i, mask=inside, other=-1)
    tl.store(scores_ptr + i, tl.where(which, score, 0), mask=inside)
    tl.store(out_ids_ptr + i, tl.where(which, ids, -1), mask=inside)


def check(like: Tensor, dtype: torch.dtype, **given: Tensor | None) -> None:
    """That each is None, or contiguous [n] of this dtype where `like` [n] is."""
    for name, array in given.items():
        if array is None:
            continue
        if array.dtype != dtype or array.shape != like.shape or not array.is_contiguous():
            raise TypeError(
                f"{name} must be contiguous {dtype} of shape {list(like.shape)}, got "
                f"{array.dtype} of shape {list(array.shape)}"
            )
        if not arrays.runs_on(array.device) or array.device != like.device:
            raise ValueError(f"{name} must be on a GPU as the others are, got {array.device}")
