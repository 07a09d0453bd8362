"""Selection: covariance, Philox, top-k by sorting."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from logitless.reference.rows import F64, Array


def sequence_of_token(shape: tuple[int, ...], cu_seqlens: Array | None = None) -> Array:
    """The sequence number of every token of a padded [B, T] or a packed [N] batch, flattened."""
    if len(shape) == 2:
        return np.repeat(np.arange(shape[0]), shape[1])
    if cu_seqlens is None:
        raise ValueError("a packed [N] batch needs cu_seqlens")
    return np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(np.asarray(cu_seqlens)))


def exact_mean(values: Array) -> float:
    """The mean with one rounding."""
    return float(sum(Fraction(float(v)) for v in values) / len(values)) if len(values) else 0.0


def deviation(values: Array) -> float:
    """The population standard deviation about `exact_mean`, whatever the size of the values."""
    away = np.asarray(values, np.float64) - exact_mean(values)
    exponent = math.frexp(np.abs(away).max(initial=0.0))[1]
    variance = exact_mean(np.ldexp(away, -exponent) ** 2)
    return math.ldexp(math.sqrt(variance), exponent)


def product(x: float, y: float) -> Fraction:
    """x y rounded to the 53 bits of a float64, with an exponent of any size."""
    (a, m), (b, n) = math.frexp(x), math.frexp(y)
    return Fraction(a * b) * Fraction(2) ** (m + n)


def covariance(
    logp: Array, advantages: Array, mask: Array | None = None
) -> tuple[F64, float, float]:
    """(cov, mean A, mean logp): cov_t = (A_t - mean A) * (logp_t - mean logp), 0 if masked."""
    valid = np.ones(np.shape(logp), bool) if mask is None else np.asarray(mask, bool)
    lp, a = np.asarray(logp, np.float64), np.asarray(advantages, np.float64)
    mean_a, mean_lp = exact_mean(a[valid]), exact_mean(lp[valid])
    cov = np.zeros(lp.shape)
    cov[valid] = (a[valid] - mean_a) * (lp[valid] - mean_lp)
    return cov, mean_a, mean_lp


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Philox 4x32-10 (Salmon et al., SC 2011): four random words for a counter, whose numbers may
    be arrays of uint64, and a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (p1 >> 32) ^ c1 ^ k0,
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c3 ^ k1,
            p0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def random_key(seed: int, step: int, token_id: int) -> int:
    """The 64-bit key that puts tokens in random order: a function of these three alone."""
    low = 0xFFFFFFFF
    words = philox(
        (token_id & low, token_id >> 32, step & low, step >> 32), (seed & low, seed >> 32)
    )
    key: int = words[0] | words[1] << 32
    return key


def clipped_side(
    u: float, a: float, surrogate: Any, bounds: tuple[float, float] | None = None
) -> tuple[bool, bool]:
    """(the ratio exp(u) left its range on the side the advantage pushes to, or the dual bound)."""
    kind = type(surrogate).__name__
    if kind == "Dcpo":
        return False, surrogate.dual is not None and a < 0 and math.exp(u) > surrogate.dual
    if bounds is None and kind not in ("Clip", "Aspo", "BoundedClip", "Cispo", "Gmpo"):
        return False, False
    if kind == "Gmpo":
        return bool((a > 0 and u > surrogate.high) or (a < 0 and u < -surrogate.low)), False
    r = math.exp(u)
    low, high = (1.0 - surrogate.low, 1.0 + surrogate.high) if bounds is None else bounds
    clipped = (a > 0 and r > high) or (a < 0 and r < low)
    dual = getattr(surrogate, "cap" if kind == "Aspo" else "dual", None)
    return bool(clipped), bool(dual is not None and a < 0 and r > dual)


def ratio_clipped(log_ratio: Array, advantages: Array, surrogate: Any) -> npt.NDArray[np.bool_]:
    """Elementwise: clipped on the side the advantage pushes to; NaN is not."""
    pairs = zip(np.ravel(log_ratio), np.ravel(advantages), strict=True)
    flags = [not np.isnan(u) and clipped_side(float(u), float(a), surrogate)[0] for u, a in pairs]
    return np.array(flags, bool).reshape(np.shape(log_ratio))


def select(
    logp: Array,
    advantages: Array,
    mask: Array,
    spec: Any,
    *,
    old_logp: Array | None = None,
    entropy: Array | None = None,
    entropy_change: Array | None = None,
    token_ids: Array | None = None,
    seed: int = 0,
    step: int = 0,
    log_ratio: Array | None = None,
) -> list[int]:
    """The ids of the tokens that `spec.control` picks out of this whole batch, sorted.

    k = max(int(fraction * valid tokens), 1), fewer when there are fewer candidates; equal scores go
    to the smaller id. ClipCov: k at random among low < cov < high not already clipped by the ratio.
    KLCov: the k largest cov. TopEntropy: the k largest entropies. ClipB: all of A < 0 with
    S - mean S < -mu sd S, S = p (H + logp). ClipV: of A < 0 with D > mu sd D the k largest
    D = entropy_change. log_ratio: what the ratio clip looks at, by default logp - old_logp.
    """
    control = spec.control
    kind = type(control).__name__
    if kind not in ("ClipCov", "KLCov", "TopEntropy", "ClipB", "ClipV"):
        return []
    ids = np.arange(np.size(logp)).reshape(np.shape(logp)) if token_ids is None else token_ids
    candidates = np.asarray(mask, bool).copy()
    share = {"ClipB": 1.0, "ClipV": getattr(control, "max_fraction", 1.0)}
    k = max(int(share.get(kind, getattr(control, "fraction", 1.0)) * candidates.sum()), 1)
    scores: list[tuple[Fraction | float, int]]
    lp, a = (np.asarray(x, np.float64)[candidates] for x in (logp, advantages))
    mean_a, mean_lp = exact_mean(a), exact_mean(lp)
    cov = np.zeros(np.shape(logp), object)
    cov[candidates] = [product(x, y) for x, y in zip(a - mean_a, lp - mean_lp, strict=True)]
    if kind == "ClipCov":
        candidates &= (cov > control.low) & (cov < control.high)
        if old_logp is not None:
            u = np.subtract(logp, old_logp, dtype=np.float64) if log_ratio is None else log_ratio
            candidates &= ~ratio_clipped(u, np.asarray(advantages), spec.surrogate)
        scores = [(random_key(seed, step, int(t)), int(t)) for t in ids[candidates]]
    elif kind == "KLCov":
        scores = [(c, int(t)) for c, t in zip(cov[candidates], ids[candidates], strict=True)]
    elif kind == "TopEntropy":
        h = np.asarray(entropy, np.float64)
        scores = [(float(c), int(t)) for c, t in zip(h[candidates], ids[candidates], strict=True)]
    else:
        lp = np.asarray(logp, np.float64)
        clip_b = kind == "ClipB"
        x = np.exp(lp) * (np.asarray(entropy, np.float64) + lp) if clip_b else entropy_change
        x = np.asarray(x, np.float64)
        least = control.mu * deviation(x[candidates])
        far = x - exact_mean(x[candidates]) < -least if clip_b else x > least
        candidates &= far & (np.asarray(advantages) < 0)
        scores = [(float(c), int(t)) for c, t in zip(x[candidates], ids[candidates], strict=True)]
    scores.sort(key=lambda pair: (-pair[0], pair[1]))
    return sorted(token for _, token in scores[:k])
