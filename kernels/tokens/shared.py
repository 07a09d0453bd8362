"""What kernels of tokens share: numbers of a call, values of its tokens, the flag of a bad one."""

import triton
import triton.language as tl

from logitless.kernels.jit import INF

# What the flag holds while no token was bad, and the kind that one has.
CLEAR = tl.constexpr(2**63 - 1)
BAD_TOKEN = tl.constexpr(7)


@triton.jit
def number_of(number_ptr, number):
    # float64: that of the device, or the host's, a Python number in Triton's interpreter.
    if number_ptr is not None:
        value = tl.load(number_ptr)
    else:
        value = tl.full((), number, tl.float64)
    return value


@triton.jit
def token_of(n, LANES: tl.constexpr):
    # The tokens of a program, and which of its lanes have one.
    token = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    return token, token < n


@triton.jit
def values_of(values_ptr, token, valid):
    # float64; 0 of those that are not valid, and where there is no such array.
    if values_ptr is not None:
        values = tl.load(values_ptr + token, mask=valid, other=0).to(tl.float64)
    else:
        values = tl.zeros_like(token).to(tl.float64)
    return values


@triton.jit
def truths_of(truths_ptr, token, inside):
    return tl.load(truths_ptr + token, mask=inside, other=0) != 0


@triton.jit
def is_finite(x):
    return tl.abs(x) < INF


@triton.jit
def power_of_two(exponent):
    # float64 of int64, a normal number.
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def flag_tokens(flag_ptr, token, bad):
    # Lowers the flag to the first of a program's bad tokens.
    clear = tl.full((1,), CLEAR, tl.int64)
    first = tl.min(tl.where(bad, token * 8 + BAD_TOKEN, clear), 0)
    if first != CLEAR:
        tl.atomic_min(flag_ptr, first)
