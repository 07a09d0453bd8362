"""Tokens that are bad lower the error flag, by their places."""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.shared import flag_tokens, token_of, truths_of

LANES = 1024
NUM_WARPS = 4


@triton.jit(do_not_specialize=["n"])
def flag_bad_kernel(
    flag_ptr,  # [1] int64
    bad_ptr,  # [n] bool
    places_ptr,  # [n] int64; None: the first is token 0
    n,
    LANES: tl.constexpr,
):
    token, inside = token_of(n, LANES)
    bad = truths_of(bad_ptr, token, inside)
    place = token
    if places_ptr is not None:
        place = tl.load(places_ptr + token, mask=bad, other=0)
    flag_tokens(flag_ptr, place, bad)


def flag_bad(flag: Tensor, bad: Tensor, places: Tensor | None) -> None:
    """Lower the flag to the first of `places` that is bad."""
    n = len(bad)
    if n == 0:
        return
    with device_of(bad):
        flag_bad_kernel[(triton.cdiv(n, LANES),)](
            flag, bad, places, n, LANES=LANES, num_warps=NUM_WARPS, **UNFUSED
        )
