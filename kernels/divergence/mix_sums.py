"""A row's records of a mix, added to its sums: [n, 2] float64, in nats.

In chunks of fixed size in the order of their columns, as `combine`.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.divergence.combine import CHUNK
from logitless.kernels.jit import LN2, is_active
from logitless.kernels.launch import OPTIONS, device_of

NUM_WARPS = 1


@triton.jit(do_not_specialize=["pieces"])
def mix_sums_kernel(
    sums_ptr,  # [n, 2] float64, in and out
    records_ptr,  # [n, pieces, 2] float32
    state_ptr,  # [n, 8] float64
    mask_ptr,  # [n] bool or None
    pieces,
    FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sums_ptr += row * 2
    own = tl.full((), 0.0, tl.float64)
    other = own
    if is_active(mask_ptr, row):
        records_ptr += row * pieces * 2
        for first in range(0, pieces, CHUNK):
            o = first + tl.arange(0, CHUNK)
            inside = o < pieces
            r_ptr = records_ptr + o * 2
            own += tl.sum(tl.load(r_ptr, mask=inside, other=0.0).to(tl.float64), 0)
            other += tl.sum(tl.load(r_ptr + 1, mask=inside, other=0.0).to(tl.float64), 0)
        own = own * LN2 / tl.load(state_ptr + row * 8 + 1)
        other = other * LN2 / tl.load(state_ptr + row * 8 + 5)
    if not FIRST:
        own += tl.load(sums_ptr)
        other += tl.load(sums_ptr + 1)
    tl.store(sums_ptr, own)
    tl.store(sums_ptr + 1, other)


def mix_sums(
    records: Tensor,  # [n, pieces, 2]
    state: Tensor,  # [n, 8] float64
    sums: Tensor,  # [n, 2] float64
    mask: Tensor | None,
    *,
    first: bool,
) -> None:
    """Add a tile's records; with `first`, the sums are started afresh."""
    n, count, _ = records.shape
    with device_of(state):
        mix_sums_kernel[(n,)](
            sums, records, state, mask, count, FIRST=first, CHUNK=CHUNK, num_warps=NUM_WARPS,
            **OPTIONS,
        )  # fmt: skip
