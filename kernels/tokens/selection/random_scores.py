"""Tokens in an order drawn from (seed, step, id): random_key of csrc/core/philox.h."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import NUM_WARPS, TOKENS, check, unsigned
from logitless.kernels.tokens.shared import token_of


@triton.jit
def _halves(bits, like):
    # As many words as in `like`.
    return bits.to(tl.uint32) + 0 * like, (bits >> 32).to(tl.uint32) + 0 * like


@triton.jit(do_not_specialize=["n", "seed", "step"])
def random_scores_kernel(
    scores_ptr,  # [n] int64, out
    ids_ptr,  # [n] int64; -1: none
    n,
    seed: tl.uint64,
    step: tl.uint64,
    TOKENS: tl.constexpr,
):
    i, inside = token_of(n, TOKENS)
    ids = tl.load(ids_ptr + i, mask=inside, other=-1)
    low, high = _halves(unsigned(ids), ids.to(tl.uint32))
    step_low, step_high = _halves(tl.full((), step, tl.uint64), low)
    words0, words1, _2, _3 = tl.philox(tl.full((), seed, tl.uint64), low, high, step_low, step_high)
    key = words0.to(tl.uint64) | words1.to(tl.uint64) << 32
    score = tl.where(ids < 0, 0, key.to(tl.int64, bitcast=True))
    tl.store(scores_ptr + i, score, mask=inside)


def random_scores(scores: Tensor, ids: Tensor, *, seed: int, step: int) -> None:
    """Written over `scores` [n]."""
    check(scores, torch.int64, scores=scores, ids=ids)
    n = len(scores)
    if n == 0:
        return
    with device_of(scores):
        random_scores_kernel[(triton.cdiv(n, TOKENS),)](
            scores, ids, n, seed, step, TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED
        )
