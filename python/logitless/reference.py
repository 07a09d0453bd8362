"""The oracle: every op, loss and gradient in NumPy float64, written the slowest and plainest way.

Nothing here is fast, fused, tiled or clever, so that each line can be checked against the formula
it states; everything else in the package is tested against it, and it is tested against finite
differences. Every function takes arrays whose last axis is the vocabulary (`logits`) or the hidden
size (`hidden`), with any shape in front, and flattens the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]


# ---- rows: the chain, the statistics of softmax(z), and their gradients


def logits_chain(
    raw: Array,  # [..., V]
    *,
    temperature: float | Array = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Array | None = None,  # [V]
) -> F64:
    """z = softcap(logit_scale * (raw + bias)) / temperature, with softcap(x) = c * tanh(x / c)."""
    x = np.asarray(raw, np.float64)
    if bias is not None:
        x = x + np.asarray(bias, np.float64)
    x = logit_scale * x
    if softcap is not None:
        x = softcap * np.tanh(x / softcap)
    return np.asarray(x / _per_row(temperature), np.float64)


def probabilities(logits: Array, **chain: Any) -> F64:
    """softmax(z), what a sampler must draw from. `chain`: the keywords of `logits_chain`."""
    z = logits_chain(logits, **chain)
    weights = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float64)


def token_stats(
    logits: Array,  # [..., V]
    targets: Array,  # [...]
    *,
    mask: Array | None = None,  # [...]
    **chain: Any,
) -> dict[str, Array]:
    """logp, entropy, lse, varentropy, sum_p2, entropy_change and argmax, each shaped like targets.

    A masked row is 0 everywhere and is never read. `chain`: the keywords of `logits_chain`.
    """
    targets = np.asarray(targets)
    names = ("logp", "entropy", "lse", "varentropy", "sum_p2", "entropy_change")
    out: dict[str, Array] = {name: np.zeros(targets.size) for name in names}
    out["argmax"] = np.zeros(targets.size, np.int64)
    for i, z, a in _valid_rows(logits, targets, mask, chain):
        lse = _logsumexp(z)
        logp, p = z - lse, np.exp(z - lse)
        entropy = -_expectation(p, logp)
        out["logp"][i] = logp[a]
        out["entropy"][i] = entropy
        out["lse"][i] = lse
        out["varentropy"][i] = _expectation(p, (logp + entropy) ** 2)
        out["sum_p2"][i] = np.sum(p**2)
        # the first-order change of this row's entropy when its own logits take a policy-gradient
        # step of weight 1
        s = np.where(p > 0, p * (np.where(p > 0, logp, 0.0) + entropy), 0.0)
        out["entropy_change"][i] = -(s[a] - _expectation(p, s))
        out["argmax"][i] = np.argmax(z)
    return {name: value.reshape(targets.shape) for name, value in out.items()}


def token_stats_backward(
    logits: Array,  # [..., V]
    targets: Array,  # [...]
    *,
    mask: Array | None = None,
    g_logp: float | Array = 0.0,
    g_entropy: float | Array = 0.0,
    g_lse: float | Array = 0.0,
    **chain: Any,
) -> tuple[F64, F64]:
    """(dlogits, dbias) of sum(g_logp * logp + g_entropy * entropy + g_lse * lse)."""
    targets = np.asarray(targets)
    raw = np.asarray(logits, np.float64)
    dz = np.zeros((targets.size, raw.shape[-1]))
    gp, gh, gl = (np.broadcast_to(g, targets.shape).ravel() for g in (g_logp, g_entropy, g_lse))
    for i, z, a in _valid_rows(logits, targets, mask, chain):
        lse = _logsumexp(z)
        p = np.exp(z - lse)
        entropy = -_expectation(p, z - lse)
        onehot = np.arange(len(z)) == a
        surprise = np.where(p > 0, np.where(p > 0, z - lse, 0.0) + entropy, 0.0)
        dz[i] = gp[i] * (onehot - p) - gh[i] * p * surprise + gl[i] * p
    dlogits = dz.reshape(raw.shape) * _chain_slope(raw, mask=mask, **chain)
    return dlogits, dlogits.reshape(-1, raw.shape[-1]).sum(axis=0)


def linear_token_stats(
    hidden: Array,  # [..., H]
    weight: Array,  # [V, H]
    targets: Array,  # [...]
    *,
    mask: Array | None = None,
    **chain: Any,
) -> dict[str, Array]:
    """token_stats(hidden @ weight.T, targets, ...) with the logits held in full."""
    return token_stats(_full_logits(hidden, weight, mask), targets, mask=mask, **chain)


def linear_token_stats_backward(
    hidden: Array,  # [..., H]
    weight: Array,  # [V, H]
    targets: Array,  # [...]
    *,
    mask: Array | None = None,
    **options: Any,
) -> tuple[F64, F64, F64]:
    """(dhidden, dweight, dbias) of sum(g_logp * logp + g_entropy * entropy + g_lse * lse)."""
    h, w = _masked_hidden(hidden, mask), np.asarray(weight, np.float64)
    dlogits, dbias = token_stats_backward(
        _full_logits(hidden, weight, mask), targets, mask=mask, **options
    )
    rows = dlogits.reshape(-1, w.shape[0])
    return dlogits @ w, rows.T @ h.reshape(-1, h.shape[-1]), dbias


def _per_row(temperature: float | Array) -> F64:
    t = np.asarray(temperature, np.float64)
    return t[..., None] if t.ndim else t


def _chain_slope(
    raw: F64,
    *,
    mask: Array | None,
    temperature: float | Array = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Array | None = None,
) -> F64:
    """dz/draw, elementwise; 0 on masked rows, which may hold NaN."""
    x = logit_scale * (raw if bias is None else raw + np.asarray(bias, np.float64))
    slope = np.full(raw.shape, float(logit_scale))
    if softcap is not None:
        slope = slope * (1.0 - np.tanh(x / softcap) ** 2)
    slope = slope / _per_row(temperature)
    return slope if mask is None else np.where(np.asarray(mask)[..., None], slope, 0.0)


def _valid_rows(
    logits: Array, targets: Array, mask: Array | None, chain: dict[str, Any]
) -> Iterator[tuple[int, F64, int]]:
    """(row number, z, target) of each unmasked row; a row that has no meaning is a ValueError."""
    z = logits_chain(logits, **chain)
    z = z.reshape(-1, z.shape[-1])
    valid = np.ones(targets.size, bool) if mask is None else np.asarray(mask, bool).ravel()
    for i, target in enumerate(targets.ravel()):
        if not valid[i]:
            continue
        if np.isnan(z[i]).any() or np.isposinf(z[i]).any() or np.isneginf(z[i]).all():
            raise ValueError(f"row {i}: logits hold NaN, +inf, or nothing finite")
        if not 0 <= target < z.shape[1]:
            raise ValueError(f"row {i}: target {target} is outside [0, {z.shape[1]})")
        yield i, z[i], int(target)


def _logsumexp(z: F64) -> float:
    return float(z.max() + np.log(np.sum(np.exp(z - z.max()))))


def _expectation(p: F64, f: F64) -> float:
    """sum_v p_v f_v where a v with p_v = 0 contributes 0 even if f_v is infinite."""
    return float(np.sum(np.where(p > 0, p * np.where(p > 0, f, 0.0), 0.0)))


def _masked_hidden(hidden: Array, mask: Array | None) -> F64:
    h = np.asarray(hidden, np.float64)
    return h if mask is None else np.where(np.asarray(mask, bool)[..., None], h, 0.0)


def _full_logits(hidden: Array, weight: Array, mask: Array | None) -> F64:
    return np.asarray(_masked_hidden(hidden, mask) @ np.asarray(weight, np.float64).T)


# ---- sequences


def sequence_of_token(shape: tuple[int, ...], cu_seqlens: Array | None = None) -> Array:
    """The sequence number of every token of a padded [B, T] or a packed [N] batch, flattened."""
    if len(shape) == 2:
        return np.repeat(np.arange(shape[0]), shape[1])
    if cu_seqlens is None:
        raise ValueError("a packed [N] batch needs cu_seqlens")
    return np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(np.asarray(cu_seqlens)))


# ---- selection: covariance, Philox, top-k by sorting


def exact_mean(values: Array) -> float:
    """The mean with one rounding: multiples of 2^-64 summed as integers and divided once."""
    total = sum(round(Fraction(float(v)) * 2**64) for v in values)
    return float(Fraction(total, len(values) * 2**64)) if len(values) else 0.0


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


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 (Salmon et al., SC 2011): four random words for a counter and a key."""
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
    return words[0] | words[1] << 32


