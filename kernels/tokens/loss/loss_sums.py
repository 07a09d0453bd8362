"""The sums of a loss, from the parts of its programs: the same order of additions every time.

The last sums are not added: they name a token to the host, which nobody asks for here.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of

LANES = 1024
NUM_WARPS = 4


@triton.jit(do_not_specialize=["programs"])
def loss_sums_kernel(
    sums_ptr,  # [added + 3] float64, out
    parts_ptr,  # [added, programs] float64
    programs,
    ADDED: tl.constexpr,
    LANES: tl.constexpr,
):
    which = tl.program_id(0).to(tl.int64)
    if which < ADDED:
        lane = tl.arange(0, LANES)
        own_ptr = parts_ptr + which * programs
        sums = tl.zeros((LANES,), tl.float64)
        for first in range(0, programs, LANES):
            sums += tl.load(own_ptr + first + lane, mask=lane < programs - first, other=0.0)
        tl.store(sums_ptr + which, tl.sum(sums, 0))
    else:
        tl.store(sums_ptr + which, tl.where(which < ADDED + 2, -1.0, 0.0).to(tl.float64))


def loss_sums(
    parts: Tensor,  # [added, programs] float64
    sums: Tensor,  # [added + 3] float64, out
) -> None:
    """Write them, with -1, -1 and 0 for the token that is named."""
    added, programs = parts.shape
    with device_of(sums):
        loss_sums_kernel[(len(sums),)](
            sums, parts, programs, ADDED=added, LANES=LANES, num_warps=NUM_WARPS, **UNFUSED
        )
