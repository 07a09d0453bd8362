"""From the sums of a tile's blocks to the token of each row.

Replaces, for z = scale * y and Gumbel noise g of (seed, step, row_id, block),

    block = (z.view(n, -1, 2048).logsumexp(-1) + g).argmax(-1)       # of all tiles so far
    token = torch.multinomial(z.view(n, -1, 2048)[rows, block].softmax(-1), 1)

by inverse CDF with a number of the same noise.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF, row_offset, row_scale_of
from logitless.kernels.launch import OPTIONS, Chain, Strides, device_of
from logitless.kernels.sampling.block_sums import BLOCK, block_of, weights_of
from logitless.kernels.sampling.noise import block_words, gumbel, uniform

# Blocks a step: 262,144 columns are 128.
CHUNK = 64
NUM_WARPS = 4


@triton.jit
def best_block(sums_ptr, blocks, first_block, seed, step, row_id, scale, CHUNK: tl.constexpr):
    # The largest score and its block, of equal ones the first.
    score = tl.full((), -INF, tl.float64)
    found = tl.full((), -1, tl.int32)
    for first in range(0, blocks, CHUNK):
        o = first + tl.arange(0, CHUNK)
        inside = o < blocks
        m = tl.load(sums_ptr + o * 2, mask=inside, other=0.0)
        s0 = tl.load(sums_ptr + o * 2 + 1, mask=inside, other=0.0)
        words0, words1, _2, _3 = block_words(seed, step, row_id, first_block + o)
        positive = s0 > 0
        scores = m * scale + tl.log(tl.where(positive, s0, 1.0)) + gumbel(words0, words1)
        # a NaN of an infinite logit is no score
        scores = tl.where(positive & (scores == scores), scores, -INF)
        top = tl.max(scores, 0)
        if top > score:
            score = top
            found = tl.min(tl.where(scores == top, o, blocks), 0)
    return score, found


@triton.jit(do_not_specialize=["rows_per_batch", "width", "blocks", "start", "step"])
def draw_kernel(
    state_ptr,  # [n, 8] float64, in and out: y of the token
    best_ptr,  # [n, 2] float64, in and out: the best block's score, and its token
    sums_ptr,  # [n, blocks, 2] float64
    logits_ptr,  # rows of `width` columns
    row_ids_ptr,  # [n] int64
    row_scale_ptr,  # [n] float64 or None
    bias_ptr,  # [width] float32 or None
    stride_batch,
    stride_row,
    rows_per_batch,
    width,
    blocks,
    start,
    scale: tl.float64,
    slope,
    softcap,
    seed: tl.uint64,
    step: tl.uint64,
    FIRST: tl.constexpr,
    BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row32 = tl.program_id(0)
    row = row32.to(tl.int64)
    best_ptr += row * 2
    before = tl.full((), -INF, tl.float64)
    if FIRST:
        tl.store(best_ptr, before)
        tl.store(best_ptr + 1, tl.full((), -1.0, tl.float64))
    else:
        before = tl.load(best_ptr)
    scale = row_scale_of(row_scale_ptr, row, scale)
    row_id = tl.load(row_ids_ptr + row)
    # a tile starts at a block
    first_block = start // BLOCK
    seed, step = tl.full((), seed, tl.uint64), tl.full((), step, tl.uint64)
    sums_ptr += row * blocks * 2
    score, block = best_block(
        sums_ptr, blocks, first_block, seed, step, row_id, scale, CHUNK
    )  # fmt: skip
    if score > before:
        tile_ptr = logits_ptr + row_offset(row32, stride_batch, stride_row, rows_per_batch, BATCHED)
        first = block * tl.full((), BLOCK, tl.int64)
        y = block_of(tile_ptr, bias_ptr, first, width, slope, softcap, HAS_SOFTCAP)
        m = tl.load(sums_ptr + block * 2).to(tl.float32)
        weights = weights_of(y, m, scale).to(tl.float64)
        through = tl.cumsum(weights, 0)
        _0, _1, words2, words3 = block_words(seed, step, row_id, first_block + block)
        threshold = uniform(words2, words3) * tl.sum(weights, 0)
        weighs = weights > 0
        o = tl.arange(0, BLOCK)
        passing = tl.min(tl.where(weighs & (through > threshold), o, BLOCK), 0)
        # roundings may leave none
        last = tl.max(tl.where(weighs, o, -1), 0)
        at = tl.where(passing < BLOCK, passing, last)
        tl.store(best_ptr, score)
        tl.store(best_ptr + 1, (start + first + at).to(tl.float64))
        y_of_token = tl.max(tl.where(o == at, y, -INF), 0)
        tl.store(state_ptr + row * 8 + 6, y_of_token.to(tl.float64))


def draw(
    state: Tensor,  # [n, 8]
    best: Tensor,  # [n, 2]
    sums: Tensor,  # [n, blocks, 2]
    logits: Tensor,  # the tile that the sums are of
    strides: Strides,
    row_ids: Tensor,  # [n] int64
    row_scale: Tensor | None,
    bias: Tensor | None,
    scale: float,
    chain: Chain,
    *,
    start: int,
    first: bool,
    seed: int,
    step: int,
) -> None:
    n, blocks, _ = sums.shape
    with device_of(state):
        draw_kernel[(n,)](
            state,
            best,
            sums,
            logits,
            row_ids,
            row_scale,
            bias,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            logits.shape[-1],
            blocks,
            start,
            scale,
            chain.slope,
            chain.softcap,
            seed,
            step,
            FIRST=first,
            BATCHED=strides.batched,
            HAS_SOFTCAP=chain.softcap != 0,
            CHUNK=CHUNK,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
