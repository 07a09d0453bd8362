"""Random numbers of a row's blocks, as csrc/core/sampling.h has them."""

import triton
import triton.language as tl


@triton.jit
def uniform(high, low):
    # (0, 1), never an end: 53 bits and a half.
    bits = (high.to(tl.uint64) << 21) ^ (low >> 11).to(tl.uint64)
    return (bits.to(tl.float64) + 0.5) * (0.5**53)


@triton.jit
def block_words(seed, step, row_id, block):
    # Four words of blocks [B] of one row: the counter is the row's id, and step and block under a
    # bit of their own.
    place = (tl.full((), 1, tl.uint64) << 63) | (step << 20) | block.to(tl.uint64)
    low, high = place.to(tl.uint32), (place >> 32).to(tl.uint32)
    id_bits = row_id.to(tl.uint64, bitcast=True)
    row_low, row_high = id_bits.to(tl.uint32) + 0 * low, (id_bits >> 32).to(tl.uint32) + 0 * low
    return tl.philox(seed, row_low, row_high, low, high)


@triton.jit
def gumbel(words0, words1):
    return -tl.log(-tl.log(uniform(words0, words1)))
