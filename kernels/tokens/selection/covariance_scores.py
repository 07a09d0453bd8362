"""Tokens in the order of their covariance:

value = (advantages - mean_advantage) * (logp - mean_logp)     # float64, unfused
clipped = (A > 0) & (logp - old_logp > log_high) | (A < 0) & (logp - old_logp < log_low)
which = mask & (low < value) & (value < high) & ~clipped
scores, ids = where(which, ordered_bits(value), 0), where(which, ids, -1)
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.loss.surrogates import ratio_clipped
from logitless.kernels.tokens.selection.keys import (
    NUM_WARPS,
    TOKENS,
    check,
    ordered_bits,
    store_key,
)
from logitless.kernels.tokens.shared import flag_tokens, is_finite, token_of, truths_of


class Limits(NamedTuple):
    """Of the covariance, and of the log ratio."""

    low: float
    high: float
    log_low: float
    log_high: float


@triton.jit
def _unclipped(
    old_logp_ptr, flag_ptr, i, inside, which, advantage, logp, log_low, log_high
):  # fmt: skip
    old = tl.load(old_logp_ptr + i, mask=inside, other=0.0).to(tl.float64)
    flag_tokens(flag_ptr, i, which & (is_finite(old) == 0))
    return which & (ratio_clipped(logp - old, advantage, (log_low, log_high)) == 0)


@triton.jit(
    do_not_specialize=["n"],
    do_not_specialize_on_alignment=["mean_advantage_ptr", "mean_logp_ptr"],
)
def covariance_scores_kernel(
    scores_ptr,  # [n] int64, out
    out_ids_ptr,  # [n] int64, out
    flag_ptr,  # [1] int64, in and out
    logp_ptr,  # [n] float
    advantages_ptr,  # [n] float
    mask_ptr,  # [n] bool
    old_logp_ptr,  # [n] float, or None: nothing is clipped
    ids_ptr,  # [n] int64
    mean_advantage_ptr,  # [] float64
    mean_logp_ptr,  # [] float64
    n,
    low: tl.float64,
    high: tl.float64,
    log_low: tl.float64,
    log_high: tl.float64,
    TOKENS: tl.constexpr,
):
    i, inside = token_of(n, TOKENS)
    which = truths_of(mask_ptr, i, inside)
    logp = tl.load(logp_ptr + i, mask=inside, other=0.0).to(tl.float64)
    advantage = tl.load(advantages_ptr + i, mask=inside, other=0.0).to(tl.float64)
    value = (advantage - tl.load(mean_advantage_ptr)) * (logp - tl.load(mean_logp_ptr))
    if old_logp_ptr is not None:
        which = _unclipped(
            old_logp_ptr, flag_ptr, i, inside, which, advantage, logp, log_low, log_high
        )
    which = which & (value > low) & (value < high)
    store_key(scores_ptr, out_ids_ptr, i, inside, which, ordered_bits(value), ids_ptr)


def covariance_scores(
    scores: Tensor,  # [n] int64, written
    out_ids: Tensor,  # [n] int64, written
    flag: Tensor,  # [1] int64
    *,
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old_logp: Tensor | None,
    ids: Tensor,
    means: tuple[Tensor, Tensor],  # of advantages and logp, [] float64
    limits: Limits,
) -> None:
    check(scores, torch.int64, out_ids=out_ids, ids=ids)
    check(scores, torch.bool, mask=mask)
    check(scores, logp.dtype, logp=logp)
    check(scores, advantages.dtype, advantages=advantages)
    if old_logp is not None:
        check(scores, old_logp.dtype, old_logp=old_logp)
    n = len(scores)
    if n == 0:
        return
    with device_of(scores):
        covariance_scores_kernel[(triton.cdiv(n, TOKENS),)](
            scores, out_ids, flag, logp, advantages, mask, old_logp, ids, *means, n, *limits,
            TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED,
        )  # fmt: skip
