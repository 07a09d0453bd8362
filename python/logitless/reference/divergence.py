"""Two softmaxes over one vocabulary: a student's divergence from a teacher, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from logitless.reference.rows import F64, Array, Sets, logits_chain, softcap_slope
from logitless.reference.selection import philox


def divergence(
    logits: Array,  # [..., V]
    teacher_logits: Array,  # [..., V]
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    mask: Array | None = None,  # [...]
    sets: Sets | None = None,
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    noise: dict[str, Any] | None = None,
) -> dict[str, F64]:
    """What `divergence` of the library has, each [...]; 0 where the mask is False.

    `noise`: sizes [...], row_ids [...], seed and step of `teacher_noise`, added to the teacher's z.
    `sets`: both softmaxes are renormalised over the ids of a row's set, an empty one being the
    whole vocabulary.

    `student`, `teacher`: the keywords of `logits_chain`. A token that a softmax gives no mass adds
    nothing to what is weighted by it; one with mass where the other has none makes a KL infinite.
    """
    shape = np.shape(logits)[:-1]
    names = ("divergence", "entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    out = {name: np.zeros(int(np.prod(shape))) for name in names}
    for i, log_p, log_q in _rows(logits, teacher_logits, mask, sets, student, teacher, noise):
        log_m = _log_mix(log_p, log_q, beta)
        values = {
            "reverse_kl": _kl(log_p, log_q),
            "forward_kl": _kl(log_q, log_p),
            "jsd": (1 - beta) * _kl(log_p, log_m) + beta * _kl(log_q, log_m),
        }
        out["divergence"][i] = values[kind]
        out["entropy"][i], out["teacher_entropy"][i] = _entropy(log_p), _entropy(log_q)
        out["reverse_kl"][i], out["forward_kl"][i] = values["reverse_kl"], values["forward_kl"]
    return {name: value.reshape(shape) for name, value in out.items()}


def divergence_backward(
    logits: Array,  # [..., V]
    teacher_logits: Array,  # [..., V]
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    mask: Array | None = None,
    g_divergence: float | Array = 0.0,
    g_entropy: float | Array = 0.0,
    sets: Sets | None = None,
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    noise: dict[str, Any] | None = None,
) -> tuple[F64, F64]:
    """(dlogits, dbias) of sum(g_divergence * divergence + g_entropy * entropy)."""
    raw, shape = np.asarray(logits, np.float64), np.shape(logits)[:-1]
    dz = np.zeros((int(np.prod(shape)), raw.shape[-1]))
    gd, gh = (np.broadcast_to(g, shape).ravel() for g in (g_divergence, g_entropy))
    for i, log_p, log_q in _rows(logits, teacher_logits, mask, sets, student, teacher, noise):
        p, log_m = np.exp(log_p), _log_mix(log_p, log_q, beta)
        slope = {
            "reverse_kl": _weighted(log_p, log_q),
            "forward_kl": p - np.exp(log_q),
            "jsd": (1 - beta) * _weighted(log_p, log_m),
        }[kind]
        dz[i] = (gd[i] * slope if gd[i] else 0.0) - gh[i] * _weighted(log_p, np.zeros_like(p))
    options = dict(student or {})
    temperature = np.asarray(options.pop("temperature", 1.0), np.float64)
    scale = options.get("logit_scale", 1.0) / (
        temperature[..., None] if temperature.ndim else temperature
    )
    chain = softcap_slope(raw, **options) * scale
    # masked rows may hold NaN
    chain = chain if mask is None else np.where(np.asarray(mask)[..., None], chain, 0.0)
    dlogits = dz.reshape(raw.shape) * chain
    return dlogits, dlogits.reshape(-1, raw.shape[-1]).sum(axis=0)


def linear_divergence(
    hidden: Array,  # [..., H]
    weight: Array,  # [V, H]
    teacher_hidden: Array,  # [..., G]
    teacher_weight: Array,  # [V, G]
    *,
    mask: Array | None = None,
    **options: Any,
) -> dict[str, F64]:
    """`divergence` of both products, held in full."""
    logits = _product(hidden, weight, mask), _product(teacher_hidden, teacher_weight, mask)
    return divergence(*logits, mask=mask, **options)


def linear_divergence_backward(
    hidden: Array,  # [..., H]
    weight: Array,  # [V, H]
    teacher_hidden: Array,  # [..., G]
    teacher_weight: Array,  # [V, G]
    *,
    mask: Array | None = None,
    **options: Any,
) -> tuple[F64, F64, F64]:
    """(dhidden, dweight, dbias) of sum(g_divergence * divergence + g_entropy * entropy)."""
    logits = _product(hidden, weight, mask), _product(teacher_hidden, teacher_weight, mask)
    dlogits, dbias = divergence_backward(*logits, mask=mask, **options)
    rows, h = dlogits.reshape(-1, dlogits.shape[-1]), _unmasked(hidden, mask)
    return dlogits @ np.asarray(weight, np.float64), rows.T @ h.reshape(len(rows), -1), dbias


def _rows(
    logits: Array,
    teacher_logits: Array,
    mask: Array | None,
    sets: Sets | None,
    student: dict[str, Any] | None,
    teacher: dict[str, Any] | None,
    noise: dict[str, Any] | None,
) -> Iterator[tuple[int, F64, F64]]:
    """(row number, log-probs of the student, of the teacher) of each unmasked row."""
    valid = np.ones(np.shape(logits)[:-1], bool) if mask is None else np.asarray(mask, bool)
    both = (logits, student or {}), (teacher_logits, teacher or {})
    z, other = (logits_chain(x, **chain).reshape(-1, np.shape(x)[-1]) for x, chain in both)
    for i in np.flatnonzero(valid):
        if noise is not None:
            size = np.broadcast_to(noise["sizes"], valid.shape).ravel()[i]
            of_row = np.ravel(noise["row_ids"])[i], np.arange(other.shape[-1])
            other[i] += size * teacher_noise(noise["seed"], noise["step"], *of_row)
        if sets is not None and len(sets[int(i)]):
            outside = ~np.isin(np.arange(z.shape[-1]), sets[int(i)])
            z[i][outside], other[i][outside] = -np.inf, -np.inf
        for whose, row in (("logits", z[i]), ("teacher's logits", other[i])):
            if np.isnan(row).any() or np.isposinf(row).any() or np.isneginf(row).all():
                raise ValueError(f"row {i}: {whose} hold NaN, +inf, or nothing finite")
        yield int(i), _log_softmax(z[i]), _log_softmax(other[i])


def teacher_noise(seed: int, step: int, row_id: int, tokens: Array) -> F64:
    """Normal numbers of a row's tokens, by Box and Muller from Philox: see csrc/core/noise.h."""
    ids = np.asarray(tokens, np.uint64)
    low, key, row = 0xFFFFFFFF, seed ^ 0x7465616368657200, int(row_id) % 2**64
    place = (step << 29) + ids // 64 * 16 + ids % 16
    counter = (np.full_like(ids, row & low), np.full_like(ids, row >> 32), place & low, place >> 32)
    words = philox(counter, (key & low, key >> 32))
    quarter = ids // 16 % 4
    first, second = (np.where(quarter < 2, words[i], words[i + 2]) for i in (0, 1))
    radius = np.sqrt(-2 * np.log(((first >> 9) + 0.5) * 2.0**-23))
    angle = np.pi / 2 * ((second >> 30) + ((second >> 7 & 0x7FFFFF) + 0.5) * 2.0**-23 - 0.5)
    return np.asarray(radius * np.where(quarter % 2 == 0, np.cos(angle), np.sin(angle)), np.float64)


