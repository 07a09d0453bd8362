"""The micro-batches of one optimizer step: what they share, for losses that look at all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.trl.arrays import per_token, rollout_logp, valid

# More than any completion is long.
LONGEST = 1 << 32


class Scored(NamedTuple):
    """Of one micro-batch under the current weights, [B, T] each."""

    logp: Tensor
    entropy: Tensor
    entropy_change: Tensor | None


class OptimizerBatch(NamedTuple):
    """`batch` where the loss selects or needs means, else the counts alone are known."""

    totals: ll.Totals
    batch: ll.BatchStats | None
    # of each micro-batch
    token_ids: list[Tensor]  # [B, T] int64

    def options(self, place: int) -> dict[str, Any]:
        """Of linear_policy_loss, for one of the micro-batches."""
        known = {"totals": self.totals} if self.batch is None else {"batch": self.batch}
        return {**known, "token_ids": self.token_ids[place]}


def optimizer_batch(
    micro_batches: Sequence[dict[str, Any]],
    spec: ll.PolicyLossSpec,
    score: Callable[[dict[str, Any]], Scored],
    *,
    old_is_current: bool,
    rank: int,
    data_group: Any,
    seed: int,
    step: int,
) -> OptimizerBatch:
    """`score` runs where the old log-probs are not there, or of other weights, or not enough."""
    masks = [valid(inputs) for inputs in micro_batches]
    ids = _token_ids(masks, rank)
    if not (spec.selects or spec.needs_means):
        return OptimizerBatch(_totals(masks, data_group), None, ids)
    old: list[Any] = [inputs.get("old_per_token_logps") for inputs in micro_batches]
    has_old = all(x is not None for x in old)
    scored = None
    if not (has_old and old_is_current) or spec.needs & {"entropy", "entropy_change"}:
        scored = [score(inputs) for inputs in micro_batches]
    rollout = [rollout_logp(inputs) for inputs in micro_batches]
    advantages = [x["advantages"] for x in micro_batches]
    logp = old if scored is None else [x.logp for x in scored]
    batch = ll.batch_stats(
        torch.cat(logp),
        torch.cat([per_token(x, mask) for x, mask in zip(advantages, masks, strict=True)]),
        torch.cat(masks),
        spec,
        old_logp=torch.cat(old) if has_old else None,
        entropy=None if scored is None else torch.cat([x.entropy for x in scored]),
        entropy_change=_joined(None if scored is None else [x.entropy_change for x in scored]),
        rollout_logp=_joined(rollout),
        token_ids=torch.cat(ids),
        data_group=data_group,
        seed=seed,
        step=step,
    )
    return OptimizerBatch(batch.totals, batch, ids)


def _joined(parts: Sequence[Tensor | None] | None) -> Tensor | None:
    known = [x for x in parts or () if x is not None]
    return torch.cat(known) if known else None


def _token_ids(masks: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Rows are numbered over the micro-batches of all ranks, each of which has as many."""
    first, ids = rank * sum(len(mask) for mask in masks), []
    for mask in masks:
        rows = torch.arange(first, first + len(mask), device=mask.device)
        positions = torch.arange(mask.shape[1], device=mask.device)
        ids.append(ll.token_ids(rows[:, None], positions, LONGEST))
        first += len(mask)
    return ids


def _totals(masks: Sequence[Tensor], data_group: Any) -> ll.Totals:
    local = torch.tensor([0, 0, 1], device=masks[0].device)
    parts = [torch.stack((mask.sum(), mask.any(dim=1).sum(), local[0])) for mask in masks]
    counts = torch.stack((local, *parts)).sum(dim=0)
    if data_group is not None:
        torch.distributed.all_reduce(counts, group=data_group)
    return ll.Totals(*counts.tolist())
