"""This library."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import logitless as ll
from benchmarks.cases.inputs import TokenInputs
from benchmarks.cases.specs import (
    CLIP_COV,
    KL_COV,
    SPEC,
    SPEC_WITH_BONUS,
    STATS_SPEC,
    WEIGHTS,
)
from benchmarks.harness.case import OURS as KIND
from benchmarks.harness.case import Implementation, Results
from logitless.inputs.options import ROW_EXTRAS


def named(stats: ll.TokenStats) -> Results:
    return {"logp": stats.logp, "entropy": stats.entropy, **stats.extras}


def our_rows(logits: Tensor, targets: Tensor, **options: Any) -> Results:
    return named(ll.token_stats(logits, targets, **options))


def our_head(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Results:
    return named(ll.linear_token_stats(hidden, weight, targets, **options))


def our_masked_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: ll.SamplingMask, **options: Any
) -> Results:
    return our_head(hidden, weight, targets, sampling_mask=mask, **options)


def our_divergence(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, kind: str,
    **options: Any,
) -> Results:  # fmt: skip
    out = ll.linear_divergence(hidden, weight, teacher_hidden, teacher_weight, kind=kind, **options)
    return {"divergence": out.divergence, "entropy": out.entropy.detach()}


def our_policy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    tokens: TokenInputs,
    spec: ll.PolicyLossSpec = SPEC,
    **options: Any,
) -> Results:
    data = (tokens.old_logp, tokens.advantages, tokens.mask)
    return {"loss": ll.linear_policy_loss(hidden, weight, targets, *data, spec, **options).loss}


def our_policy_apart(
    hidden: Tensor, weight: Tensor, targets: Tensor, tokens: TokenInputs, spec: ll.PolicyLossSpec
) -> Results:
    """The statistics, then the loss of them: the logits are kept for the backward."""
    stats = ll.linear_token_stats(hidden, weight, targets)
    data = (tokens.old_logp, tokens.advantages, tokens.mask)
    return {"loss": ll.policy_loss(stats.logp, *data, spec, entropy=stats.entropy).loss}


def our_sample(hidden: Tensor, weight: Tensor, **options: Any) -> Results:
    rows = torch.arange(len(hidden), device=hidden.device)
    return ll.linear_sample(hidden, weight, seed=0, step=0, row_ids=rows, **options)._asdict()


def our_loss(logp: Tensor, tokens: TokenInputs) -> Results:
    out = ll.policy_loss(logp, tokens.old_logp, tokens.advantages, tokens.mask, SPEC)
    return {"loss": out.loss}


def our_selecting(logp: Tensor, tokens: TokenInputs, spec: ll.PolicyLossSpec) -> Results:
    """Means, covariances and the selection of the whole batch, then its loss."""
    data, ids = (tokens.advantages, tokens.mask), token_ids(len(logp), str(logp.device))
    old = tokens.old_logp if spec is CLIP_COV else None
    batch = ll.batch_stats(logp.detach(), *data, spec, old_logp=old, token_ids=ids, seed=0, step=0)
    out = ll.policy_loss(logp, tokens.old_logp, *data, spec, token_ids=ids, batch=batch)
    return {"loss": out.loss}


@functools.lru_cache(maxsize=1)
def token_ids(n: int, device: str) -> Tensor:
    """A part of the inputs: a trainer numbers its tokens once a rollout."""
    return torch.arange(n, device=device)


@functools.lru_cache(maxsize=1)
def numpy_ids(n: int) -> npt.NDArray[np.int64]:
    return np.arange(n)


def our_batch_stats(tokens: TokenInputs) -> dict[str, Any]:
    n, torch_given = len(tokens.logp), isinstance(tokens.logp, Tensor)
    ids = token_ids(n, str(tokens.logp.device)) if torch_given else numpy_ids(n)
    data = (tokens.logp, tokens.advantages, tokens.mask)
    found = ll.batch_stats(*data, STATS_SPEC, token_ids=ids, seed=0, step=0)
    return {
        "mean_advantage": found.mean_advantage,
        "mean_logp": found.mean_logp,
        "selected": found.selected,
    }


def our_weights(tokens: TokenInputs) -> Results:
    """As if `logp` were what the rollout's engine had reported."""
    found = ll.rollout_weights(tokens.old_logp, tokens.logp, tokens.mask, WEIGHTS)
    return {"weights": found.weights}


OURS = Implementation(
    "logitless",
    KIND,
    {
        "rows": lambda: our_rows,
        "rows in place": lambda: functools.partial(our_rows, inplace_backward=True),
        "rows with extras": lambda: functools.partial(our_rows, extras=ROW_EXTRAS),
        "head": lambda: our_head,
        "masked head": lambda: our_masked_head,
        "divergence": lambda: our_divergence,
        "policy": lambda: our_policy,
        "policy with bonus": lambda: functools.partial(our_policy, spec=SPEC_WITH_BONUS),
        "sample": lambda: our_sample,
        "loss": lambda: our_loss,
        "clip cov": lambda: functools.partial(our_selecting, spec=CLIP_COV),
        "kl cov": lambda: functools.partial(our_selecting, spec=KL_COV),
        "batch stats": lambda: our_batch_stats,
        "rollout weights": lambda: our_weights,
    },
)