def _log_softmax(z: F64) -> F64:
    x = z - z.max()
    return np.asarray(x - np.log(np.sum(np.exp(x))), np.float64)


def _log_mix(log_p: F64, log_q: F64, beta: float) -> F64:
    """log((1 - beta) p + beta q)"""
    return np.asarray(np.logaddexp(np.log(1 - beta) + log_p, np.log(beta) + log_q), np.float64)


def _kl(log_p: F64, log_q: F64) -> float:
    """sum p (log p - log q): 0 where p is 0, whatever q is there."""
    with np.errstate(invalid="ignore"):
        return float(np.sum(np.where(np.exp(log_p) > 0, np.exp(log_p) * (log_p - log_q), 0.0)))


def _entropy(log_p: F64) -> float:
    return -_kl(log_p, np.zeros_like(log_p))


def _weighted(log_p: F64, log_q: F64) -> F64:
    """d KL(p || q) / dz of log p = z - logsumexp(z), q held: p (log p - log q - KL)."""
    with np.errstate(invalid="ignore"):
        slope = np.exp(log_p) * (log_p - log_q - _kl(log_p, log_q))
    return np.where(np.exp(log_p) > 0, slope, 0.0)


def _unmasked(hidden: Array, mask: Array | None) -> F64:
    h = np.asarray(hidden, np.float64)
    return h if mask is None else np.where(np.asarray(mask, bool)[..., None], h, 0.0)


def _product(hidden: Array, weight: Array, mask: Array | None) -> F64:
    return np.asarray(_unmasked(hidden, mask) @ np.asarray(weight, np.float64).T)
