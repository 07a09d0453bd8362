"""exp of float64, of the same bits on every machine."""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.loss.exp import exp_of
from logitless.kernels.tokens.shared import token_of

LANES = 512
NUM_WARPS = 4


@triton.jit(do_not_specialize=["n"])
def exp_values_kernel(
    out_ptr,  # [n] float64, out
    x_ptr,  # [n] float64
    n,
    LANES: tl.constexpr,
):
    token, inside = token_of(n, LANES)
    x = tl.load(x_ptr + token, mask=inside, other=0.0)
    tl.store(out_ptr + token, exp_of(x), mask=inside)


def exp_values(x: Tensor, out: Tensor) -> None:
    """Write them."""
    n = x.numel()
    if n == 0:
        return
    with device_of(x):
        exp_values_kernel[(triton.cdiv(n, LANES),)](
            out, x, n, LANES=LANES, num_warps=NUM_WARPS, **UNFUSED
        )
