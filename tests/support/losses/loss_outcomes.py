"""`policy_loss` as numbers: what the tests compare with the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.backends.token_kernels.protocol import SUMS
from logitless.loss.evaluate.coefficients import call_inputs, check_loss_options, metrics_of
from logitless.loss.evaluate.inputs import loss_data
from logitless.loss.evaluate.params import loss_fields
from logitless.loss.evaluate.token_loss import evaluate
from logitless.loss.spec import PolicyLossSpec
from logitless.loss.spec.policy_spec import coefficients_of


def core_params(spec: PolicyLossSpec) -> dict[str, Any]:
    """What `_core.tokens.token_loss` is told of a spec, and memory for its sums."""
    entropy, kl, penalty = coefficients_of(spec)
    return {
        "params": CPU_TOKENS.params(loss_fields(spec)), "entropy_coefficient": entropy,
        "kl_coefficient": kl, "penalty_coefficient": penalty, "sums": np.full(len(SUMS), np.nan),
    }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A call's numbers; coefficients are flat."""

    loss: float
    metrics: dict[str, float]
    g_logp: Any
    g_entropy: Any


def coefficients(
    logp: Any,
    old_logp: Any,
    advantages: Any,
    mask: Any,
    spec: PolicyLossSpec,
    *,
    batch: Any = None,
    totals: Any = None,
    grad_scale: float = 1.0,
    entropy: Any = None,
    kernels: Any = CPU_TOKENS,
    **more: Any,
) -> tuple[Any, Outcome]:
    """`policy_loss` as numbers: the tokens; loss, metrics and coefficients."""
    names = ("ref_logp", "rollout_logp", "cu_seqlens", "token_ids")
    weights, metrics_as = more.pop("weights", None), more.pop("metrics", "shares")
    check_loss_options(spec, batch, totals, grad_scale, more.get("token_ids"))
    old_entropy = more.pop("old_entropy", None)
    rest = (more.pop(name, None) for name in names)
    data = loss_data(
        old_logp,
        advantages,
        mask,
        *rest,
        spec,
        batch,
        totals,
        grad_scale,
        weights,
        metrics_as,
        old_entropy,
    )
    assert not more
    inputs = call_inputs(logp, entropy, data, kernels)
    found, g_logp, g_entropy = evaluate(inputs)
    sums = np.asarray(found.cpu() if hasattr(found, "cpu") else found)
    table = metrics_of(data, entropy=entropy is not None)
    total = sums[SUMS.index("tokens")] if data.total_tokens is None else data.total_tokens
    values = [sums[i] / (max(total, 1) if per_token else 1) for i, per_token in table.sums]
    metrics = dict(zip(table.names, values, strict=True))
    return inputs.tokens, Outcome(float(sums[0]), metrics, g_logp, g_entropy)