def ratio_clipped(
    logp: Array, old_logp: Array, advantages: Array, surrogate: Any
) -> npt.NDArray[np.bool_]:
    """The ratio left [1 - low, 1 + high] on the side the advantage pushes to: flat there."""
    if type(surrogate).__name__ == "Unclipped":
        return np.zeros(np.shape(logp), bool)
    r = np.exp(np.asarray(logp, np.float64) - np.asarray(old_logp, np.float64))
    above, below = r > 1.0 + surrogate.high, r < 1.0 - surrogate.low
    return np.asarray(((advantages > 0) & above) | ((advantages < 0) & below))


def select(
    logp: Array,
    advantages: Array,
    mask: Array,
    spec: Any,
    *,
    old_logp: Array | None = None,
    entropy: Array | None = None,
    token_ids: Array | None = None,
    seed: int = 0,
    step: int = 0,
) -> list[int]:
    """The ids of the tokens that `spec.control` picks out of this whole batch, sorted.

    k = max(int(fraction * valid tokens), 1), fewer when there are fewer candidates; equal scores go
    to the smaller id. ClipCov: k at random among low < cov < high not already clipped by the ratio.
    KLCov: the k largest cov. TopEntropy: the k largest entropies.
    """
    control = spec.control
    if control is None:
        return []
    ids = np.arange(np.size(logp)).reshape(np.shape(logp)) if token_ids is None else token_ids
    candidates = np.asarray(mask, bool).copy()
    k = max(int(control.fraction * candidates.sum()), 1)
    kind = type(control).__name__
    scores: list[tuple[float, int]]
    if kind == "ClipCov":
        cov, _, _ = covariance(logp, advantages, mask)
        candidates &= (cov > control.low) & (cov < control.high)
        if old_logp is not None:
            candidates &= ~ratio_clipped(logp, old_logp, np.asarray(advantages), spec.surrogate)
        scores = [(random_key(seed, step, int(t)), int(t)) for t in ids[candidates]]
    elif kind == "KLCov":
        cov, _, _ = covariance(logp, advantages, mask)
        scores = [(float(c), int(t)) for c, t in zip(cov[candidates], ids[candidates], strict=True)]
    else:
        h = np.asarray(entropy, np.float64)
        scores = [(float(c), int(t)) for c, t in zip(h[candidates], ids[candidates], strict=True)]
    scores.sort(key=lambda pair: (-pair[0], pair[1]))
    return sorted(token for _, token in scores[:k])


