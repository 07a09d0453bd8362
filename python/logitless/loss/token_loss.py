"""A spec and the tokens of a call, evaluated by the core in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.loss.spec import Clip, ClipCov, KLCov, PolicyLossSpec, TopEntropy, Unclipped
from logitless.loss.tokens import Bools, Floats, Tokens

CONTROLS = {
    type(None): _core.Control.none,
    ClipCov: _core.Control.drop_selected,
    KLCov: _core.Control.penalise_selected,
    TopEntropy: _core.Control.keep_selected,
}


class Means(NamedTuple):
    """Batch means over valid tokens, and their number."""

    advantage: float
    logp: float
    tokens: int


class TokenLoss(NamedTuple):
    """What one call adds to the batch: loss and metrics sum over calls and ranks."""

    loss: float
    metrics: dict[str, float]
    g_logp: Floats  # [N] d loss / d logp
    g_entropy: Floats | None  # [N] d loss / d entropy; None without an entropy bonus


def log_range(surrogate: Clip | Unclipped) -> tuple[float, float]:
    """The log ratios beyond which the surrogate is flat: log(1 - low), log(1 + high)."""
    if isinstance(surrogate, Unclipped):
        return -math.inf, math.inf
    return _log(1.0 - surrogate.low), _log(1.0 + surrogate.high)


def core_params(spec: PolicyLossSpec) -> dict[str, Any]:
    """The spec as the core's plain numbers; a part that is None has no effect."""
    clip = spec.surrogate if isinstance(spec.surrogate, Clip) else None
    dual = math.inf if clip is None or clip.dual is None else clip.dual
    log_low, log_high = log_range(spec.surrogate)
    return {
        "ratio_low": -math.inf if clip is None else 1.0 - clip.low,
        "ratio_high": math.inf if clip is None else 1.0 + clip.high,
        "log_low": log_low,
        "log_high": log_high,
        "ratio_dual": dual,
        "log_dual": _log(dual),
        "control": CONTROLS[type(spec.control)],
        "penalty": spec.control.coefficient if isinstance(spec.control, KLCov) else 0.0,
        "kl": getattr(_core.KlEstimator, spec.kl.estimator if spec.kl else "none"),
        "kl_coefficient": spec.kl.coefficient if spec.kl else 0.0,
        "entropy_coefficient": spec.entropy.coefficient if spec.entropy else 0.0,
    }


def evaluate(
    tokens: Tokens,
    spec: PolicyLossSpec,
    weights: npt.NDArray[np.float64],  # [N]
    *,
    total_tokens: int,
    selected: Bools | None,  # [N]
    means: Means | None,
    grad_scale: float,
) -> TokenLoss:
    """grad_scale * sum(weights * loss_t), metrics over `total_tokens`; no means, no cov_mean."""
    g_logp = np.empty_like(tokens.logp)
    g_entropy = None if spec.entropy is None else np.empty_like(tokens.logp)
    sums = _core.token_loss(
        logp=tokens.logp,
        old_logp=tokens.old_logp,
        advantages=tokens.advantages,
        weights=weights,
        entropy=tokens.entropy,
        ref_logp=tokens.ref_logp,
        selected=selected,
        g_logp=g_logp,
        g_entropy=g_entropy,
        mean_advantage=0.0 if means is None else means.advantage,
        mean_logp=0.0 if means is None else means.logp,
        grad_scale=grad_scale,
        params=core_params(spec),
    )
    if sums["bad_token"] >= 0:
        raise ValueError(_bad_token(tokens, sums["bad_token"]))

    per_token = {"pg_clipfrac": "clipped", "pg_clipfrac_lower": "clipped_lower"}
    per_token |= {"ppo_kl": "old_minus_new"}
    per_token |= {} if means is None else {"cov_mean": "covariance"}
    per_token |= {} if spec.control is None else {"cov_selected": "selected"}
    per_token |= {} if tokens.entropy is None else {"entropy": "entropy"}
    metrics = {f"actor/{name}": sums[key] / max(total_tokens, 1) for name, key in per_token.items()}
    metrics["actor/pg_loss"] = sums["policy"]
    if spec.kl is not None:
        metrics["actor/kl_loss"] = sums["kl"]
    return TokenLoss(sums["loss"], metrics, g_logp, g_entropy)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _bad_token(tokens: Tokens, i: int) -> str:
    names = ("logp", "old_logp", "advantages", "entropy", "ref_logp")
    values = {name: getattr(tokens, name) for name in names}
    got = ", ".join(f"{name}={value[i]}" for name, value in values.items() if value is not None)
    return (
        f"{', '.join(names)} must be finite where the mask is true, got {got} at {tokens.place(i)}"
    )
