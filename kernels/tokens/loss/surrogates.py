"""The policy terms with their slopes in logp: csrc/core/token_loss.h says what each is, and in
which order its operations come.

A token is (log ratio, ratio, advantage, logp), `bounds` are (log low, log high, low, high, log
dual, dual), all float64. By select: what is not taken may be infinite.
"""

import triton
import triton.language as tl

from logitless.kernels.tokens.loss.exp import exp_of


@triton.jit
def ratio_clipped(log_ratio, advantage, bounds):
    # The ratio left the clip range on the side to which the advantage pushes.
    above = (advantage > 0) & (log_ratio > bounds[1])
    return above | ((advantage < 0) & (log_ratio < bounds[0]))


@triton.jit
def dual_clipped(log_ratio, advantage, bounds):
    return (advantage < 0) & (log_ratio > bounds[4])


@triton.jit
def _bounded_term(token, bounds, clipped, bound):
    # -A r, or -A bound without a slope; and the dual clip.
    log_ratio, ratio, advantage, _ = token
    loss = -advantage * ratio
    cut = tl.where(clipped, -advantage * bound, -advantage * bounds[5])
    held = clipped | dual_clipped(log_ratio, advantage, bounds)
    return tl.where(held, cut, loss), tl.where(held, 0.0, loss)


@triton.jit
def _clip(token, bounds):
    log_ratio, _, advantage, _ = token
    bound = tl.where(advantage > 0, bounds[3], bounds[2])
    return _bounded_term(token, bounds, ratio_clipped(log_ratio, advantage, bounds), bound)


@triton.jit
def _score(token, weight):
    slope = -token[2] * weight
    return slope * token[3], slope


@triton.jit
def _lesser(x, most):
    return tl.where(x > most, most, x)


@triton.jit
def _greater(x, least):
    return tl.where(x < least, least, x)


@triton.jit
def _sapo(token, constants):
    _, ratio, advantage, _ = token
    tau = tl.where(advantage > 0, constants[0], constants[1])
    e = exp_of(-tau * tl.abs(ratio - 1))
    gate = tl.where(ratio > 1, 1.0, e) / (1 + e)
    bell = e / ((1 + e) * (1 + e))
    slope = tl.where(bell > 0, -advantage * 4 * bell * ratio, 0.0)
    return -advantage * 4 / tau * gate, slope


@triton.jit
def _bernoulli_kl(old_logp, logp):
    old_p, p = exp_of(old_logp), exp_of(logp)
    return old_p * (old_logp - logp) + (1 - old_p) * tl.log((1 - old_p + 1e-8) / (1 - p + 1e-8))


@triton.jit
def _trust_mask(token, constants, KIND: tl.constexpr):
    log_ratio, ratio, advantage, logp = token
    low, high, cap = constants[0], constants[1], constants[2]
    up = advantage > 0
    old_logp = logp - log_ratio
    move = exp_of(logp) - exp_of(old_logp)
    if KIND >= 2:
        kept = _bernoulli_kl(old_logp, logp) <= tl.where(up, high, low)
        if KIND == 2:
            kept = kept | tl.where(up, move <= 0, move >= 0)
    else:
        inside_high, inside_low = move <= high, move >= -low
        if KIND == 1:
            kept = inside_high & inside_low
        else:
            kept = tl.where(up, inside_high, inside_low)
    loss = -advantage * ratio
    capped, slope = _score(token, _lesser(ratio, cap))
    value, slope = tl.where(cap > 0, capped, loss), tl.where(cap > 0, slope, loss)
    return tl.where(kept, value, 0.0), tl.where(kept, slope, 0.0)


@triton.jit
def _dro(token, constants):
    log_ratio, _, advantage, logp = token
    pull = constants[0] * log_ratio
    return -advantage * logp + 0.5 * pull * log_ratio, -advantage + pull


@triton.jit
def _vespo(token, constants):
    log_ratio, ratio, advantage, _ = token
    down = advantage < 0
    k = tl.where(down, constants[2], constants[0])
    rate = tl.where(down, constants[3], constants[1])
    return _score(token, exp_of(rate + k * log_ratio - rate * ratio))


@triton.jit
def _bounded(token, bounds, constants):
    log_ratio, _, advantage, _ = token
    loss, slope = _clip(token, bounds)
    clipped = ratio_clipped(log_ratio, advantage, bounds)
    held = loss * tl.where(advantage > 0, constants[1], constants[0])
    return tl.where(clipped, held, loss), tl.where(clipped, held, slope)


@triton.jit
def _dcpo(token, bounds, constants):
    log_ratio, ratio, advantage, logp = token
    old_p = _greater(exp_of(logp - log_ratio), 1e-300)
    low = 0.5 + 0.5 * tl.sqrt(_greater(1 - 4 * constants[0] / old_p, 0.0))
    high = _lesser(0.5 + 0.5 * tl.sqrt(1 + 4 * constants[1] / old_p), constants[2])
    up = advantage > 0
    clipped = tl.where(up, ratio > high, (advantage < 0) & (ratio < low))
    return _bounded_term(token, bounds, clipped, tl.where(up, high, low))


@triton.jit
def _aspo(token, bounds):
    log_ratio, ratio, advantage, _ = token
    up = advantage > 0
    clipped = ratio_clipped(log_ratio, advantage, bounds)
    ratio = tl.where(clipped, tl.where(up, bounds[3], bounds[2]), ratio)
    loss = -advantage * tl.where(up, 1 / ratio, ratio)
    capped = tl.where(up, -log_ratio, log_ratio) > bounds[4]
    value, slope = _score(token, bounds[5])
    return tl.where(capped, value, loss), tl.where(capped, slope, tl.where(clipped, 0.0, loss))


@triton.jit
def surrogate_term(token, bounds, constants, SURROGATE: tl.constexpr, KIND: tl.constexpr):
    # Value and slope. A zero advantage is zero loss even where the ratio overflows.
    advantage = token[2]
    if SURROGATE == "clip":
        value, slope = _clip(token, bounds)
    elif SURROGATE == "reinforce":
        value, slope = _score(token, 1.0)
    elif SURROGATE == "cispo":
        value, slope = _score(token, _lesser(_greater(token[1], constants[0]), constants[1]))
    elif SURROGATE == "sapo":
        value, slope = _sapo(token, constants)
    elif SURROGATE == "trust_mask":
        value, slope = _trust_mask(token, constants, KIND)
    elif SURROGATE == "dro":
        value, slope = _dro(token, constants)
    elif SURROGATE == "vespo":
        value, slope = _vespo(token, constants)
    elif SURROGATE == "bounded":
        value, slope = _bounded(token, bounds, constants)
    elif SURROGATE == "dcpo":
        value, slope = _dcpo(token, bounds, constants)
    elif SURROGATE == "aspo":
        value, slope = _aspo(token, bounds)
    else:
        tl.static_assert(SURROGATE == "none")
        value, slope = tl.zeros_like(advantage), tl.zeros_like(advantage)
    if SURROGATE != "dro":
        value = tl.where(advantage == 0, 0.0, value)
        slope = tl.where(advantage == 0, 0.0, slope)
    return value, slope
