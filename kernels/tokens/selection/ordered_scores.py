"""Some tokens in the order of their values."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import (
    NUM_WARPS,
    TOKENS,
    check,
    ordered_bits,
    store_key,
)
from logitless.kernels.tokens.shared import token_of, truths_of


@triton.jit(do_not_specialize=["n"])
def ordered_scores_kernel(
    scores_ptr,  # [n] int64, out
    out_ids_ptr,  # [n] int64, out
    values_ptr,  # [n] float64
    which_ptr,  # [n] bool
    ids_ptr,  # [n] int64
    n,
    TOKENS: tl.constexpr,
):
    i, inside = token_of(n, TOKENS)
    value = tl.load(values_ptr + i, mask=inside, other=0.0)
    which = truths_of(which_ptr, i, inside)
    store_key(scores_ptr, out_ids_ptr, i, inside, which, ordered_bits(value), ids_ptr)


def ordered_scores(
    scores: Tensor,  # [n] int64, written
    out_ids: Tensor,  # [n] int64, written
    *,
    values: Tensor,
    which: Tensor,
    ids: Tensor,
) -> None:
    check(scores, torch.int64, out_ids=out_ids, ids=ids)
    check(scores, torch.float64, values=values)
    check(scores, torch.bool, which=which)
    n = len(scores)
    if n == 0:
        return
    with device_of(scores):
        ordered_scores_kernel[(triton.cdiv(n, TOKENS),)](
            scores, out_ids, values, which, ids, n, TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED
        )
