"""How strongly log-prob and advantage go together: what drives a policy's entropy down."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from logitless.backends.token_kernels.radix_select import kth_largest, score_values
from logitless.inputs.arrays import framework
from logitless.inputs.gradients import is_traced, refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.means import batch_means, exact_means, ordinary, reduction, scaled_by
from logitless.loss.evaluate.selection import covariance_candidates

QUANTILES = (0.5, 0.8, 0.98, 0.998, 0.9998)


class Covariance(NamedTuple):
    """cov_t = (A_t - mean A) * (logp_t - mean logp) over the valid tokens of all ranks."""

    # mean of cov_t; the policy's entropy falls in proportion to it
    mean: float
    # mean / (std A * std logp), 0 where either is constant
    correlation: float
    mean_advantage: float
    mean_logp: float
    count: int  # type: ignore[assignment]
    # q -> the smallest cov_t that at least a share q of the tokens does not exceed; empty without
    # tokens
    quantiles: dict[float, float]
    # share of tokens with cov_t > 1, the lower end of Clip-Cov's band
    above_one: float


@public
def covariance(
    logp: Array,  # [N] or [B, T]
    advantages: Array,  # the same, or [B, 1], or [B] with [B, T]
    mask: Array,  # bool, or integers 0 and 1
    *,
    data_group: Any = None,
) -> Covariance:
    """The covariance of log-prob and advantage over tokens. In plain code, on one rank:

        cov = (advantages - advantages[mask].mean()) * (logp - logp[mask].mean())
        mean, correlation = cov[mask].mean(), np.corrcoef(advantages[mask], logp[mask])[0, 1]
        quantiles = np.quantile(cov[mask], (0.5, 0.8, 0.98, 0.998, 0.9998), method="inverted_cdf")

    With `data_group` (a torch.distributed group) over all its ranks, all of which have to call; the
    same bits on any split. Raises ValueError where a valid value is not finite, for covariances
    beyond float64 and for shapes that differ. Paper: arXiv:2505.22617.
    """
    mask = as_mask(mask)
    framework("covariance", mixed=True, logp=logp, advantages=advantages, mask=mask)
    if is_traced(logp):
        from logitless.inputs.untraced import untraced

        out: Covariance = untraced(covariance, logp, advantages, mask, data_group=data_group)
        return out
    refuse_grad(logp=logp, advantages=advantages)
    reduce = reduction(data_group)
    tokens = make_tokens(logp, advantages, mask)
    given = batch_means(tokens, reduce)
    tokens, means = ordinary(tokens, given)
    exponent = sum(given.exponents)
    running = covariance_candidates(tokens, means)
    cov, a, lp = (np.zeros(tokens.mask.size) for _ in range(3))
    cov[tokens.mask] = score_values(running.scores)
    # float32 minus a Python float would stay float32
    a[tokens.mask] = tokens.advantages[tokens.mask]
    lp[tokens.mask] = tokens.logp[tokens.mask]
    one = float(scaled_by(1.0, -exponent))
    squares = ("(advantages - mean)^2", "(logp - mean)^2")
    variance_a, variance_lp, *_ = exact_means(
        tokens, (a - means.advantage) ** 2, (lp - means.logp) ** 2, squares, reduce
    )
    mean, share, count, *_ = exact_means(
        tokens, cov, (cov > one).astype(np.float64), ("covariances", "shares"), reduce
    )
    spread = math.sqrt(variance_a) * math.sqrt(variance_lp)
    quantiles = {
        q: _unscaled(kth_largest(running, count - math.ceil(q * count) + 1, reduce), exponent)
        for q in (QUANTILES if count else ())
    }
    return Covariance(
        mean=_unscaled(mean, exponent),
        correlation=mean / spread if spread > 0 else 0.0,
        mean_advantage=given.advantage,
        mean_logp=given.logp,
        count=count,
        quantiles=quantiles,
        above_one=share,
    )


def _unscaled(value: float, exponent: int) -> float:
    result = float(scaled_by(value, exponent))
    if not math.isfinite(result):
        raise ValueError(
            "advantages and logp must have a covariance that float64 can hold, got "
            f"{value} * 2^{exponent}"
        )
    return result
