"""Exact sums over the valid tokens: of two arrays, or of what a covariance is made of.

Replaces, in digits that no order of tokens changes,

    words = [first.sum(), second.sum(), number]
    a, b = first - first_mean, second - second_mean
    words = [(a * a).sum(), (b * b).sum(), (a * b).sum(), (a * b > above).sum(), number]

A valid token that has a value which is not finite is flagged and not added.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.shared import (
    flag_tokens,
    is_finite,
    number_of,
    token_of,
    truths_of,
    values_of,
)
from logitless.kernels.tokens.sums.digits import DIGITS, add_values

# Values of a program, of all its sums.
VALUES = 1024
NUM_WARPS = 4


class Centre(NamedTuple):
    """What covariances are made of."""

    first_mean: Tensor  # float64 without dimensions, and so the next
    second_mean: Tensor
    above: float
    products: Tensor  # [n] float64, out: of each token


def words_of(centre: bool) -> int:
    """How many int64 words the sums are."""
    digits: int = DIGITS.value
    return 3 * digits + 2 if centre else 2 * digits + 1


@triton.jit
def _add_count(count_ptr, counted):
    tl.atomic_add(count_ptr, tl.sum(counted.to(tl.int32), 0))


@triton.jit(do_not_specialize=["n"])
def exact_sums_kernel(
    words_ptr,  # int64, in and out
    products_ptr,  # [n] float64, out, or None
    first_ptr,  # [n] float32 or float64, and so the next
    second_ptr,
    mask_ptr,  # [n] bool
    first_mean_ptr,  # float64 or None, and so the next
    second_mean_ptr,
    flag_ptr,  # [1] int64
    n,
    above: tl.float64,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    token, inside = token_of(n, LANES)
    valid = truths_of(mask_ptr, token, inside)
    first = values_of(first_ptr, token, valid)
    second = values_of(second_ptr, token, valid)
    row = tl.arange(0, ROWS)[:, None]
    if first_mean_ptr is not None:
        a = first - number_of(first_mean_ptr, 0.0)
        b = second - number_of(second_mean_ptr, 0.0)
        first, second, product = a * a, b * b, a * b
        tl.store(products_ptr + token, product, mask=inside)
        good = is_finite(first) & is_finite(second) & is_finite(product)
        counted = valid & good
        values = tl.where(row == 1, second[None, :], product[None, :])
        beyond = counted & (product > tl.full((1,), above, tl.float64))
        _add_count(words_ptr + 3 * DIGITS, beyond)
        _add_count(words_ptr + 3 * DIGITS + 1, counted)
    else:
        good = is_finite(first) & is_finite(second)
        counted = valid & good
        values = second[None, :]
        _add_count(words_ptr + 2 * DIGITS, counted)
    flag_tokens(flag_ptr, token, valid & (good == 0))
    values = tl.where(row == 0, first[None, :], values)
    add_values(words_ptr, values, counted[None, :] & (row < SUMS), SUMS, ROWS)


def exact_sums(
    first: Tensor,  # [n] float32 or float64, and so the next
    second: Tensor,
    mask: Tensor,  # [n] bool
    *,
    words: Tensor,  # [words_of(centre)] int64, in and out
    flag: Tensor,  # [1] int64
    centre: Centre | None = None,  # None: the sums of the two
) -> None:
    """Add to the words what the tokens are."""
    n = len(first)
    if n == 0:
        return
    sums = 2 if centre is None else 3
    rows = triton.next_power_of_2(sums)
    lanes = VALUES // rows
    first_mean, second_mean, above, products = (None, None, 0.0, None) if centre is None else centre
    with device_of(words):
        exact_sums_kernel[(triton.cdiv(n, lanes),)](
            words, products, first, second, mask, first_mean, second_mean, flag, n, above,
            SUMS=sums, ROWS=rows, LANES=lanes, num_warps=NUM_WARPS, **UNFUSED,
        )  # fmt: skip