# ---- the policy loss


def token_weights(
    mask: Array, aggregation: str, cu_seqlens: Array | None = None, max_length: int | None = None
) -> F64:
    """w with which this whole batch's loss is sum(w * loss_t); empty sequences do not count."""
    m = np.asarray(mask, bool).ravel()
    if aggregation in ("token-mean", "token-sum"):
        scale = 1.0 / m.sum() if aggregation == "token-mean" and m.any() else 1.0
        return m * scale
    sequence = sequence_of_token(np.shape(mask), cu_seqlens)
    lengths = np.bincount(sequence[m], minlength=int(sequence.max(initial=0)) + 1)
    sequences = max(int((lengths > 0).sum()), 1)
    if aggregation == "seq-mean-token-sum":
        return m / sequences
    if aggregation == "seq-mean-token-mean":
        return np.where(m, 1.0 / (np.maximum(lengths, 1)[sequence] * sequences), 0.0)
    assert aggregation == "seq-mean-token-sum-norm", aggregation
    norm = np.shape(mask)[1] if max_length is None else max_length
    return m / (sequences * norm)


def surrogate_loss(logp: float, old_logp: float, a: float, surrogate: Any) -> tuple[float, float]:
    """(loss, slope) of one token: -A r, or -min(A r, A clip(r)), at most -A * dual if A < 0."""
    if a == 0.0:
        return 0.0, 0.0
    r = math.exp(logp - old_logp)
    if type(surrogate).__name__ == "Unclipped":
        return -a * r, -a * r
    clipped = min(max(r, 1.0 - surrogate.low), 1.0 + surrogate.high)
    loss, slope = (-a * r, -a * r) if -a * r >= -a * clipped else (-a * clipped, 0.0)
    if surrogate.dual is not None and a < 0 and loss > -a * surrogate.dual:
        loss, slope = -a * surrogate.dual, 0.0
    return loss, slope


def kl_loss(logp: float, ref_logp: float, estimator: str) -> tuple[float, float]:
    """(one-sample estimate of KL(policy || reference), its slope in logp); x = logp - ref_logp."""
    x = logp - ref_logp
    if estimator == "k1":
        return x, 1.0
    if estimator == "k2":
        return 0.5 * x * x, x
    assert estimator == "k3", estimator
    # expm1(-x) = exp(-x) - 1 keeps its digits where x is small
    return math.expm1(-x) + x, -math.expm1(-x)


