"""How strongly log-prob and advantage go together: what drives a policy's entropy down."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from logitless.backends import registry
from logitless.backends.token_kernels.protocol import (
    CovarianceReport,
    DeviceTokenKernels,
    Reduce,
)
from logitless.inputs.arrays import framework
from logitless.inputs.gradients import is_traced, refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Number, Tokens
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.means import batch_means, exact_means, ordinary, reduction, scaled_by
from logitless.loss.evaluate.selection import covariance_candidates
from logitless.loss.evaluate.sequences import kernels_of, valid

QUANTILES = (0.5, 0.8, 0.98, 0.998, 0.9998)
# The lower end of Clip-Cov's band.
ABOVE = 1.0


class Covariance(NamedTuple):
    """cov_t = (A_t - mean A) * (logp_t - mean logp) over the valid tokens of all ranks.

    Of tensors on a device each number is a float64 or int64 tensor without dimensions there, which
    the host has not waited for; quantiles of no tokens are NaN.
    """

    # mean of cov_t; the policy's entropy falls in proportion to it
    mean: Number
    # mean / (std A * std logp), 0 where either is constant
    correlation: Number
    mean_advantage: Number
    mean_logp: Number
    count: Number
    # q -> the smallest cov_t that at least a share q of the tokens does not exceed; empty without
    # tokens
    quantiles: dict[float, Number]
    # share of tokens with cov_t > 1, the lower end of Clip-Cov's band
    above_one: Number


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
    same bits on any split. CUDA tensors stay on the device, as in `batch_stats`, and so
    do the results. Raises ValueError where a valid value is not finite, for
    covariances beyond float64 and for shapes that differ. Paper: arXiv:2505.22617.
    """
    mask = as_mask(mask)
    framework("covariance", mixed=True, logp=logp, advantages=advantages, mask=mask)
    if is_traced(logp):
        from logitless.inputs.untraced import untraced

        out: Covariance = untraced(covariance, logp, advantages, mask, data_group=data_group)
        return out
    refuse_grad(logp=logp, advantages=advantages)
    kernels = registry.token_kernels_of(logp)
    reduce = reduction(data_group, kernels)
    tokens = make_tokens(logp, advantages, mask, kernels=kernels)
    given = batch_means(tokens, reduce)
    if kernels.on_host:
        found = _report(tokens, given, reduce)
    else:
        there = cast(DeviceTokenKernels, kernels)
        means = (given.advantage, given.logp)
        found = there.covariance_report(tokens, means, given.tokens, QUANTILES, ABOVE, reduce)
    kernels.done("covariance")
    return Covariance(
        mean=found.mean,
        correlation=found.correlation,
        mean_advantage=given.advantage,
        mean_logp=given.logp,
        count=given.tokens,
        # none of no tokens, where the host knows that
        quantiles=dict(zip(QUANTILES, found.quantiles, strict=False)),
        above_one=found.above,
    )


def _report(tokens: Tokens, given: Means, reduce: Reduce) -> CovarianceReport:
    """What a device's kernels do in one pass."""
    kernels, xp = kernels_of(tokens), tokens.xp
    tokens, means = ordinary(tokens, given)
    exponent = sum(given.exponents)
    running = covariance_candidates(tokens, means)
    a = valid(tokens, tokens.advantages) - means.advantage
    lp = valid(tokens, tokens.logp) - means.logp
    cov = a * lp
    above = xp.cast(cov > float(scaled_by(ABOVE, -exponent)), xp.float64)
    squares = ("(advantages - mean)^2", "(logp - mean)^2")
    variance_a, variance_lp, *_ = exact_means(tokens, a * a, lp * lp, squares, reduce)
    mean, share, count, *_ = exact_means(tokens, cov, above, ("covariances", "shares"), reduce)
    spread = math.sqrt(variance_a) * math.sqrt(variance_lp)
    quantiles = [
        _unscaled(kernels.kth_largest(running, _from_top(q, count), reduce), exponent)
        for q in (QUANTILES if count else ())
    ]
    correlation = mean / spread if spread > 0 else 0.0
    return CovarianceReport(_unscaled(mean, exponent), correlation, share, tuple(quantiles))


def _from_top(q: float, count: int) -> int:
    """Which of so many in falling order is the first that at least a share q does not exceed."""
    return count - math.ceil(q * count) + 1


def _unscaled(value: float, exponent: int) -> float:
    result = float(scaled_by(value, exponent))
    if not math.isfinite(result):
        raise ValueError(
            "advantages and logp must have a covariance that float64 can hold, got "
            f"{value} * 2^{exponent}"
        )
    return result
