"""The means of exact sums, each rounded once.

Replaces, of the words that `exact_sums` makes, those of all ranks added up,

    out = [first / number, second / number]
    mean = products / number
    spread = sqrt(first / number) * sqrt(second / number)
    out = [mean, mean / spread, above / number]               # 0 where the spread is 0
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.sums.digits import DIGITS, mean_at, means_of

NUM_WARPS = 1


@triton.jit
def exact_means_kernel(
    out_ptr,  # [2] float64, or [3]: of covariances
    words_ptr,  # int64
    CENTRED: tl.constexpr,
):
    if CENTRED:
        above = tl.load(words_ptr + 3 * DIGITS)
        count = tl.load(words_ptr + 3 * DIGITS + 1)
        means = means_of(words_ptr, count, 3, 4)
        spread = tl.sqrt(mean_at(means, 4, 0)) * tl.sqrt(mean_at(means, 4, 1))
        mean, wide = mean_at(means, 4, 2), spread > 0
        tl.store(out_ptr, mean)
        tl.store(out_ptr + 1, tl.where(wide, mean / tl.where(wide, spread, 1.0), 0.0))
        share = above.to(tl.float64) / tl.where(count > 0, count, 1).to(tl.float64)
        tl.store(out_ptr + 2, share)
    else:
        count = tl.load(words_ptr + 2 * DIGITS)
        tl.store(out_ptr + tl.arange(0, 2), means_of(words_ptr, count, 2, 2))


def exact_means(words: Tensor, *, centred: bool, out: Tensor) -> None:
    """Write them."""
    with device_of(words):
        exact_means_kernel[(1,)](out, words, CENTRED=centred, num_warps=NUM_WARPS, **UNFUSED)
