"""The numbers that exact searches were for."""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import from_ordered_bits
from logitless.kernels.tokens.selection.radix import LEVELS, Search, state_at

NUM_WARPS = 1


@triton.jit(do_not_specialize_on_alignment=["k_ptr"])
def radix_values_kernel(
    bins_ptr,  # [LEVELS, searches, BINS] int64
    states_ptr,  # [LEVELS, searches, WORDS] int64
    k_ptr,  # [1] int64 or None
    values_ptr,  # [searches] float64, out
    QUANTILES: tl.constexpr,
    EMPTY: tl.constexpr,
):
    search, searches = tl.program_id(0).to(tl.int64), tl.cast(tl.num_programs(0), tl.int64)
    score, _key, _needed, same = state_at(
        bins_ptr, states_ptr, k_ptr, LEVELS, search, searches, QUANTILES, True
    )
    value = tl.where(same > 0, from_ordered_bits(score), tl.full((), EMPTY, tl.float64))
    tl.store(values_ptr + search, value)


def radix_values(search: Search, values: Tensor, *, empty: float = float("nan")) -> None:
    """Written to `values` [searches]; `empty` where there is no key."""
    with device_of(values):
        radix_values_kernel[(search.searches,)](
            search.bins, search.states, search.k, values, QUANTILES=search.quantiles, EMPTY=empty,
            num_warps=NUM_WARPS, **UNFUSED,
        )  # fmt: skip
