"""Rows: the chain, the statistics of softmax(z), and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
# Of each row the ids that it was sampled from.
Sets = Sequence[Sequence[int]]


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


def moments(z: Array) -> tuple[float, ...]:
    """s0, s1, s2, q0, q1 of some of a row's logits, by their maximum: what pieces merge as."""
    x = np.asarray(z, np.float64) - np.max(z)
    e = np.exp(x)
    x = np.where(e > 0, x, 0.0)
    return tuple(float(np.sum(f)) for f in (e, x * e, x * x * e, e * e, x * e * e))


def token_stats(
    logits: Array,  # [..., V]
    targets: Array,  # [...]
    *,
    mask: Array | None = None,  # [...]
    sets: Sets | None = None,
    **chain: Any,
) -> dict[str, Array]:
    """What `token_stats` of the library has, each shaped like targets.

    A masked row is 0 everywhere and is never read. `chain`: the keywords of `logits_chain`.
    `sets`: softmax(z) is renormalised over the ids of a row's set, an empty one being the whole
    vocabulary.
    """
    targets = np.asarray(targets)
    names = (
        "logp", "entropy", "lse", "varentropy", "sum_p2", "log_sum_p2", "mean_logit",
        "entropy_change",
    )  # fmt: skip
    out: dict[str, Array] = {name: np.zeros(targets.size) for name in names}
    out["argmax"] = np.zeros(targets.size, np.int64)
    for i, z, a in _valid_rows(logits, targets, mask, chain, sets):
        lse = _logsumexp(z)
        logp, p = z - lse, np.exp(z - lse)
        entropy = -_expectation(p, logp)
        out["logp"][i] = logp[a]
        out["entropy"][i] = entropy
        out["lse"][i] = lse
        out["varentropy"][i] = _expectation(p, (logp + entropy) ** 2)
        out["sum_p2"][i] = np.sum(p**2)
        out["log_sum_p2"][i] = _logsumexp(2 * logp)
        out["mean_logit"][i] = _expectation(p, z)
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
    sets: Sets | None = None,
    **chain: Any,
) -> tuple[F64, F64]:
    """(dlogits, dbias) of sum(g_logp * logp + g_entropy * entropy + g_lse * lse)."""
    targets = np.asarray(targets)
    raw = np.asarray(logits, np.float64)
    dz = np.zeros((targets.size, raw.shape[-1]))
    gp, gh, gl = (np.broadcast_to(g, targets.shape).ravel() for g in (g_logp, g_entropy, g_lse))
    for i, z, a in _valid_rows(logits, targets, mask, chain, sets):
        lse = _logsumexp(z)
        p = np.exp(z - lse)
        entropy = -_expectation(p, z - lse)
        onehot = np.arange(len(z)) == a
        surprise = np.where(p > 0, np.where(p > 0, z - lse, 0.0) + entropy, 0.0)
        dz[i] = gp[i] * (onehot - p) - gh[i] * p * surprise + gl[i] * p
    dlogits = dz.reshape(raw.shape) * _chain_slope(raw, mask=mask, **chain)
    return dlogits, dlogits.reshape(-1, raw.shape[-1]).sum(axis=0)


def kept_mass(logits: Array, sets: Sets, **chain: Any) -> F64:  # [N, V] -> [N]
    """What of softmax(z) the sets hold; 1 of an empty one, which is the whole vocabulary."""
    p = probabilities(logits, **chain)
    return np.array([p[i, list(kept)].sum() if len(kept) else 1.0 for i, kept in enumerate(sets)])


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
    logit_scale: float = 1.0,
    **chain: Any,
) -> F64:
    """dz/draw, elementwise; 0 on masked rows, which may hold NaN."""
    slope = softcap_slope(raw, logit_scale=logit_scale, **chain)
    slope = slope * (logit_scale / _per_row(temperature))
    return slope if mask is None else np.where(np.asarray(mask)[..., None], slope, 0.0)


def softcap_slope(
    raw: Array,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Array | None = None,
    **_: Any,
) -> F64:
    """tanh'(u) of u = logit_scale * (raw + bias) / softcap, elementwise; 1 without a softcap."""
    if softcap is None:
        return np.ones(np.shape(raw))
    x = np.asarray(raw, np.float64)
    u = np.abs(logit_scale * (x if bias is None else x + np.asarray(bias, np.float64)) / softcap)
    # tanh' is 1 - tanh^2, which has no digits left where tanh is near 1
    return np.asarray(np.exp(-2.0 * u) * (1.0 + np.tanh(u)) ** 2, np.float64)


def _valid_rows(
    logits: Array,
    targets: Array,
    mask: Array | None,
    chain: dict[str, Any],
    sets: Sets | None = None,
) -> Iterator[tuple[int, F64, int]]:
    """(row number, z, target) of each unmasked row, z being -inf outside of its set; a row that has
    no meaning is a ValueError."""
    z = logits_chain(logits, **chain)
    z = z.reshape(-1, z.shape[-1])
    valid = np.ones(targets.size, bool) if mask is None else np.asarray(mask, bool).ravel()
    for i, target in enumerate(targets.ravel()):
        if not valid[i]:
            continue
        if sets is not None and len(sets[i]):
            kept = np.isin(np.arange(z.shape[1]), sets[i])
            z[i] = np.where(kept, z[i], -np.inf)
            if target not in sets[i] or kept.sum() < len(sets[i]):
                raise ValueError(f"row {i}: no set of ids that holds the target {target}")
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