def policy_loss(
    logp: Array,  # [N] or [B, T]
    old_logp: Array,
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,
    spec: Any,
    *,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    cu_seqlens: Array | None = None,
    token_ids: Array | None = None,
    grad_scale: float = 1.0,
    seed: int = 0,
    step: int = 0,
) -> tuple[float, dict[str, float], F64, F64]:
    """(loss, metrics, g_logp, g_entropy) of a whole optimizer batch given at once.

    `spec` is read by attribute, so that the oracle shares no code with the losses it judges.
    """
    shape = np.shape(logp)
    valid = np.asarray(mask, bool).ravel()
    a = np.asarray(advantages, np.float64)
    if a.size != valid.size:
        a = a.ravel()[sequence_of_token(shape, cu_seqlens)]
    a, lp, old = a.ravel(), np.asarray(logp, np.float64).ravel(), np.asarray(old_logp).ravel()
    ids = np.arange(lp.size) if token_ids is None else np.asarray(token_ids).ravel()
    h = None if entropy is None else np.asarray(entropy, np.float64).ravel()
    ref = None if ref_logp is None else np.asarray(ref_logp, np.float64).ravel()
    # what lies outside the mask may be NaN
    lp, old, a = (np.where(valid, x, 0.0).astype(np.float64) for x in (lp, old, a))

    chosen = select(
        lp, a, valid, spec, old_logp=old, entropy=h, token_ids=ids, seed=seed, step=step
    )
    selected = np.isin(ids, chosen) & valid
    kind = type(spec.control).__name__
    w = token_weights(mask, spec.aggregation, cu_seqlens, spec.max_length)
    g_logp, g_entropy = np.zeros(lp.size), np.zeros(lp.size)
    names = ["pg_loss", "pg_clipfrac", "pg_clipfrac_lower", "ppo_kl", "cov_mean"]
    names += ["cov_selected"] if spec.control is not None else []
    names += ["entropy"] if h is not None else []
    names += ["kl_loss"] if spec.kl is not None else []
    metrics = {f"actor/{name}": 0.0 for name in names}
    loss, tokens = 0.0, max(int(valid.sum()), 1)
    clipped = ratio_clipped(lp, old, a, spec.surrogate)
    cov, _, _ = covariance(lp, a, valid)
    for t in np.flatnonzero(valid):
        d = lp[t] - old[t]
        pg, slope = surrogate_loss(lp[t], old[t], a[t], spec.surrogate)
        if (kind == "ClipCov" and selected[t]) or (kind == "TopEntropy" and not selected[t]):
            pg, slope = 0.0, 0.0
        if kind == "KLCov" and selected[t]:
            pg, slope = (
                pg + spec.control.coefficient * abs(d),
                slope + spec.control.coefficient * np.sign(d),
            )
        total = pg
        if spec.kl is not None:
            assert ref is not None
            kl, kl_slope = kl_loss(lp[t], ref[t], spec.kl.estimator)
            total, slope = total + spec.kl.coefficient * kl, slope + spec.kl.coefficient * kl_slope
            metrics["actor/kl_loss"] += w[t] * kl
        if spec.entropy is not None:
            assert h is not None
            total -= spec.entropy.coefficient * h[t]
            g_entropy[t] = -grad_scale * w[t] * spec.entropy.coefficient
        loss += grad_scale * w[t] * total
        g_logp[t] = grad_scale * w[t] * slope
        dual = getattr(spec.surrogate, "dual", None)
        metrics["actor/pg_loss"] += w[t] * pg
        metrics["actor/pg_clipfrac"] += float(clipped[t]) / tokens
        metrics["actor/pg_clipfrac_lower"] += (
            float(dual is not None and a[t] < 0 and math.exp(d) > dual) / tokens
        )
        metrics["actor/ppo_kl"] += -d / tokens
        metrics["actor/cov_mean"] += cov[t] / tokens
        if spec.control is not None:
            metrics["actor/cov_selected"] += float(selected[t]) / tokens
        if h is not None:
            metrics["actor/entropy"] += h[t] / tokens
    return loss, metrics, g_logp.reshape(shape), g_entropy.reshape(shape)


# ---- the entropy law


def fit_entropy_law(entropy: Array, reward: Array) -> dict[str, Any]:
    """Least squares of R = -a * exp(H) + b; the ceiling b - a (H = 0) with its 95% interval."""
    x, y = np.exp(np.asarray(entropy, np.float64)), np.asarray(reward, np.float64)
    n = len(x)
    design = np.stack([-x, np.ones(n)], axis=1)
    gram = np.linalg.inv(design.T @ design)
    a, b = gram @ design.T @ y
    residual = y - design @ np.array([a, b])
    at_zero = np.array([-1.0, 1.0])
    variance = residual @ residual / (n - 2)
    half = student_t_975(n - 2) * math.sqrt(variance * (at_zero @ gram @ at_zero))
    total = float(np.sum((y - y.mean()) ** 2))
    r2 = 1.0 - float(residual @ residual) / total if total > 0 else 1.0
    return {"a": a, "b": b, "ceiling": b - a, "r2": r2, "interval": (b - a - half, b - a + half)}


def student_t_975(dof: int) -> float:
    """The 97.5% point of Student's t: bisection on the density integrated by Simpson's rule."""
    log_scale = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        x = np.linspace(0.0, middle, 2001)
        density = np.exp(log_scale - (dof + 1) / 2 * np.log1p(x * x / dof))
        weights = np.where(np.arange(2001) % 2, 4.0, 2.0)
        weights[[0, -1]] = 1.0
        area = float(weights @ density) * middle / 2000 / 3
        low, high = (middle, high) if area < 0.475 else (low, middle)
    return low
