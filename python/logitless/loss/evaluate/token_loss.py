"""A spec and the tokens of a call, evaluated by the core in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.inputs.sequences import Float64s
from logitless.inputs.tokens import Bools, Floats, Tokens
from logitless.loss.evaluate.importance import correction_metrics
from logitless.loss.evaluate.policy_weights import policy_factor
from logitless.loss.evaluate.ratio import old_policy, policy_term, spread, spreads
from logitless.loss.spec import (
    EntropyBonus,
    EntropyFloor,
    KLCov,
    PolicyLossSpec,
    SignWeights,
    Surrogate,
)


class Means(NamedTuple):
    """Batch means over valid tokens, and their number."""

    advantage: float
    logp: float
    tokens: int
    # of the entropy credit where A > 0 and where A < 0, and of the correction's weights, for specs
    # that use them
    credit: tuple[float, float] = (0.0, 0.0)
    importance: float = 1.0
    # powers of two of which advantages and log-probs are multiples of ordinary size; 0: they are
    exponents: tuple[int, int] = (0, 0)


class TokenLoss(NamedTuple):
    """What one call adds to the batch: loss and metrics sum over calls and ranks."""

    loss: float
    metrics: dict[str, float]
    g_logp: Floats  # [N] d loss / d logp
    g_entropy: Floats | None  # [N] d loss / d entropy; None without an entropy term


def log_range(surrogate: Surrogate) -> tuple[float, float]:
    """The log ratios beyond which the surrogate counts as clipped."""
    low, high = surrogate.ratio_range
    return _log(low), _log(high)


def core_params(spec: PolicyLossSpec) -> dict[str, Any]:
    """The spec as the core's plain numbers; a part that is None has no effect."""
    surrogate, control = spec.surrogate, spec.control
    low, high = surrogate.ratio_range
    signs = control if isinstance(control, SignWeights) else SignWeights()
    penalty = control if isinstance(control, KLCov) else None
    floor = spec.entropy if isinstance(spec.entropy, EntropyFloor) else None
    bonus = spec.entropy if isinstance(spec.entropy, EntropyBonus) else None
    return {
        "surrogate": getattr(_core.tokens.Surrogate, surrogate.kind),
        "numbers": surrogate.numbers,
        "ratio_low": low,
        "ratio_high": high,
        "log_low": _log(low),
        "log_high": _log(high),
        "ratio_dual": surrogate.ratio_dual,
        "log_dual": _log(surrogate.ratio_dual),
        "positive": signs.positive,
        "negative": signs.negative,
        "control": getattr(_core.tokens.Control, "none" if control is None else control.action),
        "penalty": _kl_params(penalty.estimator, penalty.coefficient) if penalty else _NO_KL,
        "kl": _kl_params(spec.kl.estimator, spec.kl.coefficient, spec.kl.weight)
        if spec.kl
        else _NO_KL,
        "entropy_coefficient": floor.strength if floor else bonus.coefficient if bonus else 0.0,
        "entropy_target": floor.target if floor else 0.0,
    }


def evaluate(
    tokens: Tokens,
    spec: PolicyLossSpec,
    weights: float | Float64s,
    *,
    total_tokens: int,
    selected: Bools | None,  # [N]
    means: Means | None,
    grad_scale: float,
) -> TokenLoss:
    """grad_scale * sum(weights * loss_t), metrics over `total_tokens`; no means, no cov_mean."""
    term = policy_term(tokens, spec)
    known = Means(0.0, 0.0, 0) if means is None else means
    factor, rollout = policy_factor(tokens, spec, known.credit, known.importance)
    each, weight = (None, weights) if isinstance(weights, float) else (weights, 0.0)
    g_logp = np.empty_like(tokens.logp)
    g_entropy = None if spec.entropy is None else np.empty_like(tokens.logp)
    g_policy = np.empty(tokens.logp.size) if spreads(spec) else None
    sums = _core.tokens.token_loss(
        logp=tokens.logp,
        old_logp=old_policy(tokens, spec),
        advantages=tokens.advantages,
        weights=each,
        mask=tokens.mask if each is None else None,
        weight=weight,
        entropy=tokens.entropy,
        kl_logp=None if spec.kl is None else tokens.reference(spec.kl.against),
        penalty_logp=tokens.reference(spec.control.against)
        if isinstance(spec.control, KLCov)
        else None,
        selected=selected,
        log_ratio=term.log_ratio,
        factor=factor,
        given_loss=term.loss,
        given_slope=term.slope,
        g_logp=g_logp,
        g_entropy=g_entropy,
        g_policy=g_policy,
        mean_advantage=known.advantage,
        mean_logp=known.logp,
        grad_scale=grad_scale,
        params=core_params(spec),
        threads=tokens.threads,
    )
    if sums["bad_token"] >= 0:
        raise ValueError(_bad_token(tokens, sums["bad_token"]))
    if sums["overflow_token"] >= 0:
        i = sums["overflow_token"]
        raise ValueError(_overflow(tokens, spec, i, sums["overflow_loss"], g_logp[i], grad_scale))
    if g_policy is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            g_logp += spread(tokens, spec, term, g_policy).astype(g_logp.dtype, copy=False)
        check_coefficients(tokens, spec, g_logp, grad_scale)

    per_token = {"pg_clipfrac": "clipped", "pg_clipfrac_lower": "clipped_lower"}
    per_token |= {} if old_policy(tokens, spec) is None else {"ppo_kl": "old_minus_new"}
    per_token |= {} if means is None else {"cov_mean": "covariance"}
    per_token |= {} if selected is None else {"cov_selected": "selected"}
    per_token |= {} if tokens.entropy is None else {"entropy": "entropy"}
    metrics = {f"actor/{name}": sums[key] / max(total_tokens, 1) for name, key in per_token.items()}
    metrics["actor/pg_loss"] = sums["policy"]
    if spec.kl is not None:
        metrics["actor/kl_loss"] = sums["kl"]
    if rollout is not None and spec.correction is not None:
        metrics |= correction_metrics(tokens, spec.correction, rollout, total_tokens)
    return TokenLoss(sums["loss"], metrics, g_logp, g_entropy)


def check_coefficients(
    tokens: Tokens, spec: PolicyLossSpec, g: npt.NDArray[Any], grad_scale: float
) -> None:
    """Where they are made outside of the core: the first that is no number has its token named."""
    if not np.isfinite(g).all():
        i = int(np.flatnonzero(~np.isfinite(g.reshape(-1)))[0])
        raise ValueError(_overflow(tokens, spec, i, "a finite one", g.reshape(-1)[i], grad_scale))


def _kl_params(estimator: str, coefficient: float, weight: str = "none") -> dict[str, Any]:
    return {
        "estimator": getattr(_core.tokens.KlEstimator, estimator.removesuffix("+")),
        "straight_through": estimator.endswith("+"),
        "weight": getattr(_core.tokens.KlWeight, weight),
        "coefficient": coefficient,
    }


_NO_KL = _kl_params("none", 0.0)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _overflow(
    tokens: Tokens, spec: PolicyLossSpec, i: int, loss: object, slope: float, grad_scale: float
) -> str:
    from logitless.loss.spec.presets import presets

    name = next((f"presets[{name!r}]" for name, x in presets.items() if x == spec), "the spec")
    old = old_policy(tokens, spec)
    values = {
        "log ratio": None if old is None else float(tokens.logp[i]) - float(old[i]),
        "advantage": tokens.advantages[i],
        "logp": tokens.logp[i],
        "reference's logp": None if spec.kl is None else tokens.reference(spec.kl.against),
        "entropy": tokens.entropy,
        "grad_scale": None if grad_scale == 1 else grad_scale,
    }
    got = ", ".join(
        f"{what} {x[i] if isinstance(x, np.ndarray) else x}"
        for what, x in values.items()
        if x is not None
    )
    return (
        "the loss of a token and its derivative must be finite in the dtype of logp, "
        f"got {loss} and {slope} at {tokens.place(i)}: {got}, under {name} with "
        f"ratio={spec.ratio!r}, surrogate={spec.surrogate}, kl={spec.kl}; mask the token, or clip"
    )


def _bad_token(tokens: Tokens, i: int) -> str:
    names = ("logp", "old_logp", "advantages", "entropy", "ref_logp", "rollout_logp")
    values = {name: getattr(tokens, name) for name in names}
    got = ", ".join(f"{name}={value[i]}" for name, value in values.items() if value is not None)
    return (
        f"{', '.join(names)} must be finite where the mask is true, got {got} at {tokens.place(i)}"
    )
